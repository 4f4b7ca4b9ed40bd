"""Several answers to each question: how often one of k is right, how far they agree, and what the majority says.

pass@k is the chance that one of k answers at least is right, told without bias from n >= k of them: 1 - C(n - c, k) /
C(n, k) where c are right (Chen et al. 2021, arXiv 2107.03374). The majority's answer is that which comes most often, of
several the first (self-consistency, Wang et al. 2022, arXiv 2203.11171); where numbers count, the rest may differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from gptft.decoding import Sampling
from gptft.evaluation.intervals import intervals
from gptft.evaluation.metrics import METRICS, Metric, answer_in, normalised, said_number
from gptft.evaluation.responses import Question
from gptft.generation import Response, respond
from gptft.model import GPT
from gptft.tokenizer import Tokenizer

STREAMS = 2**32  # of random numbers, for each question's responses
# the metrics that call an answer right or wrong, and what two answers must share to be the same to each
SAME: dict[str, Callable[[str], Hashable]] = {
    "exact_match": answer_in,
    "normalised_match": normalised,
    "number_match": lambda answer: object() if (number := said_number(answer)) is None else number,  # none is like none
}


def pass_at(right: int, n: int, k: int) -> float:
    """The chance that of k answers, drawn from n of which so many are right, one at least is."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be told from {n} answers")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(answers: Sequence[str], same: Callable[[str], Hashable]) -> str:
    """The answer that comes most often, the first of those that are the same."""
    keys = list(map(same, answers))
    return answers[keys.index(Counter(keys).most_common(1)[0][0])]


def agreement(answers: Sequence[str], same: Callable[[str], Hashable]) -> float:
    """The share of pairs of answers that are the same."""
    n = len(answers)
    alike = sum(count * (count - 1) for count in Counter(map(same, answers)).values())
    return alike / (n * (n - 1)) if n > 1 else 1.0


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    generations: int,
    sampling: Sampling,
    max_new_tokens: int,
    batch_size: int,
    decode: str = "auto",
) -> list[list[Response]]:
    """So many responses to each question, those of a left-out one empty. Each draws from a stream of random numbers of
    its own, by the question's number and its own: fewer questions, or another batch, leave the others as they are."""
    asked = [number for number, question in enumerate(questions) if not question.left_out]
    parts = [questions[number].parts for number in asked for _ in range(generations)]
    streams = [number * STREAMS + which for number in asked for which in range(generations)]
    how = {"batch_size": batch_size, "sampling": sampling, "numbers": streams, "decode": decode}
    given = respond(model, tokenizer, parts, max_new_tokens, **how)
    made: list[list[Response]] = [[] for _ in questions]
    for at, response in enumerate(given):
        made[asked[at // generations]].append(response)
    return made


def measure_samples(rows: Sequence[dict], side: str) -> dict[str, dict]:
    """The `samples` of one side of each row, the same number in all, -> {metric: {"n": questions, "pass@1": ...,
    "pass@2": ..., "majority": ..., "agreement": ...}}, each figure with its bounds of 95% over the questions. Right is
    what the metric gives its full score; a metric that says nothing of any row is left out."""
    found = {}
    for name, same in SAME.items():
        metric = METRICS[name]
        scored = [(row["samples"][side], row["expected"]) for row in rows]
        scored = [pair for pair in scored if metric(pair[1], pair[1]) is not None]
        if scored:
            found[name] = {"n": len(scored)} | {
                what: intervals([np.array(values, dtype=float)[:, None]])[0]._asdict()
                for what, values in figures(scored, metric, same).items()
            }
    return found


def figures(
    scored: Sequence[tuple[Sequence[str], str]], metric: Metric, same: Callable[[str], Hashable]
) -> dict[str, list[float]]:
    """For (answers, expected response) of each question: {figure: its value for each question}."""
    n = len(scored[0][0])
    right = [sum(metric(answer, expected) == 1.0 for answer in answers) for answers, expected in scored]
    ks = sorted({n, *(2**power for power in range(n.bit_length()) if 2**power <= n)})
    made = {f"pass@{k}": [pass_at(count, n, k) for count in right] for k in ks}
    if n > 1:
        made["majority"] = [float(metric(majority(answers, same), expected) == 1.0) for answers, expected in scored]
        made["agreement"] = [agreement(answers, same) for answers, _ in scored]
    return made
