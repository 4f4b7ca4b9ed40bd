"""Whole runs through the public function, small enough for a test."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gptft
from gptft import checkpoint, loading
from gptft.__main__ import main
from gptft.adapters.lora import lora_state
from gptft.config import Config, resolve
from gptft.errors import BadRecord, UserError
from gptft.finetuning import finetune
from gptft.run.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent
QUICK = {
    "init": "tiny",
    "max_steps": 6,
    "batch_size": 4,
    "eval_every": 3,
    "max_new_tokens": 8,
    "test_samples": 5,
    "max_length": 64,
    "threads": 1,
    "precision": "fp32",
}


def test_a_run_leaves_the_files_of_the_contract(tmp_path, write_lines, pairs):
    """Every file and key that a run promises, and the ledger in the summary."""
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", **QUICK)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    files = {"config.toml", "metrics.jsonl", "responses.jsonl", "losses.jsonl", "evaluation.json", "summary.json"}
    files |= {"report.html", "tokens.jsonl"}
    assert files | {"best", "last"} <= names
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    wanted = {
        "model_id",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
        "train_loss",
        "eval_loss",
        "test_loss",
        "test_exact_match",
        "parameters",
        "peak_memory_bytes",
        "ledger",
    }
    assert wanted <= summary.keys() and summary == run.summary
    assert summary["ledger"]["data"]["records_read"] == 60
    assert summary["parameters"] == run.model.n_parameters()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 3, 6]
    assert {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "iter_time",
        "tokens_per_second",
        "flops",
        "data_share",
        "remaining_time",
    } == next(row for row in rows if "loss" in row).keys()
    answers = [json.loads(line) for line in (tmp_path / "run" / "responses.jsonl").read_text().splitlines()]
    assert len(answers) == 5
    kept = {"record", "expected", "before", "after", "tokens", "finished", "max_new_tokens", "mistakes"}
    assert kept == answers[0].keys()
    assert resolve(str(tmp_path / "run" / "config.toml"), {}).max_steps == 6


def test_the_best_weights_are_the_ones_returned(tmp_path, write_lines, pairs):
    """`load` of the run's folder, the returned model and best/ are one and the same; its loss is the lowest seen."""
    run = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "run", **{**QUICK, "lr": 0.3, "warmup_steps": 0})
    loaded, tokenizer = gptft.load(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), run.model.parameters(), strict=True))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert run.summary["eval_loss"] == min(row["eval_loss"] for row in rows if "eval_loss" in row)
    assert tokenizer.template.name == "qa"
    assert gptft.generate(loaded, tokenizer, ["What comes after 7?"], max_new_tokens=4)


def test_a_run_keeps_as_many_checkpoints_as_asked(tmp_path, write_lines, pairs):
    """--keep: old step-NNNNNN folders go as new ones are written; best and last stay."""
    run = finetune(data=write_lines(pairs(30)), out_dir=tmp_path / "run", **{**QUICK, "save_every": 1, "keep": 2})
    assert [path.name for path in sorted(run.path.glob("*/"))] == ["best", "last", "step-000005", "step-000006"]


def test_the_config_of_a_run_repeats_it(tmp_path, write_lines, pairs):
    """--config on config.toml gives the same losses and weights, bit for bit."""
    first = finetune(data=write_lines(pairs(60)), out_dir=tmp_path / "a", **{**QUICK, "dropout": 0.1})
    second = finetune(resolve(str(tmp_path / "a" / "config.toml"), {"out_dir": tmp_path / "b"}))
    assert first.summary["model_id"] == second.summary["model_id"]
    assert first.summary["train_loss"] == second.summary["train_loss"]


def test_empty_splits_are_legal_and_said(tmp_path, write_lines, pairs, capsys):
    """A split of size zero trains all the same, and says what is then not measured."""
    run = finetune(
        data=write_lines(pairs(20)), out_dir=tmp_path / "run", val_fraction=0, test_fraction=0, **{**QUICK, "keep": 2}
    )
    said = capsys.readouterr().out
    assert "the validation split is empty" in said and "the test split is empty" in said
    assert run.summary["eval_loss"] is None and run.summary["test_loss"] is None
    assert not (run.path / "best").exists() and gptft.load(run.path)


