"""The picture of a run: training and validation loss over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptft.files import atomic_write


def plot_losses(rows: Sequence[dict], path: Path) -> bool:
    """Training and validation loss over steps as a PNG. False where matplotlib (extra `plot`) is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if training:
        axes.plot(*zip(*training, strict=True), color="#9ecae1", linewidth=0.8, label="training, each step")
        axes.plot(*zip(*smooth(training), strict=True), color="#2171b5", label="training, smoothed")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#d94801", marker="o", markersize=4, label="validation")
        step, loss = min(validation, key=lambda point: point[1])
        axes.annotate(f"best {loss:.3g}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="right")
    values = [loss for _, loss in (*smooth(training), *validation)]
    if values and 0 < 20 * min(values) < max(values):
        axes.set_yscale("log")  # else all but the first steps would lie on the axis
    else:
        axes.set_ylim(0, None)
    axes.set(xlabel="step", ylabel="loss (nats a target)")
    axes.grid(alpha=0.3)
    if values:  # a short run may have logged nothing
        axes.legend()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average over about a thirtieth of the run, without the start's bias."""
    decay = 1 - 1 / max(1, len(points) / 30)
    mean, weight, out = 0.0, 0.0, []
    for step, value in points:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out.append((step, mean / weight))
    return out
