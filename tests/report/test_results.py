"""The end of a run: its last files, and what is said of them."""

import json

from gptft.data.shapes import Parts
from gptft.evaluation.compare import measure
from gptft.evaluation.responses import Question
from gptft.report.results import write_results

SUMMARY = {"eval_loss": 1.25, "test_loss": None, "steps": 1234, "train_runtime": 61.0, "train_samples_per_second": 7.0}


class Data:
    """A dataset that has lost a record."""

    def lost(self):
        yield {"file": "d.jsonl", "line": 3, "what": "dropped", "why": "bad", "tokens": 0}


def test_results_are_written_and_said(tmp_path, capsys):
    row = {"record": {}, "expected": "Two.", "before": "", "after": "Two."}
    questions = [Question({}, Parts(instruction="How many?"), "Two.")]
    scores = {"all": {"n": 1, "before": 0.0, "after": 1.0}}
    summary = {**SUMMARY, "exact_match": scores}
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "model.pt").write_text("")
    evaluation = measure([row])
    write_results(tmp_path, [row], questions, summary, evaluation, {"data": Data()})
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "lost.jsonl").read_text()) == {"split": "data", **next(Data().lost())}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == evaluation
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for part in (
        " = How many?",
        "exact match",
        "token f1",
        "eval loss 1.2500 (best)",
        "1,234 steps in 1:01",
        "last/{model.pt}",
    ):
        assert part in said
    assert "test loss" not in said


def test_a_run_that_measured_and_lost_nothing_writes_neither_file(tmp_path, capsys):
    write_results(tmp_path, [], [], {**SUMMARY, "eval_loss": None}, {}, {})
    assert not {"lost.jsonl", "evaluation.json"} & {path.name for path in tmp_path.iterdir()}
    assert "expected" not in capsys.readouterr().out
