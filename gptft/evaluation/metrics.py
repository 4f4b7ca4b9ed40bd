"""Metrics of the answers. Another one is one function here: every table, `evaluate` and summary.json then have it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from gptft.text.conversation import split_reasoning

Metric = Callable[[str, str], float]  # (response, expected response) -> a score, 0 at worst and 1 at best


def exact_match(response: str, expected: str) -> float:
    """1.0 where the texts are equal but for white space at the ends, else 0.0. What a model thinks aloud before its
    answer, up to `</think>`, is compared in neither."""
    return float(answer_in(response).strip() == answer_in(expected).strip())


def answer_in(text: str) -> str:
    """A response without the reasoning before it."""
    return split_reasoning({"content": text})[1]


METRICS: dict[str, Metric] = {"exact_match": exact_match}


def describe_metric(name: str) -> str:
    """A metric's name as people read it."""
    return name.replace("_", " ")


def score_rows(rows: Sequence[dict], metric: Metric) -> dict[str, dict]:
    """Rows with `expected`, `before`, `after` and a `record` -> by family (the record's `family`, where it has one)
    and over `all`: n, and the mean scores before and after."""
    by_family = defaultdict(list)
    for row in rows:
        if isinstance(family := row["record"].get("family"), str):
            by_family[family].append(row)
    table = {}
    for name, members in [*sorted(by_family.items()), ("all", rows)]:
        means = {
            when: sum(metric(row[when], row["expected"]) for row in members) / len(members)
            for when in ("before", "after")
        }
        table[name] = {"n": len(members), **means}
    return table
