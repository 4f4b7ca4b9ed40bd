"""What a run keeps, whatever ends it, and what it does with what an earlier run left."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

import gptft
from gptft import checkpoint, loading, training
from gptft.config import Config
from gptft.errors import NonFinite, UserError
from gptft.run import signals
from gptft.run.folder import Keeper, default_name
from gptft.run.signals import Interruption

SAVED = Path(__file__).resolve().parents[1] / "saved"  # a start of 28,640 parameters, and 40 records


def run(out_dir, **settings):
    small = {"max_length": 48, "batch_size": 8, "test_samples": 0, "precision": "fp32", "device": "cpu", "threads": 1}
    every = {"eval_every": 1, "save_every": 2, "max_steps": 4, "lr": 1e-2, "warmup_steps": 0, "dropout": 0.1}
    return gptft.finetune(
        init=str(SAVED / "start"), data=str(SAVED / "faq.jsonl"), out_dir=str(out_dir), **{**small, **every, **settings}
    )


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


def test_before_a_loss_that_is_not_finite_the_last_good_state_is_saved(tmp_path):
    """A run of hours ended with a NaN and nothing saved, although the last good state was in memory."""
    where = rf"weights are as after step 1.*state after step 1 is saved in {tmp_path / 'run' / 'last'}"
    with pytest.raises(NonFinite, match=where):
        run(tmp_path / "run", lr=1e30, grad_clip=0.0, schedule="constant", val_fraction=0.0, save_every=0)
    assert checkpoint.verify(tmp_path / "run" / "last")["step"] == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "last").values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """A checkpoint of NaNs would take the place of a good one, and a resume would go on from it."""
    monkeypatch.setattr(Keeper, "__init__", lambda self: None)
    keeper, (model, _) = Keeper(), gptft.load(SAVED / "start")
    keeper.state = type("State", (), {"model": model, "progress": type("Progress", (), {"step": 3})})
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    assert "step 3 are not finite themselves, so they were not saved" in keeper.save_last_good()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_last_save_is_heard(tmp_path, monkeypatch, number):
    """It was swallowed: a machine that is taken back asks once, and the run went on to its test until it was killed."""
    save = checkpoint.save

    def save_while_signalled(path, *rest):
        save(path, *rest)
        if path.name == "last":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoint, "save", save_while_signalled)
    with pytest.raises(Interruption, match=r"stopped after the last step; saved in .*--resume") as stopped:
        run(tmp_path / "run")
    assert stopped.value.status == 128 + number
    assert checkpoint.verify(tmp_path / "run" / "last")["step"] == 4
    assert not (tmp_path / "run" / "summary.json").exists()


def test_out_of_memory_on_the_way_is_one_line_and_the_run_can_go_on(tmp_path, monkeypatch):
    """What the rehearsal did not foresee: another process takes the memory. Nothing that was learned is lost."""
    unbroken = run(tmp_path / "unbroken")
    backward = training.backward

    def fail_in_step_4(state, *rest):
        losses = backward(state, *rest)
        if state.progress.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return losses

    monkeypatch.setattr(training, "backward", fail_in_step_4)
    match = r"^out of memory on cpu in step 4: lower --batch_size.*after step 3 is saved in"
    with pytest.raises(UserError, match=match):
        run(tmp_path / "run", save_every=0)
    monkeypatch.setattr(training, "backward", backward)
    assert checkpoint.verify(tmp_path / "run" / "last")["step"] == 3
    resumed = run(tmp_path / "run", resume=True)
    assert resumed.summary["model_id"] == unbroken.summary["model_id"]
    assert same(weights(tmp_path / "run" / "last"), weights(tmp_path / "unbroken" / "last"))


def test_best_is_not_written_before_the_first_step(tmp_path, monkeypatch):
    """The start's loss is the best so far, but the start is on the disk already: for a 7B model that was 28 GB."""
    written, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda path, model, tokenizer, step, *rest: (
            written.append((path.name, step)),
            save(path, model, tokenizer, step, *rest),
        ),
    )
    run(tmp_path / "run", max_steps=2)
    assert written[0] == ("best", 1) and ("last", 2) in written


