"""metrics.jsonl: each step once, also after a kill and a resume."""

import json

from gptft.run.metrics_file import Metrics, read_metrics
from gptft.training import Evaluation, Progress, Step


def step(number):
    return Step(number, number / 10, 2.5, 1e-4, 1.0, 0.1, 100.0, 1e9, 0.01, 5.0, [])


def write_events(path, progress, *events, log_every=1):
    metrics = Metrics(path, progress, log_every)
    for event in events:
        metrics.write(event, {})
    metrics.close()
    return [(row["step"], "eval_loss" in row) for row in read_metrics(path)]


def test_a_line_a_logged_step_and_a_line_an_evaluation(tmp_path):
    """Evaluations are written whenever they come, steps as often as asked."""
    events = [Evaluation(0, 0.0, 4.0), step(1), step(2), step(3), Evaluation(3, 0.3, 3.5, True), step(4)]
    path = tmp_path / "metrics.jsonl"
    assert write_events(path, Progress(), *events, log_every=2) == [(0, True), (2, False), (3, True), (4, False)]
    rows = read_metrics(path)
    assert rows[1] | {"trained": []} == vars(step(2)) and rows[2] == {
        "step": 3,
        "epoch": 0.3,
        "eval_loss": 3.5,
    }


def test_what_was_logged_after_the_last_save_is_taken_back(tmp_path):
    """A killed run has logged more than it saved; gone on with, steps 3 and 4 would stand there twice."""
    path = tmp_path / "metrics.jsonl"
    write_events(path, Progress(), Evaluation(0, 0.0, 4.0), *map(step, (1, 2)), Evaluation(2, 0.2, 3.0), step(3))
    saved = Progress(step=2, evaluated=0)  # it was saved between step 2 and its evaluation
    shown = write_events(path, saved, Evaluation(2, 0.2, 3.0), step(3))
    assert shown == [(0, True), (1, False), (2, False), (2, True), (3, False)]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo', encoding="utf-8")
    assert [row["step"] for row in read_metrics(path)] == [1]
    assert write_events(path, Progress(step=1), step(2)) == [(1, False), (2, False)]
    assert read_metrics(tmp_path / "gone.jsonl") == []
