"""Parameter groups, optimizers, learning-rate schedules and numerical precision."""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys

import torch
from torch import nn

from gptft.config import Config
from gptft.files import UserError


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


def pick_device(name: str) -> torch.device:
    """`auto`: cuda, else mps, else cpu. A device that is not there: UserError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(word for word in ("cuda", "mps", "cpu") if available[word])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: there is no device {name!r}") from None
    if not available.get(device.type) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has no such device")
    return device


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed. True where it could be told.

    A step frees and takes again hundreds of megabytes. By default every large block goes back to the system and comes
    anew, page by page. Nothing is computed otherwise; peak memory grows; it holds for the whole process.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, Windows, musl
        return False
    return sys.platform == "linux" and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively; emulated, it would be slower than fp32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


class Precision:
    """In what the arithmetic is done. Weights and optimizer state stay in fp32; autocast lowers the matrix products.

    fp16 has a range so small that gradients need a scale: `scaler` multiplies the loss by it, and its steps are
    taken on gradients divided by it again.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            if device.type == "cuda":
                name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            else:
                name = "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
        self.name, self.device = name, device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
