"""Several answers to each question: pass@k against counting, agreement, the majority."""

import itertools
from dataclasses import replace

import pytest
from cli import tiny

from gptft.data.shapes import Parts
from gptft.decoding import Sampling
from gptft.evaluation.metrics import normalised
from gptft.evaluation.responses import Question
from gptft.evaluation.samples import agreement, majority, measure_samples, pass_at, sample


def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_right_one():
    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                chosen = list(itertools.combinations(range(n), k))
                share = sum(any(each < right for each in some) for some in chosen) / len(chosen)
                assert pass_at(right, n, k) == pytest.approx(share)
    for k in (0, 4):
        with pytest.raises(ValueError, match="cannot be told from 3 answers"):
            pass_at(1, 3, k)


def test_the_majority_is_what_comes_most_often():
    assert majority(["b", "A.", "a", "c"], normalised) == "A."
    assert majority(["b", "a"], normalised) == "b"
    assert agreement(["a", "A", "b"], normalised) == pytest.approx(1 / 3)
    assert agreement(["a"], normalised) == 1.0


def test_figures_are_means_over_the_questions():
    rows = [
        {"expected": "x", "samples": {"after": ["x", "x", "y", "z"]}},
        {"expected": "y", "samples": {"after": ["n", "n", "n", "Y"]}},
    ]
    found = measure_samples(rows, "after")
    assert set(found) == {"exact_match", "normalised_match"}  # no row expects a number
    assert found["normalised_match"].pop("n") == 2
    assert {name: each["value"] for name, each in found["normalised_match"].items()} == {
        "pass@1": pytest.approx((2 / 4 + 1 / 4) / 2),
        "pass@2": pytest.approx((5 / 6 + 3 / 6) / 2),
        "pass@4": 1.0,
        "majority": 0.5,
        "agreement": pytest.approx((1 / 6 + 3 / 6) / 2),
    }
    assert found["exact_match"]["pass@4"]["value"] == 0.5


def test_answers_without_a_number_agree_in_none():
    """Eight answers that say no number at all were 100% agreement, and outvoted those that say one."""
    rows = [{"expected": "#### 4", "samples": {"after": ["no", "none", "it is 4", "never"]}}]
    figures = measure_samples(rows, "after")["number_match"]
    assert figures["agreement"]["value"] == 0.0
    assert figures["majority"]["value"] == 0.0  # of answers that come once each the first counts, and it says no number
    rows[0]["samples"]["after"] = ["no", "no", "4", "it is 4"]
    assert measure_samples(rows, "after")["number_match"]["majority"]["value"] == 1.0


def test_where_numbers_count_answers_agree_by_the_number_that_they_come_to():
    """Of reasoning that goes different ways to one number no two would be the same, and there were no majority."""
    answers = ["2 and 2 is 4\n#### 4", "twice 2\n#### 4.0", "it is 5"]
    found = measure_samples([{"expected": "2 + 2 = 4\n#### 4", "samples": {"before": answers}}], "before")
    figures = found["number_match"]
    assert figures["majority"]["value"] == 1.0 and figures["agreement"]["value"] == pytest.approx(1 / 3)
    assert figures["pass@1"]["value"] == pytest.approx(2 / 3) and figures["pass@3"]["value"] == 1.0


def test_samples_of_a_question_do_not_depend_on_the_others_nor_on_the_batch():
    model, tokenizer = tiny()
    questions = [Question({}, Parts(instruction=text), "x") for text in ("Who?", "Where is it?", "When?")]
    questions[1] = replace(questions[1], left_out="no room")
    sampling = Sampling(temperature=1.0, seed=3)
    made = sample(model, tokenizer, questions, 3, sampling, 8, batch_size=2)
    assert list(map(len, made)) == [3, 0, 3]
    assert len({response.text for response in made[0]}) > 1
    assert sample(model, tokenizer, questions[:1], 3, sampling, 8, batch_size=1) == made[:1]
    assert sample(model, tokenizer, questions, 2, sampling, 8, batch_size=4)[2] == made[2][:2]


def test_the_same_question_twice_draws_other_answers():
    """Questions that shared their random numbers would be right or wrong together, and the bounds too narrow."""
    model, tokenizer = tiny()
    twice = [Question({}, Parts(instruction="Who?"), "x")] * 2
    first, second = sample(model, tokenizer, twice, 3, Sampling(temperature=1.5, seed=3), 8, batch_size=8)
    assert [each.text for each in first] != [each.text for each in second]
