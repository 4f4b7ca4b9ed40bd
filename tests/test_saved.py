"""What an earlier commit wrote stays usable: files that people have must not break when we move house."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from toys import difference

import gptft
from gptft import checkpoint
from gptft.decoding import decode_plain
from gptft.generation import prompt_ids, stop_ids
from gptft.prompts import load_template

SAVED = Path(__file__).resolve().parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


def load(name):
    return gptft.load(SAVED / name, base=SAVED / "checkpoint" if name == "adapter" else None)


@pytest.mark.parametrize("name", ["checkpoint", "adapter"])
def test_a_saved_model_keeps_its_model_id_and_its_template(name):
    model, tokenizer = load(name)
    assert checkpoint.model_id(model, tokenizer) == EXPECTED[name]["model_id"]
    stored = tokenizer.template.to_dict()
    assert {key: stored[key] for key in EXPECTED[name]["template"]} == EXPECTED[name]["template"]


@pytest.mark.parametrize("name", ["checkpoint", "adapter"])
def test_a_saved_model_reads_and_writes_the_same_ids(name):
    model, tokenizer = load(name)
    for n, prompt in enumerate(EXPECTED["prompts"]):
        ids = prompt_ids(tokenizer, prompt)
        assert ids == EXPECTED[name]["prompt_ids"][n]
        assert decode_plain(model, ids, 12, stop_ids(tokenizer), tokenizer.n_vocab) == EXPECTED[name]["ids"][n]
    assert gptft.generate(model, tokenizer, EXPECTED["prompts"], 12) == EXPECTED[name]["texts"]


def test_a_saved_template_file_means_what_it_meant():
    template = load_template(str(SAVED / "template.toml"))
    expected = EXPECTED["checkpoint"]["template"]
    assert {key: template.to_dict()[key] for key in expected} == expected


def test_a_saved_run_resumes_to_the_weights_of_the_unbroken_one(tmp_path, monkeypatch):
    """With its own settings, as `python train.py --resume --out_dir run` takes them; fp32 on another processor may
    round otherwise, so 1e-5 and not bit for bit."""
    shutil.copytree(SAVED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    from gptft.__main__ import main

    main(["train", "--resume", "--out_dir", "run"])
    finished = torch.load(SAVED / "finished.pt", weights_only=True)
    resumed = torch.load("run/last/model.pt", weights_only=True)
    assert resumed.keys() == finished.keys()
    for name, tensor in finished.items():
        assert difference(resumed[name], tensor) < 1e-5, name
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for row, expected in zip(rows, EXPECTED["metrics"], strict=True):
        for key in {"step", "epoch", "loss", "eval_loss", "learning_rate"} & expected.keys():
            assert row[key] == pytest.approx(expected[key], rel=1e-5), key
