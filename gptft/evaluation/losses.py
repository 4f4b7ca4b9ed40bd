"""The loss of each record under a model that is given the right answer: loss, perplexity, token accuracy, and which
records are the hardest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from gptft.collate import Batch, by_length
from gptft.data.build import group_of
from gptft.data.examples import Example, Split
from gptft.device import Precision
from gptft.evaluation.intervals import intervals
from gptft.model import GPT
from gptft.parallel.ranks import here
from gptft.text.progress import progress
from gptft.training import ToBatch


@dataclass(frozen=True)
class Losses:
    """Of each example, in the split's order: `sums` of the losses of its targets (nats), its `targets`, and how many of
    them were the likeliest token (`hits`)."""

    sums: np.ndarray
    targets: np.ndarray
    hits: np.ndarray


def compare_losses(*sides: Losses) -> dict:
    """Of one side, or of `before` and `after`: loss (nats a target), token accuracy and perplexity with their bounds of
    95% over the examples; of two the differences of the first two, as `compare.measure` has them."""
    names = ("before", "after") if len(sides) == 2 else ("after",)
    made: dict = {"n": len(sides[0].sums), "targets": int(sides[0].targets.sum())} | {name: {} for name in names}
    for what in ("loss", "token_accuracy"):
        parts = [
            np.stack([side.sums if what == "loss" else side.hits, side.targets], 1).astype(float) for side in sides
        ]
        found = intervals(parts, lambda sums, _: sums[:, 0] / sums[:, 1], math.inf if what == "loss" else 1.0)
        for name, interval in zip(names, found, strict=False):
            made[name][what] = interval._asdict()
            if what == "loss":
                made[name]["perplexity"] = {
                    key: None if value is None else math.exp(min(value, 700.0))
                    for key, value in interval._asdict().items()
                }
        if len(sides) == 2:
            made.setdefault("difference", {})[what] = found[2]._asdict() | {"differs": found[2].differs}
    return made


@torch.no_grad()
def measure_losses(
    model: GPT,
    examples: Split | Sequence[Example],
    batch_size: int,
    to_batch: ToBatch,
    precision: Precision,
) -> Losses:
    """The losses of all examples; they do not depend on the batch size. Dropout is off, and training mode is as before
    afterwards."""
    sums, targets, hits = (np.zeros(len(examples), dtype) for dtype in (float, int, int))
    lengths = examples.lengths if isinstance(examples, Split) else np.array([len(each.ids) for each in examples])
    was_training = model.training
    model.eval()
    try:
        for chosen in progress(here().share(by_length(lengths, batch_size), []), "batches", desc="losses", delay=1):
            here().beat()
            batch = to_batch([examples[i] for i in chosen]).to(model.device)
            each, right = score_targets(model, batch, precision)
            row = batch.whose.cpu().numpy()
            numbers = np.array(chosen, dtype=int)
            sums[numbers] = np.bincount(row, each, len(chosen))
            targets[numbers] = np.bincount(row, minlength=len(chosen))
            hits[numbers] = np.bincount(row, right, len(chosen))
    finally:
        model.train(was_training)
    return Losses(*(sum(parts) for parts in zip(*here().gather((sums, targets, hits)), strict=True)))


def score_targets(model: GPT, batch: Batch, precision: Precision) -> tuple[np.ndarray, np.ndarray]:
    """(n,) of the batch's `scored`: each target's loss in nats, and whether it was the likeliest token."""
    with precision.autocast():
        logits = model.head(model.hidden(batch.idx, batch.layout, scored=batch.scored)).float()  # (n, V)
    wanted = batch.targets.flatten()[batch.scored]  # (n,)
    each = F.cross_entropy(logits, wanted, reduction="none").cpu().double().numpy()
    return each, (logits.argmax(-1) == wanted).cpu().numpy()


def loss_rows(examples: Split, **sides: Losses) -> list[dict]:
    """A row for each example, those hardest for the last side first: its number in the split, its file and line, a
    hash of its ids, its targets, and under each side's name its loss (nats a target) and its hits."""
    rows = []
    for number in range(len(examples)):
        file, line = examples.dataset.name(int(examples.indices[number]))
        row = {"example": number, "file": file, "line": line, "ids": f"{group_of(examples[number].ids):016x}"}
        for name, losses in sides.items():
            targets = int(losses.targets[number])
            row |= {"targets": targets, name: float(losses.sums[number] / max(targets, 1))}
            row[f"{name}_hits"] = int(losses.hits[number])
        rows.append(row)
    return sorted(rows, key=lambda row: -row[list(sides)[-1]])


def read_losses(rows: Sequence[dict], examples: Split, side: str) -> Losses | None:
    """The losses of one side out of the rows of an earlier run; None where they are not of these examples."""
    by_number = {row.get("example"): row for row in rows}
    if sorted(by_number, key=str) != sorted(range(len(examples)), key=str) or any(side not in row for row in rows):
        return None
    ordered = [by_number[number] for number in range(len(examples))]
    if [row.get("ids") for row in ordered] != [f"{group_of(examples[i].ids):016x}" for i in range(len(examples))]:
        return None
    targets = np.array([row["targets"] for row in ordered])
    sums = np.array([row[side] for row in ordered]) * targets
    return Losses(sums, targets, np.array([row[f"{side}_hits"] for row in ordered]))
