"""Whole runs on a GPU, through `gptft.finetune`, with what the project carries."""

import json
import shutil

import pytest
import torch
from toys import difference

import gptft


@pytest.fixture
def settings(device, write_lines, pairs, tmp_path, monkeypatch):
    """A short run of the `tiny` preset on questions and answers."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return {
        "data": str(write_lines(pairs(96))),
        "init": "tiny",
        "device": str(device),
        "batch_size": 4,
        "max_steps": 8,
        "warmup_steps": 2,
        "lr": 1e-3,
        "eval_every": 4,
        "save_every": 4,
        "keep": 2,
        "test_samples": 2,
        "max_new_tokens": 8,
    }


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_is_the_unbroken_one(settings, tmp_path, precision, record_property):
    """Gone on with from step 4 of 8, with dropout, so that the device's random state counts. The same kernels run in
    both; atomic additions may differ in order, which 1e-4 (fp32) and 1e-2 (lower) allow for."""
    settings |= {"precision": precision, "dropout": 0.1}
    unbroken = gptft.finetune(**settings, out_dir=str(tmp_path / "unbroken"))
    broken = tmp_path / "broken"
    shutil.copytree(unbroken.path, broken)
    for name in ("last", "best"):
        shutil.rmtree(broken / name)
    for path in broken.glob("step-*8"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    resumed = gptft.finetune(**settings, out_dir=str(broken), resume=True)
    limit = 1e-4 if precision == "fp32" else 1e-2
    last = [torch.load(run.path / "last" / "model.pt", weights_only=True) for run in (resumed, unbroken)]
    weights = [torch.cat([tensor.flatten() for tensor in state.values()]) for state in last]
    off = difference(*weights)
    record_property("weights differ by", off)
    assert off < limit
    rows = [[row["loss"] for row in metrics(run.path) if "loss" in row] for run in (resumed, unbroken)]
    assert len(rows[0]) == 8 and rows[0] == pytest.approx(rows[1], rel=limit)


@pytest.mark.parametrize("base", ["fp32", "bf16", "int8"])
def test_lora_trains_on_the_device(settings, tmp_path, base, record_property):
    """Adapters over frozen weights held in each way; the summary says where and in what."""
    settings |= {"lora_rank": 4, "lr": 1e-2, "max_steps": 16}
    run = gptft.finetune(**settings, lora_base=base, out_dir=str(tmp_path / "run"))
    losses = [row["eval_loss"] for row in metrics(run.path) if "eval_loss" in row]
    record_property("validation loss", f"{losses[0]:.3f} -> {losses[-1]:.3f}")
    record_property("precision", run.summary["precision"])
    assert losses[-1] < losses[0]
    assert run.summary["device"].startswith(settings["device"])
    assert len(gptft.generate(run.model, run.tokenizer, ["What comes after 3?"], 8)) == 1
