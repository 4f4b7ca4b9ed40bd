"""Answers measured, and two models' answers to the same questions compared, record by record.

A **row** has the `record`, the `expected` response, and under the name of each side (`before`, `after`) its answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from gptft.evaluation import intervals
from gptft.evaluation.intervals import sign_test
from gptft.evaluation.metrics import Metric, OfCorpus, measurable
from gptft.evaluation.topic import topic_scores

SIDES = ("before", "after")


def measure(rows: Sequence[dict], sides: Sequence[str] = SIDES) -> dict:
    """-> {"metrics": {name: {"all": a table, "families": {family: a table}}}, "not_measured": {name: why}},
    and where records are marked as off topic "topic": {"deflected": a table, "wrongly_deflected": a table}.

    A table has `n` and for each side its score with `low` and `high`, the bounds of 95%; with two sides the
    `difference` with its own bounds, whether it `differs`, the records that the second side wins, loses and ties, and
    the `sign_test` of these. Families are those that the records name under `family`.
    """
    metrics, absent = measurable()
    tables = {}
    for name, metric in metrics.items():
        scored = [(row, scores) for row in rows if (scores := score(metric, row, sides))]
        if not scored:
            absent[name] = "no record expects such a response"
            continue
        tables[name] = by_family(metric, scored, sides)
    topic = {what: table(None, scored, sides) for what, scored in topic_scores(rows, sides).items()}
    return {"metrics": tables, "not_measured": absent} | ({"topic": topic} if topic else {})


def by_family(metric: Metric, scored: Sequence[tuple[dict, list[float]]], sides: Sequence[str]) -> dict:
    """The table of all rows, and those of the families."""
    families = defaultdict(list)
    for row, scores in scored if not isinstance(metric, OfCorpus) else ():
        if isinstance(family := row["record"].get("family"), str):
            families[family].append((row, scores))
    return {
        "all": table(metric, scored, sides),
        "families": {family: table(metric, members, sides) for family, members in sorted(families.items())},
    }


def score(metric: Metric, row: dict, sides: Sequence[str]) -> list[float]:
    """The score of each side's answer; [] where the metric says nothing of such a record."""
    scores = [metric(row[side], row["expected"]) for side in sides]
    return [] if None in scores else scores


def table(metric: Metric | None, scored: Sequence[tuple[dict, list[float]]], sides: Sequence[str]) -> dict:
    """One metric over some records, as `measure` says."""
    if isinstance(metric, OfCorpus):
        parts = [[metric.statistics(row[side], row["expected"]) for row, _ in scored] for side in sides]
        found = intervals.intervals([np.array(part, dtype=float) for part in parts], metric.combine_all)
    else:
        found = intervals.intervals([np.array([[scores[at]] for _, scores in scored]) for at in range(len(sides))])
    made = {"n": len(scored)} | {side: found[at]._asdict() for at, side in enumerate(sides)}
    if len(sides) == 2:
        wins = sum(second > first for _, (first, second) in scored)
        losses = sum(second < first for _, (first, second) in scored)
        made["difference"] = found[2]._asdict() | {"differs": found[2].differs}
        made |= {"wins": wins, "losses": losses, "ties": len(scored) - wins - losses}
        made["sign_test"] = sign_test(wins, losses)
    return made


def worst_first(rows: Sequence[dict], metric: Metric) -> list[int]:
    """The numbers of the rows whose score fell from `before` to `after`, the furthest fall first."""
    falls = [
        (scores[1] - scores[0], number) for number, row in enumerate(rows) if (scores := score(metric, row, SIDES))
    ]
    return [number for fall, number in sorted(falls) if fall < 0]


def measure_lengths(rows: Sequence[dict], side: str) -> dict | None:
    """How long one side's answers are and how many came to their own end; None where the rows do not know it."""
    if not rows or not all(side in row.get("tokens", {}) for row in rows):
        return None
    tokens = [row["tokens"][side] for row in rows]
    (finished,) = intervals.intervals([np.array([[float(row["finished"][side])] for row in rows])])
    return {
        "tokens_mean": float(np.mean(tokens)),
        "tokens_median": float(np.median(tokens)),
        "tokens_longest": max(tokens),
        "empty": sum(not row[side].strip() for row in rows),
        "finished": finished._asdict(),
    }
