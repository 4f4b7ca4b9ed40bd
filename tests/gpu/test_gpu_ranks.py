"""What several processes take their gradients by, DDP and FSDP2, on a GPU, over NCCL: in a group of one process, since
a machine with several GPUs was never at hand. It computes what it computes alone."""

import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from runs import Run, examples
from toys import difference

from gptft.optim import make_optimizer
from gptft.parallel.ranks import local, whole
from gptft.parallel.wrap import OfRanks, Replicated, ScalerOfParts, shard
from gptft.training import TrainState

LIMITS = {
    "fp32": 1e-5,
    "bf16": 2e-2,
    "fp16": 2e-2,
}  # as of the loop; 16 bits are gathered rounded, autocast rounds later


@pytest.fixture
def group(device):
    """A group of this process alone, by the device's own means."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=120))
    yield
    dist.destroy_process_group()


def divide(run, engine):
    """Let a run compute as one of several does."""
    precision = run.state.precision
    if engine == "ddp":
        run.objective = Replicated(run.model)
        return
    precision.scaler = ScalerOfParts(run.model.device.type, enabled=precision.scaler.is_enabled())
    run.model = shard(run.model, precision)
    run.state = TrainState(run.model, make_optimizer(run.model, run.config), precision)
    run.objective = OfRanks(run.model)


def weights(run):
    return torch.cat([whole(p.detach()).double().cpu().flatten() for p in run.model.parameters()])


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_an_engine_of_several_trains_as_one_process(device, group, engine, precision, record_property):
    rows = examples(64)
    alone, divided = (Run(device, precision=precision, grad_accum=2, grad_clip=0.5, max_steps=8) for _ in range(2))
    divide(divided, engine)
    expected, losses = ([step.loss for step in run.steps(rows)] for run in (alone, divided))
    off = difference(weights(divided), weights(alone))
    record_property("weights differ by", off)
    assert losses == pytest.approx(expected, rel=LIMITS[precision])
    assert off < LIMITS[precision]
    assert difference(weights(divided), weights(Run(device))) > 1e-3, "nothing was trained"


def test_an_overflow_in_a_part_repeats_the_window(device, group):
    """The scaler of parts takes its flag through the device's group."""
    run = Run(device, precision="fp16", max_steps=3)
    divide(run, "fsdp")
    begin = 2.0**40
    run.state.precision.scaler = ScalerOfParts(device.type, init_scale=begin)
    losses = [step.loss for step in run.steps(examples(32))]
    assert len(losses) == 3 and run.state.progress.examples == 12
    assert 1.0 <= run.state.precision.scaler.get_scale() < begin
    assert all(torch.isfinite(local(p)).all() for p in run.model.parameters())
