"""What each rank holds of a model that is trained, and the rehearsal that shows whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gptft.config import Config
from gptft.device import Precision
from gptft.loss import Objective
from gptft.model import GPT, weight_bytes
from gptft.optim import make_optimizer
from gptft.parallel.ranks import here
from gptft.parallel.wrap import Replicated, scaler_of_ranks, shard
from gptft.run.console import amount, say
from gptft.run.rehearsal import OutOfMemory
from gptft.run.setup import compile_blocks
from gptft.training import TrainState

ROOM = 0.9  # of the free memory, what weights, gradients and optimizer state may take
MOMENTS = {"adamw": 2, "adafactor": 0}  # of an optimizer, numbers in fp32 beside each weight


def spread(
    model: GPT, config: Config, device: torch.device, rehearse: Callable[[TrainState, nn.Module], None]
) -> tuple[TrainState, nn.Module]:
    """The state of training and the objective, once the rehearsal has shown that they fit: the model whole on each
    rank, or, where that does not fit and it may be, in parts. Raises UserError where nothing fits."""
    ranks, needed = here(), training_bytes(model, config)
    room = ROOM * min(ranks.gather(free_memory(device, ranks.local_size)))
    in_parts = config.shard == "fsdp" or (ranks.size > 1 and config.shard == "auto" and needed > room)
    weighed = f"whole it takes {amount(needed, 'B')} and activations, and there are {amount(room, 'B')}"
    why = weighed if config.shard == "auto" else "as --shard says"
    if not in_parts:
        try:
            state = TrainState(model.to(device), make_optimizer(model, config), Precision(config.precision, device))
            objective, failed = Objective(model), None
            if config.compile:
                compile_blocks(model)
            rehearse(state, objective)
        except OutOfMemory as error:
            failed = error
        if failed and (ranks.size == 1 or config.shard == "ddp"):
            raise failed
        if not ranks.any(bool(failed)):
            if ranks.size > 1:
                say(f"ranks: {ranks.size} processes, ddp: each has the whole model ({why})")
            return state, objective if ranks.size == 1 else Replicated(objective)
        state = objective = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        why = f"whole it did not fit: {failed or 'on another rank'}"
    say(f"ranks: {ranks.size} processes, fsdp: each holds a part of every tensor ({why})")
    precision = Precision(config.precision, device)
    precision.scaler = scaler_of_ranks(precision)
    model = shard(model, precision)
    if config.compile:
        compile_blocks(model)
    state, objective = TrainState(model, make_optimizer(model, config), precision), Objective(model)
    rehearse(state, objective)
    return state, objective


def training_bytes(model: GPT, config: Config) -> int:
    """Weights, gradients and optimizer state of a whole model; activations come on top."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return weight_bytes(model) + 4 * trained * (1 + MOMENTS[config.optimizer])


def free_memory(device: torch.device, shared_by: int) -> float:
    """Bytes that this rank may take; infinitely many where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(free) * 1024 / shared_by
    except (OSError, StopIteration):  # not Linux
        return float("inf")
