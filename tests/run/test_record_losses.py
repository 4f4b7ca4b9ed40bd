"""The losses of training records, pass by pass: each counted once, and wrong answers among the last to be learned."""

import json
import random
import shutil

import numpy as np
import pytest

from gptft.files import resource
from gptft.finetuning import finetune
from gptft.run.metrics_file import read_metrics
from gptft.run.record_losses import STEPS, describe_stubborn, write_training_losses

QUICK = {"init": "tiny", "precision": "fp32", "threads": 1, "test_samples": 0, "val_fraction": 0, "test_fraction": 0}


def rows_of(run):
    return [json.loads(line) for line in (run.path / "training_losses.jsonl").read_text().splitlines()]


def test_they_add_up_to_the_losses_of_the_steps(tmp_path, write_lines, pairs):
    """Every record once in every pass, whatever the batches; the steps' own losses are their means."""
    data = write_lines(pairs(11))
    run = finetune(data=data, epochs=2, batch_size=3, grad_accum=2, log_every=1, out_dir=tmp_path / "run", **QUICK)
    rows = rows_of(run)
    assert sorted(row["line"] for row in rows) == list(range(1, 12)) and {row["file"] for row in rows} == {str(data)}
    assert all(len(row["losses"]) == 2 and row["stubborn"] == row["losses"][1] for row in rows)
    assert [row["stubborn"] for row in rows] == sorted((row["stubborn"] for row in rows), reverse=True)
    steps = [row for row in read_metrics(run.path / "metrics.jsonl") if "loss" in row]
    assert len(steps) == 4 and "trained" not in steps[0]  # 6 and 5 records in the windows of a pass
    total = sum(loss * row["targets"] for row in rows for loss in row["losses"])
    assert total / (2 * sum(row["targets"] for row in rows)) == pytest.approx(run.summary["train_loss"], rel=1e-6)


def test_a_run_that_was_stopped_has_the_same(tmp_path, write_lines, pairs):
    settings = {"data": write_lines(pairs(12)), "batch_size": 2, "epochs": 2, "save_every": 2, **QUICK}
    whole = finetune(**settings, out_dir=tmp_path / "whole")
    finetune(**{**settings, "max_steps": 12}, out_dir=tmp_path / "cut")
    # killed after step 8 of 12, having saved step 8: what is logged after it comes again
    for name in ("last", "step-000010", "step-000012"):
        shutil.rmtree(tmp_path / "cut" / name, ignore_errors=True)
    again = finetune(**settings, out_dir=tmp_path / "cut", resume=True)
    assert rows_of(again) == rows_of(whole) and len(rows_of(whole)) == 12


def test_the_chunks_of_a_long_text_are_added_up(tmp_path, write_lines):
    texts = [{"text": f"{n} " * 300} for n in range(3)]
    run = finetune(data=write_lines(texts), max_length=64, epochs=1, out_dir=tmp_path / "run", **QUICK)
    rows = rows_of(run)
    assert [row["line"] for row in sorted(rows, key=lambda row: row["line"])] == [1, 2, 3]
    assert all(row["targets"] > 64 and len(row["losses"]) == 1 for row in rows)
    assert describe_stubborn(rows) == ""  # met once, nothing tells a hard record from a late one


def test_a_pass_that_was_broken_off_ranks_nobody(tmp_path, capsys):
    """Records met once stood above all that were met twice: their one loss was that of a model that knew nothing."""
    rows = [{"step": 1, "pass": 0, "records": [["f", n, 5.0 + n / 10, 1] for n in range(10)]}]
    rows += [{"step": 2, "pass": 1, "records": [["f", n, 4.0 if n == 2 else 1.0, 1] for n in range(10)]}]
    rows += [{"step": 3, "pass": 2, "records": [["f", n, 9.0, 1] for n in range(5, 10)]}]
    (tmp_path / STEPS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = write_training_losses(tmp_path)
    assert found[0]["line"] == 2 and [row["stubborn"] for row in found] == [4.0] + 9 * [1.0]
    assert "line 2: 5.20 -> 4.00" in describe_stubborn(found)
    (tmp_path / STEPS).write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[2])))
    assert describe_stubborn(write_training_losses(tmp_path)) == ""


def test_a_run_that_meets_too_many_keeps_none(tmp_path, write_lines, pairs, monkeypatch):
    monkeypatch.setattr("gptft.run.folder.MOST", 5)
    run = finetune(data=write_lines(pairs(6)), epochs=1, out_dir=tmp_path / "run", **QUICK)
    assert not (run.path / "training_losses.jsonl").exists()


def area_under_roc(scores, planted):
    """The chance that a planted one scores above another (Mann and Whitney 1947)."""
    scores, planted = np.array(scores), np.array(planted)
    above = scores[planted][:, None] - scores[~planted][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


@pytest.mark.slow
def test_wrong_answers_are_learned_last(tmp_path, capsys):
    """The embedded default on 2,000 of its records, of which one in twenty has the answer of another of its family. The
    first pass alone would tell less: nothing is learned yet, and many a right answer is a surprise."""
    default = {"lr": 2e-3, "warmup_steps": 20, "betas": (0.9, 0.95), **QUICK}
    pretraining = {"data": "embedded:text.txt", "max_length": 64, "batch_size": 16, "max_steps": 1200}
    pretraining |= {"lr": 3e-3, "min_lr": 3e-4}
    finetune(**{**default, **pretraining}, out_dir=tmp_path / "pretrain")
    lines = resource("data/instructions.jsonl").read_text(encoding="utf-8").splitlines()
    rng = random.Random(5)
    records = [json.loads(line) for line in rng.sample(lines, 2000)]
    planted = set(rng.sample(range(len(records)), 100))
    wrong = {}
    for number in planted:
        others = [record["output"] for record in records if record["family"] == records[number]["family"]]
        wrong[number] = rng.choice([answer for answer in others if answer != records[number]["output"]])
    for number, output in wrong.items():
        records[number]["output"] = output
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    capsys.readouterr()
    tuning = {"init": str(tmp_path / "pretrain" / "last"), "data": path, "template": "qa", "epochs": 4}
    run = finetune(**{**default, **tuning}, batch_size=32, out_dir=tmp_path / "run")
    rows = rows_of(run)
    is_planted = [row["line"] - 1 in planted for row in rows]
    assert area_under_roc([row["stubborn"] for row in rows], is_planted) >= 0.95
    assert area_under_roc([row["losses"][0] for row in rows], is_planted) < 0.95
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {path}, line ")]
    assert len(shown) == 5 and all(int(line.split("line ")[1].split(":")[0]) - 1 in planted for line in shown)
