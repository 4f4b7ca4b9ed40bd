"""Staying on topic: whether a model turns away what it should not talk about, and answers what it should.

A record with `"off_topic": true` holds a question from outside and, as its response, the wished-for deflection ("Let
us keep to the documentation."). An answer is a deflection where its words are nearly those of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptft.evaluation.metrics import token_f1

DEFLECTS = 0.6  # token F1 with a wished-for deflection: other words around it are allowed, another answer is not


def is_off_topic(record: dict) -> bool:
    return record.get("off_topic") is True


def deflections(rows: Sequence[dict]) -> list[str]:
    """Every deflection that some record wishes for."""
    return sorted({row["expected"] for row in rows if is_off_topic(row["record"])})


def deflects(answer: str, wished: Sequence[str]) -> float:
    return float(any(token_f1(answer, each) >= DEFLECTS for each in wished))


def topic_scores(rows: Sequence[dict], sides: Sequence[str]) -> dict[str, list[tuple[dict, list[float]]]]:
    """-> {"deflected": of the off-topic rows, "wrongly_deflected": of the others}, each row with 1.0 for each side
    whose answer is a deflection; {} where no row is off topic."""
    wished = deflections(rows)
    if not wished:
        return {}
    scored: dict = {"deflected": [], "wrongly_deflected": []}
    for row in rows:
        what = "deflected" if is_off_topic(row["record"]) else "wrongly_deflected"
        scored[what].append((row, [deflects(row[side], wished) for side in sides]))
    return {what: some for what, some in scored.items() if some}
