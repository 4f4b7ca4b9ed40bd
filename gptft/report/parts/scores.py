"""Metrics with their intervals, the mistakes by kind, and the losses by record."""

from __future__ import annotations

import math

from gptft.evaluation.compare import SIDES
from gptft.evaluation.metrics import describe_metric
from gptft.report.html import Element, details, element, table
from gptft.report.parts.answers import cut, shown_answers
from gptft.report.run_files import RunFiles
from gptft.report.svg import cloud_chart
from gptft.run.tables import TOPIC, bounds, difference, number, percent

HARDEST = 40  # records that are named
DOTS = 1000  # records that are drawn
FAMILIES = 50  # that have a row under each metric
BOUNDS = (
    "A difference is called one only where its bounds leave out 0. The bounds speak of other records of the same kind, "
    "not of another seed."
)


def metrics(run: RunFiles) -> list | None:
    """Every figure of evaluation.json, with its bounds."""
    if not run.evaluation:
        return None
    rows = loss_rows(run.evaluation.get("likelihood"))
    for name, tables in run.evaluation.get("metrics", {}).items():
        rows.append(metric_row(describe_metric(name), tables["all"]))
    rows += [metric_row(TOPIC[what], found) for what, found in run.evaluation.get("topic", {}).items()]
    head = ["metric", "n", "before", "after", "difference", "won, lost, tied", "sign test"]
    absent = [f"{describe_metric(name)}: {why}" for name, why in run.evaluation.get("not_measured", {}).items()]
    return [
        table("Figures with their bounds of 95%", head, rows, "figures") if rows else None,
        element("p", BOUNDS) if rows else None,
        families(run.evaluation),
        answer_lengths(run.evaluation.get("lengths")),
        details("Not measured", element("ul", [element("li", line) for line in absent])) if absent else None,
    ]


def loss_rows(likelihood: dict | None) -> list[list[str]]:
    """Loss, perplexity and token accuracy."""
    rows = []
    for name in ("loss", "perplexity", "token_accuracy") if likelihood else ():
        show = percent if name == "token_accuracy" else number
        sides = [bounds(likelihood[side][name], show) if side in likelihood else "" for side in SIDES]
        found = likelihood.get("difference", {}).get(name)
        rows.append(
            [describe_metric(name), f"{likelihood['n']:,}", *sides, difference(found, show) if found else "", "", ""]
        )
    return rows


def metric_row(name: str, measured: dict) -> list[str]:
    """One metric over some records."""
    sides = [bounds(measured[side], percent) if side in measured else "" for side in SIDES]
    cells = [name, f"{measured['n']:,}", *sides, "", "", ""]
    if "difference" in measured:
        p = measured["sign_test"]
        cells[4:] = [
            difference(measured["difference"], percent),
            f"{measured['wins']:,}, {measured['losses']:,}, {measured['ties']:,}",
            f"p {p:.3f}" if p >= 0.001 else "p < 0.001",
        ]
    return cells


def families(evaluation: dict) -> list[Element]:
    """Each metric by the families that the records name."""
    head = ["family", "n", "before", "after", "difference", "won, lost, tied", "sign test"]
    folded = []
    for name, tables in evaluation.get("metrics", {}).items():
        every = tables.get("families", {})
        largest = sorted(every, key=lambda family: -every[family]["n"])[:FAMILIES]
        rows = [metric_row(cut(family), every[family]) for family in every if family in largest]
        if rows:
            words = f"{describe_metric(name)} by family"
            if len(rows) < len(every):
                words += f", the {FAMILIES} largest of {len(every):,}; evaluation.json has all"
            folded.append(details(words, table(words, head, rows, "figures")))
    return folded


def answer_lengths(lengths: dict | None) -> Element | None:
    """How long the answers are, and how many came to their own end."""
    rows = []
    for side in SIDES:
        if found := (lengths or {}).get(side):
            sizes = (f"{found['tokens_mean']:.1f}", f"{found['tokens_median']:g}", f"{found['tokens_longest']:,}")
            rows.append([side, *sizes, f"{found['empty']:,}", bounds(found["finished"], percent)])
    head = ["answers", "tokens, mean", "median", "longest", "empty", "came to their end"]
    return table("Lengths of the answers", head, rows, "figures") if rows else None


def mistakes(run: RunFiles) -> list | None:
    """The matrix of mistakes by kind, before and after, with examples among the answers."""
    found = {name: row for name, row in run.evaluation.get("mistakes", {}).items() if row["before"] or row["after"]}
    if not found:
        return None
    rows, shown = [], len(shown_answers(run))
    for name, row in found.items():
        examples = [[link(line), " "] for line in row["examples"] if line <= shown]
        rows.append(
            [describe_metric(name), *(f"{row[key]:,}" for key in ("before", "after", "mended", "new")), examples]
        )
    head = ["mistake", "before", "after", "mended", "new", "examples"]
    return [table("Answers with a mistake, by kind; one may have several", head, rows)]


def link(line: int) -> Element:
    """To an answer of the table, by its line in responses.jsonl."""
    return element("a", f"answer {line}", href=f"#answer-{line}")


def losses(run: RunFiles) -> list | None:
    """The loss of every test record before and after as a cloud of points, and the hardest by name."""
    rows = [row for row in run.losses if "after" in row]
    if not rows:
        return None
    worse = sum(row["after"] > row["before"] for row in rows if "before" in row)
    words = f"Test records with a higher loss than before: {worse:,} of {len(rows):,}. The hardest come first: where a "
    words += "model that has learned the rest is sure of something else, a wrong label is often among them."
    head = ["file", "line", "targets", "loss before", "loss after"]
    named = [
        [*(row[key] for key in ("file", "line", "targets")), show(row.get("before")), show(row["after"])]
        for row in rows[:HARDEST]
    ]
    part = f"The hardest {HARDEST} of {len(rows):,}" if len(rows) > HARDEST else f"All {len(rows):,}"
    caption = f"{part} by their loss after, nats a target; all are in losses.jsonl"
    return [element("p", words), cloud(rows), table(caption, head, named, first=False)]


def show(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def cloud(rows: list[dict]) -> Element | None:
    """A point a record: its loss before across, after upwards; below the line it fell."""
    points = [(row["before"], row["after"]) for row in rows if "before" in row][:: math.ceil(len(rows) / DOTS)]
    if not points:
        return None
    which = "each test record" if len(points) == len(rows) else f"{len(points):,} of {len(rows):,} test records"
    return element("div", cloud_chart("records", f"Loss of {which}, nats a target", points), class_="charts")
