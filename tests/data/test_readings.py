"""Which template the records ask for: compared over every record of every file, said, and kept."""

import json
import os
import random

import pytest

from gptft.data import readings
from gptft.data.readings import choose_template, survey
from gptft.data.shapes import LISTS, READINGS, recognise, used_keys
from gptft.errors import BadRecord, UserError
from gptft.prompts import TEMPLATES
from gptft.run.console import describe_ledger

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is an instruction ... 3"}
TURNS = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1."}]
RECORDS = {
    "messages": {"messages": TURNS},
    "alpaca": {"instruction": "a", "output": "b"},
    "qa": {"question": "a", "answer": "b"},
    "plain": {"text": "t"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def choose(*paths, name="auto", fields=None, trained_with=None):
    return choose_template(name, fields or {}, trained_with, paths)


# ---- one record


def test_the_text_beside_an_instruction_is_not_taken_for_the_record():
    """tatsu-lab/alpaca has `instruction, input, output, text`: it was given the template of plain text."""
    assert recognise(ALPACA) == {"instruction": "Add.", "input": "1 2", "response": "3"}
    assert "text" not in used_keys(ALPACA)


@pytest.mark.parametrize("other", ["text", "prompt", "instruction", "system", "input"])
def test_messages_beside_keys_that_make_no_record_are_the_record(other):
    assert recognise({other: "x", "messages": TURNS}) == {"messages": TURNS}
    assert used_keys({other: "x", "messages": TURNS}) == {"messages": "messages"}


def test_of_two_readings_the_one_whose_keys_contain_the_others_is_taken():
    assert used_keys(["output", "input", "instruction"]) == READINGS[1].parts
    for reading in READINGS:
        assert used_keys(list(reading.parts)) == reading.parts


@pytest.mark.parametrize(
    "keys, ways",
    [
        (("question", "answer", "prompt", "completion"), ("'question', 'answer'", "'prompt', 'completion'")),
        (("instruction", "output", "response"), ("'instruction', 'output'", "'instruction', 'response'")),
        (("messages", "prompt", "completion", "text"), ("'messages'", "'prompt', 'completion'")),
    ],
)
def test_a_record_with_two_readings_is_refused_with_both(write_lines, keys, ways):
    """The first of a list of ours was once taken, without a word."""
    record = dict.fromkeys(keys, "x")
    with pytest.raises(BadRecord, match="name the keys to use with --fields") as caught:
        recognise(record)
    path = write_lines([record])
    with pytest.raises(UserError, match=r"line 1: it can be read in several ways.*--fields") as whole_file:
        choose(path)
    for way in ways:
        assert way in str(caught.value) and way in str(whole_file.value)
    choose(path, fields={"instruction": keys[0], "response": keys[1]})


def test_a_system_text_beside_a_plain_text_is_named_as_unused(write_lines):
    """It counted as used, and no template of a text writes it."""
    assert recognise({"text": "t", "system": "s"}) == {"text": "t"}
    assert choose(write_lines([{"text": "t", "system": "s"}]))[1]["unused_keys"] == {"system": 1}


# ---- all records of all files


def test_alpaca_with_its_text_gets_the_template_alpaca_and_says_why(write_lines):
    records = [{**ALPACA, "id": n} if n % 2 else {**ALPACA, "input": ""} for n in range(10)]
    template, choice = choose(write_lines(records))
    assert template is TEMPLATES["alpaca"]
    assert choice == {
        "template": "alpaca",
        "why": "by the records' keys",
        "keys": {"instruction": "instruction", "input": "input", "output": "response"},
        "records": 10,
        "unused_keys": {"text": 10, "id": 5},
    }


@pytest.mark.parametrize("expected", ["chatml", "alpaca", "qa", "plain"])
def test_each_reading_asks_for_its_template(write_lines, expected):
    for number, reading in enumerate(READINGS):
        if reading.template == expected:
            record = dict.fromkeys(reading.parts, "x")
            if record.pop(LISTS, None):
                record = dict.fromkeys(record, TURNS)
            path = write_lines([record], f"{number}.jsonl")
            assert choose(path)[0] is TEMPLATES[expected]


@pytest.mark.parametrize("late", ["messages", "qa", "plain"])
def test_records_that_ask_for_another_template_are_refused_wherever_they_stand(write_lines, late):
    """Only the first record of each file was looked at: what came later was trained in the wrong template."""
    path = write_lines([RECORDS["alpaca"]] * 20 + [RECORDS[late]], "a.jsonl")
    other = write_lines([RECORDS[late]] * 2, "b.jsonl")
    first = write_lines([RECORDS["alpaca"]], "c.jsonl")
    for paths, line in (([path], f"{path}, line 21"), ([first, other], f"{other}, line 1")):
        with pytest.raises(UserError, match="choose one with --template") as caught:
            choose(*paths)
        _, *lines = str(caught.value).split("\n")
        assert len(lines) == 2 and f"{paths[0]}, line 1: alpaca, by the keys 'instruction', 'output'" in lines[0]
        assert line in lines[1]
    assert choose(path, name="chatml")[1]["records"] == 21  # a choice of one's own settles it
    assert choose(path, trained_with=TEMPLATES["qa"])[0] is TEMPLATES["qa"]


@pytest.mark.parametrize("name", ["auto", "alpaca"])
@pytest.mark.parametrize(
    "odd, key",
    [
        ({"input": "x", "output": "y"}, "input"),  # the instruction is missing: the input was taken for it
        ({"instruction": "x", "text": "y"}, "instruction"),  # no output: the text alone was trained on
    ],
)
def test_a_key_that_would_play_two_parts_is_refused_with_a_line_of_each_kind(write_lines, odd, key, name):
    path = write_lines([*[ALPACA] * 5, odd])
    with pytest.raises(UserError, match=f"the key '{key}' would not play the same part") as caught:
        choose(path, name=name)
    _, *lines = str(caught.value).split("\n")
    assert f"{path}, line 1: " in lines[0] and f"{path}, line 6: " in lines[1]
    fields = {"instruction": "instruction", "input": "input", "response": "output"}
    assert choose(path, name=name, fields=fields)[0] is TEMPLATES["alpaca"]


def test_an_input_that_some_records_lack_is_no_disagreement(write_lines):
    path = write_lines([{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "i", "output": "b"}])
    assert choose(path)[1]["keys"] == {"instruction": "instruction", "output": "response", "input": "input"}


def test_plain_text_gives_way_to_what_the_records_ask_for(write_lines):
    """`plain` is what pretraining leaves in a checkpoint."""
    assert choose(write_lines([RECORDS["qa"]]), trained_with=TEMPLATES["plain"])[0] is TEMPLATES["qa"]
    template, choice = choose(write_lines([RECORDS["qa"]]), trained_with=TEMPLATES["chatml"])
    assert template is TEMPLATES["chatml"] and choice["why"] == "the model was trained with it"


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"messages": "chat"}, "chatml"),
        ({"text": "body"}, "plain"),
        ({"instruction": "question", "response": "a"}, "qa"),
        ({"instruction": "q", "response": "a"}, "alpaca"),
    ],
)
def test_fields_choose_too_and_what_they_leave_is_unused(write_lines, fields, expected):
    record = {**dict.fromkeys(fields.values(), "x"), "prompt": "p", "extra": "e"}
    template, choice = choose(write_lines([record] * 3), fields=fields)
    assert template is TEMPLATES[expected]
    assert choice["records"] == 3 and choice["unused_keys"] == {"prompt": 3, "extra": 3}
    assert choice["keys"] == {key: part for part, key in fields.items()}


