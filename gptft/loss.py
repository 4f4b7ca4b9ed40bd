"""The objective: masked next-token cross-entropy, as a sum and a number of targets, never as a mean of means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptft.collate import Batch
from gptft.model import GPT

HeadLosses = Callable[[GPT, Tensor, Tensor], tuple[Tensor, Tensor]]


def head_losses(model: GPT, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (n, C), targets (n,) -> (sum of the losses, with gradient; each target's loss (n,), detached)."""
    logits = model.head(h)  # (n, V)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # the softmax over V terms is not to be rounded to 8 bits
    losses = F.cross_entropy(logits, targets, reduction="none")  # (n,)
    return losses.sum(), losses.detach()


class Objective(nn.Module):
    """-log p(target | everything before it), summed over the targets of a batch.

    A module of its own around the model, because the wrappers for several processes hook into `forward` only.
    """

    def __init__(self, model: GPT, head_losses: HeadLosses = head_losses) -> None:
        super().__init__()
        self.model, self.head_losses = model, head_losses

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """-> (sum of the losses, a scalar with gradient; each target's loss (n_targets,), detached). In nats.

        The last MLP and the head run only where there is a target: the same loss, a fraction of the work. A batch
        without targets gives 0 and gradients of 0, never a NaN.
        """
        h = self.model.hidden(batch.idx, batch.layout, scored=batch.scored)  # (n_targets, C)
        return self.head_losses(self.model, h, batch.targets.flatten()[batch.scored])
