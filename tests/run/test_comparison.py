"""The test prompts of a run: over-long ones are named, counted and left out, wherever the run stands."""

import json
import shutil

import pytest

from gptft.evaluation.metrics import METRICS
from gptft.evaluation.responses import answer
from gptft.finetuning import finetune
from gptft.run import comparison

QUICK = {
    "init": "tiny",
    "max_steps": 2,
    "max_new_tokens": 4,
    "precision": "fp32",
    "threads": 1,
    "val_fraction": 0,
    "truncation": "left",
}


@pytest.fixture
def data(write_lines, pairs):
    """(training files, test files): two of the ten test prompts are longer than the 256 tokens that tiny reads."""
    test = pairs(10)
    for number in (3, 7):
        test[number]["question"] = "word " * 400 + str(number)
    return {"data": write_lines(pairs(20)), "test_data": write_lines(test, "test.jsonl")}


def rows_of(run):
    return [json.loads(line) for line in (run / "responses.jsonl").read_text(encoding="utf-8").splitlines()]


def test_over_long_test_prompts_are_named_counted_and_left_out(tmp_path, data, capsys):
    """They were once cut without a word, down to one token of room, and their answers scored as wrong."""
    run = finetune(**data, out_dir=tmp_path / "run", **QUICK)
    said, rows = capsys.readouterr().out, rows_of(run.path)
    left_out = [number for number, row in enumerate(rows) if "left_out" in row]
    assert left_out == [3, 7] and len(rows) == 10
    for number in left_out:
        assert rows[number]["left_out"].startswith(f"{data['test_data']}, line {number + 1}: its prompt of ")
        assert rows[number]["before"] == rows[number]["after"] == "" and rows[number]["left_out"] in said
    assert "2 of 10 prompts are left out of the score" in said and "answering 8 test prompts before" in said
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["prompts_left_out"] == 2 and summary["exact_match"]["all"]["n"] == 8
    (shown,) = [line for line in said.splitlines() if line.startswith(" - ")][:1]
    assert "word word" in shown


def test_a_resumed_run_leaves_out_the_same(tmp_path, data, monkeypatch):
    """It reads the answers from before back, and asks again only what would not be asked the same."""
    asked = []
    monkeypatch.setattr(comparison, "answer", lambda *given: asked.append(given[2]) or answer(*given))
    run = finetune(**data, out_dir=tmp_path / "run", **QUICK)
    before = [row["before"] for row in rows_of(run.path)]
    assert len(asked) == 2
    again = finetune(**data, out_dir=tmp_path / "run", resume=True, **QUICK)
    assert len(asked) == 3 and [row["before"] for row in rows_of(again.path)] == before
    assert again.summary["prompts_left_out"] == 2

    # a file of an earlier version, which had cut and asked all: it is asked anew
    old = [{key: row[key] for key in ("record", "expected", "before", "after")} for row in rows_of(run.path)]
    (run.path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    finetune(**data, out_dir=tmp_path / "run", resume=True, **QUICK)
    assert len(asked) == 5 and [row["before"] for row in rows_of(again.path)] == before


def test_a_run_without_test_prompts_says_of_every_metric_that_it_was_not_measured(tmp_path, write_lines, pairs):
    run = finetune(data=write_lines(pairs(20)), out_dir=tmp_path / "run", **{**QUICK, "test_fraction": 0.0})
    assert {f"test_{name}": run.summary[f"test_{name}"] for name in METRICS} == {
        f"test_{name}": None for name in METRICS
    }


def test_where_every_prompt_is_left_out_there_is_no_score(tmp_path, write_lines, pairs, capsys):
    """A mean over nothing is not 0%."""
    long = [{"question": "word " * 400, "answer": "No."}]
    run = finetune(
        data=write_lines(pairs(20)), test_data=write_lines(long, "t.jsonl"), out_dir=tmp_path / "run", **QUICK
    )
    assert run.summary["prompts_left_out"] == 1 and run.summary["test_exact_match"] is None
    assert "exact_match" not in run.summary and "answering 0 test prompts" not in capsys.readouterr().out


def test_where_no_checkpoint_is_left_nothing_is_read_back(tmp_path, data):
    """A run that was killed before its first save, gone on with from another model, had the first one's figures."""

    def losses_of(run):
        rows = [json.loads(line) for line in (run.path / "losses.jsonl").read_text().splitlines()]
        return [row["before"] for row in sorted(rows, key=lambda row: row["example"])]

    first = finetune(**data, out_dir=tmp_path / "run", **QUICK)
    before = losses_of(first)
    for name in ("best", "last"):
        shutil.rmtree(first.path / name, ignore_errors=True)
    again = finetune(**data, out_dir=tmp_path / "run", resume=True, **{**QUICK, "seed": 7})
    fresh = finetune(**data, out_dir=tmp_path / "fresh", **{**QUICK, "seed": 7})
    assert losses_of(again) == losses_of(fresh) != before


def test_answers_of_another_length_are_asked_anew(tmp_path, data):
    """Before and after had another limit, and were compared."""
    run = finetune(**data, out_dir=tmp_path / "run", **QUICK)
    again = finetune(**data, out_dir=tmp_path / "run", resume=True, **{**QUICK, "max_new_tokens": 7})
    rows = [row for row in rows_of(again.path) if "left_out" not in row]
    assert {row["max_new_tokens"] for row in rows} == {7}
    assert max(row["tokens"]["before"] for row in rows) == max(row["tokens"]["after"] for row in rows) == 7
    assert run.path == again.path
