"""Answers set against one another, by a judge or by a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from gptft.evaluation.contenders import Prompt
from gptft.evaluation.judge import Asked, Judge
from gptft.evaluation.metrics import Metric
from gptft.evaluation.ranking import Match
from gptft.text.progress import progress

Decide = Callable[[Asked, str, str], float | None]  # 1.0 where the first answer is better, 0.5 for a tie


def by_metric(metric: Metric) -> Decide:
    """Whose answer a metric scores higher; None where it says nothing of such a record."""

    def decide(asked: Asked, a: str, b: str) -> float | None:
        scores = [metric(answer, asked.expected) for answer in (a, b)] if asked.expected else [None]
        return None if None in scores else 0.5 + (scores[0] > scores[1]) / 2 - (scores[0] < scores[1]) / 2

    return decide


def play(prompts: Sequence[Prompt], answers: dict[str, list[str]], decide: Decide) -> Iterator[Match | None]:
    """Every two contenders on every prompt; None for a match that nobody could decide."""
    for number, prompt in enumerate(prompts):
        for a, b in combinations(answers, 2):
            score = decide(prompt.asked, answers[a][number], answers[b][number])
            yield None if score is None else Match(number, a, b, score)


def score_rows(judge: Judge, rows: Sequence[dict], asked: Sequence[Asked], sides: Sequence[str]) -> list[list[float]]:
    """A judge's scores of each row's answers; [] for a row that has not one for every side."""
    pairs = progress(list(zip(rows, asked, strict=True)), "records", desc="scores")
    scores = [[judge.score(each, row[side]) for side in sides] for row, each in pairs]
    return [[] if None in each else each for each in scores]


def prefer_rows(judge: Judge, rows: Sequence[dict], asked: Sequence[Asked], sides: Sequence[str]) -> list[list[float]]:
    """The share that each of two sides has of a judge's verdict, [0.5, 0.5] for a tie; [] where there is none."""
    pairs = progress(list(zip(rows, asked, strict=True)), "records", desc="preferences")
    verdicts = [judge.compare(each, row[sides[1]], row[sides[0]]) for row, each in pairs]
    return [[] if verdict is None else [1 - verdict, verdict] for verdict in verdicts]
