"""How a job of several ranks begins: what they must have alike, what is refused, and by whom it is said."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ONLY_LINUX, SHORT, Job, without_torchrun
from torchrun import ROOT, TRAIN, torchrun

from gptft.commands import common

pytestmark = ONLY_LINUX
ENDED = {2, -signal.SIGTERM}  # the second: by torchrun, of a rank that had not yet begun when the first one ended


@pytest.fixture
def data(write_lines, pairs):
    return write_lines(pairs(40))


@pytest.fixture
def start(tmp_path):
    """start(*words, ...) -> a Job in the test's folder, which ends with the test."""
    with contextlib.ExitStack() as running:
        yield lambda *words, **options: running.enter_context(Job(tmp_path, *SHORT, *words, **options))


def is_refused(job, *parts, early=False):
    """One line from all ranks together, exit status 2 on all, and nothing written. `early`: perhaps before some of them
    have begun."""
    job.end()
    assert len(job.said) == 1 and "Traceback" not in job.output, job.output
    for part in parts:
        assert part in job.said[0], job.said[0]
    assert 2 in job.statuses().values() and set(job.statuses().values()) <= (ENDED if early else {2}), job.statuses()
    assert {path.name for path in job.folder.iterdir()} <= {"data.jsonl", "notes", "other"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--bath_size", "4"], ["--bath_size", "did you mean"]),
        (["--lr", "-1"], ["--lr"]),
        (["--device", "cuda:0"], ["--device cuda:0: 3 processes were started, which would share it"]),
        (["--global_batch_size", "7"], ["--global_batch_size is 7", "6 or 12 would be"]),
        (["--test_samples", "3", "--data", "no.jsonl"], ["no.jsonl"]),
    ],
    ids=["flag", "value", "device", "window", "file"],
)
def test_what_every_rank_finds_is_said_once(start, data, words, said):
    """There were as many lines as processes."""
    is_refused(start("--data", data, "--out_dir", "out", *words), *said, early=True)


def test_a_first_rank_that_is_late_is_waited_for(start, data):
    """Another found it and ended, in silence since it is for the first to say; torchrun ended the first before it had
    heard of it, and nobody said a word."""
    late = [{"rank": rank, "at": "start", "do": "sleep", "what": 2.0} for rank in (0, 2)]  # nobody else to say it
    job = start("--data", data, "--out_dir", "out", "--device", "cuda:0", faults=late)
    is_refused(job, "3 processes were started, which would share it", early=True)