def test_files_of_their_own_for_validation_and_test(tmp_path, write_lines, pairs):
    """val_data and test_data are used whole, and nothing of the training file is held out."""
    records = pairs(40)
    run = finetune(
        data=write_lines(records[:30]),
        val_data=write_lines(records[30:34], "v.jsonl"),
        test_data=write_lines(records[34:], "t.jsonl"),
        out_dir=tmp_path / "run",
        **QUICK,
    )
    assert {name: ledger["examples"] for name, ledger in run.summary["ledger"].items()} == {
        "data": 30,
        "val_data": 4,
        "test_data": 6,
    }


def test_an_out_dir_that_holds_a_run_is_refused(tmp_path, write_lines, pairs, monkeypatch):
    """No run overwrites another; the default name gets a number."""
    data = write_lines(pairs(30))
    finetune(data=data, out_dir=tmp_path / "run", **QUICK)
    with pytest.raises(UserError, match=r"already holds a run: choose another, or go on with it by --resume"):
        finetune(data=data, out_dir=tmp_path / "run", **QUICK)
    monkeypatch.chdir(tmp_path)
    assert [finetune(data=data, **QUICK).path.name for _ in range(2)] == ["tiny-data", "tiny-data-2"]


def test_resume_refuses_other_data_and_starts_at_0_without_a_checkpoint(tmp_path, write_lines, pairs, capsys):
    settings = {**QUICK, "out_dir": tmp_path / "run"}
    finetune(data=write_lines(pairs(30)), resume=True, **settings)
    assert "no valid checkpoint to go on from: starting at step 0" in capsys.readouterr().out
    with pytest.raises(UserError, match="--resume: the training data changed since"):
        finetune(data=write_lines(pairs(31)), resume=True, **settings)
    with pytest.raises(UserError, match="--resume: the batch_size changed since"):
        finetune(data=write_lines(pairs(30)), resume=True, **{**settings, "batch_size": 5})
    for name, value in (("mask_prompt", False), ("optimizer", "adafactor")):
        with pytest.raises(UserError, match=f"--resume: the {name} changed since"):
            finetune(data=write_lines(pairs(30)), resume=True, **{**settings, name: value})
    other = finetune(data=write_lines(pairs(30)), out_dir=tmp_path / "other", **QUICK)
    with pytest.raises(UserError, match="--resume: the model it starts from changed since"):
        finetune(data=write_lines(pairs(30)), resume=True, **{**settings, "init": other.path, "template": "qa"})
    with pytest.raises(UserError, match="--resume needs --out_dir"):
        finetune(data=write_lines(pairs(30)), resume=True, **QUICK)