def test_a_run_that_only_does_harm_gives_back_the_start(tmp_path, capsys):
    """The best model is then the one that training started from, and `best` is that."""
    done = run(tmp_path / "run", lr=3.0, schedule="constant", max_steps=2)
    assert "no step lowered the validation loss" in capsys.readouterr().out
    assert same(weights(tmp_path / "run" / "best"), weights(SAVED / "start"))
    assert checkpoint.step_of(tmp_path / "run" / "best") == 0 == done.summary["best_step"]
    model, tokenizer = gptft.load(tmp_path / "run")
    assert checkpoint.model_id(model, tokenizer) == done.summary["model_id"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weight_decay", 0.3, "0.1, now 0.3"),
        ("betas", (0.8, 0.9), r"\[0.9, 0.999\], now \[0.8, 0.9\]"),
        ("eps", 1e-6, "1e-08, now 1e-06"),
        ("lr", 5e-3, "0.01, now 0.005"),
        ("grad_clip", 0.5, "1.0, now 0.5"),
        ("schedule", "linear", "cosine, now linear"),
    ],
)
def test_a_setting_that_changed_is_said_and_holds(tmp_path, capsys, name, value, said):
    """The optimizer's saved settings won without a word over those that the user gave."""
    run(tmp_path / "run", max_steps=2)
    run(tmp_path / "other", max_steps=2)
    capsys.readouterr()
    unchanged = run(tmp_path / "run", resume=True)
    assert "note: --max_steps was 2, now 4" in capsys.readouterr().out
    changed = run(tmp_path / "other", resume=True, **{name: value})
    out = capsys.readouterr().out
    assert re.search(rf"note: --{name} was {said}: it holds from here on", out)
    assert changed.summary["model_id"] != unchanged.summary["model_id"]


def test_a_best_of_steps_that_are_taken_anew_is_set_aside(tmp_path, capsys):
    """A run is killed after a step that was its best; it goes on from before it with a lower rate, never comes to so
    low a loss again, and ended with weights that its own history does not contain."""
    run(tmp_path / "run")
    assert checkpoint.step_of(tmp_path / "run" / "best") > 2
    for name in ("last", "step-000004"):
        shutil.rmtree(tmp_path / "run" / name)
    expected = weights(run(tmp_path / "half", max_steps=2).path / "last")
    (tmp_path / "half" / "last").rename(tmp_path / "run" / "step-000002")
    done = run(tmp_path / "run", resume=True, lr=0.0)
    assert "which is taken anew: it is in" in capsys.readouterr().out
    assert (tmp_path / "run" / "best-set-aside" / "manifest.json").exists()
    assert same(weights(tmp_path / "run" / "best"), expected)
    assert done.summary["best_step"] == checkpoint.step_of(tmp_path / "run" / "best")


def test_a_best_that_nothing_can_go_on_from_is_set_aside_not_deleted(tmp_path, capsys):
    """--resume without a valid checkpoint starts anew, and deleted what may be somebody's only copy."""
    run(tmp_path / "run", max_steps=2)
    best = weights(tmp_path / "run" / "best")
    for name in ("last", "step-000002"):
        (tmp_path / "run" / name / "model.pt").write_bytes(b"damaged")
    run(tmp_path / "run", resume=True, max_steps=1, seed=5)
    assert "starting at step 0" in (out := capsys.readouterr().out) and "best-set-aside" in out
    assert same(weights(tmp_path / "run" / "best-set-aside"), best)


def test_patience_without_validation_data_is_said_to_do_nothing(tmp_path, capsys):
    run(tmp_path / "run", max_steps=1, val_fraction=0.0, patience=3)
    assert "--patience 3 does nothing: there is no validation data" in capsys.readouterr().out


