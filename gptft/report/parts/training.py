"""How the training went: the curves, and what it took."""

from __future__ import annotations

import math

from gptft.report.html import Element, details, element, table
from gptft.report.overfitting import find_course
from gptft.report.plot import smooth
from gptft.report.run_files import RunFiles
from gptft.report.svg import Line, Mark, line_chart
from gptft.run.console import amount, clock

LOSS = "loss, nats a target"
ROWS = 200  # of the table of evaluations


def curves(run: RunFiles) -> list | None:
    """Losses, learning rate and gradient norm over steps and tokens, and the evaluations as a table."""
    if not run.metrics:
        return None
    course = find_course(run.steps, run.evaluations)
    marks = []
    if course:
        step, loss = course.lowest
        marks = [
            Mark(step, f"overfits from step {step:,}" if course.overfits else f"lowest: {loss:.4g}, step {step:,}")
        ]
    read = ("tokens", run.tokens_by_step()) if run.steps else None
    losses = [
        *both("training", run.steps, "loss", 0),
        Line("validation", pairs(run.evaluations, "eval_loss"), 1, dots=True),
    ]
    scores = [Line("score", pairs(run.evaluations, "score"), 4, dots=True)]
    best_by = run.config.get("best_by", "score")
    rate = [Line("learning rate", pairs(run.steps, "learning_rate"), 2)]
    charts = [
        line_chart("loss", "Loss", losses, "step", LOSS, marks, read),
        line_chart("score", f"Score ({best_by} of validation answers)", scores, "step", "0 to 1"),
        line_chart("rate", "Learning rate", rate, "step", "rate", may_log=False),
        line_chart("norm", "Gradient norm, before clipping", both("norm", run.steps, "grad_norm", 3), "step", "norm"),
    ]
    return [element("div", charts, class_="charts"), evaluations(run)]


def pairs(rows: list[dict], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have one."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def both(name: str, rows: list[dict], key: str, look: int) -> list[Line]:
    """A line that jumps from step to step, and the same smoothed."""
    points = pairs(rows, key)
    return [Line(f"{name}, each step", points, look, faint=True), Line(f"{name}, smoothed", smooth(points), look)]


def evaluations(run: RunFiles) -> Element | None:
    """The validation loss by evaluation, with what the training had come to."""
    if not run.evaluations:
        return None
    trained, read = dict(smooth(pairs(run.steps, "loss"))), dict(run.tokens_by_step())
    score = any(row.get("score") is not None for row in run.evaluations)
    rows, every = [], math.ceil(len(run.evaluations) / ROWS)
    for row in [*run.evaluations[:-1:every], run.evaluations[-1]]:
        step = row["step"]
        cells = [f"{step:,}", f"{row['epoch']:.2f}", f"{read[step]:,.0f}" if step in read else ""]
        cells += [f"{trained[step]:.4f}" if step in trained else "", f"{row['eval_loss']:.4f}"]
        rows.append(cells + ([f"{row['score']:.1%}" if row.get("score") is not None else ""] if score else []))
    head = ["step", "epoch", "tokens", "training loss, smoothed", "validation loss", *(["score"] if score else [])]
    which = "each evaluation" if every == 1 else f"{len(rows):,} of {len(run.evaluations):,} evaluations"
    return details("The evaluations as a table", table(f"Losses at {which}, nats a target", head, rows))


def speed(run: RunFiles) -> list | None:
    """Speed over the steps; time, memory and arithmetic, beside what the machine was measured to do."""
    if not run.steps:
        return None
    rate = both("tokens", run.steps, "tokens_per_second", 5)
    chart = line_chart("speed", "Speed", rate, "step", "tokens a second", show=",.0f")
    rows = cost(run.summary) if run.summary else so_far(run)
    return [element("div", chart, class_="charts"), table("What the training took", ["what", "how much"], rows)]


def so_far(run: RunFiles) -> list[list[str]]:
    """What can be said while the run is going on, or where it has not come to its end."""
    seconds, last = sum(row["iter_time"] for row in run.steps), run.steps[-1]
    rows = [["steps", f"{run.last_step:,}"], ["time in logged steps", clock(seconds)]]
    return rows + ([["time left, about", clock(last["remaining_time"])]] if run.going_on else [])


def cost(summary: dict) -> list[list[str]]:
    """Time, memory and arithmetic of a finished run."""
    seconds = max(summary["train_runtime"], 1e-9)
    reached, ceiling = summary["total_flos"] / seconds, summary.get("machine_flops")
    rows = [
        ["time in steps", clock(summary["train_runtime"])],
        ["examples a second", f"{summary['train_samples_per_second']:,.1f}"],
        ["tokens a second, without padding", f"{summary['train_tokens'] / seconds:,.0f}"],
        ["waiting for data", f"{summary['data_share']:.1%} of the time"],
        ["arithmetic on these tokens", amount(summary["total_flos"], "FLOP")],
        ["of it a second", amount(reached, "FLOP/s")],
    ]
    if ceiling:
        rows.append(["the machine's ceiling, a large matrix product, measured", amount(ceiling, "FLOP/s")])
        rows.append(["share of the ceiling", f"{reached / ceiling:.1%}"])
    if summary["peak_memory_bytes"]:
        rows.append(["memory at the peak", amount(summary["peak_memory_bytes"], "B")])
    rows.append(["parameters", f"{summary['parameters']:,}"])
    if summary["trainable_parameters"] != summary["parameters"]:
        rows.append(["of them trained", f"{summary['trainable_parameters']:,}"])
    return rows
