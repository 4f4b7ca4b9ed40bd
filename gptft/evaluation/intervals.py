"""How sure a figure is: intervals of 95% for scores and for their differences, and the sign test.

The interval is the percentile bootstrap (Efron 1979): records are drawn again and again with replacement, as many as
there are, and the middle 95% of the scores are kept; for few records it is widened as Student's t is wider than the
normal law (Hesterberg 2015, What teachers should know about the bootstrap, 5.3). A difference is taken over the same
draws on both sides, for what is hard for one model is hard for the other. All this speaks of other records of the same
kind, and of nothing else: not of another seed, nor of another prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
AT_ONCE = 2_000_000  # numbers drawn together
OUTSIDE = 0.025  # of the draws on either side
NORMAL = 1.959964  # beyond which 2.5% of the normal law lie
LEAST = 6  # records on which two sides must differ: of five that fell one way, 6% of coins do the same

Combine = Callable[[np.ndarray, int], np.ndarray]  # (many sums of the statistics, records in each) -> the scores


class Interval(NamedTuple):
    """A figure, and the bounds between which it lies with a confidence of 95%: None where too few records tell."""

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


def intervals(sides: Sequence[np.ndarray], combine: Combine = mean, most: float = 1.0, seed: int = 0) -> list[Interval]:
    """The score of each side with its interval; where there are two, the second's less the first's comes third.

    A side: (records, statistics that each adds), the same records in the same order on all; a score is 0 to `most`.
    Where all draws are alike, as for records that are all right, a bootstrap would be sure of what nobody can be: there
    `where_all_agree` answers. Two sides that differ on fewer records than LEAST have a difference without bounds.
    """
    n, width = sides[0].shape
    found, drawn = [], []
    sums = draw_sums(np.concatenate(sides, 1), seed)
    for number, side in enumerate(sides):
        value = float(combine(side.sum(0, keepdims=True), n)[0])
        drawn.append(combine(sums[:, number * width : (number + 1) * width], n))
        low, high = middle(value, drawn[-1], n)
        if low is None or high - low <= 1e-9 * max(1.0, abs(value)):  # draws that are alike but for rounding
            known = most == 1.0 and value in (0.0, 1.0)
            found.append(where_all_agree(value, n, 0.0) if known else Interval(value, None, None))
        else:
            found.append(Interval(value, max(0.0, low), min(most, high)))
    if len(sides) == 2:
        value = found[1].value - found[0].value
        differ = int((sides[0] != sides[1]).any(1).sum())
        if most == 1.0 and (not differ or (differ == n and combine is mean and abs(value) == 1.0)):
            found.append(where_all_agree(value, n, -1.0))
        elif differ < LEAST:
            found.append(Interval(value, None, None))
        else:
            found.append(Interval(value, *middle(value, drawn[1] - drawn[0], n)))
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


def middle(value: float, drawn: np.ndarray, n: int) -> tuple[float, float] | tuple[None, None]:
    """The bounds of the middle 95% of what was drawn from n records, widened for few; None, None for a single one."""
    if n == 1:
        return None, None
    low, high = np.quantile(drawn, [OUTSIDE, 1 - OUTSIDE])
    wider = students_t(n - 1) / NORMAL * math.sqrt(n / (n - 1))
    return float(value - wider * (value - low)), float(value + wider * (high - value))


def students_t(free: int) -> float:
    """Beyond which 2.5% of Student's t lie, by degrees of freedom: exact for one and two, for more to 1%
    (Abramowitz and Stegun 1964, 26.7.5)."""
    if free <= 2:
        return (12.7062, 4.3027)[free - 1]
    z = NORMAL
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )


def sign_test(wins: int, losses: int) -> float:
    """How likely so uneven a number of wins and losses is where both are as likely: two-sided, ties left out."""
    n, ways, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):  # integers, so that it is exact
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)
