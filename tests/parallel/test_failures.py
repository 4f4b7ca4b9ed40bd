"""One rank dies, raises, stops or hangs, in each phase of a run: all ranks end within seconds, and one line says which
it was and why. Real jobs under torchrun, real signals."""

import contextlib
import json
import os
import signal
import socket

import pytest
from jobs import BEGINS, ONLY_LINUX, SHORT, SOON, Job, without_torchrun

from gptft.parallel.launch import may_say
from gptft.parallel.ranks import Ranks
from gptft.parallel.watch import Failure

pytestmark = ONLY_LINUX
DDP, FSDP = ("--shard", "ddp"), ("--shard", "fsdp")
PHASES = {  # of each a place in tests/parallel/faulty.py, and the how-many-th call
    "reading": ("reading", 1),
    "rehearsal": ("rehearsal", 1),
    "answers before": ("answers", 1),
    "evaluation": ("evaluation", 2),
    "training": ("training", 2),
    "saving": ("saving", 1),
    "saving a part": ("part", 1),
    "answers after": ("answers", 2),
}
EVERYWHERE = {
    "ddp": [(phase, DDP) for phase in PHASES if phase != "saving a part"],
    "fsdp": [(phase, FSDP) for phase in ("evaluation", "training", "saving", "saving a part", "answers after")],
}


@pytest.fixture
def start(tmp_path, write_lines, pairs):
    """start(name, *words, faults=...) -> a Job on 40 examples, in a folder of its own; it ends with the test. Three
    prompts make a batch for each rank."""
    data = write_lines(pairs(40))
    with contextlib.ExitStack() as running:

        def begin(name, *words, **options):
            given = [*SHORT, "--data", data, "--out_dir", "out", "--test_samples", "3", *words]
            return running.enter_context(Job(tmp_path / name, *given, **options))

        yield begin


def in_each_phase(start, deed, places, *words, ranks=(1,)):
    """A job for each of `places`, one after the other until its fault comes: the rest of them is waiting. -> [(name,
    job, its fault)]"""
    jobs = []
    for number, (phase, shard) in enumerate(places):
        at, call = PHASES[phase]
        fault = {"rank": ranks[number % len(ranks)], "at": at, "call": call, "do": deed}
        job = start(f"{phase}-{shard[-1]}", *shard, *words, faults=[fault])
        jobs.append((f"{deed} in {phase}, {shard[-1]}", job, job.wait_for_fault()))
    return jobs


def seconds_to_the_end(job):
    """From the fault until no rank is left, but for one that is stopped."""
    job.wait(lambda: job.ended, BEGINS)
    return job.ended - job.faults()[0]["time"]


def is_named_once(name, job, rank, *parts):
    assert len(job.said) == 1, (name, job.output)
    assert f"rank {rank}" in job.said[0] and all(part in job.said[0] for part in parts), (name, job.output)
    assert job.output.count(job.said[0].removeprefix("gptft: ")) == 1, (name, job.output)
    assert "Traceback" not in job.output, (name, job.output)


