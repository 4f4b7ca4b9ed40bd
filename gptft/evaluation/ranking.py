"""Who is better, from matches: the model of Bradley and Terry by maximum likelihood, as Elo with bounds of 95%.

Each contender has a strength s, and one wins against another with the probability 1 / (1 + exp(-(s - s'))) (Bradley and
Terry 1952). The likelihood is highest where everyone's expected score is the score that was made. A tie is half a win
for each: then these equations stay as they are, and ratings mean what Elo's do, the expected score (Davidson's model of
1970 has a number of its own for ties, and its strengths speak of the matches that were decided alone). Elo is
400 / ln 10 of s, 400 points a factor of ten in the odds, with the mean at 1000.

The bounds come from drawing prompts with replacement (the percentile bootstrap, as in intervals.py); all matches on a
prompt stay together, for they are judged on the same text. Of matches that one side nearly always wins, a bootstrap
knows the few that it lost too well: so the bounds are at least as far as Student's t with the standard error of the
likelihood's maximum, by the prompts' own scatter (Huber 1967, the sandwich).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptft.evaluation.intervals import LEAST, OUTSIDE, Interval, draw_sums, middle, students_t

ELO = 400 / math.log(10)  # points a unit of s
MEAN = 1000.0
CLOSE = 1e-11  # of the most matches that anyone has: how near expected scores must come to those that were made
STEPS = 500
ALIKE = 1e-3  # points of Elo between bounds, below which all prompts say the same


class Match(NamedTuple):
    """Two answers to one prompt: `score` is 1 where a's is better, 0 where b's is, 0.5 for a tie."""

    prompt: int
    a: str
    b: str
    score: float


class Rating(NamedTuple):
    """A contender's Elo. `group`: those whom matches join, rated among themselves. `bound`: where no finite rating is
    the likeliest, what `elo` is instead: "at least", "at most", or "between" such others."""

    name: str
    elo: Interval
    wins: int
    losses: int
    ties: int
    group: int
    bound: str


class Pair(NamedTuple):
    """Two contenders who met: a's matches, and a's Elo less b's. `bound`: where no finite difference is the likeliest,
    what it is instead, "at least" or "at most"; then it is one bound, and on the other side there is none."""

    a: str
    b: str
    wins: int
    losses: int
    ties: int
    difference: Interval
    bound: str

    @property
    def differs(self) -> bool:
        """Whether a is better, by more than chance."""
        low = self.difference.low
        return self.difference.differs if not self.bound else low is not None and low > 0


class Ranking(NamedTuple):
    """The best first; `pairs` as they stand in it."""

    ratings: list[Rating]
    pairs: list[Pair]
    prompts: int
    matches: int


def rank(matches: Sequence[Match], seed: int = 0) -> Ranking:
    """Ratings of all who meet. Fewer than LEAST prompts tell no bounds. Where all of n prompts say the same, all ties
    perhaps, drawing them again tells nothing: the bounds are then where the share that n prompts may have left unseen
    (Clopper and Pearson 1934) says the opposite.

    Who won all matches against the others, or lost all, has no finite likeliest rating (Ford 1957): s grows without
    end. Then the rating is a bound: that where each pair of which one side won all n matches would have gone so with
    the probability 2.5%.
    """
    names = sorted({name for match in matches for name in (match.a, match.b)})
    prompts = {prompt: row for row, prompt in enumerate(sorted({match.prompt for match in matches}))}
    at, n = {name: number for number, name in enumerate(names)}, len(names)
    scores = np.zeros((len(prompts), n, n))  # what a prompt's matches gave the first against the second
    outcomes = np.zeros((3, n, n), dtype=int)  # lost, tied, won
    for match in matches:
        a, b, row = at[match.a], at[match.b], prompts[match.prompt]
        scores[row, a, b] += match.score
        scores[row, b, a] += 1 - match.score
        outcomes[round(2 * match.score), a, b] += 1
        outcomes[round(2 - 2 * match.score), b, a] += 1
    total, played = scores.sum(0), scores + scores.swapaxes(1, 2)
    joined, above = closure(played.sum(0)), closure(total)
    met = np.maximum(1, (played > 0).sum(0))  # on so many prompts
    there = (played > 0).any(2)  # (prompts, n)
    played = played.sum(0)
    values = strengths(filled(total, above, played * (OUTSIDE ** (-1 / met) - 1)), joined)
    drawn = draw_sums(scores.reshape(len(prompts), n * n), seed).reshape(-1, n, n)
    # who lost nothing in a draw is taken to lose so seldom that it would show in 2.5% of all draws
    drawn = strengths(filled(drawn, closure(drawn), played * ((1 - OUTSIDE) ** (-1 / met) - 1)), joined)
    covariance = scatter(scores, values, joined)

    def interval(weights: np.ndarray, finite: bool, shift: float = 0.0) -> Interval:
        """Of a sum of strengths, in points of Elo."""
        value, draws = ELO * values @ weights + shift, ELO * drawn @ weights + shift
        if not finite or len(prompts) < LEAST:
            return Interval(float(value), None, None)
        low, high = middle(value, draws, len(prompts))
        reach = students_t(len(prompts) - 1) * ELO * math.sqrt(weights @ covariance @ weights)
        low, high = min(low, value - reach), max(high, value + reach)
        if high - low < ALIKE:
            count = int(there[:, weights != 0].any(1).sum())
            if count < LEAST:
                return Interval(float(value), None, None)
            low, high = (
                ELO * strengths(unseen(total, played, sign * weights, count), joined) @ weights + shift
                for sign in (1, -1)
            )
        return Interval(float(value), float(low), float(high))

    each = np.eye(n)
    groups = {}
    ratings = []
    for number in sorted(range(n), key=lambda number: (-values[number], names[number])):
        group = groups.setdefault(tuple(np.flatnonzero(joined[number])), len(groups))
        bound = describe_bound(above, joined, number)
        elo = interval(each[number], not bound, MEAN)
        lost, tied, won = outcomes[:, number].sum(1).tolist()
        ratings.append(Rating(names[number], elo, won, lost, tied, group, bound))
    ratings.sort(key=lambda rating: rating.group)
    order, pairs = [at[rating.name] for rating in ratings], []
    for place, a in enumerate(order):
        for b in order[place + 1 :]:
            if played[a, b]:
                bound = "" if above[a, b] and above[b, a] else "at least" if above[a, b] else "at most"
                difference = interval(each[a] - each[b], not bound)
                if bound == "at least" and len(prompts) >= LEAST:
                    difference = difference._replace(low=difference.value)
                lost, tied, won = outcomes[:, a, b].tolist()
                pairs.append(Pair(names[a], names[b], won, lost, tied, difference, bound))
    return Ranking(ratings, pairs, len(prompts), len(matches))


def closure(scores: np.ndarray) -> np.ndarray:
    """(..., n, n): from whom a chain of matches that were not lost leads to whom; from everyone to itself."""
    n = scores.shape[-1]
    reached = (scores > 0) | np.eye(n, dtype=bool)
    for _ in range(n.bit_length()):  # each time chains of twice the length
        reached = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
    return reached


def filled(scores: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The scores, with a `share` of a win for each who met another and has no chain to them: so all is finite."""
    return scores + np.where(above, 0.0, share)


