"""The training records that are nearest to what went wrong."""

import json

import numpy as np
import pytest
import torch
from cli import tiny

from gptft.errors import UserError
from gptft.evaluation.mending import (
    Pieces,
    embed,
    find_nearest,
    is_failure,
    pieces_of,
    read_training,
    that_can_be_asked,
)
from gptft.generation import prompt_ids

TRAINING = [
    {"question": "What is the capital of France?", "answer": "Paris"},
    {"question": "What is the capital of Spain?", "answer": "Madrid"},
    {"question": "Write a poem about rain.", "answer": "Drip drop"},
    {"question": "Add three and four, please.", "answer": "7"},
    {"question": "How many legs has a spider?", "answer": "8"},
    {"question": "Who wrote Hamlet?", "answer": "Shakespeare"},
    {"question": "Translate 'house' into French.", "answer": "maison"},
]


def failing(prompt, answer="?"):
    return {"record": {"question": prompt, "answer": "x"}, "expected": "x", "after": answer, "mistakes": {"after": []}}


def test_the_same_prompt_is_the_nearest_by_both_measures(write_lines):
    model, tokenizer = tiny()
    path = write_lines(TRAINING)
    entries, lost = read_training([path], {})
    assert not lost
    failures = [failing(record["question"]) for record in TRAINING]
    rows = list(find_nearest(model, tokenizer, failures, entries, {}, {}))
    for line, (row, record) in enumerate(zip(rows, TRAINING, strict=True), 1):
        first = row["nearest"][0]
        assert (first["file"], first["line"], first["record"]) == (str(path), line, record)
        assert first["hidden"] == 1.0 and first["text"] == 1.0
        assert all(other["hidden"] < 1.0 and other["text"] < 1.0 for other in row["nearest"][1:])
    assert rows[0]["nearest"][0] == {"file": str(path), "line": 1, "hidden": 1.0, "text": 1.0, "record": TRAINING[0]}
    assert [row["answer"] for row in rows] == ["?"] * len(rows) and rows[0]["expected"] == "x"
    assert 2 in [each["line"] for each in rows[0]["nearest"]]  # the same question of another country
    json.dumps(rows)


def test_what_was_asked_is_no_lesson_to_itself(write_lines):
    """A run's own file holds its test records, too."""
    model, tokenizer = tiny()
    path = write_lines(TRAINING)
    (entries, _), files = read_training([path], {}), {str(path)}
    failures = [failing("?") | {"record": TRAINING[0]}]
    (row,) = find_nearest(model, tokenizer, failures, entries, {}, {}, files)
    assert TRAINING[0] not in [each["record"] for each in row["nearest"]] and len(row["nearest"]) >= 3
    (row,) = find_nearest(model, tokenizer, failures, entries[:1], {}, {}, files)
    assert row["nearest"] == []
    (row,) = find_nearest(model, tokenizer, failures, entries, {}, {})  # of another file it was trained on
    assert TRAINING[0] in [each["record"] for each in row["nearest"]]


def test_by_text_the_share_of_words_and_pairs_counts():
    assert pieces_of(["What is it?", "It"]) == {"what", "is", "it", "what is", "is it", "it it"}
    texts = [pieces_of(["a b c"]), pieces_of(["x y"]), set()]
    asked = pieces_of(["a b z"])
    expected = [len(text & asked) / len(text | asked) for text in texts]
    assert np.allclose(Pieces(texts).shares(asked), expected) and expected[0] == 3 / 7
    assert not Pieces(texts).shares(set()).any()


def test_an_embedding_is_the_mean_of_the_prompts_own_hidden_states():
    """In a batch of unequal prompts the padding counted, at first."""
    model, tokenizer = tiny(block_size=64)
    prompts = ["Hi", "Who is it that knocks at the door so late?", "word " * 100]
    found = embed(model.train(), tokenizer, prompts)
    assert model.training
    model.eval()
    for vector, prompt in zip(found, prompts, strict=True):
        ids = prompt_ids(tokenizer, prompt)[-64:]
        with torch.no_grad():
            assert torch.allclose(vector, model.hidden(torch.tensor([ids]))[0].mean(0), atol=1e-5)


def test_a_failure_is_what_has_a_mistake_or_is_not_what_was_expected():
    right = failing("a", "x")
    assert is_failure(failing("a"), "after") and not is_failure(right, "after")
    assert is_failure(right | {"mistakes": {"after": ["no_stop"]}}, "after")


def test_training_data_without_prompts_is_refused(tmp_path, write_lines):
    path = write_lines([{"text": "Once upon a time."}])
    with pytest.raises(UserError, match="no record with a prompt and a response"):
        read_training([path], {})


def test_what_is_no_lesson_is_counted(write_lines):
    """A record that cannot be read was left out without a word; one that the template has no place for ended all."""
    talk = [{"role": role, "content": "Hm?"} for role in ("user", "assistant", "user", "assistant")]
    path = write_lines([TRAINING[0], {"question": 5, "answer": "x"}, {"text": "Once."}, {"messages": talk}])
    entries, lost = read_training([path], {})
    assert [entry.line for entry in entries] == [1, 4] and lost == 2
    _, tokenizer = tiny(template="alpaca")
    assert [entry.line for entry in that_can_be_asked(tokenizer, entries, {})] == [1]


def test_what_was_asked_takes_no_others_place(write_lines, monkeypatch):
    """It stood nearest to itself, and was taken out of the list afterwards: of one that was wanted none was left."""
    monkeypatch.setattr("gptft.evaluation.mending.NEAREST", 1)
    model, tokenizer = tiny()
    path = write_lines(TRAINING)
    entries, _ = read_training([path], {})
    failures = [failing(record["question"]) | {"record": record} for record in TRAINING]
    for row in find_nearest(model, tokenizer, failures, entries, {}, {}, {str(path)}):
        assert row["nearest"] and row["record"] not in [each["record"] for each in row["nearest"]]
