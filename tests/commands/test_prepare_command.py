"""`python -m gptft prepare`: hydrated records, or nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli import GOOD, GPTFT, is_one_line, write

from gptft.data.examples import Recipe, load_dataset
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded

RECORDS = [
    {"instruction": "Say {x}.", "input": "", "output": "é \u2028 😀"},
    {"instruction": "Add.", "input": "1 and\n2", "output": "3 {instruction}"},
    {"question": "Literal <|endoftext|>?", "answer": "<|endoftext|> it is"},
    {"instruction": "half \ud83d", "response": "\ude00 of a pair"},
    {"text": "Plain text\nas it stands."},
]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_prepared_records_with_the_plain_template_give_the_same_ids(ask, template, place):
    """The file is what the course trains on: its ids and masks must be those of the template itself."""
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS))
    status, out, err = ask(GPTFT, "prepare", "--data", "d.jsonl", "--template", template, "--out", "x.jsonl")
    assert (status, out, err) == (0, "5 records in x.jsonl\n", "")
    tokenizer = embedded()
    a = load_dataset([Path("d.jsonl")], tokenizer, Recipe(TEMPLATES[template], 256))
    b = load_dataset([Path("x.jsonl")], tokenizer, Recipe(TEMPLATES["plain"], 256))
    assert len(a) == len(b) == 5
    for one, other in zip(a, b, strict=True):
        assert np.array_equal(one.ids, other.ids) and one.spans == other.spans
    first = json.loads(Path("x.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert list(first) == ["input", "output"] and "Say {x}." in first["input"]


def test_prepare_writes_nothing_where_a_record_is_bad(ask, place):
    write("d.jsonl", GOOD + '{"question": "a", "answer": ""}\n')
    write("x.jsonl", "what was there")
    status, out, err = ask(GPTFT, "prepare", "--data", "d.jsonl", "--template", "qa", "--out", "x.jsonl")
    assert status == 2 and out == ""
    is_one_line(err, "d.jsonl, line 2: key 'answer' is empty", "nothing was written")
    assert Path("x.jsonl").read_text() == "what was there" and sorted(os.listdir()) == ["d.jsonl", "x.jsonl"]


def test_prepare_does_not_overwrite_what_it_reads(ask):
    write("d.jsonl", GOOD)
    status, _, err = ask(GPTFT, "prepare", "--data", "d.jsonl", "--template", "qa", "--out", "./d.jsonl")
    assert status == 2 and Path("d.jsonl").read_text() == GOOD
    is_one_line(err, "--out ./d.jsonl is one of the files to read")


def test_prepare_without_records_writes_nothing(ask):
    write("d.json", "[]")
    status, _, err = ask(GPTFT, "prepare", "--data", "d.json", "--template", "qa", "--out", "x.jsonl")
    assert status == 2 and os.listdir() == ["d.json"]
    is_one_line(err, "d.json: there is no record")


def test_prepare_with_fields(ask):
    write("d.jsonl", '{"q": "How?", "a": "So."}\n')
    words = ["prepare", "--data", "d.jsonl", "--template", "qa", "--out", "x.jsonl"]
    assert ask(GPTFT, *words, "--fields", "instruction=q", "response=a")[0] == 0
    assert json.loads(Path("x.jsonl").read_text()) == {
        "input": "### Question:\nHow?\n\n### Answer:\n",
        "output": "So.",
    }