def test_resume_passes_over_a_damaged_checkpoint(tmp_path, write_lines, pairs, capsys):
    """The newest is broken, so the one before is taken, and metrics hold each step once."""
    data = write_lines(pairs(60))
    whole = finetune(data=data, out_dir=tmp_path / "whole", **QUICK)
    settings = {**QUICK, "out_dir": tmp_path / "run", "save_every": 2, "keep": 5}
    finetune(data=data, **settings)
    for broken in ("last", "step-000006"):
        (tmp_path / "run" / broken / "model.pt").write_bytes(b"")
    run = finetune(data=data, resume=True, **settings)
    said = capsys.readouterr().out
    assert "step-000006: model.pt is damaged" in said and "step-000004, step 4" in said
    assert run.summary["model_id"] == whole.summary["model_id"]
    steps = [row["step"] for row in read_metrics(run.path / "metrics.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_best_that_nobody_vouches_for_is_not_taken_for_this_runs(tmp_path, write_lines, pairs):
    """Killed before its first resumable checkpoint, resumed on other data without a validation split: the old run's
    best weights were once loaded at the end, and reported as the new ones."""
    settings = {**QUICK, "out_dir": tmp_path / "run"}
    old = finetune(data=write_lines(pairs(60), "old.jsonl"), **settings)
    shutil.rmtree(tmp_path / "run" / "last")
    new = finetune(data=write_lines(pairs(90), "new.jsonl"), **{**settings, "resume": True, "val_fraction": 0.0})
    assert new.summary["model_id"] != old.summary["model_id"] and not (tmp_path / "run" / "best").exists()
    assert checkpoint.model_id(*loading.load(tmp_path / "run")) == new.summary["model_id"]


def test_a_resumed_run_asks_the_untrained_model_for_its_before(tmp_path, write_lines, pairs):
    """responses.jsonl lost, or more test samples asked for: "before" still is the model that training began with."""
    data, settings = write_lines(pairs(60)), {**QUICK, "out_dir": tmp_path / "run", "lr": 1e-2}
    finetune(data=data, **settings)
    expected = (tmp_path / "run" / "responses.jsonl").read_text()
    (tmp_path / "run" / "responses.jsonl").unlink()
    finetune(data=data, resume=True, **settings)
    assert (tmp_path / "run" / "responses.jsonl").read_text() == expected


def test_losses_do_not_depend_on_how_data_is_batched_in_evaluation(tmp_path, write_lines, pairs):
    data = write_lines(pairs(60))
    losses = [
        finetune(data=data, out_dir=tmp_path / str(size), **{**QUICK, "eval_batch_size": size}).summary["test_loss"]
        for size in (1, 16)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_plain_text_trains_on_every_token(tmp_path):
    """A .txt file: every token but the first is a target; there is no response to compare."""
    (tmp_path / "book.txt").write_text("".join(f"The dog saw cat number {i}. " for i in range(300)))
    run = finetune(data=tmp_path / "book.txt", out_dir=tmp_path / "run", **QUICK)
    ledger = run.summary["ledger"]["data"]
    assert ledger["targets"] == ledger["tokens_read"] - 1
    assert run.summary["test_exact_match"] is None and run.summary["test_loss"] > 0


def test_the_template_and_the_keys_that_chose_it_are_said_and_kept(tmp_path, write_lines, capsys):
    """alpaca's `text` beside its instructions once gave the template of plain text, silently."""
    records = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}", "text": f"... {i}"} for i in range(30)]
    run = finetune(data=write_lines(records), out_dir=tmp_path / "run", **{**QUICK, "max_length": 160})
    assert run.tokenizer.template.name == "alpaca"
    choice = json.loads((run.path / "summary.json").read_text())["ledger"]["data"]["template"]
    assert (choice["template"], choice["records"], choice["unused_keys"]) == ("alpaca", 30, {"text": 30})
    said = capsys.readouterr().out
    assert "template: alpaca (by the records' keys); keys instruction, input, output (as response); 30 records" in said
    assert "not used: the key 'text' of 30 records" in said


def test_parts_of_ones_own_are_trained_and_asked(tmp_path, write_lines, capsys):
    """--fields with a template's own parts trained, then failed when the test prompts were asked: their records were
    recognised anew, without the fields."""
    (tmp_path / "own.toml").write_text('prompt = "{customer} asks about {item}.\\nAnswer:"\nlead = " "\n')
    records = [{"who": f"Ann {n}", "what": "cats", "says": f"Cat {n}."} for n in range(40)]
    fields = {"customer": "who", "item": "what", "response": "says"}
    settings = {**QUICK, "template": str(tmp_path / "own.toml"), "fields": fields}
    run = finetune(data=write_lines(records), out_dir=tmp_path / "run", **settings)
    rows = [json.loads(line) for line in (run.path / "responses.jsonl").read_text().splitlines()]
    assert len(rows) == 4 == run.summary["exact_match"]["all"]["n"]
    assert all(row["expected"] == row["record"]["says"] for row in rows)
    assert f"{rows[0]['record']['who']} / cats" in capsys.readouterr().out  # the table shows what was asked
    # the checkpoint's template is asked in its own parts, and says which one is missing
    prompt = {"customer": rows[0]["record"]["who"], "item": "cats"}
    assert gptft.generate(run.model, run.tokenizer, [prompt], 8) == [rows[0]["after"]]
    with pytest.raises(BadRecord, match="the template 'own' needs a 'customer'; the prompt has 'item'"):
        gptft.generate(run.model, run.tokenizer, [{"item": "cats"}], 8)
    main(
        ["evaluate", str(run.path), "--data", str(tmp_path / "data.jsonl"), "--samples", "3", "--fields"]
        + [f"{part}={key}" for part, key in fields.items()]
    )
    assert re.search(r"exact match +3 ", capsys.readouterr().out)


def test_a_text_fills_the_only_part_of_a_template(tmp_path, write_lines, capsys):
    """`generate "hello"` had no way to ask a template whose one part is not called instruction."""
    (tmp_path / "own.toml").write_text('prompt = "Customer: {customer}\\nAgent: "\n')
    records = [{"who": f"Ann {n}", "says": f"Cat {n}."} for n in range(20)]
    settings = {**QUICK, "template": str(tmp_path / "own.toml"), "fields": {"customer": "who", "response": "says"}}
    run = finetune(data=write_lines(records), out_dir=tmp_path / "run", **settings)
    capsys.readouterr()
    main(["generate", str(run.path), "Ann 3", "--max_new_tokens", "6", "--device", "cpu"])
    expected = gptft.generate(run.model, run.tokenizer, [{"customer": "Ann 3"}], 6)
    assert capsys.readouterr().out == expected[0] + "\n"


def test_lost_records_are_named_in_a_file(tmp_path, write_lines, pairs):
    """What was cut or dropped stands in lost.jsonl with file, line and tokens, and adds up with the ledger."""
    records = pairs(40)
    records[3]["question"] = "word " * 100
    records[5]["answer"] = "word " * 100
    data = write_lines(records)
    run = finetune(data=data, out_dir=tmp_path / "run", **QUICK)
    lost = [json.loads(line) for line in (run.path / "lost.jsonl").read_text().splitlines()]
    assert [(row["line"], row["what"]) for row in lost] == [(4, "dropped"), (6, "cut")]
    ledger = run.summary["ledger"]["data"]
    assert lost[0]["tokens"] == ledger["tokens_dropped"] and lost[1]["tokens"] == ledger["tokens_cut"]
    assert all(row["file"] == str(data) for row in lost)


def test_three_lines_of_the_course(tmp_path, write_lines, pairs, monkeypatch):
    """BasicModelRunner as the course has it: load data, train, ask; train returns the model id."""
    from gptft import BasicModelRunner

    monkeypatch.chdir(tmp_path)
    start = finetune(data=write_lines(pairs(30)), out_dir="start", **QUICK)
    model = BasicModelRunner("start", **{k: v for k, v in QUICK.items() if k != "init"})
    before = model.model_id
    model.load_data_from_jsonlines("data.jsonl", input_key="question", output_key="answer")
    model_id = model.train()
    assert before == start.summary["model_id"] != model_id == model.model_id
    assert isinstance(model("What comes after 3?"), str) and len(model(["One?", "Two?"])) == 2
    with pytest.raises(UserError, match="call load_data_from_jsonlines first"):
        BasicModelRunner("start").train()


def test_the_three_lines_go_on_without_an_empty_answer_and_name_it(tmp_path, write_lines, pairs, monkeypatch, capsys):
    """The course's own file has one among its 1,400 answers, on which its three lines stopped."""
    from gptft import BasicModelRunner

    monkeypatch.chdir(tmp_path)
    data = write_lines([*pairs(30), {"question": "Why?", "answer": ""}])
    with open(data, "a") as file:
        file.write('{"question": \n')
    model = BasicModelRunner("tiny", **{k: v for k, v in QUICK.items() if k != "init"})
    with pytest.warns(UserWarning, match="2 of 32 records cannot be used and will be left out") as warned:
        model.load_data_from_jsonlines("data.jsonl")
    assert warned[0].filename == __file__  # the user's own line
    _, first, second = str(warned[0].message).split("\n")
    assert first.startswith("  data.jsonl, line 31: key 'answer' is empty") and "line 32: broken JSON" in second
    model.train()
    assert model.run.summary["ledger"]["data"]["records_dropped"] == {"bad record": 2}
    assert "dropped: data.jsonl, line 31: key 'answer' is empty" in capsys.readouterr().out
    # `python train.py` keeps its rule, and so does who asks for it
    with pytest.raises(UserError, match="2 bad records"):
        finetune(data=data, out_dir="other", **QUICK)
    with pytest.raises(UserError, match="2 bad records"):
        model.train(bad_records="stop")
    # a setting of the runner's is not forgotten because no keys are named
    other = BasicModelRunner("tiny", fields={"instruction": "q", "response": "a"})
    other.load_data_from_jsonlines(write_lines([{"q": "Why?", "a": "So."}], "other.jsonl"))
    assert other.fields == {"instruction": "q", "response": "a"}
    with pytest.raises(UserError, match=r"none of the 6 records of .* can be used(.*\n){6}  ... and 1 more"):
        model.load_data_from_jsonlines(write_lines([{"question": "Why?"}] * 6, "none.jsonl"))


def test_conversations_train_on_every_assistant_turn(tmp_path, write_lines):
    """messages records: all assistant turns are targets; the last one is what the test asks for."""
    talk = [
        {
            "messages": [
                {"role": "user", "content": f"Hello {i}"},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "Bye"},
                {"role": "assistant", "content": "See you."},
            ]
        }
        for i in range(30)
    ]
    run = finetune(data=write_lines(talk), out_dir=tmp_path / "run", **{**QUICK, "max_length": 128})
    assert run.tokenizer.template.name == "chatml"
    per_record = len(run.tokenizer.encode("Hi.")) + len(run.tokenizer.encode("See you.")) + 2
    assert run.summary["ledger"]["data"]["targets"] == 30 * per_record


def test_settings_are_checked_before_anything_is_written(tmp_path, write_lines, pairs):
    with pytest.raises(UserError, match="unknown key 'epoch'; did you mean 'epochs'"):
        finetune(data=write_lines(pairs(5)), out_dir=tmp_path / "run", epoch=3)
    with pytest.raises(UserError, match="--max_length 300 is above the model's block_size 256"):
        finetune(data=write_lines(pairs(5)), out_dir=tmp_path / "run", **{**QUICK, "max_length": 300})
    with pytest.raises(UserError, match="--data is missing"):
        finetune(Config(init="tiny"))
    assert not (tmp_path / "run").exists()


def test_keeping_freed_memory_changes_no_result(tmp_path, write_lines, pairs):
    """--keep_memory is an option beside the plain allocator: the same weights, bit for bit."""
    data, ids = write_lines(pairs(30)), []
    for keep in ("on", "false"):
        words = [f"--{name}={value}" for name, value in {**QUICK, "test_samples": 0, "data": data}.items()]
        command = [sys.executable, ROOT / "train.py", *words, f"--out_dir={tmp_path / keep}", "--keep_memory", keep]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        ids.append(json.loads((tmp_path / keep / "summary.json").read_text())["model_id"])
    assert ids[0] == ids[1]


# ---- adapters

LORA = {**QUICK, "lora_rank": 4, "lora_targets": "attn,mlp", "lora_dropout": 0.1, "lr": 1e-2}


@pytest.fixture
def start(tmp_path, write_lines, pairs):
    """(the data, a checkpoint to start from)"""
    data = write_lines(pairs(60))
    return data, finetune(data=data, out_dir=tmp_path / "start", **{**QUICK, "lr": 1e-2}).path / "best"


@pytest.mark.parametrize("held", ["fp32", "bf16", "int8"])
def test_a_run_with_adapters_trains_and_keeps_adapters_only(tmp_path, start, held, capsys):
    """End to end: the base on disk is not touched, the checkpoints are small, `load` gives what the run returned, and
    merging an int8 run takes the exact weights."""
    data, base = start
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    run = finetune(data=data, out_dir=tmp_path / "run", **{**LORA, "init": base, "lora_base": held, "save_every": 2})
    said = capsys.readouterr().out
    assert (
        f"adapters: LoRA of rank 4 on attn, mlp; 27,648 parameters (3.51%) are trained, the others frozen, their "
        f"linear layers in {held}" in said
    )
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary == run.summary
    assert summary["trainable_parameters"] == 27648 and summary["parameters"] == 759_040 + 27_648
    assert summary["lora"]["rank"] == 4 and summary["lora"]["held"] == held
    assert summary["lora"]["base"]["name"] == str(base)
    rows = read_metrics(run.path / "metrics.jsonl")
    evaluations = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert evaluations[-1] < evaluations[0]
    for name in ("best", "last", "step-000006"):
        assert not (run.path / name / "model.pt").exists() and (run.path / name / "adapter.pt").exists()
    assert (run.path / "best" / "adapter.pt").stat().st_size < 150_000
    loaded, tokenizer = gptft.load(run.path)
    assert checkpoint.model_id(loaded, tokenizer) == summary["model_id"]
    ours, theirs = lora_state(loaded), lora_state(run.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()
    loading.merge(run.path, tmp_path / "merged")
    merged, _ = gptft.load(tmp_path / "merged")
    idx = torch.arange(30)[None]
    assert (merged(idx) - loaded(idx)).norm() < 1e-5 * loaded(idx).norm()
    assert torch.equal(merged.tok.weight, gptft.load(base)[0].tok.weight)


def test_a_run_with_adapters_goes_on_bit_for_bit(tmp_path, start):
    """With adapters too: stopped after any step, the rest of the run is the unbroken one."""
    data, base = start
    settings = {**LORA, "init": base, "save_every": 2, "keep": 9, "max_steps": 7, "lora_dora": True}
    whole = finetune(data=data, out_dir=tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for name in ("last", "step-000006", "step-000004", "best"):
        shutil.rmtree(tmp_path / "run" / name)
    run = finetune(data=data, resume=True, out_dir=tmp_path / "run", **settings)
    for name in ("model_id", "train_loss", "eval_loss", "test_loss", "total_flos"):
        assert run.summary[name] == whole.summary[name], name
    for name in ("last", "best"):
        ours, theirs = (torch.load(path / name / "adapter.pt", weights_only=True) for path in (run.path, whole.path))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    rows = [
        [row["loss"] for row in read_metrics(path / "metrics.jsonl") if "loss" in row]
        for path in (run.path, whole.path)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 7


def test_resuming_with_other_adapters_is_refused(tmp_path, start):
    """Else half of the run would have been trained at another scale, or with another dropout."""
    data, base = start
    settings = {**LORA, "init": base, "out_dir": tmp_path / "run", "data": data, "max_steps": 2, "resume": True}
    finetune(**settings)
    for change in (
        {"lora_alpha": 8},
        {"lora_rank": 5},
        {"lora_rslora": True},
        {"lora_dora": True},
        {"lora_dropout": 0.0},
        {"lora_targets": "attn"},
        {"lora_base": "int8"},
    ):
        with pytest.raises(UserError, match=r"--resume: the adapters \(--lora_\.\.\.\) changed since"):
            finetune(**{**settings, **change})
    full = {name: value for name, value in settings.items() if not name.startswith("lora_")}
    with pytest.raises(UserError, match=r"--resume: the adapters \(--lora_\.\.\.\) changed since"):
        finetune(**full)
    other = finetune(data=data, out_dir=tmp_path / "other", **QUICK).path
    with pytest.raises(UserError, match=r"--resume: the model it starts from changed since"):
        finetune(**{**settings, "init": other, "template": "qa"})


def test_training_on_from_adapters(tmp_path, start, capsys):
    """In full it goes on from the two merged; with new adapters it is refused, since their base would be on no disk."""
    data, base = start
    first = finetune(data=data, out_dir=tmp_path / "a", **{**LORA, "init": base})
    with pytest.raises(UserError, match=r"holds adapters, and others cannot be put upon them: .* gptft merge"):
        finetune(data=data, out_dir=tmp_path / "b", **{**LORA, "init": first.path})
    assert not (tmp_path / "b").exists()
    capsys.readouterr()
    run = finetune(data=data, out_dir=tmp_path / "b", **{**QUICK, "init": first.path, "template": "auto"})
    assert f"the adapters of {first.path} are merged into their base" in capsys.readouterr().out
    assert (run.path / "best" / "model.pt").exists() and "lora" not in run.summary
    assert run.summary["trainable_parameters"] == run.summary["parameters"] == 759_040
    start_loss = read_metrics(run.path / "metrics.jsonl")[0]["eval_loss"]
    assert start_loss == pytest.approx(first.summary["eval_loss"], rel=1e-5)


def test_a_target_that_the_model_lacks_leaves_nothing_behind(tmp_path, start):
    data, base = start
    with pytest.raises(UserError, match="--lora_targets gate: this model has no such layer; it has down, k"):
        finetune(data=data, out_dir=tmp_path / "run", **{**LORA, "init": base, "lora_targets": "gate"})
    assert not (tmp_path / "run").exists()


def test_the_runner_takes_adapters(tmp_path, start, monkeypatch):
    from gptft import BasicModelRunner

    data, base = start
    monkeypatch.chdir(tmp_path)
    model = BasicModelRunner(str(base), **{k: v for k, v in LORA.items() if k != "init"})
    model.load_data_from_jsonlines(data)
    model_id = model.train()
    assert model_id == model.model_id == checkpoint.model_id(*gptft.load(model.path))
    again = BasicModelRunner(str(model.path))
    assert again.model_id == model_id and again("What comes after 3?") == model("What comes after 3?")


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses_with_adapters(tmp_path, write_lines, pairs):
    """The sum in place and the 8-bit product of their own go through torch.compile."""
    data = write_lines(pairs(30))
    losses = []
    for compiled in (False, True):
        settings = {
            **LORA,
            "compile": compiled,
            "max_steps": 3,
            "test_samples": 2,
            "lora_dropout": 0.0,
            "lora_base": "int8",
            "lora_dora": True,
        }
        run = finetune(data=data, out_dir=tmp_path / str(compiled), **settings)
        losses.append([row["loss"] for row in read_metrics(run.path / "metrics.jsonl") if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_everything_works_without_a_network(tmp_path, write_lines, pairs, shared):
    """With local files a run starts, trains and saves although every connection fails."""
    from hf_models import hf_gpt2

    hf_gpt2(tmp_path / "hf", vocab_size=50257)
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def no(*args, **options):\n"
        "    raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    for init in ("tiny", tmp_path / "hf"):
        words = {
            **QUICK,
            "init": init,
            "data": write_lines(pairs(30)),
            "out_dir": tmp_path / Path(init).name / "run",
            "max_length": 48,
        }
        command = [sys.executable, ROOT / "train.py", *(f"--{name}={value}" for name, value in words.items())]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (words["out_dir"] / "best" / "model.pt").exists()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path, write_lines, pairs):
    """--compile is an option beside the plain path: the same losses but for fp32 rounding."""
    data = write_lines(pairs(30))
    losses = []
    for compiled in (False, True):
        settings = {**QUICK, "compile": compiled, "max_steps": 2, "test_samples": 2}
        run = finetune(data=data, out_dir=tmp_path / str(compiled), **settings)
        losses.append([row["loss"] for row in read_metrics(run.path / "metrics.jsonl") if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_gpt2_on_the_real_set_starts_from_transformers_loss(tmp_path, shared):
    """The real job: GPT-2 124M of random weights on the real instruction set, through the command line, offline.

    The loss on its first window is what transformers computes on the same tokens (1e-4), and it falls.
    """
    from gptft import prompts
    from gptft.collate import collate, plan
    from gptft.data.examples import Recipe, load_dataset, split

    torch.set_num_threads(2)
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    source = shared / "instruction-data.json"
    command = [
        sys.executable,
        ROOT / "train.py",
        "--init",
        tmp_path / "gpt2",
        "--data",
        source,
        "--out_dir",
        tmp_path / "run",
        "--max_steps",
        "5",
        "--test_samples",
        "0",
        "--eval_every",
        "5",
        "--save_every",
        "0",
        "--precision",
        "fp32",
        "--lr",
        "1e-4",
        "--warmup_steps",
        "2",
        "--val_fraction",
        "0.01",
        "--test_fraction",
        "0.01",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]

    tokenizer = gptft.load(tmp_path / "gpt2")[1]
    dataset = load_dataset([source], tokenizer, Recipe(prompts.TEMPLATES["alpaca"], 1024))
    train_set, _, _ = split(dataset, 0.01, 0.01, 123)
    (chosen,) = plan(train_set.lengths, 8, 1, 123, 0)[0]
    batch = collate([train_set[i] for i in chosen], tokenizer.eot)
    # transformers shifts by itself: its labels stand where the tokens stand
    labels = torch.full_like(batch.targets, -100)
    labels[:, 1:] = batch.targets[:, :-1]
    idx, last = batch.idx, batch.targets[:, -1:]
    idx = torch.cat([idx, last.clamp(min=0)], 1)
    labels = torch.cat([labels, last], 1)
    with torch.no_grad():
        expected = theirs(idx, labels=labels).loss.item()
    assert losses[0] == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < losses[0] - 0.5
    assert math.isfinite(losses[-1])
    torch.set_num_threads(1)


def test_ways_that_cannot_be_had_are_refused_before_anything_is_read(tmp_path, write_lines, pairs):
    """It was said after the model had been fetched and a corpus tokenized."""
    data = write_lines(pairs(20))
    for settings, said in ({"packing": "flex"}, "--packing flex"), ({"share_prefix": "on", "dropout": 0.1}, "dropout"):
        with pytest.raises(UserError, match=said):
            finetune(data=data, out_dir=tmp_path / "run", **(QUICK | {"init": "no/such-model"} | settings))
    assert not (tmp_path / "run").exists()
