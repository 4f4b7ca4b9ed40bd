"""Before the first step: what costs most is run once, so that what will not fit fails in the first minute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

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
from gptft.training import ToBatch, TrainState

LESS_TO_TRAIN = "lower --batch_size (and raise --grad_accum) or --max_length, or set --checkpoint_activations"
LESS_TO_EVALUATE = "lower --eval_batch_size or --max_length"
LESS_TO_ANSWER = "lower --eval_batch_size or --max_new_tokens, or set --test_samples 0"


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
    state and random state are as before. Raises UserError with what to lower when memory runs out.
    """
    model, before = state.model, random_state(state.model.device)
    was_training = model.training
    try:
        model.train()
        with one_line("with optimizer state", model.device, LESS_TO_TRAIN):
            allocate_state(state.optimizer)  # before the activations, as in every step but the first
        for what, batch in costliest(train_set, config.batch_size, to_batch):
            with one_line(f"in training, with the batch of {what} ({sizes(batch)})", model.device, LESS_TO_TRAIN):
                with state.precision.autocast():
                    loss, _ = objective(batch.to(model.device))
                loss.backward()
                state.optimizer.zero_grad(set_to_none=True)
        model.eval()
        size = config.eval_batch_size
        for what, batch in [*costliest(val_set, size, to_batch), *costliest(test_set, size, to_batch)]:
            with (
                one_line(f"in evaluation, with the batch of {what} ({sizes(batch)})", model.device, LESS_TO_EVALUATE),
                torch.no_grad(),
                state.precision.autocast(),
            ):
                objective(batch.to(model.device))
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


def sizes(batch: Batch) -> str:
    return f"{len(batch.lengths)} examples of {max(batch.lengths)} tokens, {batch.n_targets} targets"


@contextlib.contextmanager
def one_line(where: str, device: torch.device, remedy: str) -> Iterator[None]:
    """Turn running out of memory into a UserError: where it happened, and what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory on {device} {where}: {remedy}", 1) from None
