"""What each rank holds of a model that is trained, and the rehearsal that shows whether it fits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from gptft.adapters.frozen import kind_for
from gptft.adapters.lora import LoraConfig, adapters_of, add_lora, start_adapters
from gptft.architecture import PRESETS
from gptft.config import Config
from gptft.device import Precision, free_memory
from gptft.errors import UserError
from gptft.fast.choice import Choice
from gptft.loading import Opened, open_model
from gptft.model import GPT, weight_bytes
from gptft.optim import make_optimizer
from gptft.parallel.ranks import here
from gptft.parallel.streaming import read_again, read_in_parts
from gptft.parallel.wrap import OfRanks, Replicated, ScalerOfParts, is_sharded, shard
from gptft.run.console import amount, say
from gptft.run.rehearsal import OutOfMemory
from gptft.run.setup import compile_blocks
from gptft.training import TrainState

ROOM = 0.9  # of the free memory, what weights, gradients and optimizer state may take
MOMENTS = {"adamw": 2, "adafactor": 0}  # of an optimizer, numbers in fp32 beside each weight


def spread(
    model: GPT, config: Config, device: torch.device, fast: Choice, rehearse: Callable[[TrainState, nn.Module], None]
) -> tuple[TrainState, nn.Module]:
    """The state of training and the objective, once the rehearsal has shown that they fit: the model whole on each
    rank, or, where that does not fit and it may be, in parts, as it may be already. Raises UserError where nothing
    fits."""
    ranks = here()
    divide, why = (True, "") if is_sharded(model) else weigh(model, config, device)
    if not divide:
        try:
            precision, failed = Precision(config.precision, device), None
            optimizer, objective = fast.prepare(model.to(device), config, precision)
            state = TrainState(model, optimizer, precision)
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
            return state, objective if ranks.size == 1 else Replicated(model, fast.head_losses)
        state = objective = optimizer = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        why = f"whole it did not fit: {failed or 'on another rank'}"
    precision = Precision(config.precision, device)
    precision.scaler = ScalerOfParts(device.type, enabled=precision.scaler.is_enabled())
    if not is_sharded(model):
        say_parts(why, config)
        if config.init not in PRESETS:
            say(f"note: each process has loaded {config.init} whole, before it keeps its part of it")
        model = shard(model, precision)
    if config.compile:
        compile_blocks(model)
    state, objective = TrainState(model, make_optimizer(model, config), precision), OfRanks(model, fast.head_losses)
    rehearse(state, objective)
    return state, objective


def read_divided(opened: Opened, config: Config, device: torch.device) -> GPT | None:
    """The model that training starts from, its adapters beside it, read into the parts that the ranks are to hold of
    it, so that it is whole on none of them; None where each is to hold all of it."""
    model, precision = copy.deepcopy(opened.model), Precision(config.precision, device)
    if config.lora_rank:
        held = kind_for(config.lora_base, precision.name)
        add_lora(model, LoraConfig.asked(config), config.seed, frozen_as=held)
    divide, why = weigh(model, config, device)
    if not divide:
        return None
    say_parts(why, config)
    return read_in_parts(dataclasses.replace(opened, model=model), precision, config.init, config.seed)


def start_again(model: GPT, config: Config) -> bool:
    """Give a model in parts the weights that training started from -> whether it could be done: they do not lie in
    files as they are where that was a preset, or adapters were merged."""
    if is_sharded(model) and adapters_of(model):
        start_adapters(model, config.seed)  # the others are as they were
        return True
    opened = open_model(config.init) if is_sharded(model) else None
    if opened:
        read_again(model, opened.weights, config.seed)
    return bool(opened)


def weigh(model: GPT, config: Config, device: torch.device) -> tuple[bool, str]:
    """Whether each rank is to hold a part of the model, which may be on the "meta" device, and why."""
    if config.shard != "auto":
        return config.shard == "fsdp", "as --shard says"
    ranks, needed = here(), training_bytes(model, config)
    held = weight_bytes(model) if model.device.type == device.type else 0  # these are there already
    room = ROOM * min(ranks.gather(free_memory(device, ranks.local_size) + held))
    why = f"whole it takes {amount(needed, 'B')} and activations, and there are {amount(room, 'B')}"
    return ranks.size > 1 and needed > room, why


def say_parts(why: str, config: Config) -> None:
    """Say that it is to be so. Raises UserError where it cannot be."""
    if config.optimizer != "adamw":
        raise UserError(f"--optimizer {config.optimizer} goes by whole tensors, of which --shard fsdp has none: adamw")
    say(f"ranks: {here().size} processes, fsdp: each holds a part of every tensor ({why})")


def training_bytes(model: GPT, config: Config) -> int:
    """Weights, gradients and optimizer state of a whole model; activations come on top."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return weight_bytes(model) + 4 * trained * (1 + MOMENTS[config.optimizer])
