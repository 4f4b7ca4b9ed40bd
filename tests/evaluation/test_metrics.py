"""Metrics of the answers: each against a reference that nobody here wrote, and that another one is one function."""

import json
import random
import sys

import numpy as np
import pytest
from cli import ROOT
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

import gptft.evaluation.metrics
from gptft.errors import UserError
from gptft.evaluation.metrics import (
    METRICS,
    describe_metric,
    exact_match,
    load_metric,
    measurable,
    normalised_match,
    number_match,
    rouge_l,
    token_f1,
    valid_code,
    valid_json,
)
from gptft.export import card_of
from gptft.finetuning import finetune
from gptft.run.tables import response_table, score_table

QUICK = {"init": "tiny", "max_steps": 1, "max_length": 64, "max_new_tokens": 4, "precision": "fp32", "threads": 1}


@pytest.mark.parametrize(
    "response, expected, score",
    [("Two.", "Two.", 1.0), (" Two.\n", "Two.", 1.0), ("two.", "Two.", 0.0), ("Two", "Two.", 0.0), ("", "Two.", 0.0)],
)
def test_exact_match_forgives_white_space_at_the_ends_alone(response, expected, score):
    assert exact_match(response, expected) == score


def test_reasoning_is_no_part_of_the_answer():
    """A model that is trained to think, or was told not to, was scored against a text that it could not give."""
    thought = "<think>\nOne and one.\n</think>\n\nTwo."
    assert exact_match(thought, "Two.") == exact_match("Two.", thought) == exact_match("Two.", "Two.") == 1.0
    assert exact_match("hm</think>Two.", thought) == 1.0  # the prompt had opened the thought
    assert exact_match("\n" * 20_000, "x") == 0.0  # a model that repeats itself; it took minutes to look for a thought
    assert exact_match(thought, "Three.") == exact_match("<think>Two.", "Two.") == 0.0
    assert token_f1("<think>Two.", "Two.") == 0.0  # cut off in the middle of a thought


@pytest.mark.parametrize(
    "response, expected, match, f1",
    [
        ("   Rock    n  Roll.", "rock n roll", 1.0, 1.0),
        ("rock", "rock n roll", 0.0, 0.5),
        ("1976", "1976", 1.0, 1.0),
        ("Beyonce", "Beyonce and Bruno Mars", 0.0, 0.4),
        ("climate change", "climate change", 1.0, 1.0),
        ("an evening in the park", "The evening, in a park!", 1.0, 1.0),
        ("the", "a", 1.0, 1.0),  # nothing is left of either, which the script calls equal
        ("the", "park", 0.0, 0.0),
        ("Y. pestis", "y.pestis", 0.0, 0.0),  # punctuation goes without leaving a gap
        ("to be or not to be", "to be", 0.0, 0.5),  # a word counts as often as both have it
    ],
)
def test_the_words_are_compared_as_the_squad_script_compares_them(response, expected, match, f1):
    """Published cases: of the script's users, and the examples of the metric's card."""
    assert normalised_match(response, expected) == match and token_f1(response, expected) == pytest.approx(f1)


def answers_of_real_records():
    """The embedded set's answers, and where they are present those of the real instruction set."""
    answers = [json.loads(line)["output"] for line in (ROOT / "data" / "instructions-test.jsonl").open()]
    if (path := ROOT.parent / "shared" / "data" / "instruction-data.json").exists():
        answers += [record["output"] for record in json.loads(path.read_text(encoding="utf-8"))]
    return answers


def real_pairs(count):
    """(response, expected): another record's answer, and the answer cut, shuffled and doubled."""
    rng, answers = random.Random(0), answers_of_real_records()
    for _ in range(count):
        answer = rng.choice(answers)
        words = answer.split()
        yield rng.choice(answers), answer
        yield " ".join(words[: rng.randint(0, len(words))]), answer
        yield " ".join(rng.sample(words, len(words))), answer
        yield f"{answer} {answer.upper()}", answer


