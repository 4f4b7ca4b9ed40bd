"""Ratings from matches: against closed forms, a published example, another optimiser, and simulated matches."""

import json
import math
import random

import numpy as np
import pytest

from gptft.evaluation.ranking import ELO, Match, closure, rank, strengths
from gptft.report.judged import describe_pair, ranking_values


def matches(a, b, wins, losses, ties=0, start=0):
    """Matches of two, a prompt each."""
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Match(start + number, a, b, score) for number, score in enumerate(scores)]


def elo(ranking):
    return {rating.name: rating.elo.value for rating in ranking.ratings}


def all_joined(n):
    return np.ones((n, n), dtype=bool)


def test_two_differ_by_the_log_odds_of_their_matches_with_ties_as_half_a_win():
    found = rank(matches("a", "b", 30, 10, 4))
    assert elo(found)["a"] - elo(found)["b"] == pytest.approx(400 * math.log10(32 / 12), rel=1e-9)
    assert sum(elo(found).values()) / 2 == pytest.approx(1000)
    first, second = found.ratings
    assert (first.name, first.wins, first.losses, first.ties) == ("a", 30, 10, 4)
    assert (second.name, second.wins, second.losses, second.ties) == ("b", 10, 30, 4)
    (pair,) = found.pairs
    assert (pair.a, pair.b, pair.wins, pair.losses, pair.ties) == ("a", "b", 30, 10, 4) and pair.difference.differs


def test_journals_that_cite_one_another_are_as_the_package_of_r_has_them():
    """Stigler's citations (1994), with the coefficients that BradleyTerry2 prints for them."""
    cited = np.array([[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]], dtype=float)
    found = strengths(cited, all_joined(4))
    assert found - found[0] == pytest.approx([0, -2.9491, -0.4796, 0.2690], abs=5e-5)


def random_scores(rng, n):
    """Scores of a few contenders, some of whom never met, joined by chains all the same."""
    scores = rng.integers(0, 9, (n, n)) * (rng.random((n, n)) < 0.6) + 0.5 * rng.integers(0, 2, (n, n))
    np.fill_diagonal(scores, 0)
    return scores.astype(float)


def test_everyones_expected_score_is_the_score_that_was_made():
    """The equations of the maximum; and no step of the way there goes astray, however lopsided the matches are."""
    rng, tried = np.random.default_rng(0), 0
    for _ in range(300):
        n = int(rng.integers(2, 9))
        scores = random_scores(rng, n) * rng.choice([1, 1000], (n, n))
        if not closure(scores).all():
            continue
        s = strengths(scores, all_joined(n))
        expected = ((scores + scores.T) / (1 + np.exp(s[None, :] - s[:, None]))).sum(1)
        assert expected == pytest.approx(scores.sum(1), abs=1e-9 * scores.sum()) and s.sum() == pytest.approx(0)
        tried += 1
    assert tried > 100


def test_the_likelihood_is_as_high_as_another_optimiser_finds_it():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(1)
    for _ in range(10):
        n = 5
        scores = random_scores(rng, n) + 0.5 * (1 - np.eye(n))

        def against(s, scores=scores):
            return (scores * np.log1p(np.exp(s[None, :] - s[:, None]))).sum()

        theirs = optimize.minimize(against, np.zeros(n), method="BFGS", options={"gtol": 1e-9}).x
        assert strengths(scores, all_joined(n)) == pytest.approx(theirs - theirs.mean(), abs=1e-5)


def played(truth, prompts, rng, ties=0.4):
    """Every two of them on every prompt, by the model itself: a tie takes as much from wins as from losses, so that the
    expected score stays what the ratings say."""
    found = []
    for prompt in range(prompts):
        for a in range(len(truth)):
            for b in range(a):
                p = 1 / (1 + math.exp((truth[b] - truth[a]) / ELO))
                tie = ties * min(p, 1 - p)
                score = rng.choice([1.0, 0.5, 0.0], p=[p - tie / 2, tie, 1 - p - tie / 2])
                found.append(Match(prompt, f"m{a}", f"m{b}", score))
    return found


