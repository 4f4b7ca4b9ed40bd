"""`python -m gptft export`: models for other programs, or nothing."""

import os

import pytest
from cli import GOOD, GPTFT, TRAIN, is_one_line, write

from gptft import checkpoint, generation
from gptft.prompts import TEMPLATES


@pytest.mark.parametrize("form, name", [("hf", "out/hf"), ("peft", "out/peft")])
def test_export_writes_what_answers_as_the_adapters_did(ask, adapted, place, form, name):
    """Adapters are merged for transformers, and stay adapters for PEFT; template and stop come along both ways."""
    path, _, model, tokenizer = adapted
    tokenizer.template = TEMPLATES["chatml"]
    checkpoint.save(path, model, tokenizer, step=0)
    expected = generation.generate(model, tokenizer, ["Hello"], 12)[0]
    status, out, err = ask(GPTFT, "export", path, name, "--format", form)
    assert (status, err) == (0, "") and out.endswith(f"{name}\n")
    assert ask(GPTFT, "generate", name, "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")
    assert sorted(os.listdir("out")) == [name.removeprefix("out/")]


def test_export_writes_a_file_for_llama_cpp(ask, saved, place):
    pytest.importorskip("gguf")
    status, out, err = ask(GPTFT, "export", saved(), "model.gguf", "--format", "gguf", "--dtype", "fp32")
    assert (status, err) == (0, "") and out.endswith("model.gguf\n") and "note: " in out  # how it splits text
    assert (place / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_the_model_card_tells_of_the_run(ask, place):
    """What it started from, its data, its losses; no path of this machine."""
    write("d.jsonl", "".join(GOOD.replace("many", f"many {n}") for n in range(40)))
    words = ["--init", "tiny", "--data", "d.jsonl", "--out_dir", "run", "--max_steps", 2, "--test_samples", 0]
    assert ask(TRAIN, *words)[0] == 0
    assert ask(GPTFT, "export", "run", "hf", "--format", "hf", "--name", "Counter", "--license", "mit")[0] == 0
    card = (place / "hf" / "README.md").read_text()
    for part in ("# Counter", 'license: "mit"', "d.jsonl", "validation loss", "preset tiny"):
        assert part in card
    assert str(place) not in card


def test_export_says_what_is_wrong_and_writes_nothing(ask, saved, place):
    model = saved()
    os.mkdir("taken")
    write("taken/file", "x")
    for words, parts in (
        ([model, "out"], ["the following arguments are required: --format"]),
        ([model, "out", "--format", "onnx"], ["argument --format: invalid choice: 'onnx'"]),
        ([model, "out", "--format", "hf", "--dtype", "q8_0"], ["--dtype q8_0: with --format hf it is one of fp32"]),
        ([model, "out", "--format", "gguf", "--dtype", "q3_k"], ["--dtype q3_k: with --format gguf it is one of"]),
        ([model, "out", "--format", "hf", "--shard_gb", "0"], ["--shard_gb must be above 0"]),
        ([model, "taken", "--format", "hf"], ["taken exists already and is not empty"]),
        ([model, "taken", "--format", "gguf"], ["taken exists already"]),
        ([model, "out", "--format", "peft"], ["the model has no adapters"]),
        ([model, "out", "--format", "hf", "--base", "x"], ["is a whole model; --base"]),
    ):
        status, out, err = ask(GPTFT, "export", *words)
        assert status == 2 and out == "" and os.listdir(place) == ["taken"], words
        is_one_line(err, *parts)
