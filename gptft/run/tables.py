"""Tables on the console: held-out prompts with their responses, and the scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence

from gptft.evaluation.compare import SIDES, worst_first
from gptft.evaluation.metrics import METRICS, describe_metric, exact_match


def response_table(rows: Sequence[dict], prompts: Sequence[str]) -> str:
    """Held-out prompts with the expected response and those before and after training, a line each. `=` marks a
    response that is exactly the expected one, `-` a prompt that is left out of the score."""
    width = max(24, (shutil.get_terminal_size((160, 40)).columns - 12) // 4)

    def cell(text: str) -> str:
        text = " ".join(text.split())
        return (text if len(text) <= width else text[: width - 3] + "...").ljust(width)

    lines = [" | ".join([f"   {cell('prompt')}", *map(cell, ("expected", "before", "after"))]).rstrip()]
    for row, prompt in zip(rows, prompts, strict=True):
        after, expected = row["after"], row["expected"]
        mark = "-" if "left_out" in row else "=" if exact_match(after, expected) else " "
        cells = [f" {mark} {cell(prompt)}", cell(expected), cell(row["before"]), cell(after)]
        lines.append(" | ".join(cells).rstrip())
    return "\n".join(lines)


def score_table(name: str, table: dict[str, dict]) -> str:
    """One metric by family, in per cent."""
    title = describe_metric(name)
    width = max(map(len, [title, *table]))
    lines = [f"  {title.ljust(width)}     n   before    after"]
    lines += [
        f"  {family.ljust(width)} {row['n']:>5}   {row['before']:6.1%}   {row['after']:6.1%}"
        for family, row in table.items()
    ]
    return "\n".join(lines)


def describe_evaluation(evaluation: dict) -> str:
    """Every metric, as `compare.measure` and `losses.compare_losses` have them: a line each, with the bounds of 95%; of
    two sides the difference, the records won, lost and tied, and the sign test. Then what was not measured."""
    likelihood, metrics = evaluation.get("likelihood"), evaluation.get("metrics", {})
    two = any("before" in table for table in (likelihood or {}, *(tables["all"] for tables in metrics.values())))
    lines = [["metric", "n", *(["before", "after", "difference"] if two else ["score"]), *(MATCHES if two else ())]]
    for name in ("loss", "perplexity", "token_accuracy") if likelihood else ():
        show = percent if name == "token_accuracy" else number
        cells = [bounds(likelihood[side][name], show) for side in ("before", "after") if side in likelihood]
        if two:
            found = likelihood.get("difference", {}).get(name)
            cells += [difference(found, show) if found else "", *[""] * len(MATCHES)]
        lines.append([describe_metric(name), f"{likelihood['n']:,}", *cells])
    for name, tables in metrics.items():
        table = tables["all"]
        cells = [bounds(table[side], percent) for side in ("before", "after") if side in table]
        if two:
            cells += [
                difference(table["difference"], percent),
                *(f"{table[key]:,}" for key in ("wins", "losses", "ties")),
            ]
            cells.append(f"p {table['sign_test']:.3f}" if table["sign_test"] >= 0.001 else "p < 0.001")
        lines.append([describe_metric(name), f"{table['n']:,}", *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    said = []
    for cells in lines:
        said.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    said += [
        f"  not measured: {describe_metric(name)}: {why}" for name, why in evaluation.get("not_measured", {}).items()
    ]
    return "\n".join(said)


def describe_worse(rows: Sequence[dict], at_most: int) -> str:
    """The records that got worse by the words that they share with the expected response, the worst first; empty where
    none did."""
    worse = worst_first(rows, METRICS["token_f1"])
    if not worse:
        return ""
    said = [f"{len(worse):,} of {len(rows):,} got worse (by token f1):"]
    for number in worse[:at_most]:
        row = rows[number]
        said += [f"  {name.ljust(8)} {json.dumps(row[name], ensure_ascii=False)}" for name in ("expected", *SIDES)]
        said.append("")
    return "\n".join(said).rstrip()


MATCHES = ("won", "lost", "tied", "sign test")


def percent(value: float) -> str:
    return f"{value:.1%}"


def number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"


def bounds(found: dict, show: Callable[[float], str]) -> str:
    """A figure and between what it lies, where that is known."""
    between = "" if found["low"] is None else f" ({show(found['low'])} to {show(found['high'])})"
    return show(found["value"]) + between


def difference(found: dict, show: Callable[[float], str]) -> str:
    """A difference, which is called one only where its bounds say so."""
    said = bounds(found, lambda value: ("+" if value >= 0 else "") + show(value))
    return said + ("" if found["differs"] else ", none shown")
