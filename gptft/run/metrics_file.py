"""metrics.jsonl: what the loop's events tell, a line each, and each step once."""

from __future__ import annotations

import json
from pathlib import Path

from gptft.files import atomic_write
from gptft.training import Evaluation, Progress, Step


class Metrics:
    """`metrics.jsonl`: a line a logged step, a line an evaluation; each step stands there once, resumed or not."""

    def __init__(self, path: Path, progress: Progress, log_every: int) -> None:
        self.path, self.log_every = path, log_every
        kept = [row for row in read_metrics(path) if row["step"] <= last_step_that_counts(row, progress)]
        with atomic_write(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self.file = open(path, "a", encoding="utf-8")

    def write(self, event: Step | Evaluation) -> None:
        if isinstance(event, Evaluation):
            row = {"step": event.step, "epoch": event.epoch, "eval_loss": event.eval_loss}
            row |= {} if event.score is None else {"score": event.score}
        elif event.step % self.log_every:
            return
        else:
            row = vars(event)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def last_step_that_counts(row: dict, progress: Progress) -> int:
    """A killed run may have logged more than it saved: what comes after this step will come again."""
    return progress.evaluated if "eval_loss" in row else progress.step


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
