"""The loss of every training record, pass by pass, as the loop met it: which records are learned late, or never.

A wrong answer contradicts what the others teach, and its loss stays high when theirs has fallen (Pleiss et al. 2020,
arXiv 2001.10528, by margins; Swayamdipta et al. 2020, arXiv 2009.10795). What the loop computes anyhow is added up: no
record is measured twice. Each loss is of the weights before its own step, with dropout where there is dropout.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from gptft.collate import Batch
from gptft.files import write_json_lines
from gptft.parallel.ranks import here
from gptft.run.metrics_file import StepFile, iterate
from gptft.training import Evaluation, Progress, Step

STEPS = ".training-losses.jsonl"  # by step, in a run's folder; it grows with the run
RECORDS = "training_losses.jsonl"  # by record, at its end
MOST = 1_000_000  # examples that a run may meet, pass by pass, and their losses are kept: 50 MB
SHOWN = 5


class TrainingLosses(StepFile):
    """What each step's records lost: rows of file, line, nats, targets."""

    def __init__(self, out_dir: Path, progress: Progress) -> None:
        if here().first:
            super().__init__(out_dir / STEPS, lambda row: row["step"] <= progress.step)

    def write(self, event: Step | Evaluation, of_ranks: dict) -> None:
        if isinstance(event, Evaluation):
            return
        records = [row for batch, losses in event.trained for row in by_record(batch, losses.float().cpu().numpy())]
        records = here().gather_lists(records)
        if here().first:
            self.add({"step": event.step, "pass": math.ceil(event.epoch) - 1, "records": records})

    def close(self) -> None:
        if here().first:
            super().close()


def keep_none(out_dir: Path) -> None:
    """Of a run that is too long, or a stream: take away what a shorter beginning of it has kept."""
    for name in (STEPS, RECORDS):
        (out_dir / name).unlink(missing_ok=True)


def by_record(batch: Batch, losses: np.ndarray) -> list[tuple[str, int, float, int]]:
    """(file, line, nats, targets) of each row that has a target."""
    row = batch.whose.cpu().numpy()
    sums = np.bincount(row, losses, len(batch.records))
    targets = np.bincount(row, minlength=len(batch.records))
    return [(*batch.records[n], float(sums[n]), int(targets[n])) for n in np.flatnonzero(targets)]


def write_training_losses(out_dir: Path) -> list[dict]:
    """Write a row for each record, the most stubborn first: its file and line, its targets in a pass, its `losses`
    (nats a target, pass by pass), and `stubborn`, their mean over the passes that all records were met in, but for the
    first, when nothing is learned yet. A record's chunks are added up. -> the rows; [] where the run keeps none."""
    sums: dict = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for row in iterate(out_dir / STEPS):
        for file, line, nats, targets in row["records"]:
            sums[file, line][row["pass"]] += nats, targets
    whole = min(map(len, sums.values()), default=0)  # a pass that was broken off has some of the records alone
    rows = []
    for (file, line), passes in sums.items():
        losses = [float(nats / targets) for _, (nats, targets) in sorted(passes.items())]
        targets = int(max(targets for _, targets in passes.values()))
        stubborn = float(np.mean(losses[1:whole] or losses[:1]))
        rows.append({"file": file, "line": line, "targets": targets, "losses": losses, "stubborn": stubborn})
    rows.sort(key=lambda row: -row["stubborn"])
    if rows:
        write_json_lines(out_dir / RECORDS, rows)
    return rows


def describe_stubborn(rows: list[dict]) -> str:
    """The records that are hardest to learn; empty where not all were met twice: nothing tells a hard record then from
    one that was met early."""
    if min((len(row["losses"]) for row in rows), default=0) < 2:
        return ""
    middle = float(np.median([row["stubborn"] for row in rows]))
    said = [f"the training records that are hardest to learn (median loss {middle:.3f}); are their responses right?"]
    for row in rows[:SHOWN]:
        losses = " -> ".join(f"{loss:.2f}" for loss in row["losses"][-4:])
        said.append(f"  {row['file']}, line {row['line']}: {losses}")
    return "\n".join(said)
