"""tokens.jsonl: each target's loss before and after, by the very tensors that are trained on."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from gptft import loading
from gptft.finetuning import finetune

QUICK = {"init": "tiny", "max_steps": 3, "test_samples": 0, "precision": "fp32", "threads": 1, "batch_size": 4}


def rows_of(path):
    return [json.loads(line) for line in (path / "tokens.jsonl").read_text(encoding="utf-8").split("\n") if line]


def test_every_targets_loss_is_that_of_the_models_own_logits(tmp_path, write_lines, pairs):
    """Computed again here, from the record's text and the best checkpoint, a token at a time."""
    data = {"data": write_lines(pairs(30)), "test_data": write_lines(pairs(9), "test.jsonl")}
    run = finetune(**QUICK, **data, out_dir=tmp_path / "run", lr=1e-2)
    rows = rows_of(run.path)
    assert [(row["split"], row["example"], row["line"]) for row in rows] == [("test", n, n + 1) for n in (0, 4, 8)]
    model, tokenizer = loading.load(run.path / "best")
    for row in rows:
        record = pairs(9)[row["example"]]
        assert "".join(row["tokens"]) == (
            f"### Question:\n{record['question']}\n\n### Answer:\n{record['answer']}<|endoftext|>"
        )
        ids = [*tokenizer.encode("".join(row["tokens"][:-1])), tokenizer.eot]
        assert len(ids) == len(row["tokens"]) == len(row["kinds"]) == len(row["before"]) == len(row["after"])
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0]
        wanted = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()
        for t, kind in enumerate(row["kinds"]):
            assert (kind == "target") == (row["after"][t] is not None) == (row["before"][t] is not None)
            if kind == "target":
                assert row["after"][t] == pytest.approx(wanted[t - 1], rel=1e-4, abs=1e-6)
    # together they are the losses of losses.jsonl
    losses = {row["example"]: row for row in map(json.loads, (run.path / "losses.jsonl").read_text().splitlines())}
    for row in rows:
        for side in ("before", "after"):
            mean = math.fsum(filter(None, row[side])) / row["kinds"].count("target")
            assert mean == pytest.approx(losses[row["example"]][side], rel=1e-5)


def test_what_is_trained_is_what_is_shown_where_prompts_are_scored_too(tmp_path, write_lines, pairs):
    run = finetune(**QUICK, data=write_lines(pairs(30)), out_dir=tmp_path / "run", mask_prompt=False)
    for row in rows_of(run.path):
        assert row["kinds"] == ["masked"] + ["target"] * (len(row["tokens"]) - 1)


def test_without_a_test_set_examples_of_validation_are_shown_and_without_both_none(tmp_path, write_lines, pairs):
    data = write_lines(pairs(30))
    run = finetune(**QUICK, data=data, out_dir=tmp_path / "a", test_fraction=0.0, val_fraction=0.1)
    assert [row["split"] for row in rows_of(run.path)] == ["validation"] * 3
    run = finetune(**QUICK, data=data, out_dir=tmp_path / "b", test_fraction=0.0, val_fraction=0.0)
    assert not (run.path / "tokens.jsonl").exists()


def test_a_run_that_goes_on_keeps_what_was_measured_before(tmp_path, write_lines, pairs):
    """Measured again, `before` would be the loss of a model that is trained already."""
    settings = {**QUICK, "data": write_lines(pairs(30)), "out_dir": tmp_path / "run", "lr": 1e-2}
    first = rows_of(finetune(**settings).path)
    again = rows_of(finetune(**{**settings, "max_steps": 6}, resume=True).path)
    assert [row["before"] for row in again] == [row["before"] for row in first]
    assert [row["after"] for row in again] != [row["after"] for row in first]
