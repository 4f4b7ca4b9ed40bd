"""What TensorBoard is fed is what metrics.jsonl holds."""

import importlib.util

import pytest

from gptft.errors import UserError
from gptft.finetuning import finetune
from gptft.run.metrics_file import read_metrics

QUICK = {"init": "tiny", "test_samples": 0, "precision": "fp32", "threads": 1, "eval_every": 3, "batch_size": 4}


def read_board(folder):
    """{name: [(step, value), ...]}, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {name: [(each.step, each.value) for each in board.Scalars(name)] for name in board.Tags()["scalars"]}


def of_metrics(path):
    rows, found = read_metrics(path), {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and not (name == "epoch" and "eval_loss" in row):
                found.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return found


def test_tensorboard_reads_what_metrics_jsonl_holds(tmp_path, write_lines, pairs):
    pytest.importorskip("tensorboard")
    settings = QUICK | {"data": write_lines(pairs(40)), "out_dir": tmp_path / "run", "loggers": ("tensorboard",)}
    finetune(**settings, max_steps=6, log_every=2)
    read = read_board(tmp_path / "run" / "tensorboard")
    assert read == of_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [step for step, _ in read["loss"]] == [2, 4, 6] and [step for step, _ in read["eval_loss"]] == [0, 3, 6]


def test_a_run_that_goes_on_has_each_step_once(tmp_path, write_lines, pairs):
    """Killed after step 5, its last checkpoint of step 4: step 5 comes twice."""
    pytest.importorskip("tensorboard")
    settings = QUICK | {"data": write_lines(pairs(40)), "out_dir": tmp_path / "run", "loggers": ("tensorboard",)}
    settings |= {"eval_every": 4, "schedule": "constant"}
    finetune(**settings, max_steps=4)
    from gptft.run.loggers import TensorBoard
    from gptft.training import Progress, Step

    beyond = TensorBoard(tmp_path / "run" / "tensorboard", Progress(step=4), 1)
    beyond.write(Step(5, 1.0, 99.0, *[1.0] * 7), {})
    beyond.close()
    finetune(**settings, max_steps=6, resume=True)
    read = read_board(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in read["loss"]] == [1, 2, 3, 4, 5, 6] and read["loss"][4][1] != 99.0


def test_without_the_package_one_line_says_what_to_install_and_nothing_is_written(
    tmp_path, write_lines, pairs, monkeypatch
):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else known(name))
    with pytest.raises(
        UserError, match=r"--loggers tensorboard needs the package 'tensorboard': pip install 'gptft\[log\]'"
    ):
        finetune(**QUICK, data=write_lines(pairs(40)), out_dir=tmp_path / "run", max_steps=2, loggers=("tensorboard",))
    assert not (tmp_path / "run").exists()
