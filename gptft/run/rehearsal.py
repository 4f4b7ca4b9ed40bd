"""Before the first step: what costs most is run once, so that what will not fit fails in the first minute."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from gptft.collate import Batch, by_length
from gptft.config import Config
from gptft.data.examples import Split
from gptft.decoding import decode
from gptft.device import is_out_of_memory, random_state, set_random_state
from gptft.errors import UserError
from gptft.generation import lowered_dtype
from gptft.loss import Objective
from gptft.optim import allocate_state
from gptft.parallel.ranks import here
from gptft.training import ToBatch, TrainState

LESS_TO_TRAIN = "lower --batch_size (and raise --grad_accum) or --max_length, or set --checkpoint_activations"
LESS_TO_EVALUATE = "lower --eval_batch_size or --max_length"
LESS_TO_ANSWER = "lower --eval_batch_size or --max_new_tokens, or set --test_samples 0"
FAILURES = (torch.OutOfMemoryError, MemoryError, RuntimeError)  # what running out of memory raises, and others too


class OutOfMemory(UserError):
    """Memory ran out, and the message says in what and what to lower."""


def rehearse(
    state: TrainState,
    objective: Objective,
    config: Config,
    train_set: Split,
    val_set: Split,
    to_batch: ToBatch,
    prompts: Sequence[Sequence[int]] = (),
    test_set: Split | Sequence = (),
) -> None:
    """Forward and backward of the costliest training batches with optimizer state allocated, forward of the costliest
    validation and test batches, and the longest `prompts` (ids) with the cache that answering them takes.

    A batch may cost most by its positions or by its targets (each has V logits), so both are run. Weights, optimizer
    state and random state are as before. Raises UserError when memory runs out, with what would fit, or what to lower.
    """

    def train(batch: Batch) -> None:
        state.optimizer.zero_grad(set_to_none=True)
        with state.precision.autocast():
            loss, _ = objective(batch.to(model.device))
        loss.backward()
        state.optimizer.zero_grad(set_to_none=True)

    def evaluate(batch: Batch) -> None:
        with torch.no_grad(), state.precision.autocast():
            objective(batch.to(model.device))

    model, before = state.model, random_state(state.model.device)
    was_training = model.training
    try:
        model.train()
        with one_line("with optimizer state", model.device, LESS_TO_TRAIN):
            allocate_state(state.optimizer)  # before the activations, as in every step but the first
        try_costliest("batch_size", train, train_set, config, to_batch, model.device)
        model.eval()
        for split in (val_set, test_set):
            try_costliest("eval_batch_size", evaluate, split, config, to_batch, model.device)
        if prompts:
            longest = sorted(prompts, key=len)[-config.eval_batch_size :]
            asked = f"{len(longest)} prompts of up to {len(longest[-1])} tokens, {config.max_new_tokens} new ones"
            with one_line(f"answering {asked}", model.device, LESS_TO_ANSWER):
                lowered = lowered_dtype(model, state.precision)
                with state.precision.autocast() if lowered else contextlib.nullcontext():
                    V = model.config.vocab_size
                    answers = decode(model, longest, config.max_new_tokens, (), V, cache_dtype=lowered)
                    next(answers), next(answers, None)  # the prompts, and a first step upon the cache at its full size
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        model.train(was_training)
        set_random_state(before, model.device)


def costliest(split: Split | Sequence, batch_size: int, to_batch: ToBatch) -> list[tuple[str, Batch]]:
    """The batch with the most positions, and the one with the most targets where that is another."""
    if not len(split):
        return []
    longest = by_length(split.lengths, batch_size)[0]
    most = np.argsort(-split.target_counts, kind="stable")[:batch_size].tolist()
    found = [("the longest examples", longest)]
    if set(most) != set(longest):
        found.append(("the most targets", most))
    return [(what, to_batch([split[i] for i in chosen])) for what, chosen in found]


def try_costliest(
    name: str,
    run: Callable[[Batch], None],
    split: Split | Sequence,
    config: Config,
    to_batch: ToBatch,
    device: torch.device,
) -> None:
    """`run` the batches of a split that cost most; `name`: the setting of their size. Raises OutOfMemory."""
    size, trains = getattr(config, name), name == "batch_size"

    def remedy() -> str:
        if here().size > 1:  # no rank can try another size while the others wait for it in this one
            return LESS_TO_TRAIN if trains else LESS_TO_EVALUATE
        otherwise = "lower --max_length" + ", or set --checkpoint_activations" * trains
        if not (fits := largest_that_fits(run, split, size, to_batch)):
            return f"not even --{name} 1 fits: {otherwise}"
        same = f" --grad_accum {config.grad_accum * size // fits}" if trains and size % fits == 0 else ""
        return f"--{name} {fits}{same} fits; or {otherwise}"

    phase = "in training" if trains else "in evaluation"
    for what, batch in costliest(split, size, to_batch):
        with one_line(f"{phase}, with the batch of {what} ({sizes(batch)})", device, remedy):
            run(batch)


def largest_that_fits(run: Callable[[Batch], None], split: Split | Sequence, size: int, to_batch: ToBatch) -> int:
    """The half, quarter, ... of a batch size whose costliest batches fit into memory; 0: not even one example does."""
    while size := size // 2:
        try:
            for _, batch in costliest(split, size, to_batch):
                run(batch)
            return size
        except FAILURES as error:
            let_go(error)
    return 0


def let_go(error: BaseException) -> None:
    """Free what the failed call held, which its traceback would keep. Raises an error of another kind."""
    if not is_out_of_memory(error):
        raise error
    traceback.clear_frames(error.__traceback__)


def sizes(batch: Batch) -> str:
    return f"{len(batch.lengths)} examples of {max(batch.lengths)} tokens, {batch.n_targets} targets"


@contextlib.contextmanager
def one_line(where: str, device: torch.device, remedy: str | Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory into a UserError: where it happened, and what to do, or a function that finds it."""
    try:
        yield
    except FAILURES as error:
        let_go(error)
        raise OutOfMemory(f"out of memory on {device} {where}: {remedy() if callable(remedy) else remedy}", 1) from None
