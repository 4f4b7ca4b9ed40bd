"""What all commands have in common: a wrong word is one line and status 2, models and bases are named."""

import os

import pytest
from cli import GOOD, GPTFT, TRAIN, is_one_line, shell, write

from gptft import generation


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--bach_size", "4"], ["unknown flag --bach_size", "did you mean '--batch_size'?"]),
        (["--lr", "fast"], ["--lr must be a number, not 'fast'"]),
        (["--dropout", "2", "--out_dir", "out"], ["--dropout must be below 1, not 2.0"]),
        (["--config", "gone.toml", "--out_dir", "out"], ["--config: no such file: gone.toml"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(words, parts, place):
    status, out, err = shell(TRAIN, *words)
    assert status == 2 and out == "" and os.listdir(place) == []
    is_one_line(err, *parts)


@pytest.mark.parametrize(
    "words, parts",
    [
        (["generat", "model"], ["unknown command 'generat'; did you mean 'generate'?"]),
        (["generate"], ["required: model"]),
        (["generate", "m", "hi", "--tempature", "1"], ["--tempature", "did you mean '--temperature'?"]),
        (["generate", "m", "hi", "--max_new_tokens", "0"], ["--max_new_tokens", "at least 1, not '0'"]),
        (["generate", "m", "hi", "--max_input_tokens", "-3"], ["--max_input_tokens", "at least 0, not '-3'"]),
        (["chat", "m", "--top_k", "two"], ["--top_k", "must be a whole number of at least 0, not 'two'"]),
        (["evaluate", "m"], ["--data is missing", "--tasks"]),
        (["inspect", "--data", "x.json", "--rows", "0"], ["--rows", "at least 1, not '0'"]),
        (["prepare", "--data", "x.json", "--template", "qa"], ["required: --out"]),
        (["inspect", "--data", "x.json", "--fields", "instruction"], ["fields must be a table of KEY=VALUE"]),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(ask, words, parts):
    status, out, err = ask(GPTFT, *words)
    assert status == 2 and out == ""
    is_one_line(err, *parts)


def test_the_module_answers_like_the_function(place):
    """`python -m gptft` for once as a process."""
    status, out, err = shell(GPTFT, "generat", "model")
    assert status == 2 and out == ""
    is_one_line(err, "unknown command 'generat'")
    status, out, err = shell(GPTFT)
    assert status == 0 and err == ""
    assert all(name in out for name in ("train", "generate", "chat", "evaluate", "inspect", "prepare"))


def test_other_commands_name_a_model_that_is_not_there(ask):
    for words in (
        ["generate", "./gone", "hi"],
        ["chat", "./gone"],
        ["evaluate", "./gone", "--data", "embedded:text.txt"],
    ):
        status, out, err = ask(GPTFT, *words)
        assert status == 2 and out == ""
        is_one_line(err, "./gone: no such directory")


def test_every_command_takes_adapters_and_another_place_of_their_base(ask, adapted, place):
    """A base that was moved is named with --base; without it one line says so."""
    path, base, model, tokenizer = adapted
    expected = generation.generate(model, tokenizer, ["Hello"], 5)[0]
    base.rename(base.with_name("moved"))
    write("d.jsonl", GOOD)
    moved = ["--base", base.with_name("moved")]
    status, out, err = ask(GPTFT, "generate", path, "Hello", "--max_new_tokens", 5)
    assert status == 2 and out == ""
    is_one_line(err, "its base", str(base), "cannot be loaded", "no such directory", "--base")
    assert ask(GPTFT, "generate", path, "Hello", "--max_new_tokens", 5, *moved)[:2] == (0, expected + "\n")
    assert expected in ask(GPTFT, "chat", path, "--max_new_tokens", 5, *moved, stdin="Hello\n")[1]
    assert "token accuracy" in ask(GPTFT, "evaluate", path, "--data", "d.jsonl", *moved)[1]
    assert "template qa" in ask(GPTFT, "inspect", "--init", path, "--data", "d.jsonl", *moved)[1]
