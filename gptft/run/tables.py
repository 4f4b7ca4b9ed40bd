"""Tables on the console: held-out prompts with their responses, and the scores."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from gptft.evaluation.responses import is_exact


def response_table(rows: Sequence[dict], prompts: Sequence[str]) -> str:
    """Held-out prompts with the expected response and those before and after training, a line each.

    `=` marks a response that is exactly the expected one.
    """
    width = max(24, (shutil.get_terminal_size((160, 40)).columns - 12) // 4)

    def cell(text: str) -> str:
        text = " ".join(text.split())
        return (text if len(text) <= width else text[: width - 3] + "...").ljust(width)

    lines = [f"   {cell('prompt')} | {cell('expected')} | {cell('before')} | {cell('after')}"]
    for row, prompt in zip(rows, prompts, strict=True):
        mark = "=" if is_exact(row["after"], row["expected"]) else " "
        lines.append(
            f" {mark} {cell(prompt)} | {cell(row['expected'])} | {cell(row['before'])} | {cell(row['after'])}".rstrip()
        )
    return "\n".join(lines)


def match_table(table: dict[str, dict]) -> str:
    """Exact match by family."""
    width = max(map(len, table))
    lines = [f"  {'exact match'.ljust(width)}     n   before    after"]
    lines += [
        f"  {name.ljust(width)} {row['n']:>5}   {row['before']:6.1%}   {row['after']:6.1%}"
        for name, row in table.items()
    ]
    return "\n".join(lines)
