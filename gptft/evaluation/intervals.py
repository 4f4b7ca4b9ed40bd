"""How sure a figure is: intervals of 95% for scores and for their differences, and the sign test.

The interval is the percentile bootstrap (Efron 1979): records are drawn again and again with replacement, as many as
there are, and the middle 95% of the scores are kept. A difference is taken over the same draws on both sides, for what
is hard for one model is hard for the other. It speaks of other records of the same kind, and of nothing else: not of
another seed, nor of another prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
AT_ONCE = 2_000_000  # numbers drawn together
OUTSIDE = 0.025  # of the draws on either side

Combine = Callable[[np.ndarray, int], np.ndarray]  # (many sums of the statistics, records in each) -> the scores


class Interval(NamedTuple):
    """A figure, and the bounds between which it lies with a confidence of 95%: None where one record is all."""

    value: float
    low: float | None
    high: float | None

    @property
    def differs(self) -> bool:
        """Of a difference: whether it is one, for 0 is not among what it may be."""
        return self.low is not None and not self.low <= 0 <= self.high


def mean(sums: np.ndarray, count: int) -> np.ndarray:
    """The usual score of many records: one statistic each, and its mean."""
    return sums[:, 0] / count


def intervals(sides: Sequence[np.ndarray], combine: Combine = mean, seed: int = 0) -> list[Interval]:
    """The score of each side with its interval; where there are two, the second's less the first's comes third.

    A side: (records, statistics that each adds), the same records in the same order on all. Where all records of a mean
    are alike, so is every draw, and a bootstrap would be sure of what nobody can be: there `where_all_agree` answers.
    """
    n, width = sides[0].shape
    found, drawn = [], []
    sums = draw_sums(np.concatenate(sides, 1), seed)
    for number, side in enumerate(sides):
        value = float(combine(side.sum(0, keepdims=True), n)[0])
        drawn.append(combine(sums[:, number * width : (number + 1) * width], n))
        alone = combine is mean and value in (0.0, 1.0)
        found.append(where_all_agree(value, n, 0.0) if alone else Interval(value, *middle(drawn[-1], n)))
    if len(sides) == 2:
        value = found[1].value - found[0].value
        agree = combine is mean and abs(value) in (0.0, 1.0) and (sides[1] - sides[0] == value).all()
        found.append(where_all_agree(value, n, -1.0) if agree else Interval(value, *middle(drawn[1] - drawn[0], n)))
    return found


def where_all_agree(value: float, n: int, least: float) -> Interval:
    """The interval where n records of n say the same: 0, or 1, or as a difference -1. `least`: what a record can say.

    Of something that n records did not show, at most the share 1 - 0.025^(1/n) is left unseen (Clopper and Pearson
    1934). Of a difference of 1, which all records won, so many may lose instead: it may be lower by twice the share.
    """
    unseen = 1 - OUTSIDE ** (1 / n)
    reach = unseen * (2 if least < 0 and value else 1)
    return Interval(value, max(least, value - reach), min(1.0, value + reach))


def draw_sums(statistics: np.ndarray, seed: int) -> np.ndarray:
    """(DRAWS, statistics): the sums over records that are drawn with replacement."""
    n = len(statistics)
    rng, step = np.random.default_rng(seed), max(1, AT_ONCE // n)
    sums = []
    for start in range(0, DRAWS, step):
        times = rng.multinomial(n, np.full(n, 1 / n), size=min(step, DRAWS - start))  # each record is drawn
        sums.append(times.astype(float) @ statistics)
    return np.concatenate(sums)


def middle(drawn: np.ndarray, n: int) -> tuple[float, float] | tuple[None, None]:
    """The bounds of the middle 95% of what was drawn from n records."""
    if n == 1:
        return None, None
    low, high = np.quantile(drawn, [OUTSIDE, 1 - OUTSIDE])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """How likely so uneven a number of wins and losses is where both are as likely: two-sided, ties left out."""
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)  # integers up to here, so that it is exact
