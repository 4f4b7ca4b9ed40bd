"""Loss and exact match over the amount of data, with the forecast: as a table and as a picture."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from gptft.errors import UserError
from gptft.evaluation.scaling import Forecast, forecast
from gptft.files import atomic_write


def describe(rows: Sequence[dict]) -> dict:
    """{"rows", "forecast", "check", "text"}: the forecast for twice the largest amount, and, as a check, that of the
    largest from the smaller ones; None where there are too few runs."""
    lines = [f"{'fraction':>8} {'examples':>9} {'steps':>7} {'loss':>8} {'exact match':>12}"]
    for row in rows:
        match = "" if row["exact_match"] is None else f"{row['exact_match']:.1%}"
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(f"{row['fraction']:>8g} {row['examples']:>9,} {row['steps']:>7,} {loss:>8} {match:>12}")
    points = [(row["examples"], row["loss"]) for row in rows if row["loss"] is not None]
    result: dict = {"rows": list(rows), "forecast": None, "check": None}
    try:
        ahead = forecast(points, 2 * points[-1][0]) if points else None
        if ahead:
            result["forecast"] = ahead._asdict()
            lines.append(f"loss goes with examples to the power of {ahead.exponent:.3f}; twice as many: {ahead}")
    except UserError as error:
        lines.append(f"no forecast: {error}")
    back = None
    with contextlib.suppress(UserError):  # too few amounts that differ
        back = forecast(points[:-1], points[-1][0]) if len(points) > 3 else None
    if back:
        inside = back.low <= points[-1][1] <= back.high
        result["check"] = {**back._asdict(), "measured": points[-1][1], "inside": inside}
        lines.append(
            f"as a check, the last from those before it: {back}; measured {points[-1][1]:.4f}, "
            f"{'inside' if inside else 'OUTSIDE'}"
        )
    return result | {"text": "\n".join(lines)}


def plot_scaling(result: dict, path: Path) -> bool:
    """A PNG. False where matplotlib (extra `plot`) is not installed, or no loss was measured."""
    rows = [row for row in result["rows"] if row["loss"] is not None]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not rows:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    examples = [row["examples"] for row in rows]
    axes.loglog(examples, [row["loss"] for row in rows], "o", color="#2171b5", label="loss")
    if result["forecast"]:
        draw_forecast(axes, examples, [(row["examples"], row["loss"]) for row in rows], Forecast(**result["forecast"]))
    axes.set(xlabel="training examples", ylabel="loss (nats a target)")
    axes.grid(alpha=0.3, which="both")
    if any(row["exact_match"] is not None for row in rows):
        other = axes.twinx()
        other.plot(examples, [row["exact_match"] for row in rows], "s--", color="#31a354", markersize=4)
        other.set(ylabel="exact match (green)", ylim=(0, 1))
    axes.legend()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def draw_forecast(axes, examples: list[int], points: list[tuple[int, float]], ahead: Forecast) -> None:
    """The line, and the interval at twice the data."""
    first = forecast(points, examples[0])
    axes.plot([examples[0], ahead.examples], [first.loss, ahead.loss], color="#9ecae1", label="power law")
    height = [[ahead.loss - ahead.low], [ahead.high - ahead.loss]]
    axes.errorbar([ahead.examples], [ahead.loss], height, fmt="o", color="#d94801", capsize=4, label="twice the data")
