"""Parameter groups, optimizers, learning-rate schedules and numerical precision."""

from __future__ import annotations

import math

import torch
from torch import nn

from gptft.config import Config


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay on matrices (linear layers and embeddings); none on biases and norms. Frozen parameters are left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), fused into one pass over memory, or Adafactor (arXiv 1804.04235)."""
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    fused = next(model.parameters()).device.type in ("cpu", "cuda") or None  # None: torch's own choice
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def learning_rate(step: int, total: int, config: Config) -> float:
    """The learning rate of optimizer step `step` (1 to total): linear warm-up to lr, then down to min_lr, which the
    last step has. `constant` stays at lr. The warm-up takes half of a run at most."""
    warmup = min(config.warmup_steps, total // 2)
    if step <= warmup:
        return config.lr * step / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / (total - warmup)  # in (0, 1]
    share = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.min_lr + (config.lr - config.min_lr) * share
