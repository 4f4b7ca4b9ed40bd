"""The loop on a GPU: against the plain loop, in every precision, and what it asks of the device.

Tolerances are relative, norm of the difference over norm of the reference. fp64 leaves the order of summation, which
atomic additions on a GPU change from run to run: 1e-10. fp32 rounds at 6e-8, some hundred times a step, and AdamW
divides by the root of small second moments: 1e-5 after a few steps.
"""

import gc
import warnings

import pytest
import torch
from runs import TO_BATCH, Run, examples
from torch.nn import functional as F
from toys import Examples, difference

from gptft.collate import IGNORE, plan
from gptft.device import random_state
from gptft.errors import UserError
from gptft.optim import learning_rate, parameter_groups

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", LIMITS, ids=["fp64", "fp32"])
def test_the_loop_is_the_plain_loop(device, dtype, record_property):
    """Autograd of a mean over the window with logits everywhere, clip, AdamW: PyTorch's own pieces put together."""
    run = Run(device, dtype, grad_accum=2, grad_clip=0.5, max_steps=6, weight_decay=0.1)
    plain, config, rows = Run(device, dtype), run.config, examples(64)
    losses = [step.loss for step in run.steps(rows)]

    optimizer = torch.optim.AdamW(parameter_groups(plain.model, 0.1), betas=(0.9, 0.999), eps=1e-8, foreach=False)
    expected = []
    windows = plan(rows.lengths, config.batch_size, config.grad_accum, config.seed, 0, config.batching)
    for step, window in enumerate(windows[:6], 1):
        batches = [TO_BATCH([rows[i] for i in chosen]) for chosen in window]
        total = 0.0
        for batch in batches:
            logits = plain.model(batch.idx.to(device)).flatten(0, 1)
            targets = batch.targets.to(device).flatten()
            total = total + F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        loss = total / sum(batch.n_targets for batch in batches)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 6, config)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    off = difference(run.weights(), plain.weights())
    record_property("weights differ by", off)
    assert off < LIMITS[dtype]
    assert losses == pytest.approx(expected, rel=LIMITS[dtype])
    assert difference(run.weights(), Run(device, dtype).weights()) > 1e-3, "nothing was trained"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_tracks_fp32(device, precision, record_property):
    """Weights stay in fp32 and the losses of 12 steps within 2% of those in fp32."""
    rows = examples(64)
    run, exact = Run(device, precision=precision, max_steps=12), Run(device, max_steps=12)
    losses, expected = ([step.loss for step in each.steps(rows)] for each in (run, exact))
    off = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
    record_property("losses differ by", off)
    assert off < 0.02
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_fp16_overflow_lowers_the_scale_and_repeats_the_window(device, record_property):
    """From a scale that must overflow: no window is skipped, none counts twice, and the weights are as from a scale
    that does not (powers of two round nothing)."""
    rows = examples(32)
    runs = Run(device, precision="fp16", max_steps=5), Run(device, precision="fp16", max_steps=5)
    begin = 2.0**40
    runs[0].state.precision.scaler = torch.amp.GradScaler(device.type, init_scale=begin)
    losses = [[step.loss for step in run.steps(rows)] for run in runs]
    scale = runs[0].state.precision.scaler.get_scale()
    off = difference(runs[0].weights(), runs[1].weights())
    record_property("scale", f"{begin:.3g} -> {scale:.3g}")
    record_property("weights differ by", off)
    assert 1.0 <= scale < begin
    assert runs[0].state.progress.step == 5 and runs[0].state.progress.examples == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert off < 1e-3


