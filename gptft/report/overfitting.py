"""Where a run began to learn its training data by heart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gptft.report.plot import smooth

ABOVE = 0.02  # by this share the last validation loss must lie above the lowest: less is the noise of a small split


class Course(NamedTuple):
    """What became of the validation loss: of the first, the lowest and the last evaluation the step and the loss.
    `rose`: at the end it lies above its lowest by more than ABOVE; `overfits`: and the training loss fell meanwhile,
    None where too few steps were logged to tell."""

    first: tuple[int, float]
    lowest: tuple[int, float]
    last: tuple[int, float]
    rose: bool
    overfits: bool | None


def find_course(steps: Sequence[dict], evaluations: Sequence[dict]) -> Course | None:
    """The course of a run by its rows of metrics.jsonl; None where nothing was evaluated."""
    points = [(row["step"], row["eval_loss"]) for row in evaluations]
    if not points:
        return None
    lowest = min(points, key=lambda point: point[1])
    rose = points[-1][1] > lowest[1] * (1 + ABOVE)
    smoothed = smooth([(row["step"], row["loss"]) for row in steps])
    since = [loss for step, loss in smoothed if step >= lowest[0]]
    overfits = (since[-1] < since[0] if len(since) > 1 else None) if rose else False
    return Course(points[0], lowest, points[-1], rose, overfits)
