"""A picture of the results: how many times as fast as its peer gptft is, a bar for each comparison.

Drawn from the committed results when the documents are made; bars end at the median of the ratios formed round by
round, thin lines go from the smallest to the largest.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from xml.sax.saxutils import escape

from benchmarks import common
from benchmarks.results import DOCS, FOLDER, read
from gptft.files import atomic_write

PICTURE = "speed.svg"
LABELS, WIDTH, ROW, TOP = 330, 760, 24, 46  # of the picture, in pixels: the words on the left, all, a row, the head
PARTS = {  # title: (benchmark, key of a rate, {what: (contender, peer)})
    "Fine-tuning GPT-2 124M on short records": (
        "sft",
        "examples_per_second",
        {
            "fp32, over TRL": ("gptft fp32", "TRL fp32"),
            "bf16, over TRL": ("gptft bf16", "TRL bf16"),
            "fp32, over the classical loop": ("gptft fp32", "classical loop fp32"),
        },
    ),
    "Adapters of rank 8 for it": (
        "lora",
        "examples_per_second",
        {
            "fp32, over PEFT with TRL": ("gptft LoRA fp32", "PEFT fp32"),
            "bf16, over PEFT with TRL": ("gptft LoRA bf16", "PEFT bf16"),
        },
    ),
    "Full rows, every token a target": (
        "dense",
        "tokens_per_second",
        {
            "256 tokens, fp32, over the classical loop": ("gptft fp32, 256", "book fp32, 256"),
            "256 tokens, bf16, over transformers' Trainer": ("gptft bf16, 256", "Trainer bf16, 256"),
            "1,024 tokens, fp32, over the classical loop": ("gptft fp32, 1024", "book fp32, 1024"),
            "1,024 tokens, bf16, over transformers' Trainer": ("gptft bf16, 1024", "Trainer bf16, 1024"),
        },
    ),
    "Decoding with GPT-2 124M": (
        "decode",
        "tokens_per_second",
        {
            "one prompt, fp32, over transformers": ("gptft, 1", "transformers, 1"),
            "one prompt, bf16, over transformers": ("gptft bf16, 1", "transformers bf16, 1"),
            "one prompt, int8, over transformers' fp32": ("gptft int8, 1", "transformers, 1"),
            "8 prompts, fp32, over transformers": ("gptft, 8", "transformers, 8"),
        },
    ),
    "110 answers of SmolLM2-135M": (
        "answers",
        "answers_per_second",
        {"fp32, over transformers' best batches": ("gptft", "transformers")},
    ),
}


class Bar(NamedTuple):
    label: str
    ratio: dict[str, float]


def parts() -> dict[str, list[Bar]]:
    """The bars, by title: of those comparisons that the results hold."""
    found = {}
    for title, (name, key, pairs) in PARTS.items():
        if not (FOLDER / f"{name}.json").exists():  # not measured yet
            continue
        rounds = read(name)["rounds"]
        bars = [
            Bar(label, common.ratios(rounds, of, to, key))
            for label, (of, to) in pairs.items()
            if {of, to} <= rounds[0].keys()
        ]
        if bars:
            found[title] = bars
    return found


def draw() -> str:
    """The picture."""
    found = parts()
    most = math.ceil(max(bar.ratio["max"] for bars in found.values() for bar in bars))
    height = TOP + sum(ROW * (len(bars) + 1) + 10 for bars in found.values()) + 14

    def x(value: float) -> float:
        return round(LABELS + (WIDTH - LABELS - 70) * value / most, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="How many times as fast as its peer gptft is">',
        "<style>text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.bar{fill:#0072b2}"
        ".spread{stroke:#222}.grid{stroke:#ddd}.even{stroke:#c44e00;stroke-dasharray:4 3}.end{text-anchor:end}"
        ".middle{text-anchor:middle}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for value in range(most + 1):
        look = "even" if value == 1 else "grid"
        lines.append(f'<line class="{look}" x1="{x(value)}" x2="{x(value)}" y1="{TOP - 12}" y2="{height - 10}"/>')
        lines.append(f'<text class="middle" x="{x(value)}" y="{TOP - 18}">{value}x</text>')
    y = TOP
    for title, bars in found.items():
        lines.append(f'<text class="title" x="10" y="{y + 15}">{escape(title)}</text>')
        y += ROW
        for label, ratio in bars:
            middle = y + 10
            lines.append(f'<text class="end" x="{LABELS - 10}" y="{y + 14}">{escape(label)}</text>')
            width = round(x(ratio["median"]) - x(0), 1)
            lines.append(f'<rect class="bar" x="{x(0)}" y="{y + 3}" width="{width}" height="14"/>')
            ends = f'x1="{x(ratio["min"])}" x2="{x(ratio["max"])}"'
            lines.append(f'<line class="spread" {ends} y1="{middle}" y2="{middle}"/>')
            lines.append(f'<text x="{x(ratio["max"]) + 8}" y="{y + 14}">{ratio["median"]:.2f}x</text>')
            y += ROW
        y += 10
    return "\n".join([*lines, "</svg>"]) + "\n"


def render() -> None:
    """Write the picture beside the documents."""
    with atomic_write(DOCS / PICTURE) as file:
        file.write(draw())
