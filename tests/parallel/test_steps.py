"""What one rank meets in a step, all of them take part in: a step is taken by all or by none."""

import json
import re
from pathlib import Path

import pytest
from torchrun import torchrun


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """[rank] -> what it saw, by case."""
    folder = tmp_path_factory.mktemp("steps")
    status, said = torchrun(2, Path(__file__).parent / "steps.py", folder / "found")
    assert status == 0, said
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_one_step_with_its_record_named(found, engine):
    """The other rank's loss is sound: it would step on alone, or wait for ever in its next collective."""
    one, other = (each[f"{engine} nan"] for each in found)
    assert one["steps"] == other["steps"] and one["said"] == other["said"]
    assert one["unchanged"] and other["unchanged"]
    named = re.search(r"The examples: (.*)\. A lower", one["said"])[1]
    assert named == "toy.jsonl, line 3"


@pytest.mark.parametrize("engine, what", [("ddp", "overflow"), ("fsdp", "overflow"), ("fsdp", "part")])
def test_an_overflow_on_one_rank_repeats_the_window_on_all(found, engine, what):
    """Else the ranks have different scales from then on, and under FSDP2 different parts of one step; there it may lie
    in the part of the sum that one of them holds."""
    one, other = (each[f"{engine} {what}"] for each in found)
    without = found[0][f"{engine} none"]
    assert one["passes"] == other["passes"] == without["passes"] + 1, "one window came twice"
    assert one["scale"] == other["scale"] == without["scale"] / 2
    assert one["examples"] == other["examples"] == 8 and one["weights"] == other["weights"]
    assert one["losses"] == pytest.approx(without["losses"], rel=1e-2), "no window is lost, and none is trained twice"
