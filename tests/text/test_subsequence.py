"""The longest common subsequence: the fast one against the definition."""

import random

from gptft.text.subsequence import longest_common


def plain(a, b):
    if not a or not b:
        return 0
    return 1 + plain(a[1:], b[1:]) if a[0] == b[0] else max(plain(a[1:], b), plain(a, b[1:]))


def test_its_length_is_that_of_a_plain_search():
    rng = random.Random(0)
    for _ in range(300):
        a, b = (rng.choices("abcd"[: rng.randint(1, 4)], k=rng.randint(0, 8)) for _ in range(2))
        assert longest_common(a, b) == plain(a, b)


def test_a_long_answer_that_repeats_itself_is_no_trouble():
    """The table of dynamic programming would have 400 million cells."""
    assert longest_common(["the", "lamp"] * 10_000, ["lamp"] * 20_000) == 10_000
