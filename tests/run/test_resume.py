"""Runs in processes of their own, stopped by signals at random moments and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gptft.checkpoint import verify
from gptft.run.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def command(data, out_dir, *more):
    settings = {
        "init": "tiny",
        "data": data,
        "out_dir": out_dir,
        "max_steps": 60,
        "batch_size": 4,
        "grad_accum": 2,
        "eval_every": 7,
        "save_every": 3,
        "keep": 2,
        "test_samples": 4,
        "max_new_tokens": 4,
        "max_length": 48,
        "threads": 1,
        "precision": "fp32",
        "dropout": 0.1,
        "lr": 1e-3,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "train.py"), *words, *more]


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(path, step, process):
    """Until metrics.jsonl has `step`, or the process has ended."""
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken run: its data, its folder."""
    folder = tmp_path_factory.mktemp("whole")
    data = folder / "data.jsonl"
    records = [
        {"question": f"After {i}?" + " Think." * (i % 3), "answer": f"{i + 1}." + " Yes." * (i % 5)} for i in range(120)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    finish(start(data, folder / "run"))
    return data, folder / "run"


def weights(run):
    return torch.load(run / "last" / "model.pt", weights_only=True)


@pytest.mark.slow
def test_sigkill_at_random_points_ends_with_the_same_weights(tmp_path, whole):
    """At least ten kills, whenever they come - before the first step, in a save, in an evaluation -
    and the last resumption ends bit for bit where the unbroken run ended."""
    data, unbroken = whole
    rng, run = random.Random(5), tmp_path / "killed"
    kills, resumed_from = 0, []
    while kills < 11:
        process = start(data, run, "--resume")
        # a moment after a step that has not been reached yet, now and then before the first
        rows = read_metrics(run / "metrics.jsonl")
        reached = max((row["step"] for row in rows), default=0)
        if kills % 4 != 3:
            wait_for_step(run / "metrics.jsonl", min(reached + rng.randint(1, 6), 58), process)
        time.sleep(rng.random() * (0.15 if kills % 4 != 3 else 3.0))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        kills += 1
        resumed_from += [line for line in out.splitlines() if line.startswith("going on from")]
    assert kills >= 10, f"only {kills} kills before the run ended"
    assert len(resumed_from) >= 5
    out = finish(start(data, run, "--resume"))
    assert "going on from" in out
    ours, theirs = weights(run), weights(unbroken)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert verify(run / "best")["model_id"] == verify(unbroken / "best")["model_id"]

    def timeless(path):
        return [
            {k: row[k] for k in row if k in ("step", "loss", "grad_norm", "learning_rate", "eval_loss")}
            for row in read_metrics(path / "metrics.jsonl")
        ]

    by_step = {True: {}, False: {}}
    for row in timeless(run):
        assert row["step"] not in by_step["loss" in row], "a step stands twice in metrics.jsonl"
        by_step["loss" in row][row["step"]] = row
    for row in timeless(unbroken):
        assert by_step["loss" in row][row["step"]] == row
    mine, other = (json.loads((path / "summary.json").read_text()) for path in (run, unbroken))
    for name in ("model_id", "eval_loss", "test_loss", "train_loss", "total_flos", "exact_match"):
        assert mine[name] == other[name]
    assert (run / "responses.jsonl").read_text() == (unbroken / "responses.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, whole, number):
    """Ctrl-C and SIGTERM: a checkpoint of the last completed step, the command to go on, and the same end."""
    data, unbroken = whole
    run = tmp_path / "stopped"
    process = start(data, run)
    wait_for_step(run / "metrics.jsonl", 10, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert f"Go on with: python train.py --resume --out_dir {run}" in err
    assert "Traceback" not in err
    assert verify(run / "last")["step"] >= 10
    # the very command that was named: settings come from the run's own config.toml
    resumed = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--resume", "--out_dir", str(run)],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = weights(run), weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_the_embedded_default_goes_on_by_one_command(tmp_path):
    """Ctrl-C in either stage: one command, the same for both, goes on; and a new default run touches neither."""
    quick = [
        "--max_steps",
        "40",
        "--test_samples",
        "3",
        "--max_new_tokens",
        "3",
        "--threads",
        "1",
        "--save_every",
        "5",
        "--lr",
        "1e-3",
    ]

    def launch(*words):
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    arguments = [*quick, "--out_dir", "story"]
    for stage in ("pretrain/metrics.jsonl", "metrics.jsonl"):
        process = launch(*arguments)
        wait_for_step(tmp_path / "story" / stage, 6, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert "Go on with: python train.py --resume --out_dir story" in err, err
        arguments = ["--resume", "--out_dir", "story"]  # the command that was named: the flags are remembered
    finish(launch(*arguments))
    finish(launch(*quick, "--out_dir", "unbroken"))
    ours, theirs = weights(tmp_path / "story"), weights(tmp_path / "unbroken")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    refused = launch("--out_dir", "story")
    assert "already holds a run" in refused.communicate()[1] and refused.returncode == 2
