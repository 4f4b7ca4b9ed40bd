"""What a judge's word is worth: planted differences that it must see, and whether it agrees with others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gptft.evaluation.intervals import LEAST, sign_test
from gptft.evaluation.judge import Asked, Judge
from gptft.evaluation.metrics import answer_in
from gptft.text.progress import progress

LEAST_WORDS = 4  # of an expected response, of which a worse one is made
SHUFFLES = 20  # after which a response's words are taken to be all alike
SURE = 0.05


class Planted(NamedTuple):
    """A prompt with its expected response, and one that was made worse: how is its `kind`."""

    kind: str
    asked: Asked
    good: str
    bad: str


def plant(questions: Sequence[Asked], count: int, seed: int = 0) -> list[Planted]:
    """`count` planted differences, of as many questions as have a response of LEAST_WORDS words, by the seed: the
    words `shuffled`, the response to `another` prompt, the first half of the words (`cut`), in turn. The judge is not
    shown what is expected, which would be the good one itself."""
    rng = random.Random(seed)
    pool = [each._replace(expected=answer_in(each.expected)) for each in questions]  # without what is thought aloud
    pool = [each for each in pool if len(each.expected.split()) >= LEAST_WORDS]
    planted = []
    for each in rng.sample(pool, len(pool)):
        if len(planted) == count:
            break
        kind = tuple(WORSE)[len(planted) % len(WORSE)]
        bad = WORSE[kind](each, pool, rng)
        if bad is not None:
            planted.append(Planted(kind, Asked(each.prompt), each.expected, bad))
    return planted


def shuffled(each: Asked, pool: Sequence[Asked], rng: random.Random) -> str | None:
    """The words in another order; None where there is none."""
    words = each.expected.split()
    for _ in range(SHUFFLES):
        other = rng.sample(words, len(words))
        if other != words:
            return " ".join(other)
    return None


def another(each: Asked, pool: Sequence[Asked], rng: random.Random) -> str | None:
    """The response to another prompt; None where all have the same."""
    others = [other.expected for other in pool if other.expected != each.expected and other.prompt != each.prompt]
    return rng.choice(others) if others else None


def cut(each: Asked, pool: Sequence[Asked], rng: random.Random) -> str:
    """The first half of the words."""
    words = each.expected.split()
    return " ".join(words[: len(words) // 2])


WORSE: dict[str, Callable] = {"shuffled": shuffled, "another": another, "cut": cut}


def check(judge: Judge, planted: Sequence[Planted], kind: str) -> dict:
    """How often a judge prefers the good one. `kind`: "score", of which the higher must be its, or "pair".

    -> {"n", "right", "wrong", "undecided", "p", "useless", "kinds": {kind: the first four}, "counts"}. `p`: how likely
    so uneven a number of right and wrong is where the judge throws coins (the exact binomial law); useless is who does
    not beat these, at 5%, and None where there are fewer than LEAST, of which none could tell. `counts`: the judge's of
    this check, which are none of its own afterwards.
    """
    found = []
    before, judge.counts = judge.counts, Counter()
    for each in progress(planted, "differences", desc="checking the judge"):
        if kind == "pair":
            verdict = judge.compare(each.asked, each.good, each.bad)
        else:
            good, bad = judge.score(each.asked, each.good), judge.score(each.asked, each.bad)
            verdict = None if None in (good, bad) else 0.5 + (good > bad) / 2 - (good < bad) / 2
        found.append((each.kind, verdict))
    kinds = {name: tally([verdict for kind, verdict in found if kind == name]) for name in WORSE}
    counts = tally([verdict for _, verdict in found])
    p = sign_test(counts["right"], counts["wrong"])
    useless = None if len(planted) < LEAST else counts["right"] <= counts["wrong"] or p >= SURE
    asked, judge.counts = dict(judge.counts), before
    kinds = {name: each for name, each in kinds.items() if each["n"]}
    return {**counts, "p": p, "useless": useless, "kinds": kinds, "counts": asked}


def tally(verdicts: Sequence[float | None]) -> dict[str, int]:
    """A tie is undecided, and so is what nobody could parse."""
    right, wrong = verdicts.count(1.0), verdicts.count(0.0)
    return {"n": len(verdicts), "right": right, "wrong": wrong, "undecided": len(verdicts) - right - wrong}


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> dict:
    """-> {"n", "share", "kappa"}: of what both decided the share on which they agree, and Cohen's kappa (1960), which
    is 0 for the agreement that their own frequencies make likely, and 1 for a perfect one. Both are None where there is
    nothing to agree on; kappa where both always say the same."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return {"n": 0, "share": None, "kappa": None}
    n, share = len(both), sum(a == b for a, b in both) / len(both)
    chance = sum(sum(a == value for a, _ in both) * sum(b == value for _, b in both) for value in set(sum(both, ())))
    if chance == n * n:
        return {"n": n, "share": share, "kappa": None}
    return {"n": n, "share": share, "kappa": (share - chance / n**2) / (1 - chance / n**2)}