def test_the_first_of_a_machine_is_given_time_to_say_it(monkeypatch, capsys):
    """Another rank was quicker to find a misspelt flag and ended; torchrun ended the first before it had begun, and
    nobody said a word."""
    slept = []
    monkeypatch.setattr(common.signal, "signal", lambda number, handler: slept.append(number))
    monkeypatch.setattr(common.time, "sleep", lambda seconds: slept.append((seconds, capsys.readouterr().err)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as ended:
        common.end("unknown flag --bath_size", 2)
    assert slept == [signal.SIGTERM, (common.PATIENCE, "")] and ended.value.code == 2
    assert capsys.readouterr().err == "gptft: unknown flag --bath_size\n"


def test_a_rank_that_is_ended_while_it_waits_exits_with_its_own_status():
    """Of ranks that torchrun ends, all have the status of the error, as of one that is found later."""
    env = {**os.environ, "LOCAL_RANK": "1", "PYTHONPATH": str(ROOT)}
    rank = subprocess.Popen([sys.executable, TRAIN, "--bath_size", "4"], env=env, stderr=subprocess.PIPE, text=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        rank.wait(common.PATIENCE / 2)
    rank.terminate()
    assert (rank.wait(), rank.stderr.read()) == (2, "")


def test_more_processes_than_gpus_are_refused(start, data):
    job = start("--data", data, faults=[{"rank": "all", "at": "start", "do": "GPUs", "what": 2}])
    is_refused(job, "--device cuda: 3 processes were started on a machine with 2 of it: --nproc_per_node 2", early=True)


def test_fewer_examples_than_ranks_are_refused(start, write_lines, pairs):
    job = start("--data", write_lines(pairs(2)), "--test_fraction", "0", "--val_fraction", "0", "--out_dir", "out")
    is_refused(job, "there are 2 examples to train on, for 3 processes: --nproc_per_node 2")


def test_fsdp_without_several_processes_is_refused(start, data):
    is_refused(start("--data", data, "--shard", "fsdp", "--out_dir", "out", ranks=1), "--shard fsdp", "torchrun")


def test_a_used_folder_is_refused_by_the_first_rank_alone(start, data, tmp_path):
    """Also by one that torchrun starts anew: it took the folder for its own, and went on with another's run."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").touch()
    job = start("--data", data, "--out_dir", "other", options=["--max_restarts", "1"], log="notes/1")
    job.end()
    assert len(job.said) == 2 and len(set(job.said)) == 1 and "--out_dir other already holds a run" in job.said[0]
    assert os.listdir(tmp_path / "other") == ["metrics.jsonl"]


def test_an_out_dir_that_another_rank_does_not_see_is_refused(start, data, tmp_path):
    """Of a relative name on two machines, or /tmp: each had a folder of its own."""
    (tmp_path / "other").mkdir()
    faults = [{"rank": 1, "at": "start", "do": "chdir", "what": str(tmp_path / "other")}]
    faults += [{"rank": 1, "at": "start", "do": "set", "what": ["gptft.run.lock:SHARED_WITHIN", 0.5]}]
    job = start("--data", data, "--out_dir", "far/out", faults=faults)
    is_refused(job, "--out_dir far/out: rank 1 (", "cannot see what rank 0 writes there", "file system")


def test_ranks_with_other_flags_are_found_and_named(start, data):
    faults = [{"rank": 2, "at": "start", "do": "flags", "what": ["--lr", "5e-4", "--seed", "7"]}]
    job = start("--data", data, "--out_dir", "out", faults=faults)
    is_refused(job, "rank 2 (", "differs from rank 0: --seed is 7, not 123; --lr is 0.0005, not 0.001")


def test_ranks_with_other_data_are_found_and_named(start, data, pairs, tmp_path):
    """A copy of the file on another machine, of an earlier day."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(pairs(40))))
    faults = [{"rank": 1, "at": "start", "do": "chdir", "what": str(tmp_path / "other")}]
    job = start("--data", data.name, "--out_dir", tmp_path / "out", faults=faults)
    is_refused(job, "rank 1 (", "differs from rank 0: training data is")


CHANGED = """
import os, sys
sys.path.insert(0, {copy!r} if os.environ["RANK"] == "1" else {root!r})
from functools import partial
from gptft.commands import train
from gptft.commands.common import run, run_command
run(partial(run_command, train))
"""


def test_ranks_with_another_version_of_the_code_are_found_and_named(data, tmp_path):
    """A machine that was not updated computes something else, or hangs in a collective that the others do not have."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "gptft", copy / "gptft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "configs"):
        (copy / name).symlink_to(ROOT / name)
    with open(copy / "gptft" / "loss.py", "a") as file:
        file.write("# another version\n")
    script = tmp_path / "script.py"
    script.write_text(CHANGED.format(copy=str(copy), root=str(ROOT)))
    status, said = torchrun(2, script, *SHORT, "--data", data, "--out_dir", tmp_path / "out")
    lines = [line for line in said.splitlines() if line.startswith("gptft: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in without_torchrun(said), said
    assert lines[0].startswith("gptft: rank 1 (") and "differs from rank 0: the code of gptft is '" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ranks_may_be_started_without_torchrun(data, tmp_path):
    """As SLURM's srun does: the first rank holds what torchrun would have held, and is the last to end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, TRAIN, *SHORT, "--data", data, "--out_dir", tmp_path / "out", "--test_samples", "2"]
    ranks = []
    for rank in ("1", "0"):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **there, "RANK": rank, "LOCAL_RANK": rank}
        ranks.append(subprocess.Popen([*map(str, command)], env=env))
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    assert (tmp_path / "out" / "summary.json").exists()


def test_the_embedded_default_runs_both_stages_on_several_ranks(start, tmp_path):
    """Each rank claimed the folder, or took one of its own."""
    words = ["--max_new_tokens", "4", "--test_samples", "2", "--eval_every", "3", "--precision", "fp32"]
    with Job(tmp_path, "--max_steps", "3", *words, ranks=2) as job:
        assert job.end() == 0, job.output
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert folder.name == "default" and job.output.count("pretraining from scratch") == 1
    for stage in (folder, folder / "pretrain"):
        assert json.loads((stage / "summary.json").read_text())["steps"] == 3
        assert {"config.toml", "report.html", "best", "last"} <= {path.name for path in Path(stage).iterdir()}