def test_a_run_is_not_begun_where_another_is_training(tmp_path):
    """Two runs that were started at the same moment both found an empty folder, and shared it."""
    from gptft.run.lock import claim

    with claim(tmp_path / "run"), pytest.raises(UserError, match="is training in it"):
        run(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert loading.load(run(tmp_path / "run", max_steps=1).path)


def test_how_to_go_on_is_told(tmp_path):
    assert "--resume --out_dir somewhere" in signals.how_to_resume(Path("somewhere"))


def test_a_lost_best_is_not_taken_for_the_start(tmp_path, capsys):
    """A finished run whose `best` was damaged, resumed: it gave back the untrained start, and called it the best."""
    done = run(tmp_path / "run", max_steps=2)
    shutil.rmtree(tmp_path / "run" / "best")
    resumed = run(tmp_path / "run", max_steps=2, resume=True)
    assert "the best weights of this run are lost: the last are taken" in capsys.readouterr().out
    assert same(weights(tmp_path / "run" / "best"), weights(tmp_path / "run" / "last"))
    assert resumed.summary["eval_loss"] == pytest.approx(done.summary["eval_loss"], rel=1e-6)


def test_a_damaged_best_is_said_to_be_damaged(tmp_path, capsys):
    run(tmp_path / "run", max_steps=2)
    (tmp_path / "run" / "best" / "model.pt").write_bytes(b"damaged")
    run(tmp_path / "run", max_steps=2, resume=True)
    assert f"{tmp_path / 'run' / 'best'} is damaged: it is in" in capsys.readouterr().out


def test_a_run_that_began_and_ended_meanwhile_is_not_written_over(tmp_path, monkeypatch):
    """The folder was looked at before the model was loaded, and taken minutes later without another look."""
    from gptft import finetuning

    rehearse = finetuning.rehearse

    def rehearse_while_another_runs(*arguments):
        rehearse(*arguments)
        monkeypatch.setattr(finetuning, "rehearse", rehearse)
        run(tmp_path / "run", max_steps=1)

    monkeypatch.setattr(finetuning, "rehearse", rehearse_while_another_runs)
    with pytest.raises(UserError, match="already holds a run"):
        run(tmp_path / "run", max_steps=3)
    assert checkpoint.verify(tmp_path / "run" / "last")["step"] == 1


def test_a_signal_while_tensors_are_written_stays_a_signal(tmp_path, monkeypatch):
    """torch puts an error of its own in the place of whatever a signal's handler raises while it writes, and the user
    was told that the disk is full."""
    write = checkpoint.HashedFile.write

    def interrupt(self, data):
        write(self, data)
        raise Interruption("stopped", signal.SIGTERM, tmp_path)

    model, tokenizer = gptft.load(SAVED / "start")
    monkeypatch.setattr(checkpoint.HashedFile, "write", interrupt)
    with pytest.raises(Interruption):
        checkpoint.save(tmp_path / "last", model, tokenizer, 3)


def test_the_reason_for_an_end_is_told_even_where_nothing_can_be_saved(tmp_path, monkeypatch):
    """A disk that is full must not hide which examples gave a loss that is not finite."""
    save = checkpoint.save

    def full(path, *rest):
        if path.name == "last":
            raise UserError(f"the checkpoint {path} could not be written (No space left on device)")
        save(path, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(NonFinite, match=r"the loss is .*line \d+.*No space left"):
        run(tmp_path / "run", lr=1e30, grad_clip=0.0, schedule="constant", val_fraction=0.0, save_every=0)


@pytest.mark.parametrize(
    "init, data, name",
    [
        ("gpt2", "faq.jsonl", "gpt2-faq"),
        ("runs/a/best", "embedded:instructions.jsonl", "a-instructions"),
        ("tiny", "hf:allenai/c4:en", "tiny-c4-en"),
        ("tiny", "books/", "tiny-books"),
    ],
)
def test_a_run_without_a_name_is_called_after_what_it_starts_from_and_its_data(init, data, name):
    """A colon is no part of a folder's name everywhere."""
    assert default_name(Config(init=init, data=(data,))) == name
