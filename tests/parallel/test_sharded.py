"""Checkpoints that each rank writes its part of: going on from them with any number of ranks, and what faults leave."""

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import jobs
import pytest
import torch
from jobs import Job

import gptft
from gptft import checkpoint, loading
from gptft.architecture import GPTConfig
from gptft.config import Config
from gptft.errors import UserError
from gptft.model import GPT
from gptft.optim import allocate_state, make_optimizer
from gptft.parallel.sharded import consolidate, load_parts
from gptft.run.metrics_file import read_metrics

SAVED = Path(__file__).resolve().parents[1] / "saved"  # a start of 28,640 parameters, and 40 records
SETTINGS = {
    "init": SAVED / "start",
    "data": SAVED / "faq.jsonl",
    "max_length": 48,
    "batch_size": 1,
    "global_batch_size": 12,  # for 4, 3, 2 and 1 ranks
    "test_samples": 0,
    "precision": "fp32",
    "device": "cpu",
    "threads": 1,
    "lr": 1e-2,
    "warmup_steps": 0,
    "eval_every": 3,
    "save_every": 2,
    "max_steps": 6,
    "keep": 9,
    "schedule": "constant",
}
# train.py with faults, two more of them: a file size limit on one rank, and writing that takes a while
WORKER = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import faulty
faulty.PLACES["hashing"] = "gptft.parallel.sharded:sha256_file"  # in the thread that saves
from gptft.parallel.sharded import Writer
if os.environ.get("FULL_ON") == os.environ["RANK"]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
write_data, slow = Writer.write_data, float(os.environ.get("SLOW", "0"))
def write_slowly(writer, *rest):
    time.sleep(slow)
    if slow and os.environ["RANK"] == "0":  # what the steps have come to in the meantime
        run = writer.path.parent
        (run / "seen.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    return write_data(writer, *rest)
Writer.write_data = write_slowly
sys.argv[0] = {str(Path(__file__).resolve().parents[2] / "train.py")!r}
faulty.main()
"""


def run(folder, out_dir, ranks, status=0, faults=(), settings=None, **env):
    """A job under torchrun, with FSDP2 -> what it said."""
    worker, log = folder / "worker.py", f"notes-{len(list(folder.glob('notes*')))}"
    worker.write_text(WORKER)
    values = {**SETTINGS, "out_dir": out_dir, "shard": "fsdp", **(settings or {})}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value)) if word != "True"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "FAULTY", worker)
        with Job(folder, *words, ranks=ranks, faults=faults, log=log, **env) as job:
            assert job.end() == status, job.output
            assert all(time.time() - fault["time"] < jobs.SOON for fault in job.faults())
            return job.output


def go_on(out_dir, **settings):
    """In this process, alone."""
    return gptft.finetune(**{**SETTINGS, "out_dir": str(out_dir), "resume": True, **settings})


def until(run, folder, step):
    """A copy of a run's folder as it was when it had saved `step`, and was killed."""
    shutil.copytree(run, folder)
    for name in ["last", "best", *(path.name for path in folder.glob("step-*") if path.name > f"step-{step:06}")]:
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def losses(run, file="metrics.jsonl"):
    rows = [row for row in read_metrics(run / file) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "each step stands there once"
    return [row["loss"] for row in rows]


def records(run, epoch):
    rows = [json.loads(line) for line in (run / ".training-losses.jsonl").read_text().splitlines()]
    return sorted(record[1] for row in rows if row["pass"] == epoch for record in row["records"])


def weights(path, file="model.pt"):
    return torch.load(path / file, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def parts(path):
    return sorted(file.name for file in path.glob("*.distcp"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run on four ranks that nothing stopped: sharded checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder, folder / "run", 4)
    return folder / "run"


def test_a_sharded_checkpoint_of_four_ranks_goes_on_with_three_and_with_one(tmp_path, unbroken):
    """Each rank of another number holds other rows: weights or moments in a wrong place, a record trained on twice."""
    assert parts(unbroken / "step-000002") == [f"__{rank}_0.distcp" for rank in range(4)]
    three, one = until(unbroken, tmp_path / "three", 2), until(unbroken, tmp_path / "one", 2)
    said = run(tmp_path, three, 3, settings={"resume": True})
    assert f"going on from {three / 'step-000002'}, step 2" in said
    assert parts(three / "step-000006") == [f"__{rank}_0.distcp" for rank in range(3)]
    go_on(one)
    everything = records(unbroken, 0)
    assert len(everything) == len(set(everything)) > 30
    for resumed in (three, one):
        assert losses(resumed) == pytest.approx(losses(unbroken), rel=1e-5)
        assert records(resumed, 0) == everything and records(resumed, 1) == records(unbroken, 1)
        ours, theirs = weights(resumed / "last"), weights(unbroken / "last")
        assert all((ours[name] - theirs[name]).norm() <= 1e-4 * theirs[name].norm() for name in theirs)


def test_what_is_consolidated_is_what_gathering_gives_bit_for_bit(tmp_path, unbroken):
    """The last step was saved in both ways: the same weights, the same model id, and the optimizer's state by name."""
    consolidate(unbroken / "step-000006", tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(unbroken / "last"))
    manifests = [checkpoint.verify(path) for path in (tmp_path / "out", unbroken / "last")]
    assert manifests[0]["model_id"] == manifests[1]["model_id"] and manifests[0]["step"] == 6
    model, tokenizer = gptft.load(tmp_path / "out")
    assert tokenizer.template == gptft.load(unbroken / "last")[1].template
    optimizer = make_optimizer(model, Config())
    allocate_state(optimizer)
    load_parts(unbroken / "step-000006", model, optimizer)
    ours, theirs = (
        optimizer.state_dict()["state"],
        weights(unbroken / "last", "resume.pt")["state"]["optimizer"]["state"],
    )
    assert ours.keys() == theirs.keys() and all(same(ours[number], theirs[number]) for number in theirs)
    assert any(values["exp_avg_sq"].any() for values in ours.values())


def test_steps_that_are_taken_while_a_checkpoint_is_written_do_not_change_it(tmp_path, unbroken):
    """It would be of several steps at once: the optimizer moves weights and moments in place."""
    run(tmp_path, tmp_path / "slow", 2, settings={"save_every": 3, "max_steps": 5}, SLOW="2.0")
    assert len(losses(tmp_path / "slow", "seen.jsonl")) == 5, "training has waited for the disk"
    run(tmp_path, tmp_path / "short", 2, settings={"save_every": 0, "max_steps": 3})
    consolidate(tmp_path / "slow", tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(tmp_path / "short" / "last"))
    assert not same(weights(tmp_path / "out"), weights(tmp_path / "slow" / "last"))


def test_a_disk_that_is_full_on_one_rank_ends_all_in_one_line_and_the_previous_checkpoint_stays(tmp_path, unbroken):
    """The others would go on for ever without a checkpoint, or resume would find one that lacks a part."""
    folder = until(unbroken, tmp_path / "run", 2)
    said = run(tmp_path, folder, 2, status=1, settings={"resume": True}, FULL_ON="1")
    why = "could not be written (rank 1: File too large); what was there is intact"
    assert said.count(why) == 1 and f"gptft: the checkpoint {folder / 'step-000004'} {why}" in said
    assert "Traceback" not in said
    assert not list(folder.glob(".step*")) and not (folder / "step-000004").exists()
    assert checkpoint.newest(folder) == (folder / "step-000002", [])
    said = run(tmp_path, folder, 2, settings={"resume": True, "save_every": 6}, FULL_ON="1")
    assert f"note: the checkpoint {folder / 'step-000006'} {why}" in said, (
        "`last`, of the same step, is saved all the same"
    )
    assert checkpoint.newest(folder) == (folder / "last", [])
    assert losses(folder) == pytest.approx(losses(unbroken), rel=1e-5)


def test_a_rank_that_is_killed_while_a_save_is_pending_leaves_the_previous_one(tmp_path, unbroken):
    """A folder of some ranks' parts must not pass for a checkpoint; and no rank may wait for the dead one's part."""
    folder = tmp_path / "run"
    fault = {"rank": 1, "at": "hashing", "do": "SIGKILL", "call": 2}  # of the second save, its first step behind
    said = run(tmp_path, folder, 3, status=1, faults=[fault])
    assert said.count("gptft: rank 1") == 1 and "died in" in said
    assert (folder / ".step-000004.tmp").exists()
    assert checkpoint.newest(folder) == (folder / "step-000002", [])
    said = run(tmp_path, folder, 2, settings={"resume": True})
    assert f"going on from {folder / 'step-000002'}" in said
    assert losses(folder) == pytest.approx(losses(unbroken), rel=1e-5)
    assert not list(folder.glob(".step*"))


def test_a_job_that_is_stopped_saves_last_in_parts_and_goes_on_from_it(tmp_path, unbroken):
    """Who takes a machine back gives seconds: gathering 7B on one rank takes longer."""
    folder = tmp_path / "run"
    fault = {"rank": 1, "at": "training", "do": "SIGTERM", "call": 5}
    run(tmp_path, folder, 2, status=1, faults=[fault], SLOW="0.5")
    assert parts(folder / "last") == ["__0_0.distcp", "__1_0.distcp"]
    assert checkpoint.newest(folder) == (folder / "last", []) and checkpoint.step_of(folder / "last") == 4
    assert checkpoint.step_of(folder / "step-000004") == 4, "what was begun before was waited for"
    with pytest.raises(UserError, match=rf"{folder / 'last'} is a sharded checkpoint.* python -m gptft consolidate"):
        loading.load(folder / "last")
    go_on(folder)
    assert losses(folder) == pytest.approx(losses(unbroken), rel=1e-5)
    assert checkpoint.verify(folder / "last")["model_id"] and not parts(folder / "last")


def test_adapters_are_saved_in_parts_too_and_old_ones_deleted(tmp_path):
    """The parts hold what is trained, not the base; `keep` counts those that are whole. Of a tensor of one row two of
    the three ranks have none."""
    lora = {"lora_rank": 1, "lora_dora": True, "max_steps": 4, "keep": 1}
    run(tmp_path, tmp_path / "run", 3, settings=lora)
    assert [path.name for path in (tmp_path / "run").glob("step*")] == ["step-000004"]
    consolidate(tmp_path / "run", tmp_path / "out")
    assert same(weights(tmp_path / "out", "adapter.pt"), weights(tmp_path / "run" / "last", "adapter.pt"))
    ids = [checkpoint.verify(path)["model_id"] for path in (tmp_path / "out", tmp_path / "run" / "last")]
    model, tokenizer = loading.load(tmp_path / "out")
    assert ids[0] == ids[1] == checkpoint.model_id(model, tokenizer)
    assert tokenizer.template == loading.load(SAVED / "start")[1].template
    ours = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "last")
    go_on(tmp_path / "run", **{**lora, "max_steps": 6})
    whole = gptft.finetune(**{**SETTINGS, **lora, "max_steps": 6, "out_dir": str(tmp_path / "whole")})
    assert losses(tmp_path / "run")[:4] == ours
    assert losses(tmp_path / "run") == pytest.approx(losses(whole.path), rel=1e-5)


def test_a_damaged_part_is_named_and_the_checkpoint_before_it_taken(tmp_path, unbroken, capsys):
    folder = until(unbroken, tmp_path / "run", 4)
    part = folder / "step-000004" / "__2_0.distcp"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    go_on(folder, max_steps=2)
    said = capsys.readouterr().out
    assert f"passed over: {folder / 'step-000004'}: __2_0.distcp is damaged: it is not what was saved" in said
    assert f"going on from {folder / 'step-000002'}, step 2" in said


def manifest_of(path, **changes):
    """Write a manifest anew, of the files as they are: what one who means harm can do."""
    manifest = json.loads((path / "manifest.json").read_text())
    sha256 = {name: checkpoint.sha256_file(path / name) for name in manifest["sha256"] if (path / name).exists()}
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": sha256, **changes}))


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_no_code_and_no_file_beyond_the_manifest_is_read_of_a_sharded_checkpoint(tmp_path, unbroken, monkeypatch):
    """torch reads .metadata as a pickle, which may call anything, and follows the paths that stand in it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "harm"
    shutil.copytree(unbroken / "step-000002", path)
    kept = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(pickle.dumps(Harm()))
    manifest_of(path)
    with pytest.raises(UserError, match=r"\.metadata cannot be read .*names posix.mkdir, and code is never run"):
        consolidate(path, tmp_path / "out")
    (path / ".metadata").write_bytes(kept.replace(b"__1_0.distcp", b"../other.pth"))
    manifest_of(path)
    with pytest.raises(UserError, match=r"manifest.json lists no ../other.pth, and what it does not list is not read"):
        consolidate(path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["harm"]


def test_tensors_of_another_architecture_are_named(tmp_path, unbroken):
    """As of an ordinary checkpoint: a config that was edited must not fill half of a model."""
    model = GPT(GPTConfig(**json.loads((unbroken / "step-000002" / "config.json").read_text())["gptft"]))
    optimizer = make_optimizer(model, Config())
    allocate_state(optimizer)
    optimizer.state[model.tok.weight]["exp_avg"] = torch.zeros(3)
    match = r"another architecture: the tensor 'optimizer.tok.weight.exp_avg' is \(\d+, \d+\), where \(3,\) is due"
    with pytest.raises(UserError, match=match):
        load_parts(unbroken / "step-000002", model, optimizer)
    del optimizer.state[model.tok.weight]
    with pytest.raises(UserError, match=r"'optimizer.tok.weight.\w+' is \(.*\), which is not expected"):
        load_parts(unbroken / "step-000002", model, optimizer)
