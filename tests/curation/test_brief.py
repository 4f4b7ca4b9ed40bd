"""The line on the data at the start of every run."""

import json
import os
import sys

import pytest

from gptft.curation import brief
from gptft.curation.brief import describe_data
from gptft.prompts import TEMPLATES

GOOD = [{"question": f"What is the name of number {n}?", "answer": f"It is called {n}."} for n in range(30)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_counts_what_the_linter_finds_and_is_worked_out_once(write_lines, monkeypatch, cache):
    path = write_lines([*GOOD, GOOD[0], {"question": "And?", "answer": "As an AI language model, I cannot say."}])
    line = describe_data({"data": [str(path)]}, {}, TEMPLATES["qa"])
    assert line == "lint: 1 duplicate, 1 refusal; python -m gptft lint shows them, in 32 records"
    monkeypatch.setattr(brief, "look_through", lambda *_: pytest.fail("looked through again"))
    assert describe_data({"data": [str(path)]}, {}, TEMPLATES["qa"]) == line
    assert [name for name in os.listdir(cache) if name.startswith("lint-")]


def test_good_data_says_so_and_leaks_are_found(write_lines):
    path, val = write_lines(GOOD), write_lines([{**GOOD[4], "answer": "No."}], "val.jsonl")
    assert describe_data({"data": [str(path)]}, {}, TEMPLATES["qa"]) == "lint: nothing found, in 30 records"
    both = describe_data({"data": [str(path)], "val_data": [str(val)]}, {}, TEMPLATES["qa"])
    assert both == "lint: 1 leak; python -m gptft lint shows them, in 31 records"


def test_a_large_file_is_looked_at_in_part(write_lines, monkeypatch):
    monkeypatch.setattr(brief, "AT_MOST", 10)
    path = write_lines([*GOOD, GOOD[0]])
    assert describe_data({"data": [str(path)]}, {}, TEMPLATES["qa"]) == "lint: nothing found, in the first 10 records"


def test_a_long_text_is_looked_at_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("gptft.curation.lint.CHARACTERS", 1000)
    (tmp_path / "t.txt").write_text("Plain text. " * 50_000 + "<|endoftext|>")
    line = describe_data({"data": [str(tmp_path / "t.txt")]}, {}, TEMPLATES["plain"])
    assert line == "lint: nothing found, in the first 1 record"


def test_what_was_cached_without_ftfy_is_looked_for_again_where_it_is_there(write_lines, monkeypatch):
    path = write_lines([*GOOD, {"question": "Where is it sold?", "answer": "In a café.".encode().decode("cp1252")}])
    with monkeypatch.context() as without:
        without.setattr(brief.importlib.util, "find_spec", lambda name: None)
        without.setitem(sys.modules, "ftfy", None)
        assert "nothing found" in describe_data({"data": [str(path)]}, {}, TEMPLATES["qa"])
    assert "1 mojibake" in describe_data({"data": [str(path)]}, {}, TEMPLATES["qa"])


def test_fields_name_what_is_looked_at(write_lines):
    path = write_lines([{"q": record["question"], "a": "<|endoftext|>"} for record in GOOD])
    line = describe_data({"data": [str(path)]}, {"instruction": "q", "response": "a"}, TEMPLATES["qa"])
    assert "30 special" in line and json.dumps(line)
