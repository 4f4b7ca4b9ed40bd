"""The line on the data at the start of every run."""

import json
import os
import sys

import pytest

from gptft.curation import brief
from gptft.curation.brief import describe_data
from gptft.data.build import Recipe
from gptft.data.examples import load_dataset
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded

GOOD = [{"question": f"What is the name of number {n}?", "answer": f"It is called {n}."} for n in range(30)]


def describe(template="qa", fields=None, **files):
    """The line on data sets of these files."""
    tokenizer = embedded()
    tokenizer.template = TEMPLATES[template]
    recipe = Recipe(tokenizer.template, 1000, fields=fields)
    datasets = {name: load_dataset([path], tokenizer, recipe) for name, path in files.items()}
    return describe_data(datasets, fields or {}, tokenizer.template)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_counts_what_the_linter_finds_and_is_worked_out_once(write_lines, monkeypatch, cache):
    path = write_lines([*GOOD, GOOD[0], {"question": "And?", "answer": "As an AI language model, I cannot say."}])
    line = describe(data=path)
    assert line == "lint: 1 duplicate, 1 refusal; python -m gptft lint shows them, in 32 records"
    monkeypatch.setattr(brief, "look_through", lambda *_: pytest.fail("looked through again"))
    assert describe(data=path) == line
    assert [name for name in os.listdir(cache) if name.startswith("lint-")]


def test_good_data_says_so_and_leaks_are_found(write_lines):
    path, val = write_lines(GOOD), write_lines([{**GOOD[4], "answer": "No."}], "val.jsonl")
    assert describe(data=path) == "lint: nothing found, in 30 records"
    both = describe(data=path, val_data=val)
    assert both == "lint: 1 leak; python -m gptft lint shows them, in 31 records"


def test_a_large_file_is_looked_at_in_part(write_lines, monkeypatch):
    monkeypatch.setattr(brief, "AT_MOST", 10)
    path = write_lines([*GOOD, GOOD[0]])
    assert describe(data=path) == "lint: nothing found, in the first 10 records"


def test_a_long_text_is_looked_at_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("gptft.curation.lint.CHARACTERS", 1000)
    (tmp_path / "t.txt").write_text("Plain text. " * 50_000 + "<|endoftext|>")
    line = describe("plain", data=tmp_path / "t.txt")
    assert line == "lint: nothing found, in the first 1 record"


def test_what_was_cached_without_ftfy_is_looked_for_again_where_it_is_there(write_lines, monkeypatch):
    path = write_lines([*GOOD, {"question": "Where is it sold?", "answer": "In a café.".encode().decode("cp1252")}])
    with monkeypatch.context() as without:
        without.setattr(brief.importlib.util, "find_spec", lambda name: None)
        without.setitem(sys.modules, "ftfy", None)
        assert "nothing found" in describe(data=path)
    assert "1 mojibake" in describe(data=path)


def test_fields_name_what_is_looked_at(write_lines):
    path = write_lines([{"q": record["question"], "a": "<|endoftext|>"} for record in GOOD])
    line = describe(fields={"instruction": "q", "response": "a"}, data=path)
    assert "30 special" in line and json.dumps(line)
