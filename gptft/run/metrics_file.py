"""What the loop's events tell, a line each, and each step once: metrics.jsonl."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptft.files import atomic_write
from gptft.training import Evaluation, Progress, Step


class StepFile:
    """A file that a run adds lines to; each step stands there once, resumed or not. What of an earlier part of the run
    does not count is taken out: a killed run may have logged more than it saved, and that will come again."""

    def __init__(self, path: Path, counts: Callable[[dict], bool]) -> None:
        with atomic_write(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in iterate(path) if counts(row))
        self.file = open(path, "a", encoding="utf-8")

    def add(self, row: dict) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Metrics(StepFile):
    """`metrics.jsonl`: a line a logged step, a line an evaluation."""

    def __init__(self, path: Path, progress: Progress, log_every: int) -> None:
        super().__init__(path, lambda row: row["step"] <= (progress.evaluated if "eval_loss" in row else progress.step))
        self.log_every = log_every

    def write(self, event: Step | Evaluation, of_ranks: dict) -> None:
        if row := row_of(event, self.log_every):
            self.add(row | of_ranks)


def row_of(event: Step | Evaluation, log_every: int) -> dict | None:
    """What is logged of an event; None where nothing is."""
    if isinstance(event, Evaluation):
        row = {"step": event.step, "epoch": event.epoch, "eval_loss": event.eval_loss}
        return row | ({} if event.score is None else {"score": event.score})
    if event.step % log_every:
        return None
    return {key: value for key, value in vars(event).items() if key != "trained"}


def iterate(path: Path) -> Iterator[dict]:
    """The rows of such a file, one by one, for there may be a million; a last line that was cut off is left out."""
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line, object_pairs_hook=with_shared_keys)
                except json.JSONDecodeError:
                    break


def with_shared_keys(pairs: list[tuple[str, Any]]) -> dict:
    """Each key in memory once, and not once a row."""
    return {sys.intern(key): value for key, value in pairs}


def read_metrics(path: Path) -> list[dict]:
    """All rows of such a file."""
    return list(iterate(path))
