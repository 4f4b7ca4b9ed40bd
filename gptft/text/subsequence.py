"""The longest common subsequence of two lists of words: what both have, in the same order, gaps allowed."""

from __future__ import annotations

from collections.abc import Sequence


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. A row of the table of dynamic programming is one number, whose bits say where it does not grow, and a
    word of `b` is one addition (Hyyrö 2004, Bit-parallel LCS-length computation revisited)."""
    places: dict[str, int] = {}
    for number, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << number
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & every
    return len(a) - row.bit_count()
