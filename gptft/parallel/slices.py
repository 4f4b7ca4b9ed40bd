"""A window's examples -> the micro-batches of every rank, balanced by work.

The gradient of a step is that of its whole window, however the window is divided into micro-batches. So with several
processes (ranks) the window is cut anew: dealt out as it is, one rank would compute 8 examples of 20 tokens while
another computes 8 of 500, and all would wait for the slowest.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial

import numpy as np

Piece = tuple[float, int, int]  # its cost, where it starts, where it ends


@dataclass(frozen=True)
class Work:
    """How much a micro-batch costs, and may hold. T is its longest example: the others are padded to it."""

    per_token: float  # FLOPs, or any other unit, of a position in the blocks, padding included
    per_pair: float  # of a pair of positions in attention: rows * T * T of them
    per_target: float  # of a target: the head
    most_positions: int  # rows * T of a micro-batch: what the rehearsal before the first step has shown to fit
    most_targets: int


def slices(
    window: list[list[int]], lengths: np.ndarray, targets: np.ndarray, ranks: int, per_rank: int, work: Work
) -> list[list[list[int]]]:
    """[rank][micro-batch] -> example numbers: a pure function, so that all ranks agree without asking one another.

    `lengths` and `targets` give every example's positions and targets. Each example is in one micro-batch of one rank.
    Every rank has `per_rank` of them, costliest first; the last are empty where the examples are fewer than that takes.
    With one rank the window stays as it is.
    """
    if ranks == 1:
        return [window]
    numbers = np.array([number for batch in window for number in batch], int)
    # by number where lengths are equal, so that the order within the window means nothing
    numbers = numbers[np.lexsort((numbers, -lengths[numbers].astype(np.int64)))]
    order = _Order(lengths[numbers], targets[numbers], work)
    pieces = order.split(order.cut(ranks * per_rank), ranks * per_rank)
    examples = numbers.tolist()
    dealt = [[examples[start:end] for _, start, end in mine] for mine in _deal(pieces, ranks)]
    return [mine + [[] for _ in range(per_rank - len(mine))] for mine in dealt]


class _Order:
    """Examples by length, longest first, and what a piece of this order costs.

    The first example of a piece is its longest, and a part of a piece never costs more than the piece: so pieces may
    be made one after the other, each as long as it can be, and there is no way with fewer of them.
    """

    def __init__(self, lengths: np.ndarray, targets: np.ndarray, work: Work) -> None:
        T = lengths.astype(np.int64)
        before = np.concatenate([[0], np.cumsum(targets, dtype=np.int64)])  # targets before each place
        by_positions = np.arange(len(T)) + work.most_positions // np.maximum(T, 1)
        by_targets = np.searchsorted(before, before[:-1] + work.most_targets, side="right") - 1
        furthest = np.minimum(by_positions, by_targets)
        if (furthest == np.arange(len(T))).any():
            raise ValueError("one example alone is more than a micro-batch may hold")
        # lists from here on: the searches read single numbers, several times slower in arrays
        self.furthest = furthest.tolist()  # the last end that the limits allow a piece that starts here
        self.row = (T * (work.per_token + work.per_pair * T)).tolist()  # of every row of a piece that starts here
        self.head = (before * float(work.per_target)).tolist()
        self.places = range(len(T) + 1)

    def cost(self, start: int, end: int) -> float:
        return (end - start) * self.row[start] + (self.head[end] - self.head[start])

    def piece(self, start: int, end: int) -> Piece:
        return self.cost(start, end), start, end

    def cut(self, most: int) -> list[Piece]:
        """At most `most` pieces whose costliest is as cheap as possible: bisection on what a piece may cost. Every
        attempt moves a bound to the cost of some piece, so this ends, and at the exact minimum."""
        pieces, _ = self._greedy(float("inf"), most)
        if pieces is None:
            raise ValueError(f"the examples of a window do not fit into {most} micro-batches")
        low, best = max(map(self.cost, self.places[:-1], self.places[1:]), default=0.0), max(pieces, default=(0.0,))[0]
        while low < best:
            budget = (low + best) / 2
            attempt, more = self._greedy(budget if budget < best else low, most)  # neighbouring floats have no middle
            if attempt is None:
                low = more
            else:
                pieces, best = attempt, max(attempt)[0]
        return pieces

    def _greedy(self, budget: float, most: int) -> tuple[list[Piece] | None, float]:
        """Pieces as long as they may be, None where there are more than `most`; the least budget for a longer one."""
        pieces, start, more = [], 0, float("inf")
        while start < len(self.row):
            if len(pieces) == most:
                return None, more
            end = self.furthest[start]
            if self.cost(start, end) > budget:
                beyond = bisect_right(self.places, budget, start + 1, end, key=partial(self.cost, start))
                more = min(more, self.cost(start, beyond))
                end = beyond - 1
            pieces.append(self.piece(start, end))
            start = end
        return pieces, more

    def split(self, pieces: list[Piece], most: int) -> list[Piece]:
        """Divide the costliest until there are `most`: no rank is idle, and there is less padding. Costliest first."""
        while len(pieces) < min(most, len(self.row)):
            piece = _, start, end = max(piece for piece in pieces if piece[2] - piece[1] > 1)
            halves = ([self.piece(start, middle), self.piece(middle, end)] for middle in range(start + 1, end))
            pieces = [other for other in pieces if other != piece] + min(halves, key=max)
        return sorted(pieces, reverse=True)


def _deal(pieces: list[Piece], ranks: int) -> list[list[Piece]]:
    """In rounds of a piece for each rank, the costliest to the rank with the least so far.

    So the ranks' totals are near equal, and their first micro-batches, their second ones and so on are too: FSDP
    gathers weights in every forward, where all wait for the slowest.
    """
    dealt, totals = [[] for _ in range(ranks)], [0.0] * ranks
    for first in range(0, len(pieces), ranks):
        poorest = sorted(range(ranks), key=totals.__getitem__)  # of equals the lower rank
        for rank, piece in zip(poorest, pieces[first : first + ranks], strict=False):  # the last round may be short
            dealt[rank].append(piece)
            totals[rank] += piece[0]
    return dealt