def test_rouge_l_is_that_of_rouge_score():
    """Of texts in ASCII: rouge-score takes every other letter for a gap, and a Russian answer for an empty one."""
    theirs = rouge_scorer.RougeScorer(["rougeL"])
    for response, expected in real_pairs(100):
        if response.isascii() and expected.isascii():
            ours = rouge_l(response, expected)
            assert ours == pytest.approx(theirs.score(expected, response)["rougeL"].fmeasure, abs=1e-12), response
    assert rouge_l("नमस्ते", "नमस्ते!") == 1.0 and rouge_l("+", "+") == 1.0 and rouge_l("+", "-") == 0.0
    assert rouge_l("Москва", "москва!") == 1.0 and theirs.score("москва!", "Москва")["rougeL"].fmeasure == 0.0


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_over_a_corpus_are_those_of_sacrebleu(name):
    theirs = {"bleu": BLEU(effective_order=True), "chrf": CHRF()}[name]
    pairs = list(real_pairs(20))
    said, wanted = [response.strip() for response, _ in pairs], [expected.strip() for _, expected in pairs]
    ours = METRICS[name]
    sums = np.array([ours.statistics(*pair) for pair in pairs]).sum(0, keepdims=True)
    assert ours.combine_all(sums)[0] * 100 == pytest.approx(theirs.corpus_score(said, [wanted]).score, abs=1e-9)
    for response, expected in pairs[:20]:
        single = theirs.sentence_score(response.strip(), [expected.strip()]).score
        assert ours(response, expected) * 100 == pytest.approx(single, abs=1e-9)


def test_a_metric_without_its_package_is_said_to_be_not_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    there, absent = measurable()
    assert set(absent) == {"bleu", "chrf"} and "gptft[eval]" in absent["bleu"]
    assert set(there) == set(METRICS) - {"bleu", "chrf"}


@pytest.mark.parametrize(
    "response, expected, score",
    [
        ("She has 3 left.\n#### 1,234", "So it is.\n#### 1234", 1.0),
        ("#### 1234.0 apples", "#### 1234", 1.0),
        ("#### 12", "#### 1234", 0.0),
        ("It is 1234, of 2000", "#### 1234", 0.0),  # without a mark the last number is the answer
        ("Of 2000 it is $1,234.", "#### 1234", 1.0),
        ("#### -5", "#### 5", 0.0),
        ("#### .5", "#### 0.50", 1.0),
        ("none at all", "#### 5", 0.0),
        ("#### none, or 5", "#### 5", 1.0),
        ("7", "7", 1.0),
        ("seven, 7.0", " 7 ", 1.0),
        ("7", "seven", None),
        ("7", "It weighs 7 grams.", None),
        ("7", "####", None),
        ("7", "#### Steps\n1. Mix.\n2. Bake 7 loaves.", None),  # a heading of Markdown
    ],
)
def test_numbers_are_equal_by_value(response, expected, score):
    assert number_match(response, expected) == score


def test_every_answer_of_gsm8k_expects_a_number(shared):
    for line in (shared / "benchmarks" / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)["answer"]
        value = answer.rpartition("#### ")[2].replace(",", "")
        assert number_match(answer, answer) == 1.0 and number_match(f"The answer is {value}.", answer) == 1.0
        assert number_match(f"#### {value}1", answer) == 0.0


@pytest.mark.parametrize(
    "response, expected, score",
    [
        ('{"a": 1}', '{"b": [2]}', 1.0),
        ("[]", "[1, 2]", 1.0),
        ('{"a": 1', '{"b": 2}', 0.0),
        ('Here: {"a": 1}', '{"b": 2}', 0.0),
        ("", "{}", 0.0),
        ("[" * 100_000, "{}", 0.0),
        ("{}", "Two.", None),
        ("7", "7", None),  # a number is JSON, and nobody would say so
    ],
)
def test_json_is_asked_for_where_json_is_expected(response, expected, score):
    assert valid_json(response, expected) == score


@pytest.mark.parametrize(
    "response, expected, score",
    [
        ("def f(x):\n    return x", "def g(): pass", 1.0),
        ("def f(x)\n    return x", "def g(): pass", 0.0),
        ("```python\nprint(1)\n```\nIt prints.", "```\nprint(2)\n```", 1.0),
        ("```python\nprint(1\n```", "```\nprint(2)\n```", 0.0),
        ("Use this: print(1)", "print(1)", 0.0),
        ("", "import re", 0.0),
        ("x = '\\d'", "import re", 1.0),  # Python warns of the escape, which is the answer's own affair
        ("(" * 10_000, "import re", 0.0),
        ("x = 1\ny = 2", "x = 1\nprint(x)", 1.0),
        ("x = 2", "```\nx = 1\n```", 1.0),
        ("5", "x = 5", None),  # algebra
        ("It is Paris", "Paris (France)", None),
        ("Two", "Two", None),
        ("a - b", "well-known", None),
        ("x = 1", "It is (mostly) so.", None),
    ],
)
def test_code_is_asked_for_where_code_is_expected(response, expected, score, recwarn):
    assert valid_code(response, expected) == score and not recwarn.list


