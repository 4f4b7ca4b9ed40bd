"""Two models' answers to the same questions."""

import pytest

from gptft.evaluation.compare import measure, measure_lengths, worst_first
from gptft.evaluation.metrics import METRICS
from gptft.run.tables import describe_evaluation, describe_worse


def row(before, after, expected="x", **record):
    return {"record": record, "expected": expected, "before": before, "after": after}


def test_scores_are_means_by_family_and_over_all():
    """The mean over all is that of the records, not of the families' means."""
    rows = [row("", "x", family="b"), row("x", "x", family="a"), row("", "", family="a"), row("", "x", family="a")]
    rows += [row("", ""), row("", "", family=3)]
    found = measure(rows)["metrics"]["exact_match"]
    families = found["families"].items()
    means = {name: (each["n"], each["before"]["value"], each["after"]["value"]) for name, each in families}
    assert means == {"a": (3, 1 / 3, 2 / 3), "b": (1, 0.0, 1.0)}
    every = found["all"]
    assert (every["n"], every["before"]["value"], every["after"]["value"]) == (6, 1 / 6, 3 / 6)
    assert (every["wins"], every["losses"], every["ties"], every["sign_test"]) == (2, 0, 4, 0.5)
    assert every["difference"]["value"] == pytest.approx(2 / 6) and not every["difference"]["differs"]


def test_a_metric_speaks_of_those_records_alone_that_it_is_for():
    rows = [row("#### 1", "#### 2", "#### 2"), row("a", "b", "b"), row("#### 7", "#### 7", "#### 7")]
    found = measure(rows)
    assert found["metrics"]["number_match"]["all"]["n"] == 2
    assert found["not_measured"] == {
        "valid_json": "no record expects such a response",
        "valid_code": "no record expects such a response",
    }
    assert "not measured: valid json: no record expects such a response" in describe_evaluation(found)


def test_one_model_alone_has_scores_and_no_differences():
    found = measure([row("", "x")], ("after",))["metrics"]["exact_match"]["all"]
    assert set(found) == {"n", "after"}
    header, line = describe_evaluation({"metrics": {"exact_match": {"all": found}}}).splitlines()
    assert header.split() == ["metric", "n", "score"] and line.split("  ")[1:] == [
        "exact match",
        "1",
        "100.0% (2.5% to 100.0%)",
    ]


def test_a_difference_is_called_one_only_where_its_bounds_say_so():
    rows = [row("", "x")] * 3 + [row("x", "")] * 2 + [row("x", "x")] * 20
    (line,) = [line for line in describe_evaluation(measure(rows)).splitlines() if line.startswith("  exact match")]
    assert line.split("  ")[-5].endswith("none shown") or "none shown" in line
    surely = describe_evaluation(measure([row("", "x")] * 30 + [row("x", "x")] * 20))
    assert "none shown" not in surely and "p < 0.001" in surely


def test_what_got_worse_comes_first_and_the_worst_of_all_before():
    rows = [row("x y", "x y", "x y"), row("x y", "z", "x y"), row("z", "x y", "x y"), row("x y", "x", "x y")]
    assert worst_first(rows, METRICS["token_f1"]) == [1, 3]
    said = describe_worse(rows, 1).splitlines()
    assert said == ["2 of 4 got worse (by token f1):", '  expected "x y"', '  before   "x y"', '  after    "z"']
    assert describe_worse(rows[:1], 5) == ""


def test_lengths_tell_who_never_stops():
    rows = [row("", "a b"), row("", ""), row("", "c " * 50)]
    for each, tokens, finished in zip(rows, (3, 0, 8), (True, True, False), strict=True):
        each |= {"tokens": {"after": tokens}, "finished": {"after": finished}}
    found = measure_lengths(rows, "after")
    assert (found["tokens_mean"], found["tokens_median"], found["tokens_longest"], found["empty"]) == (11 / 3, 3, 8, 1)
    assert found["finished"]["value"] == pytest.approx(2 / 3)
    assert measure_lengths(rows, "before") is None and measure_lengths([], "after") is None
