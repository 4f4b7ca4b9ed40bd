"""The losses of records, against the model's own logits, a record at a time."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from cli import tiny

from gptft.collate import collate
from gptft.data.examples import Recipe, load_dataset, split
from gptft.device import Precision
from gptft.evaluation.losses import compare_losses, loss_rows, measure_losses, read_losses
from gptft.finetuning import finetune
from gptft.loss import Objective
from gptft.prompts import TEMPLATES
from gptft.training import evaluate_loss

QUICK = {"init": "tiny", "max_steps": 2, "max_new_tokens": 4, "precision": "fp32", "threads": 1}


@pytest.fixture
def measured(write_lines, pairs):
    model, tokenizer = tiny()
    data = load_dataset([write_lines(pairs(40))], tokenizer, Recipe(TEMPLATES["qa"], 64))
    examples, _, _ = split(data, 0.0, 0.0, 1)
    to_batch, precision = partial(collate, pad_id=tokenizer.eot), Precision("fp32", model.device)
    return model, examples, to_batch, precision


def test_each_records_loss_and_hits_are_those_of_its_logits(measured):
    model, examples, to_batch, precision = measured
    found = measure_losses(model.train(), examples, 7, to_batch, precision)
    assert model.training
    model.eval()
    for number in range(len(examples)):
        ids = torch.from_numpy(examples[number].ids.astype(np.int64))
        with torch.no_grad():
            logits = model(ids[None, :-1])[0].log_softmax(-1)
        scored = [t for start, end in examples[number].spans for t in range(max(start, 1), end)]
        assert found.targets[number] == len(scored)
        assert found.sums[number] == pytest.approx(-sum(logits[t - 1, ids[t]].item() for t in scored), rel=1e-5)
        assert found.hits[number] == sum(logits[t - 1].argmax() == ids[t] for t in scored)


def test_the_batch_size_changes_nothing_and_the_loss_is_that_of_the_loop(measured):
    model, examples, to_batch, precision = measured
    every = [measure_losses(model, examples, size, to_batch, precision) for size in (1, 4, 16)]
    for other in every[1:]:
        np.testing.assert_allclose(other.sums, every[0].sums, rtol=1e-5)
        assert (other.hits == every[0].hits).all() and (other.targets == every[0].targets).all()
    loss = compare_losses(every[0])["after"]["loss"]
    assert loss["value"] == pytest.approx(evaluate_loss(Objective(model), examples, 4, to_batch, precision), rel=1e-6)
    assert loss["low"] < loss["value"] < loss["high"]


def test_perplexity_and_accuracy_follow_from_the_records(measured):
    model, examples, to_batch, precision = measured
    losses = measure_losses(model, examples, 8, to_batch, precision)
    found = compare_losses(losses, losses)
    assert found["before"] == found["after"] and not found["difference"]["loss"]["differs"]
    assert found["after"]["perplexity"]["value"] == pytest.approx(math.exp(losses.sums.sum() / losses.targets.sum()))
    assert found["after"]["token_accuracy"]["value"] == losses.hits.sum() / losses.targets.sum()
    assert found["targets"] == losses.targets.sum() and found["n"] == len(examples)


def test_rows_come_hardest_first_and_can_be_read_back(measured):
    model, examples, to_batch, precision = measured
    losses = measure_losses(model, examples, 8, to_batch, precision)
    rows = [json.loads(json.dumps(each)) for each in loss_rows(examples, before=losses)]
    assert [each["before"] for each in rows] == sorted((each["before"] for each in rows), reverse=True)
    assert {(each["file"], each["line"]) for each in rows} == {examples[n].record for n in range(len(examples))}
    again = read_losses(rows, examples, "before")
    np.testing.assert_allclose(again.sums, losses.sums, rtol=1e-14)
    assert (again.targets == losses.targets).all() and (again.hits == losses.hits).all()
    assert read_losses(rows, examples, "after") is None and read_losses(rows[1:], examples, "before") is None
    # the record was corrected since: its loss is of another text
    assert read_losses([rows[0] | {"ids": "0" * 16}, *rows[1:]], examples, "before") is None
    assert read_losses([], examples, "before") is None


def test_a_run_keeps_the_loss_of_every_test_record_before_and_after(tmp_path, write_lines, pairs):
    data = write_lines(pairs(60))
    run = finetune(data=data, out_dir=tmp_path / "run", lr=0.01, test_samples=3, **QUICK)
    rows = [json.loads(line) for line in (run.path / "losses.jsonl").read_text().splitlines()]
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    assert len(rows) == evaluation["likelihood"]["n"] == 6
    for side in ("before", "after"):
        total = sum(row[side] * row["targets"] for row in rows) / sum(row["targets"] for row in rows)
        assert evaluation["likelihood"][side]["loss"]["value"] == pytest.approx(total, rel=1e-12)
    assert run.summary["test_loss"] == evaluation["likelihood"]["after"]["loss"]["value"]
    assert evaluation["likelihood"]["difference"]["loss"]["value"] < 0
    lines = data.read_text().splitlines()
    assert all(row["file"] == str(data) and 1 <= row["line"] <= len(lines) for row in rows)
    # a resumed run does not measure again what it was before
    before = {row["example"]: row["before"] for row in rows}
    resumed = finetune(data=data, out_dir=tmp_path / "run", lr=0.01, test_samples=3, resume=True, **QUICK)
    again = [json.loads(line) for line in (resumed.path / "losses.jsonl").read_text().splitlines()]
    assert {row["example"]: row["before"] for row in again} == pytest.approx(before, rel=1e-14)
