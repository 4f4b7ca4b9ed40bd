"""Parameter groups, optimizers, learning-rate schedules."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from gptft.config import OPTIMIZERS, Config
from gptft.device import put_rows


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay on matrices (linear layers and embeddings); none on biases and norms. Frozen parameters are left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), Adafactor (arXiv 1804.04235), or whatever else `config.OPTIMIZERS` names.

    A setting that was not given is not passed on, so each optimizer has its own defaults. Where torch has a form that
    takes one pass over memory (`fused`), that is used.
    """
    kind = getattr(torch.optim, OPTIMIZERS[config.optimizer])
    known = inspect.signature(kind).parameters
    given = {name: value for name, value in hyperparameters(config).items() if name in known}
    if "fused" in known and next(model.parameters()).device.type in ("cpu", "cuda"):
        given["fused"] = True
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    return kind(groups, lr=config.lr, **given)


def hyperparameters(config: Config) -> dict:
    """The optimizer's settings that were given, beside learning rate and weight decay."""
    return {name: value for name, value in (("betas", config.betas), ("eps", config.eps)) if value}


def unused_settings(optimizer: torch.optim.Optimizer, config: Config) -> list[str]:
    """Settings that were given and that this optimizer does not have."""
    return [name for name in hyperparameters(config) if name not in optimizer.defaults]


def step_where_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """One optimizer step if `finite`, a scalar on the device, holds; otherwise weights and state stay as they are.

    A fused optimizer is told by `found_inf`, as torch.amp.GradScaler tells it, so the device decides by itself and the
    host need not wait. Any other is stepped once the host has read `finite`.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
    elif finite.item():
        optimizer.step()


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer allocate its state without moving a weight: one step of zero gradients at learning rate 0,
    after which its counters and moments are set back to zero."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for values in optimizer.state.values():
        for tensor in values.values():
            if isinstance(tensor, Tensor):
                tensor.zero_()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Copy a saved `state_dict` into the optimizer's own tensors, so that its state is in memory once.

    Settings (learning rate, decay, betas, ...) stay what this run's configuration says.
    """
    if not optimizer.state:
        allocate_state(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        state = optimizer.state[parameter]
        for name, value in saved["state"].get(number, {}).items():
            if isinstance(state.get(name), Tensor) and state[name].dim():
                put_rows(state[name], 0, len(value), value)
            elif isinstance(state.get(name), Tensor):
                state[name].copy_(value)
            else:
                state[name] = value


# How far down the rate has come when a share `done`, 0 to 1, of the steps after the warm-up is behind: 1 is all of lr.
SCHEDULES = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": None,  # stays at lr, whatever min_lr is
}


def learning_rate(step: int, total: int, config: Config) -> float:
    """The learning rate of optimizer step `step` (1 to total): linear warm-up to lr, then down towards min_lr.

    The step after the warm-up has all of lr; min_lr would be reached by the step after the last, so that the last one
    trains too, and a run of one step has lr. The warm-up takes half of a run at most.
    """
    warmup = min(config.warmup_steps, total // 2)
    if step <= warmup:
        return config.lr * step / warmup
    share = SCHEDULES[config.schedule]
    if share is None:
        return config.lr
    done = (step - 1 - warmup) / (total - warmup)  # in [0, 1)
    return config.min_lr + (config.lr - config.min_lr) * share(done)