OWN = """
def says_please(response, expected):
    return "please" in response.lower()

def breaks(response, expected):
    return 1 / 0

def percent(response, expected):
    return 50.0
"""


def test_a_metric_of_the_users_own_comes_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("gptft.evaluation.metrics.METRICS", dict(METRICS))
    (tmp_path / "own.py").write_text(OWN)
    for name in ("says_please", "breaks", "percent"):
        load_metric(f"{tmp_path}/own.py:{name}")
    known = gptft.evaluation.metrics.METRICS
    assert known["says_please"]("Please.", "") == 1.0
    with pytest.raises(UserError, match="ZeroDivisionError: division by zero, for the response 'x'"):
        known["breaks"]("x", "")
    with pytest.raises(UserError, match=r"a number from 0 to 1, or None, and gave 50\.0"):
        known["percent"]("x", "")


@pytest.mark.parametrize(
    "place, message",
    [
        ("own.py", "name a function, as file.py:function"),
        ("gone.py:f", "gone.py: no such file"),
        ("own.py:says_pleas", "own.py has no function 'says_pleas'"),
        ("own.py:exact_match", "own.py has no function 'exact_match'"),
        ("named.py:exact_match", "there is a metric 'exact_match' already"),
        ("broken.py:f", "broken.py cannot be run: SyntaxError"),
    ],
)
def test_a_metric_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "named.py").write_text("def exact_match(response, expected): return 1")
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(UserError, match=message):
        load_metric(place)


def length_ratio(response: str, expected: str) -> float:
    return min(len(response), len(expected)) / max(len(response), len(expected))


def test_another_metric_is_one_function(monkeypatch, tmp_path, write_lines, pairs, capsys):
    """The table, the scores, summary.json, evaluation.json and the model card have it without another line of code."""
    monkeypatch.setitem(METRICS, "length_ratio", length_ratio)
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", test_samples=5, **QUICK)
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (run.path / "responses.jsonl").read_text().splitlines()]
    scores = {side: [length_ratio(row[side], row["expected"]) for row in rows] for side in ("before", "after")}
    summary = json.loads((run.path / "summary.json").read_text())
    kept = {"record", "expected", "before", "after", "tokens", "finished", "max_new_tokens", "mistakes"}
    assert len(rows) == 5 and kept == rows[0].keys()
    assert summary["test_length_ratio"] == pytest.approx(sum(scores["after"]) / 5)
    assert summary["length_ratio"]["all"] == {
        "n": 5,
        "before": pytest.approx(sum(scores["before"]) / 5),
        "after": summary["test_length_ratio"],
    }
    assert set(summary["exact_match"]["all"]) == {"n", "before", "after"} and "test_exact_match" in summary
    found = json.loads((run.path / "evaluation.json").read_text())["metrics"]["length_ratio"]["all"]
    assert found["after"]["value"] == summary["test_length_ratio"] and found["n"] == 5
    (line,) = [line for line in said.splitlines() if line.startswith("  length ratio ")]
    assert line.split()[2] == "5" and f"{summary['test_length_ratio']:.1%} (" in line
    assert card_of(run.path)["figures"]["length ratio on the test split"] == round(summary["test_length_ratio"], 4)
    assert "exact match on the test split" in card_of(run.path)["figures"]


def test_tables_mark_exact_answers_and_hold_their_columns():
    rows = [
        {"record": {}, "expected": "Two.", "before": "One\nand more " * 30, "after": "Two. "},
        {"record": {}, "expected": "x", "before": "", "after": ""},
    ]
    header, first, second = response_table(rows, ["How many?", "Which?"]).splitlines()
    assert first.startswith(" = How many?") and second.startswith("   Which?")
    assert header.index("|") == first.index("|") == second.index("|") and "..." in first
    table = {
        "a rather long family": {"n": 1234, "before": 0.5, "after": 1.0},
        "all": {"n": 1234, "before": 0, "after": 1},
    }
    title, *lines = score_table("exact_match", table).splitlines()
    assert title.split() == ["exact", "match", "n", "before", "after"]
    assert {len(line) for line in lines} == {len(title)} and lines[1].split() == ["all", "1234", "0.0%", "100.0%"]
    assert describe_metric("exact_match") == "exact match"
