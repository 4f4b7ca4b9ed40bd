"""--decode of `python -m gptft generate`, `chat` and `evaluate`: what the weights are held in while a model answers."""

import json

import pytest
from cli import GPTFT, is_one_line

from gptft import generation, loading
from gptft.fast.decoding_model import DecodingModel
from gptft.fast.weights import KINDS

WORDS = ("auto", "plain", *KINDS)


@pytest.fixture
def made(monkeypatch):
    """What the command arranged: (kind, rows, whether it took the weights away) a model."""
    found, make = [], DecodingModel.__init__
    monkeypatch.setattr(DecodingModel, "__init__", lambda *given: found.append(given[2:]) or make(*given))
    return found


@pytest.mark.parametrize("word", WORDS)
def test_generate_and_chat_answer_as_python_does(ask, saved, made, word):
    """The word is handed through; in a process that only answers, no weight is held twice."""
    path = saved(template="alpaca")
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, ["How many?", "Who is it?"], 8, decode=word)
    alone = generation.generate(model, tokenizer, ["How many?"], 8, decode=word)
    made.clear()
    how = ["--max_new_tokens", "8", "--decode", word]
    status, out, err = ask(GPTFT, "generate", path, "How many?", "Who is it?", *how)
    assert (status, err) == (0, "") and out == "".join(text + "\n" for text in expected)
    status, out, err = ask(GPTFT, "chat", path, *how, stdin="How many?\n")
    assert (status, err) == (0, "") and out == "".join(text + "\n" for text in alone)
    kind = {"auto": "fp32"}.get(word, word)
    rows = 16 if kind == "fp32" else 1  # in chat: those of a draft, which fewer bits have not
    assert made == ([] if word == "plain" else [(kind, 2, True), (kind, rows, True)])


@pytest.mark.parametrize("word", WORDS)
def test_evaluate_measures_what_the_answers_come_from(ask, saved, made, write_lines, pairs, word):
    """What is lost by fewer bits is in the losses, too; and two sides that differ by nothing do not differ."""
    path, data = saved(), write_lines(pairs(6))
    how = ["--data", data, "--samples", "3", "--max_new_tokens", "4", "--decode", word]
    status, _, err = ask(GPTFT, "evaluate", path, *how, "--generations", "2", "--out", "out")
    assert status == 0, err
    kinds = [kind for kind, *_ in made]
    assert kinds == {"auto": ["fp32", "fp32"], "plain": []}.get(word, [word])
    with open("out/evaluation.json") as file:
        loss = json.load(file)["likelihood"]["after"]["loss"]["value"]
    status, _, err = ask(GPTFT, "evaluate", path, *how[:-1], "plain", "--out", "plain")
    assert status == 0, err
    with open("plain/evaluation.json") as file:
        plain = json.load(file)["likelihood"]["after"]["loss"]["value"]
    limit = {"bf16": 1e-2, "int8": 1e-2, "fp32": 1e-5}.get(word, 0)
    assert abs(loss - plain) <= limit * plain
    assert (loss == plain) == (word in ("auto", "plain")) or word == "fp32"


def test_a_word_that_is_none_is_one_line(ask, saved):
    for command in ("generate", "chat"):
        status, out, err = ask(GPTFT, command, saved(command), "--decode", "int4")
        assert status == 2 and out == ""
        is_one_line(err, "--decode", "int4", "auto")
    status, out, err = ask(GPTFT, "evaluate", saved(), "--tasks", "arc_easy", "--decode", "int8")
    assert status == 2 and out == ""
    is_one_line(err, "--decode and --tasks")
