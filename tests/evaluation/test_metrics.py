"""Metrics of the answers: what counts as exact, and that another metric is one function."""

import json

import pytest

from gptft.evaluation.metrics import METRICS, describe_metric, exact_match, score_rows
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


def test_scores_are_means_by_family_and_over_all():
    """The mean over all is that of the records, not of the families' means."""

    def row(family, before, after):
        record = {} if family is None else {"family": family}
        return {"record": record, "expected": "x", "before": before, "after": after}

    rows = [
        row("b", "", "x"),
        row("a", "x", "x"),
        row("a", "", ""),
        row("a", "", "x"),
        row(None, "", ""),
        row(3, "", ""),
    ]
    assert score_rows(rows, exact_match) == {
        "a": {"n": 3, "before": 1 / 3, "after": 2 / 3},
        "b": {"n": 1, "before": 0.0, "after": 1.0},
        "all": {"n": 6, "before": 1 / 6, "after": 3 / 6},
    }


def length_ratio(response: str, expected: str) -> float:
    return min(len(response), len(expected)) / max(len(response), len(expected))


def test_another_metric_is_one_function(monkeypatch, tmp_path, write_lines, pairs, capsys):
    """The table, the scores, summary.json and the model card have it without another line of code."""
    monkeypatch.setitem(METRICS, "length_ratio", length_ratio)
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", test_samples=5, **QUICK)
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (run.path / "responses.jsonl").read_text().splitlines()]
    scores = [length_ratio(row["after"], row["expected"]) for row in rows]
    summary = json.loads((run.path / "summary.json").read_text())
    assert len(rows) == 5 and {"record", "expected", "before", "after"} == rows[0].keys()
    assert summary["test_length_ratio"] == pytest.approx(sum(scores) / 5)
    assert summary["length_ratio"]["all"] == {
        "n": 5,
        "before": pytest.approx(sum(length_ratio(row["before"], row["expected"]) for row in rows) / 5),
        "after": summary["test_length_ratio"],
    }
    assert set(summary["exact_match"]["all"]) == {"n", "before", "after"} and "test_exact_match" in summary
    (header,) = [line for line in said.splitlines() if line.startswith("   prompt ")]
    assert header.endswith(" | length ratio")
    assert f"{scores[0]:.1%}" in said
    assert card_of(run.path)["figures"]["length ratio on the test split"] == round(summary["test_length_ratio"], 4)
    assert "exact match on the test split" in card_of(run.path)["figures"]
    (line,) = [number for number, line in enumerate(said.splitlines()) if line.startswith("  length ratio ")]
    assert said.splitlines()[line + 1].split()[:2] == ["all", "5"]


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
