"""Intervals: they cover what they promise to, and the differences are those of the same records."""

import math

import numpy as np
import pytest

from gptft.evaluation.intervals import Interval, intervals, sign_test


def column(values):
    return np.array(values, dtype=float)[:, None]


def test_an_interval_is_as_wide_as_the_normal_law_says():
    """Of many records the bootstrap's interval is the mean and 1.96 standard errors (the central limit)."""
    values = np.random.default_rng(0).gamma(2.0, size=2000)
    (found,) = intervals([column(values)], most=math.inf)
    error = values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    # 2,000 draws tell a bound to about 3% of the interval's half
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.slow
@pytest.mark.parametrize("share, n", [(0.3, 60), (0.8, 100), (0.5, 30)])
def test_95_of_100_intervals_hold_the_truth(share, n, monkeypatch):
    """Within what 600 trials can tell, and that shares of few records are few different numbers."""
    monkeypatch.setattr("gptft.evaluation.intervals.DRAWS", 500)
    rng, held = np.random.default_rng(1), 0
    for _ in range(600):
        (found,) = intervals([column(rng.random(n) < share)])
        held += found.low <= share <= found.high
    assert 0.925 <= held / 600 <= 0.985


@pytest.mark.slow
def test_where_nothing_differs_no_more_than_5_of_100_differences_are_called_one(monkeypatch):
    """Two models of one quality, asked the same questions, of which some are hard for both."""
    monkeypatch.setattr("gptft.evaluation.intervals.DRAWS", 500)
    rng, called = np.random.default_rng(2), 0
    for _ in range(600):
        hardness = rng.random(80)
        before, after = (column(rng.random(80) > hardness) for _ in range(2))
        called += intervals([before, after])[2].differs
    assert called / 600 <= 0.075


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 6, 8, 12])
def test_nor_are_they_on_few_records(n, monkeypatch):
    """Drawn from three records that fell one way, every bootstrap falls that way: one in four did so by chance."""
    monkeypatch.setattr("gptft.evaluation.intervals.DRAWS", 500)
    rng, called = np.random.default_rng(n), 0
    for _ in range(600):
        before = rng.random((n, 1))
        after = np.clip(before + rng.normal(0, 0.1, (n, 1)), 0, 1)
        called += intervals([before, after])[2].differs
    assert called / 600 <= 0.08 and (called == 0) == (n < 6)


def test_more_that_is_won_is_never_called_less():
    """Three of four won was a difference, and four of four was none."""
    for n in range(2, 12):
        for ties in range(n):
            before, after = column([0.0] * n), column([1.0] * (n - ties) + [0.0] * ties)
            assert intervals([before, after])[2].differs == (sign_test(n - ties, 0) < 0.05)


def test_what_is_all_right_by_another_measure_is_as_uncertain():
    """Token accuracy is a ratio of sums: 100% of a few records had bounds of no width."""
    hits = np.array([[7.0, 7.0], [3.0, 3.0], [5.0, 5.0]])
    (found,) = intervals([hits], lambda sums, _: sums[:, 0] / sums[:, 1])
    assert (found.value, found.high) == (1.0, 1.0) and found.low**3 == pytest.approx(0.025)
    (half,) = intervals([column([0.5, 0.5, 0.5])])
    assert half == Interval(0.5, None, None)


def test_the_difference_is_over_the_same_records_on_both_sides():
    """What is hard for one is hard for the other: paired, a small gain on every record is certain."""
    before = column(np.random.default_rng(0).random(50))
    first, second, difference = intervals([before, before + 0.01])
    assert difference.value == pytest.approx(0.01) and difference.low == pytest.approx(0.01)
    assert difference.differs and first.high > second.low  # side by side they could not be told apart
    assert not intervals([before, before])[2].differs


def test_records_that_all_agree_leave_a_doubt_all_the_same():
    """A bootstrap of equal scores is sure; 0 of 24 is no proof of 0%. Against the binomial law itself."""
    for n in (1, 5, 24, 400):
        (all_right,) = intervals([column([1.0] * n)])
        assert all_right.value == all_right.high == 1.0
        assert all_right.low**n == pytest.approx(0.025)  # so likely are n of n, where the truth is the lower bound
        (all_wrong,) = intervals([column([0.0] * n)])
        assert (all_wrong.value, all_wrong.low) == (0.0, 0.0) and all_wrong.high == pytest.approx(1 - all_right.low)
    # five records won of five are no proof (the sign test says 6%), six are (3%)
    for n, shown in ((5, False), (6, True)):
        difference = intervals([column([0.0] * n), column([1.0] * n)])[2]
        assert difference.differs == shown == (sign_test(n, 0) < 0.05) and difference.value == 1.0
        lost = intervals([column([1.0] * n), column([0.0] * n)])[2]
        assert lost.differs == shown and lost.low == -1.0
    tied = intervals([column([0.0] * 5), column([0.0] * 5)])[2]
    assert not tied.differs and tied.high > 0.1


def test_a_ratio_of_sums_is_no_mean_of_ratios():
    """The loss a target: records count by their targets."""
    sides = [np.array([[10.0, 10.0], [1.0, 90.0]])]
    (found,) = intervals(sides, lambda sums, _: sums[:, 0] / sums[:, 1])
    assert found.value == pytest.approx(11 / 100) and found.low == 0.0 and found.high == 1.0
    (found,) = intervals([np.repeat(sides[0], 50, axis=0)], lambda sums, _: sums[:, 0] / sums[:, 1])
    assert found.low < 11 / 100 < found.high < 0.2


def test_the_draws_are_the_same_every_time_and_in_any_stretches(monkeypatch):
    values = column(np.random.default_rng(0).random(40))
    assert intervals([values]) == intervals([values])
    assert intervals([values], seed=1) != intervals([values])
    monkeypatch.setattr("gptft.evaluation.intervals.AT_ONCE", 100)
    assert intervals([values])[0].value == values.mean()


def test_the_sign_test_counts_all_ways_that_coins_may_fall():
    for wins, losses in ((0, 0), (1, 0), (5, 0), (6, 0), (8, 2), (2, 8), (7, 7)):
        n = wins + losses
        far = abs(wins - losses)
        ways = sum(abs(2 * bits.bit_count() - n) >= far for bits in range(2**n))
        assert sign_test(wins, losses) == pytest.approx(ways / 2**n)
    assert sign_test(9000, 1000) < 1e-300  # almost too small for a float, and no error


def test_one_record_tells_nothing_of_others():
    """Every draw of it is itself: an interval without any width, once."""
    first, _, difference = intervals([column([0.25]), column([0.75])])
    assert first == Interval(0.25, None, None) and difference == Interval(0.5, None, None) and not difference.differs


def test_a_difference_is_one_where_0_is_outside():
    assert Interval(0.5, 0.1, 0.9).differs and Interval(-0.5, -0.9, -0.1).differs
    assert not Interval(0.5, 0.0, 0.9).differs and not Interval(0.1, -0.1, 0.9).differs


@pytest.mark.parametrize("value, n", [(0.85, 24), (2 / 3, 7), (0.1, 300)])
def test_scores_that_are_all_alike_tell_no_bounds(value, n):
    """A judge that says 85 of everything: draws differ in the last bit, and the bounds had no width."""
    (found,) = intervals([column([value] * n)])
    assert found.value == pytest.approx(value) and found.low is None and found.high is None
