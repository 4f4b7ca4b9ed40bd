"""Tables on the console: held-out prompts with their responses, and the scores."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from gptft.evaluation.metrics import METRICS, describe_metric, exact_match


def response_table(rows: Sequence[dict], prompts: Sequence[str]) -> str:
    """Held-out prompts with the expected response and those before and after training, a line each.

    `=` marks a response that is exactly the expected one, `-` a prompt that is left out of the score; other metrics
    have a column with the score after training.
    """
    width = max(24, (shutil.get_terminal_size((160, 40)).columns - 12) // 4)
    others = {describe_metric(name): metric for name, metric in METRICS.items() if metric is not exact_match}

    def cell(text: str) -> str:
        text = " ".join(text.split())
        return (text if len(text) <= width else text[: width - 3] + "...").ljust(width)

    lines = [" | ".join([f"   {cell('prompt')}", *map(cell, ("expected", "before", "after")), *others])]
    for row, prompt in zip(rows, prompts, strict=True):
        after, expected = row["after"], row["expected"]
        left_out = "left_out" in row
        mark = "-" if left_out else "=" if exact_match(after, expected) else " "
        cells = [f" {mark} {cell(prompt)}", cell(expected), cell(row["before"]), cell(after)]
        for name, metric in others.items():
            cells.append(("" if left_out else f"{metric(after, expected):.1%}").rjust(len(name)))
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