@pytest.mark.parametrize("part", ["text", "messages"])
def test_fields_that_would_play_no_part_are_refused(write_lines, part):
    """A text is trained on as it stands: an instruction named beside it was left out without a word."""
    path = write_lines([{"a": "x", "b": "y"}])
    with pytest.raises(UserError, match=f"--fields {part}=...: it makes a record by itself; system would not be used"):
        choose(path, fields={"system": "a", part: "b"})


def test_the_start_says_template_keys_and_records(write_lines):
    _, choice = choose(write_lines([ALPACA] * 3))
    nothing = ("records_read", "records_kept", "records_cut", "examples", "tokens_read", "targets", "tokens_cut")
    ledger = {**dict.fromkeys(nothing, 0), "tokens_dropped": 0, "records_dropped": {}, "unused_keys": {"text": 3}}
    first, *rest = describe_ledger("data", {**ledger, "template": choice}).split("\n")
    assert first == (
        "template: alpaca (by the records' keys); keys instruction, input, output (as response); 3 records"
    )
    assert rest[1] == "  not used: the key 'text' of 3 records"


# ---- the pass over the records


def survey_by_hand(records):
    """{known keys: (how many, line of the first)}, and how many records have each other key."""
    kinds, others = {}, {}
    for line, record in enumerate(records, 1):
        keys = frozenset(record) & readings.KNOWN
        count, first = kinds.get(keys, (0, line))
        kinds[keys] = (count + 1, first)
        for key in record.keys() - keys:
            others[key] = others.get(key, 0) + 1
    return kinds, others


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_survey_counts_every_kind_with_the_line_of_its_first_record(tmp_path, name):
    rng = random.Random(0)
    pool = ["instruction", "input", "output", "text", "question", "answer", "id", "tags"]
    records = [dict.fromkeys(rng.sample(pool, rng.randint(0, 4)), "x") for _ in range(300)]
    lines = ",\n".join(map(json.dumps, records)) if name == "d.json" else "\n".join(map(json.dumps, records))
    (tmp_path / name).write_text(f"[{lines}]" if name == "d.json" else lines)
    kinds, others, _ = survey(tmp_path / name)
    assert ({kind.keys: (kind.count, kind.line) for kind in kinds}, dict(others)) == survey_by_hand(records)


def test_a_second_survey_does_not_read_the_records_again(write_lines, monkeypatch, cache):
    """A million records are parsed once, not at every start."""
    path = write_lines([ALPACA] * 5)
    first = survey(path)
    asked = []
    monkeypatch.setattr(readings, "raw_records", lambda path: asked.append(path) or iter(()))
    assert survey(path) == first and not asked and len(os.listdir(cache)) == 1
    path.write_text(path.read_text() + "\n")
    survey(path)
    assert asked == [path]


def test_what_cannot_be_parsed_is_left_to_the_reader_that_counts_bad_records(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": \n[1]\n{"question": "a", "answer": "b"}\n')
    template, choice = choose(tmp_path / "d.jsonl")
    assert template is TEMPLATES["qa"] and choice["records"] == 1