def unseen(scores: np.ndarray, played: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """The scores with the share that `count` prompts may have left unseen, in which who weighs more lost all matches
    against who weighs less."""
    share = 1 - OUTSIDE ** (1 / count)
    heavier = np.sign(weights[:, None] - weights[None, :])
    opposite = np.where(heavier == 0, scores, np.where(heavier < 0, played, 0.0))
    return (1 - share) * scores + share * opposite


def scatter(scores: np.ndarray, values: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """(n, n): the covariance of the strengths, by how far each prompt's scores are from those expected on it."""
    played, wins = scores + scores.swapaxes(1, 2), 1 / (1 + np.exp(values[None, :] - values[:, None]))
    missing = scores.sum(2) - (played * wins).sum(2)  # (prompts, n)
    curvature = played.sum(0) * wins * (1 - wins)
    back = np.linalg.inv(np.diag(curvature.sum(1)) - curvature + joined)
    return back @ (missing.T @ missing) @ back.T * len(scores) / max(1, len(scores) - 1)


def describe_bound(above: np.ndarray, joined: np.ndarray, number: int) -> str:
    """What a rating is, where it is no likeliest one; "" where it is."""
    group = joined[number]
    if (above[np.ix_(group, group)]).all():
        return ""
    over, under = bool((above[:, number] & ~above[number]).any()), bool((above[number] & ~above[:, number]).any())
    return {(False, True): "at least", (True, False): "at most"}.get((over, under), "between")


def strengths(scores: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """(..., n, n) scores of the first against the second -> (..., n) the likeliest strengths; each group's mean is 0.

    Newton's steps, none of which moves two contenders apart by more than 1: within that the curvature changes by a
    factor of e at most, so that each step brings the likelihood up.
    """
    n = scores.shape[-1]
    played, made = scores + scores.swapaxes(-1, -2), scores.sum(-1)
    s = np.zeros(scores.shape[:-1])
    for _ in range(STEPS):
        wins = 1 / (1 + np.exp(s[..., None, :] - s[..., :, None]))
        missing = made - (played * wins).sum(-1)
        if np.abs(missing).max() <= CLOSE * played.sum(-1).max():
            break
        curvature = played * wins * (1 - wins)
        matrix = np.eye(n) * curvature.sum(-1)[..., None] - curvature
        # a constant added to a group changes nothing: it is held at 0
        step = np.linalg.solve(matrix + joined, missing[..., None])[..., 0]
        s += step / np.maximum(1, np.ptp(step, axis=-1))[..., None]
    return s - (s @ joined) / joined.sum(0)
