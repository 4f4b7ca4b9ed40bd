"""torchrun starts a job anew when a rank has died (--max_restarts), and the job goes on by itself: the finished weights
are those of a run that was never broken off, bit for bit."""

import json
import os
import random

import pytest
from jobs import ONLY_LINUX, SHORT, Job

pytestmark = ONLY_LINUX
KILLS = int(os.environ.get("GPTFT_KILLS", "4"))
QUIET = ["--test_samples", "0", "--test_fraction", "0"]


def is_finished_as(broken, whole, steps):
    """Whether a folder holds what the other does: each step logged once, the same weights, best and last."""
    logged = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    unbroken = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, steps + 1))
    for name in ("step", "loss", "eval_loss", "grad_norm"):
        assert [row.get(name) for row in logged] == [row.get(name) for row in unbroken], name
    for name in ("last", "best"):
        assert (broken / name / "model.pt").read_bytes() == (whole / name / "model.pt").read_bytes(), name
    return True


@pytest.fixture
def data(write_lines, pairs):
    return write_lines(pairs(40))


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_a_restarted_job_goes_on_in_its_own_folder_to_the_same_weights(tmp_path, data, shard):
    """A restart began anew, in another folder or refused its own. DDP had divided the gradients anew after the first
    step, and its sums were rounded otherwise in a run that went on."""
    words = [*SHORT, *QUIET, "--data", data, "--shard", shard]
    words += ["--max_steps", "8", "--save_every", "3", "--dropout", "0.1"]
    with Job(tmp_path, *words, "--out_dir", "whole", log="whole_notes") as job:
        assert job.end() == 0, job.output
    for _ in range(2):  # the name of another run, which is not to be taken for it
        (tmp_path / "checkpoints" / "tiny-data" / "last").mkdir(parents=True, exist_ok=True)
    fault = {"rank": 1, "at": "training", "call": 5, "do": "SIGKILL"}
    with Job(tmp_path, *words, faults=[fault], options=["--max_restarts", "1"]) as job:
        assert job.end() == 0, job.output
    assert "going on from checkpoints/tiny-data-2/step-000003, step 3" in job.output
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["tiny-data", "tiny-data-2"]
    assert is_finished_as(tmp_path / "checkpoints" / "tiny-data-2", tmp_path / "whole", 8)


def test_a_job_that_died_before_anything_was_saved_begins_anew(tmp_path, data):
    faults = [{"rank": 0, "at": "reading", "do": "SIGKILL"}]
    faults += [{"rank": 2, "at": "training", "call": 2, "do": "disk full", "restart": 1}]
    words = [*SHORT, *QUIET, "--data", data, "--out_dir", "out"]
    with Job(tmp_path, *words, faults=faults, options=["--max_restarts", "2"]) as job:
        assert job.end() == 0, job.output
    assert "out has no valid checkpoint to go on from: starting at step 0" in job.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 3


def test_the_embedded_default_goes_on_in_the_stage_that_was_broken_off(tmp_path):
    words = ["--max_steps", "3", "--save_every", "1", "--test_samples", "2", "--max_new_tokens", "4"]
    fault = {"rank": 1, "at": "training", "call": 6, "do": "SIGKILL"}
    with Job(tmp_path, *words, ranks=2, faults=[fault], options=["--max_restarts", "1"]) as job:
        assert job.end() == 0, job.output
    assert os.listdir(tmp_path / "checkpoints") == ["default"]
    assert "already done" in job.output and "going on from checkpoints/default/step-000002, step 2" in job.output
    summary = json.loads((tmp_path / "checkpoints" / "default" / "summary.json").read_text())
    assert summary["steps"] == 3


def random_faults(kills, ranks, draw, in_parts):
    """A death in each start of the job, wherever; none lets it take more than two steps beyond what was saved."""
    faults, places = [], ["training", "evaluation", "saving", "moment", "going on", "rehearsal", "reading"]
    places += ["part", "completing"] if in_parts else ["writing"]
    for restart in range(kills):
        if restart % len(places) == 0:
            draw.shuffle(places)
        at = places[restart % len(places)]
        if at == "moment" and restart < kills / 2:  # seconds; the job may not be done by then
            at = draw.uniform(0, 0.5)
        elif at == "moment" or (at == "going on" and restart < 3):  # there may be nothing yet
            at = "training"
        rank = 0 if at == "writing" else draw.randrange(ranks)
        call = draw.choice([1, 2]) if at in ("training", "saving", "writing", "part", "completing") else 1
        faults.append({"rank": rank, "at": at, "call": call, "do": "SIGKILL", "restart": restart})
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_killed_at_random_again_and_again_it_ends_with_the_same_weights(tmp_path, data, shard):
    """GPTFT_KILLS=20 kills it twenty times in a row."""
    steps = 2 * KILLS + 20
    words = [*SHORT, *QUIET, "--data", data, "--shard", shard, "--max_steps", steps, "--save_every", "1"]
    words += ["--dropout", "0.1", "--eval_every", "2"]
    with Job(tmp_path, *words, "--out_dir", "whole", log="whole_notes") as job:
        assert job.end() == 0, job.output
    faults = random_faults(KILLS, 3, random.Random(shard), shard == "fsdp")
    with Job(tmp_path, *words, faults=faults, options=["--max_restarts", str(KILLS)]) as job:
        status = job.end(600)
    print(f"{len(job.faults())} deaths: {[(fault['at'], fault['rank']) for fault in faults]}")
    assert status == 0 and len(job.faults()) == KILLS, job.output
    assert is_finished_as(tmp_path / "checkpoints" / "tiny-data", tmp_path / "whole", steps)
