"""Held-out prompts: asked whole or not at all."""

from pathlib import Path

import pytest
from cli import tiny

from gptft.data.examples import Recipe, Split, load_dataset
from gptft.evaluation.responses import (
    Question,
    answer,
    describe_left_out,
    lack_of_room,
    make_questions,
    prompt_and_expected,
    shown_prompt,
)
from gptft.generation import Response, generate, prompt_ids


def prompt_of(tokenizer, length):
    """A prompt that is exactly so many tokens with its template."""
    text = "~"  # in nothing that the vocabulary merges
    while len(prompt_ids(tokenizer, {"instruction": text})) < length:
        text += "~"
    assert len(prompt_ids(tokenizer, {"instruction": text})) == length
    return {"instruction": text}


def test_a_prompt_is_asked_where_its_response_has_room():
    """A prompt that left room for one token of twelve was once answered with that one, and scored as wrong."""
    model, tokenizer = tiny(block_size=64)
    expected = "It is two, and then three."
    needed = len(tokenizer.encode(expected))
    assert needed > 3
    for length, max_new_tokens, has_room in (
        (65 - needed, 100, True),
        (66 - needed, 100, False),
        (66 - needed, needed - 1, True),  # no more than that is generated anyhow
        (64, 1, True),
        (64, 2, False),
        (65, 1, False),
        (80, 100, False),
    ):
        why = lack_of_room(model, tokenizer, prompt_of(tokenizer, length), expected, max_new_tokens)
        assert (why == "") == has_room, (length, max_new_tokens)
        if why:
            room, wanted = max(0, 65 - length), min(needed, max_new_tokens)
            assert why == f"its prompt of {length} tokens leaves room for {room} of {wanted} within block_size 64"


def test_the_room_is_what_decoding_has():
    """The rule counts one token more than block_size - p: the last one is never read."""
    model, tokenizer = tiny(block_size=32)
    for length in (28, 31, 32):
        prompt = prompt_of(tokenizer, length)
        ids = []
        tokenizer.decode = lambda answer, after=None, ids=ids: ids.append(list(answer)) or ""
        generate(model, tokenizer, [prompt], max_new_tokens=50)
        assert len(ids[0]) == 33 - length  # it fills all of its room, so the room is seen


@pytest.fixture
def questions(tmp_path, write_lines, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny(block_size=64)
    records = [
        {"question": "How many?", "answer": "Two."},
        {"question": " x" * 200, "answer": "Long."},
        {"question": "Who?", "answer": "Me."},
    ]
    path = write_lines(records)
    data = load_dataset([Path(path)], tokenizer, Recipe(tokenizer.template, 64, "left"))
    split = Split(data, range(len(data)))
    return model, tokenizer, make_questions(model, tokenizer, split, [0, 1, 2], {}, 8), path


def test_what_is_left_out_is_named_by_file_and_line(questions):
    _, _, asked, path = questions
    assert [bool(question.left_out) for question in asked] == [False, True, False]
    assert asked[1].left_out.startswith(f"{path}, line 2: its prompt of ")
    said = describe_left_out(asked, at_most=5)
    assert said.splitlines() == ["1 of 3 prompts are left out of the score:", f"  {asked[1].left_out}"]
    many = [Question({}, {}, "", f"line {n}") for n in range(7)]
    assert describe_left_out(many, at_most=2).splitlines()[1:] == ["  line 0", "  line 1", "  ... and 5 more"]
    assert describe_left_out(asked[:1], at_most=5) == ""


def test_the_others_are_answered_as_if_it_were_not_there(questions):
    model, tokenizer, asked, _ = questions
    alone = generate(model, tokenizer, ["How many?", "Who?"], 8)
    assert [each.text for each in answer(model, tokenizer, asked, 8, batch_size=2)] == [alone[0], "", alone[1]]
    assert answer(model, tokenizer, asked[1:2], 8, batch_size=2) == [Response("", 0, False)]


def test_a_conversations_last_answer_is_what_is_expected():
    turns = [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    parts, expected = prompt_and_expected({"messages": messages})
    assert parts == {"messages": messages[:4]} and expected == "d" and shown_prompt(parts) == "c"
    assert prompt_and_expected({"text": "no prompt"}) is None


def test_a_prompt_in_parts_of_ones_own_is_shown_whole():
    """Only instruction and input were shown, so that the table's column was empty."""
    fields = {"customer": "who", "wish": "what", "response": "answer"}
    parts, _ = prompt_and_expected({"who": "Ann", "what": "tea", "answer": "Here."}, fields)
    assert shown_prompt(parts) == "Ann / tea"
    parts, _ = prompt_and_expected({"system": "Be brief.", "instruction": "Add.", "input": "1 2", "output": "3"})
    assert shown_prompt(parts) == "Add. / 1 2"


def test_a_last_answer_without_a_text_is_left_out_of_the_score():
    """One that only calls a tool: its content is null, and a run ended in a traceback when its test began."""
    model, tokenizer = tiny(block_size=64)
    record = {
        "messages": [
            {"role": "user", "content": "Look it up."},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]},
        ]
    }
    parts, expected = prompt_and_expected(record)
    assert "no text to compare with" in lack_of_room(model, tokenizer, parts, expected, 10)