def test_the_order_of_matches_and_who_is_named_first_change_nothing():
    found = played([1000, 1100, 900], 20, np.random.default_rng(0))
    expected = rank(found)
    turned = [Match(each.prompt, each.b, each.a, 1 - each.score) for each in found]
    random.Random(0).shuffle(turned)
    again = rank(turned)
    assert [rating.name for rating in again.ratings] == ["m1", "m0", "m2"]
    for one, other in zip(expected.ratings, again.ratings, strict=True):
        assert one.elo == pytest.approx(other.elo, abs=1e-6) and one[2:] == other[2:]


def test_matches_on_one_prompt_are_no_further_evidence():
    """Ten verdicts on each of ten prompts are ten verdicts, where all ten agree: each was once drawn by itself."""
    once = matches("a", "b", 7, 3)
    tenfold = [each for each in once for _ in range(10)]
    assert rank(tenfold).ratings[0].elo == pytest.approx(rank(once).ratings[0].elo, abs=1e-6)


def test_one_loss_in_twenty_is_not_known_too_well():
    """Drawn again it is never more than a few, and often none. By hand: 1 / (n p q), by Student's t of 19."""
    (pair,) = rank(matches("a", "b", 19, 1)).pairs
    value, low, high = pair.difference
    assert low == pytest.approx(value - 2.093 * ELO * math.sqrt(1 / (20 * 0.95 * 0.05) * 20 / 19), rel=0.01)
    assert high > value + (value - low)  # there may be a loss in a thousand


@pytest.mark.slow
@pytest.mark.parametrize(
    "truth, prompts",
    [([950, 1050], 20), ([950, 1050], 60), ([900, 1000, 1100], 30), ([850, 950, 1000, 1200], 50), ([800, 1200], 25)],
)
def test_95_of_100_intervals_hold_the_truth(truth, prompts, monkeypatch):
    """Of simulated matches, within what 400 trials can tell and what a bootstrap of few prompts can do."""
    monkeypatch.setattr("gptft.evaluation.intervals.DRAWS", 400)
    rng, held = np.random.default_rng(3), 0
    truth = np.array(truth) - np.mean(truth) + 1000
    for _ in range(400):
        for rating in rank(played(truth, prompts, rng)).ratings:
            true, (value, low, high) = truth[int(rating.name[1])], rating.elo
            low, high = {"": (low, high), "at least": (value, math.inf)}.get(rating.bound, (-math.inf, value))
            held += low <= true <= high
    assert 0.925 <= held / (400 * len(truth)) <= 0.985


@pytest.mark.slow
def test_equals_are_seldom_called_different(monkeypatch):
    monkeypatch.setattr("gptft.evaluation.intervals.DRAWS", 400)
    rng, called = np.random.default_rng(4), 0
    for prompts in (8, 12, 40):
        called = sum(rank(played([1000, 1000], prompts, rng)).pairs[0].difference.differs for _ in range(300))
        assert called / 300 <= 0.08


def test_who_wins_everything_has_a_bound_and_no_infinity():
    """The bound is where 20 of 20 would be won with 2.5%, the binomial's own."""
    found = rank(matches("a", "b", 20, 0))
    first, second = found.ratings
    assert (first.bound, second.bound) == ("at least", "at most")
    assert (first.elo.low, first.elo.high) == (None, None)
    p = 1 / (1 + 10 ** ((second.elo.value - first.elo.value) / 400))
    assert p**20 == pytest.approx(0.025)
    more = elo(rank(matches("a", "b", 40, 0)))
    assert more["a"] - more["b"] > first.elo.value - second.elo.value


