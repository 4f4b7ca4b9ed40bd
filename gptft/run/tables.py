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
    shown = {describe_metric(name): tables["all"] for name, tables in metrics.items()}
    shown |= {TOPIC[what]: table for what, table in evaluation.get("topic", {}).items()}
    for name, table in shown.items():
        cells = [bounds(table[side], percent) for side in ("before", "after") if side in table]
        if two:
            cells += [
                difference(table["difference"], percent),
                *(f"{table[key]:,}" for key in ("wins", "losses", "ties")),
            ]
            cells.append(f"p {table['sign_test']:.3f}" if table["sign_test"] >= 0.001 else "p < 0.001")
        lines.append([name, f"{table['n']:,}", *cells])
    said = [columns(lines)] if lines[1:] else []
    said += [
        f"  not measured: {describe_metric(name)}: {why}" for name, why in evaluation.get("not_measured", {}).items()
    ]
    said += describe_mistakes(evaluation.get("mistakes", {}))
    if "forgetting" in evaluation:
        said += ["", describe_forgetting(evaluation["forgetting"], likelihood)]
    return "\n".join(said)


def describe_mistakes(counts: dict) -> list[str]:
    """How many answers have each kind of mistake, as `mistake_counts.count_mistakes` has them: a line a kind that any
    answer has; of two sides how many are mended and how many are new. Nothing where nothing was looked at."""
    found = {name: row for name, row in counts.items() if row["examples"]}
    if not found:
        return []
    keys = [name for name in next(iter(found.values())) if name != "examples"]
    width = max(map(len, found))
    lines = [f"  {'mistake'.ljust(width)}" + "".join(f"  {'answers' if name == 'n' else name:>7}" for name in keys)]
    for name, row in found.items():
        title = describe_metric(name).ljust(width)
        lines.append(f"  {title}" + "".join(f"  {row[key]:>7,}" for key in keys))
    return ["", *lines]


def describe_forgetting(found: dict, likelihood: dict | None) -> str:
    """What `forgetting.measure_forgetting` found, a line each; and whether a gain on the test set was paid for."""
    lines = [["what it knew", "n", "before", "after", "difference in loss"]]
    kinds = {"general": "perplexity, general text", "own_answers": "perplexity, its own answers"}
    for kind, name in kinds.items():
        if kind not in found:  # the template is no place for a question alone
            continue
        sides = [bounds(found[kind][side]["perplexity"], number) for side in ("before", "after")]
        lines.append([name, f"{found[kind]['n']:,}", *sides, difference(found[kind]["difference"]["loss"], number)])
    if "kl" in found:
        lines.append(
            ["KL from what it was, nats a token", f"{found['kl']['n']:,}", "", bounds(found["kl"], number), ""]
        )
    paid = describe_price(found, likelihood)
    return columns(lines) + (f"\n  {paid}" if paid else "")


def describe_price(found: dict, likelihood: dict | None) -> str:
    """Whether the general text has become less likely, and whether a gain on the test set was paid for by that; empty
    where nothing shows it."""
    paid, gained = found["general"]["difference"]["loss"], (likelihood or {}).get("difference", {}).get("loss")
    if not paid["differs"] or paid["value"] <= 0:
        return ""
    sides = [number(found["general"][side]["perplexity"]["value"]) for side in SIDES]
    rise = f"the perplexity on the general text went from {' to '.join(sides)}."
    if gained and gained["differs"] and gained["value"] < 0:
        return f"The gain on the test set was paid for elsewhere: {rise}"
    if gained and gained["differs"]:
        return f"It has lost elsewhere, too: {rise}"
    return f"It has lost elsewhere: {rise}"


def describe_samples(samples: dict[str, dict], generations: int, temperature: float) -> str:
    """What `samples.measure_samples` found, by side: a line for each figure of each metric."""
    sides = list(samples)
    lines = [
        [
            f"{generations:,} responses a record at temperature {temperature:g}",
            "n",
            *(sides if sides[1:] else ["score"]),
        ]
    ]
    for name, found in samples[sides[0]].items():
        for figure in found:
            if figure != "n":
                cells = [bounds(samples[side][name][figure], percent) for side in sides]
                lines.append([f"{describe_metric(name)}, {figure}", f"{found['n']:,}", *cells])
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells under each other, indented."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    said = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in lines]
    return "\n".join(f"  {line}".rstrip() for line in said)


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


TOPIC = {"deflected": "off topic, deflected", "wrongly_deflected": "on topic, deflected (wrongly: less is better)"}
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
