"""Held-out loss."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptft.collate import by_length, collate
from gptft.data.examples import Split
from gptft.loss import Objective
from gptft.optim import Precision


class Interrupted(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM) while something long was under way."""


@torch.no_grad()
def evaluate_loss(
    objective: Objective,
    split: Split,
    batch_size: int,
    pad_id: int,
    precision: Precision,
    mask_prompt: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Mean loss a target over the whole split, in nats: (sum of all losses) / (number of all targets).

    It does not depend on the batch size. Dropout is off, and training mode is as before afterwards. Raises
    Interrupted when `should_stop` says so between two batches.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    total, n_targets = 0.0, 0
    try:
        for chosen in by_length(split.lengths, batch_size):
            if should_stop():
                raise Interrupted
            batch = collate([split[i] for i in chosen], pad_id, mask_prompt)
            with precision.autocast():
                _, losses = objective(batch.to(model.device))
            total += losses.cpu().double().sum().item()  # on the host: MPS has no fp64
            n_targets += batch.n_targets
    finally:
        model.train(was_training)
    return total / n_targets