def test_between_two_bounds_stands_no_rating_either():
    found = rank([*matches("a", "b", 9, 0), *matches("b", "c", 9, 0, start=9)])
    assert [(rating.name, rating.bound) for rating in found.ratings] == [
        ("a", "at least"),
        ("b", "between"),
        ("c", "at most"),
    ]
    assert all(math.isfinite(rating.elo.value) for rating in found.ratings)
    # a tie joins them, and there is a maximum
    joined = rank([*matches("a", "b", 9, 0, 1), *matches("b", "c", 9, 0, 1, start=10)])
    assert not any(rating.bound for rating in joined.ratings) and joined.ratings[0].elo.low is not None


def test_whom_no_match_joins_is_rated_apart():
    found = rank([*matches("a", "b", 6, 3), *matches("c", "d", 4, 4, start=9)])
    assert {rating.name: rating.group for rating in found.ratings} == {"a": 0, "b": 0, "c": 1, "d": 1}
    values = elo(found)
    assert values["a"] + values["b"] == pytest.approx(2000) and values["c"] == values["d"] == pytest.approx(1000)
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b"), ("c", "d")]


def test_few_prompts_tell_no_bounds():
    assert rank(matches("a", "b", 3, 2)).ratings[0].elo.low is None
    assert rank(matches("a", "b", 4, 2)).ratings[0].elo.low is not None


def test_the_clearest_win_is_a_difference_and_has_a_bound_on_one_side():
    """100 of 100 were once shown without bounds, as no difference."""
    found = rank(matches("a", "b", 100, 0))
    (pair,) = found.pairs
    # by hand: p^100 = 2.5%
    least = 400 * math.log10(0.025 ** (1 / 100) / (1 - 0.025 ** (1 / 100)))
    assert pair.bound == "at least" and pair.differs and pair.difference == pytest.approx((least, least, None))
    assert describe_pair(pair) == f"a over b: at least +{least:.0f}"
    values = ranking_values(found)["pairs"][0]
    assert (values["bound"], values["difference"]["differs"]) == ("at least", True)
    json.loads(json.dumps(values), parse_constant=pytest.fail)
    assert rank(matches("a", "b", 6, 0)).pairs[0].differs
    (few,) = rank(matches("b", "a", 5, 0)).pairs  # five coins do the same in 6% of the cases
    assert few.difference.low is None and not few.differs and describe_pair(few).endswith("without bounds")


def test_one_match_of_one_among_many_others_is_no_difference():
    """Won it would be with 2.5% by somebody far worse."""
    (pair, _) = rank([Match(50, "a", "b", 1.0), *matches("c", "d", 9, 9)]).pairs
    assert (pair.a, pair.b, pair.bound) == ("b", "a", "at most") and not pair.differs


@pytest.mark.parametrize("n", [6, 40])
def test_that_all_prompts_say_the_same_proves_no_equality(n):
    """By hand: of ties alone, the share 1 - 2.5%^(1/n) of prompts may be losses that were not seen."""
    (pair,) = rank(matches("a", "b", 0, 0, n)).pairs
    made = 0.5 * 0.025 ** (1 / n)
    reach = 400 * math.log10((1 - made) / made)
    assert pair.difference == pytest.approx((0, -reach, reach)) and not pair.differs
    # two matches on a prompt, each of which somebody won; and three who win in a circle
    both = [each for prompt in range(n) for each in (Match(prompt, "a", "b", 1.0), Match(prompt, "a", "b", 0.0))]
    assert rank(both).pairs[0].difference == pytest.approx((0, -reach, reach))
    circle = [Match(prompt, a, b, 1.0) for prompt in range(n) for a, b in (("a", "b"), ("b", "c"), ("c", "a"))]
    for rating in rank(circle).ratings:
        value, low, high = rating.elo
        assert value == pytest.approx(1000) and low < 999 and high > 1001
        assert value - low == pytest.approx(high - value)


def test_few_ties_among_many_prompts_of_others_tell_no_bounds():
    found = rank([*matches("a", "b", 9, 9), *matches("c", "d", 0, 0, 3, start=18)])
    assert [pair.difference.low is None for pair in found.pairs] == [False, True]
