"""The classical loop, as books and tutorials have it, on transformers' model: all logits, cross-entropy, clipping,
torch.optim.AdamW."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM


def train(directory: str, batches: Iterable[tuple[Tensor, Tensor]], lr: float, warm_steps: int):
    """Batches of ids and targets (B, T), -100 where there is none -> the losses, and the seconds of the steps after
    the warm-up."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    losses, began = [], 0.0
    for step, (idx, targets) in enumerate(batches):
        if step == warm_steps:
            began = time.perf_counter()
        optimizer.zero_grad()
        logits = model(idx, use_cache=False).logits  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - began
