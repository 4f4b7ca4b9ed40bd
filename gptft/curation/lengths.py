"""How long records are: histograms, what truncation would do to them, what padding costs, and which stand out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np

from gptft.collate import plan
from gptft.curation.entries import Entry
from gptft.curation.findings import Finding
from gptft.data.build import truncate
from gptft.data.examples import Dataset, Split
from gptft.errors import BadRecord
from gptft.tokenizer import Tokenizer

AT_ONCE = 1000  # records tokenised together
FAR = 8.0  # robust standard deviations of the logarithm from which a length stands out
ENOUGH = 50  # records from which on it can be said what is usual


class Measured:
    """Tokens of every entry's prompt and response, without any truncation."""

    def __init__(self, entries: Sequence[Entry], tokenizer: Tokenizer) -> None:
        self.entries: list[Entry] = []
        self.examples: list[tuple[list[int], list[tuple[int, int]]]] = []
        self.refused: list[Finding] = []
        for start in range(0, len(entries), AT_ONCE):
            segments = []
            for entry in entries[start : start + AT_ONCE]:
                try:
                    segments.append(tokenizer.template.segments(entry.parts))
                    self.entries.append(entry)
                except BadRecord as error:
                    self.refused.append(entry.finding("shape", str(error)))
            self.examples += tokenizer.encode_many(segments)
        self.totals = np.array([len(ids) for ids, _ in self.examples], int)
        self.targets = np.array([sum(b - max(a, 1) for a, b in spans) for _, spans in self.examples], int)
        self.beginnings = tokenizer.beginnings

    def too_long(self, max_length: int, rule: str) -> Iterator[Finding]:
        """Every record that the rule cuts or drops at this length."""
        for entry, (ids, spans) in zip(self.entries, self.examples, strict=True):
            if len(ids) > max_length:
                kept = truncate(ids, spans, max_length, rule, self.beginnings)
                what = "is dropped" if kept is None else f"loses {len(ids) - len(kept[0])} of them"
                text = f"{len(ids)} tokens: it {what} at max_length {max_length}, truncation {rule}"
                yield entry.finding("too-long", text)

    def by_rule(self, max_length: int) -> dict[str, dict[str, int]]:
        """For each rule, how many records it cuts and drops, and how many tokens are lost."""
        rules = {}
        for rule in ("right", "left", "drop"):
            counts = {"cut": 0, "dropped": 0, "tokens lost": 0}
            for ids, spans in self.examples:
                if len(ids) > max_length:
                    kept = truncate(ids, spans, max_length, rule, self.beginnings)
                    counts["dropped" if kept is None else "cut"] += 1
                    counts["tokens lost"] += len(ids) - (len(kept[0]) if kept else 0)
            rules[rule] = counts
        return rules

    def summary(self, max_length: int, batch_size: int) -> dict:
        """Everything about lengths that a report shows."""
        capped = np.minimum(self.totals, max_length)
        return {
            "tokens": int(self.totals.sum()),
            "targets": int(self.targets.sum()),
            "max_length": max_length,
            "batch_size": batch_size,
            "padding": {how: padding_share(capped, batch_size, how) for how in ("length", "random")},
            "truncation": self.by_rule(max_length),
            "prompt": histogram(self.totals - self.targets),
            "response": histogram(self.targets),
        }


def padding_share(lengths: np.ndarray, batch_size: int, batching: str) -> float:
    """The share of what is computed in an epoch that is padding."""
    if not len(lengths):
        return 0.0
    batches = [chosen for window in plan(lengths, batch_size, 1, 0, 0, batching) for chosen in window]
    return 1 - float(lengths.sum()) / sum(len(chosen) * int(lengths[chosen].max()) for chosen in batches)


def histogram(lengths: np.ndarray) -> dict:
    """{"median", "longest", "bins": [[from, to, count], ...]} in bins that double."""
    if not len(lengths):
        return {"median": 0, "longest": 0, "bins": []}
    edges = [0, *(2**n for n in range(1, 40))]
    edges = edges[: np.searchsorted(edges, int(lengths.max()), side="right") + 1]
    counts, _ = np.histogram(lengths, edges)
    bins = [[a, b - 1, int(n)] for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    while bins and not bins[0][2]:
        bins.pop(0)
    return {"median": int(np.median(lengths)), "longest": int(lengths.max()), "bins": bins}


def count_lengths(dataset: Dataset) -> dict[str, dict]:
    """Histograms of a data set's examples as they are trained on: tokens of prompt and response."""
    examples = Split(dataset, np.arange(len(dataset)))
    return {
        "prompt": histogram(examples.lengths - examples.target_counts),
        "response": histogram(examples.target_counts),
    }


def find_outliers(entries: Sequence[Entry], lengths: dict[str, Sequence[int]], unit: str) -> Iterator[Finding]:
    """Entries whose prompt or response is far longer or shorter than the others, by the median of the logarithms and
    the median distance from it (Hampel's identifier). `lengths`: for "prompt" and "response", of every entry."""
    for what, values in lengths.items():
        some = [value for value in values if value]
        if len(some) < ENOUGH:
            continue
        logs = [math.log(value) for value in some]
        middle = median(logs)
        # 1.4826 makes the median distance a standard deviation where lengths are log-normal; where most are alike, a
        # length that is half or twice the usual one is no outlier yet
        scale = max(1.4826 * median(abs(value - middle) for value in logs), math.log(2) / 2)
        for entry, value in zip(entries, values, strict=True):
            if value and abs(math.log(value) - middle) > FAR * scale:
                usual = f"the median is {math.exp(middle):.0f}"
                yield entry.finding("length", f"its {what} has {value:,} {unit}, {usual}")