@pytest.mark.parametrize("dtype", LIMITS, ids=["fp64", "fp32"])
def test_division_into_micro_batches_changes_nothing(device, dtype, record_property):
    """8 rows a step as 8x1, 4x2 and 1x8, four steps."""
    rows, results = examples(32), []
    for size in (8, 4, 1):
        run = Run(device, dtype, batch_size=size, grad_accum=8 // size, batching="random", max_steps=4)
        losses = [step.loss for step in run.steps(rows)]
        results.append((run.weights(), losses))
    off = max(difference(weights, results[0][0]) for weights, _ in results[1:])
    record_property("weights differ by", off)
    assert off < LIMITS[dtype]
    assert all(losses == pytest.approx(results[0][1], rel=LIMITS[dtype]) for _, losses in results)


@pytest.mark.parametrize("precision, limit", [("fp32", 1), ("bf16", 1), ("fp16", 3)])
def test_the_host_waits_for_the_device_once_a_step(device, precision, limit, record_property):
    """In the steady state, whatever the accumulation. fp16's scaler may look for its own overflow as well."""
    longest = 250 if device.type == "cuda" else 30  # with more than 3,072 tokens the embedding's gradient is another
    run, waits = Run(device, precision=precision, batch_size=16, grad_accum=3, max_steps=9), []
    for _ in watched(run.steps(examples(512, longest)), device, waits):
        pass
    record_property("waits in each step", waits)
    assert len(waits) == 9
    assert max(waits[4:]) <= limit


def watched(steps, device, waits):
    """Each step, with the number of times that the host waited in it appended to `waits`."""
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            step = next(steps, None)
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        if step is None:
            return
        waits.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
        yield step


def allocated(device):
    """Bytes that tensors hold on the device."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_back_to_where_it_was_after_training(device, precision, record_property):
    """And does not grow from step to step. The first run leaves what the libraries keep for the process."""

    def train_once():
        run = Run(device, precision=precision, max_steps=8)
        return [allocated(device) for _ in run.steps(examples(64), examples(6, seed=1))]

    train_once()
    before = allocated(device)
    held = train_once()
    after = allocated(device)
    record_property("bytes left", after - before)
    assert after - before <= 1 << 16
    assert max(held[2:]) - min(held[2:]) <= 1 << 17  # the next window lies there already, and windows are not equal


@pytest.mark.parametrize("shape", [{}, {"window": 9, "full_layers": (1,)}], ids=["full", "sliding-window"])
def test_compiled_blocks_train_as_plain_ones(cuda, shape, record_property):
    """torch.compile merges and reorders operations: losses of six steps within 1e-3, lengths changing from each to the
    next."""
    rows, losses = examples(64), []
    for compiled in (False, True):
        run = Run(cuda, shape=shape, max_steps=6)
        for block in run.model.blocks if compiled else ():
            block.compile()
        losses.append([step.loss for step in run.steps(rows)])
    torch.compiler.reset()
    record_property("losses differ by", max(abs(a - b) / b for a, b in zip(*losses, strict=True)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_rehearsal_leaves_everything_as_it_was(device):
    """Weights, gradients, mode, the random states of host and device; the optimizer, as the steps after say."""
    rows, runs, losses = examples(32), [], []
    for rehearsed in (True, False):
        run = Run(device, dropout=0.1, max_steps=4)
        torch.manual_seed(0)
        before, random = run.weights(), random_state(device)
        if rehearsed:
            run.rehearse(rows, examples(6, seed=1))
            assert torch.equal(run.weights(), before)
            assert all(torch.equal(state, random[name]) for name, state in random_state(device).items())
            assert all(parameter.grad is None for parameter in run.model.parameters()) and run.model.training
        losses.append([step.loss for step in run.steps(rows)])
        runs.append(run)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert difference(runs[0].weights(), runs[1].weights()) < 1e-5


def test_out_of_memory_is_one_line_with_a_remedy(cuda, record_property):
    """With the device's memory capped: the rehearsal says what to lower; with that lowered it trains."""
    total = torch.cuda.get_device_properties(cuda).total_memory
    shape = {"vocab_size": 50257, "block_size": 1024, "n_embd": 256}
    rows = Examples(examples(64, longest=1000))
    torch.cuda.empty_cache()
    run = Run(cuda, shape=shape, batch_size=64, max_steps=2)
    cap = torch.cuda.memory_reserved(cuda) + 3 * 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), cuda)
    try:
        with pytest.raises(UserError) as caught:
            run.rehearse(rows)
        record_property("said", str(caught.value))
        assert str(caught.value).startswith("out of memory on cuda") and "\n" not in str(caught.value)
        assert "--batch_size" in str(caught.value)
        del caught
        gc.collect()
        smaller = Run(cuda, shape=shape, batch_size=1, max_steps=2)
        smaller.rehearse(rows)
        assert len(list(smaller.steps(rows))) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