@pytest.mark.parametrize("places", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_killed_rank_ends_all_and_is_named_in_each_phase(start, places):
    """As the system does for want of memory. The others hung in their collectives, or torchrun's SIGTERM came before
    they knew, and nobody said a word."""
    for name, job, fault in in_each_phase(start, "SIGKILL", places, ranks=(1, 2, 0)):
        took = seconds_to_the_end(job)
        print(f"{name}: {took:.1f} s")
        assert took < SOON, (name, took, job.output)
        assert job.end() == 1
        is_named_once(name, job, fault["rank"], f"process {fault['pid']}", "died in", "killed")
        others = [status for rank, status in job.statuses().items() if rank != fault["rank"]]
        assert others == [1, 1], (name, job.statuses())


@pytest.mark.parametrize("places", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_stopped_rank_is_found_by_its_silence_and_named_in_each_phase(start, places):
    """SIGSTOP, as of a machine that hangs: every connection stays open, and no collective ever ends."""
    seconds = 8
    for name, job, fault in in_each_phase(start, "SIGSTOP", places, "--stall_timeout", str(seconds / 60)):
        took = seconds_to_the_end(job)
        print(f"{name}: {took - seconds:.1f} s after the {seconds} of --stall_timeout")
        assert seconds <= took < seconds + SOON, (name, took, job.output)
        is_named_once(name, job, fault["rank"], f"process {fault['pid']}", "no sign of life for 8 seconds", "stopped")
        assert job.left == {fault["pid"]}  # which torchrun kills half a minute later


def test_a_rank_that_hangs_by_itself_is_named_and_not_those_that_wait_for_it(start):
    """Its watch lives on, and says how far it is: of all that stand still it did least."""
    for name, job, _ in in_each_phase(start, "hang", [("training", DDP)], "--stall_timeout", "0.1"):
        assert seconds_to_the_end(job) < 6 + SOON
        is_named_once(name, job, 1, "has made no progress for 6 seconds, in ")
        assert job.end() == 1 and set(job.statuses().values()) == {1}


@pytest.mark.parametrize(
    "deed, words",
    [("no memory", "MemoryError"), ("no memory of a GPU", "out of memory"), ("disk full", "No space left on device")],
)
def test_a_rank_that_runs_out_of_memory_or_disk_ends_all_in_one_line(start, deed, words):
    places = [(phase, DDP) for phase in ("reading", "training", "evaluation", "answers after")] + [("training", FSDP)]
    for name, job, _ in in_each_phase(start, deed, places[:3] if deed == "no memory of a GPU" else places):
        took = seconds_to_the_end(job)
        print(f"{name}: {took:.1f} s")
        assert took < SOON, (name, took, job.output)
        by_the_loop = "memory" in deed and ("training" in name or "evaluation" in name)
        is_named_once(name, job, 1, "out of memory on cpu in step" if by_the_loop else words)
        assert job.end() == 1 and set(job.statuses().values()) == {1}


def test_a_fault_of_the_program_has_one_traceback_and_one_line(start):
    """Each rank printed what its own collective raised, which is not what went wrong."""
    cases = [(1, "training", DDP), (0, "reading", DDP), (0, "writing", FSDP), (0, "results", DDP)]
    for rank, at, shard in cases:
        job = start(f"{at}-{rank}", *shard, faults=[{"rank": rank, "at": at, "do": "raise"}])
        job.wait_for_fault()
        assert seconds_to_the_end(job) < SOON
        assert job.said == [f"gptft: rank {rank}: ValueError: a fault of the test's"], job.output
        assert job.output.count("Traceback (most recent call last)") == 1, job.output
        assert job.end() == 1


@pytest.mark.parametrize("shard, at, call, rank", [(DDP, "writing", 3, 0), (FSDP, "part", 2, 1)], ids=["ddp", "fsdp"])
def test_a_full_disk_in_a_save_leaves_what_was_there(start, tmp_path, shard, at, call, rank):
    fault = {"rank": rank, "at": at, "call": call, "do": "disk full"}
    job = start("full", *shard, "--save_every", "1", "--eval_every", "9", faults=[fault])
    assert job.end() == 1 and set(job.statuses().values()) == {1}
    (line,) = job.said
    assert "step-000002 could not be written (" in line and "No space left on device" in line, line
    found = sorted((tmp_path / "full" / "out").glob("step-*"))
    assert [path.name for path in found] == ["step-000001"] and (found[0] / "manifest.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("shard", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_signal_saves_once_at_the_last_completed_step(start, tmp_path, number, shard):
    """Each rank said so, and a rank that was further than the others waited for them in a collective. To torchrun; and
    to one rank alone, as SLURM's, which torchrun does not hand on."""
    words = ["--max_steps", "100000", "--eval_every", "100000", "--save_every", "0"]
    job, out = start("signalled", *shard, *words), tmp_path / "signalled" / "out"
    metrics = out / "metrics.jsonl"
    job.wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3, BEGINS)
    ranks = {rank: pid for pid, rank in job.pids().items()}
    os.kill(ranks[2] if number == signal.SIGUSR1 else job.process.pid, number)
    job.end()
    step = json.loads((out / "last" / "manifest.json").read_text())["step"]
    command = "torchrun --nproc_per_node 3 train.py --resume --out_dir out"
    assert job.said == [f"gptft: stopped after step {step}; saved in out/last. Go on with: {command}"], job.output
    assert set(job.statuses().values()) == {128 + number} and "Traceback" not in without_torchrun(job.output)
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == step


def test_a_signal_before_the_first_step_ends_all_with_one_line(start):
    """What torchrun hands on ends a rank wherever it is; no rank is taken for the others' death."""
    fault = {"rank": 1, "at": "answers", "do": "SIGTERM"}  # to this rank alone, by hand; torchrun ends the others
    job = start("early", faults=[fault])
    assert job.end() == 1
    (line,) = job.said
    assert "stopped; what was saved is kept. Go on with: torchrun --nproc_per_node 3 train.py" in line, job.output
    assert set(job.statuses().values()) == {128 + signal.SIGTERM}


def test_warnings_and_notes_of_other_ranks_are_said_once_and_by_name(start):
    """Only the first rank speaks: what another one warns of was lost, or was said as many times as there are ranks."""
    warn = {"at": "training", "do": "warn"}
    faults = [{**warn, "rank": 1, "what": "only on rank 1"}, {**warn, "rank": "all", "what": "everywhere", "call": 2}]
    job = start("warned", faults=faults)
    assert job.end() == 0, job.output
    assert job.output.count("only on rank 1") == 1 and "\nrank 1: UserWarning: only on rank 1" in job.output
    assert job.output.count("everywhere") == 1 and "rank 1: UserWarning: everywhere" not in job.output


class Gone:
    """A store whose machine has ended."""

    def compare_set(self, *_):
        raise RuntimeError("Connection reset by peer")


@pytest.mark.parametrize("failed, says", [(0, [0, 1, 2]), (1, [0, 1]), (2, [0, 2])])
def test_once_the_first_machine_has_ended_what_it_heard_of_is_not_said_again(failed, says):
    """A rank of another machine asked the store whether the user was told, when the machine that had told him was
    gone, and told him again."""
    failure = Failure(failed, "died", 1, said=False)
    assert [rank for rank in range(3) if may_say(Ranks(rank, 3, store=Gone()), failure)] == says


def test_two_machines_end_together_and_one_line_is_said_in_all(start, tmp_path):
    """torchrun on one machine does not know what became of the ranks of another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = ["--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    fault, jobs = {"rank": 3, "at": "training", "call": 2, "do": "SIGKILL"}, []
    for node in (0, 1):
        options = {"ranks": 2, "rendezvous": (*there, f"--node_rank={node}"), "log": f"notes-{node}", "faults": [fault]}
        jobs.append(start("machines", *DDP, **options))
    fault = jobs[1].wait_for_fault()
    for job in jobs:
        job.wait(lambda job=job: job.ended, BEGINS)
        assert job.ended - fault["time"] < SOON
    assert [job.end() for job in jobs] == [1, 1]
    lines = [line for job in jobs for line in job.said]
    assert len(lines) == 1 and f"rank 3 (process {fault['pid']} on " in lines[0] and "died in" in lines[0], lines
