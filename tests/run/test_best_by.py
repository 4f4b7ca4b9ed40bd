"""--best_by: a metric of the validation answers decides which checkpoint is the best."""

import json

import pytest
import torch

import gptft
from gptft import checkpoint
from gptft.errors import UserError
from gptft.evaluation.metrics import METRICS
from gptft.finetuning import finetune
from gptft.run.metrics_file import read_metrics

QUICK = {
    "init": "tiny",
    "max_steps": 8,
    "eval_every": 2,
    "batch_size": 4,
    "max_new_tokens": 3,
    "test_samples": 4,
    "val_fraction": 0.2,
    "precision": "fp32",
    "threads": 1,
}


@pytest.fixture
def scores(monkeypatch):
    """scores(*values): a metric that gives these to one evaluation after the other, and 0 after the last."""

    def give(*values):
        asked = []  # the responses of an evaluation are scored one after the other

        def planned(response, expected):
            if response == expected:  # asked whether it speaks of such records
                return 1.0
            asked.append(response)
            turn = (len(asked) - 1) // 4
            return values[turn] if turn < len(values) else 0.0

        monkeypatch.setitem(METRICS, "planned", planned)

    return give


def test_the_best_checkpoint_is_that_of_the_highest_score_whatever_its_loss(tmp_path, write_lines, pairs, scores):
    """The loss falls to the end here; the second evaluation's answers are the best."""
    scores(0.1, 0.9, 0.2, 0.3, 0.4)
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", best_by="planned", save_every=2, **QUICK)
    rows = [row for row in read_metrics(run.path / "metrics.jsonl") if "eval_loss" in row]
    assert [row["score"] for row in rows] == [0.1, 0.9, 0.2, 0.3, 0.4]
    assert rows[-1]["eval_loss"] < rows[1]["eval_loss"]
    assert run.summary["best_step"] == 2 and run.summary["eval_loss"] == rows[1]["eval_loss"]
    kept, _ = gptft.load(run.path / "best")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), run.model.parameters(), strict=True))


def test_where_scores_are_alike_the_lower_loss_is_better(tmp_path, write_lines, pairs, scores):
    scores(0.5, 0.5, 0.5, 0.5, 0.5)
    data = write_lines(pairs(60))
    by_score = finetune(data=data, out_dir=tmp_path / "a", best_by="planned", **QUICK)
    by_loss = finetune(data=data, out_dir=tmp_path / "b", **QUICK)
    assert by_score.summary["best_step"] == by_loss.summary["best_step"] > 0
    assert by_score.summary["model_id"] == by_loss.summary["model_id"]  # asking on the way changes nothing


def test_patience_waits_for_the_score(tmp_path, write_lines, pairs, scores, capsys):
    scores(0.1, 0.9, 0.2, 0.3, 0.4)
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", best_by="planned", patience=2, **QUICK)
    assert run.summary["steps"] == 6 and "stopped early at step 6" in capsys.readouterr().out


def test_a_resumed_run_knows_its_best_score(tmp_path, write_lines, pairs, scores):
    """Forgotten, a later and worse checkpoint would be taken for the best."""
    data, short = write_lines(pairs(60)), {**QUICK, "max_steps": 4, "schedule": "constant"}
    scores(0.1, 0.9, 0.2, 0.3, 0.4)
    finetune(data=data, out_dir=tmp_path / "run", best_by="planned", **short)
    longer = {**short, "max_steps": 8, "resume": True}
    run = finetune(data=data, out_dir=tmp_path / "run", best_by="planned", **longer)
    assert run.summary["best_step"] == 2
    with pytest.raises(UserError, match="the best_by changed since"):
        finetune(data=data, out_dir=tmp_path / "run", **longer)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"best_by": "exact_mach"}, "--best_by exact_mach: there is no such metric; did you mean 'exact_match'"),
        ({"best_by": "exact_match", "val_fraction": 0.0}, "--best_by exact_match: there is no validation prompt"),
        ({"best_by": "exact_match", "test_samples": 0}, "--best_by exact_match: --test_samples is 0"),
        ({"best_by": "number_match"}, "--best_by number_match: there is no validation prompt"),
    ],
)
def test_a_metric_that_cannot_decide_is_refused_before_training(tmp_path, write_lines, pairs, settings, message):
    with pytest.raises(UserError, match=message):
        finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", **{**QUICK, **settings})
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_real_metric_decides(tmp_path, write_lines, pairs):
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", best_by="token_f1", **QUICK)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["score"] for row in rows if "score" in row}
    assert len(scores) == 5 and scores[run.summary["best_step"]] == max(scores.values())


def test_where_no_step_was_better_by_the_metric_that_is_said(tmp_path, write_lines, pairs, scores, capsys):
    """It once spoke of the validation loss, which every step had lowered."""
    scores(0.9, 0.1, 0.1, 0.1, 0.1)
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", best_by="planned", **QUICK)
    said = capsys.readouterr().out
    assert run.summary["best_step"] == 0 and "no step raised the answers' planned" in said


def test_the_score_of_lost_best_weights_is_measured_anew(tmp_path, write_lines, pairs, scores, monkeypatch):
    """The last stand in for them; the summary once had the lost ones' score beside the last ones' loss."""
    scores(0.1, 0.9, 0.2, 0.3, 0.4, 0.6)
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, *given: None if path.name == "best" and given[2] < 8 else save(path, *given)
    )
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", best_by="planned", **QUICK)
    assert run.summary["best_step"] == 8 and run.summary["best_score"] == 0.6


def test_validation_prompts_are_rehearsed(tmp_path, write_lines, pairs, monkeypatch):
    """What does not fit must fail in the first minute, not at the first evaluation."""
    seen = []
    monkeypatch.setattr("gptft.finetuning.rehearse", lambda *given: seen.extend(given[6]))
    settings = QUICK | {"max_steps": 1}
    finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", best_by="token_f1", test_fraction=0.0, **settings)
    assert len(seen) == QUICK["test_samples"]
