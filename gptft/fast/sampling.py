"""Stands in for `decoding.choose` where it would cost a tenth of a pass: that looks for the likeliest tokens in the
whole vocabulary, and adds up the probabilities of all of it in fp64, one after the other, to find where a number falls.

Here the largest of each block say in which blocks the likeliest tokens are. Where top_k keeps few, all else is done
with these few; where it does not, sums of blocks are added up, and then the one block is gone through in which the
number falls. Nothing goes to the host but the ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gptft.decoding import Sampling, nucleus_floor
from gptft.errors import UserError

BLOCK = 256  # tokens: about the root of a usual vocabulary, so that blocks and tokens of a block are equally many
SMALL = 32  # tokens of a block whose largest is asked for: of a usual vocabulary a hundredth is looked through then


def choose_by_blocks(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """As `choose`: logits (B, V) -> the next ids (B,), on the CPU, drawn with the same numbers. Raises UserError."""
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    logits = logits.float() if logits.is_cuda else logits.float().cpu()  # other devices may have no fp64
    logits = (logits - logits.amax(-1, keepdim=True)).div_(max(sampling.temperature, 1e-30))
    ids = None  # of the tokens that are left, where they are few
    if 0 < sampling.top_k < logits.size(-1):
        logits, ids = keep_likeliest(logits, sampling.top_k)
    probabilities = logits.softmax(-1)  # (B, V), or (B, top_k)
    if sampling.top_p < 1:
        floor = nucleus_floor(probabilities, sampling.top_p, largest)
        probabilities.masked_fill_(probabilities < floor, 0.0)
    numbers = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    found = find(probabilities, numbers.to(logits.device))  # (B, 1)
    return (found if ids is None else ids.gather(-1, found))[:, 0].cpu()


def keep_likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """The k largest of logits (B, V) and their ids, (B, k) each, in the order of the ids. Where more are as large as
    the last of them, as good as it: all logits, -inf for those that are not kept, and None."""
    values, ids = largest(logits, k + 1)
    if not (values[:, k] < values[:, k - 1]).all():  # nor are numbers that are none
        return logits.masked_fill(logits < values[:, k - 1 : k], -torch.inf), None
    ids = ids[:, :k].sort().values
    return logits.gather(-1, ids), ids


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row of x (B, V), falling, and where they stand, (B, k) each: they are in the k
    blocks that have the largest, for any other block has k numbers above it."""
    B, V = x.shape
    if k * SMALL >= V:
        return x.topk(k)
    blocks = F.pad(x, (0, -V % SMALL), value=-torch.inf).view(B, -1, SMALL)
    which = blocks.amax(-1).topk(k).indices  # (B, k)
    among = blocks.gather(1, which[..., None].expand(-1, -1, SMALL)).flatten(1)  # (B, k * SMALL)
    values, places = among.topk(k)
    return values, which.gather(-1, places // SMALL) * SMALL + places % SMALL


def find(weights: Tensor, numbers: Tensor) -> Tensor:
    """Which of the weights (B, V), added up from the first on, each number (B, 1) falls on, in [0, 1) of their sum ->
    (B, 1). One that is 0 is never found. Raises UserError where the sum is no number."""
    n, rest = divmod(weights.size(-1), BLOCK)
    sums = weights[:, : n * BLOCK].unflatten(-1, (n, BLOCK)).sum(-1, dtype=torch.float64)  # (B, n)
    if rest:
        sums = torch.cat([sums, weights[:, n * BLOCK :].sum(-1, keepdim=True, dtype=torch.float64)], dim=-1)
    total = sums.sum(-1, keepdim=True)  # (B, 1)
    if not torch.isfinite(total).all():
        raise UserError("the model's logits are not finite numbers: its weights are damaged, or out of fp16's range")
    block, within = fall(sums, numbers * total)  # (B, 1) each
    place = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # (B, BLOCK)
    inside = weights.gather(-1, place.clamp(max=weights.size(-1) - 1)).double()
    inside = inside.masked_fill(place >= weights.size(-1), 0.0)
    return block * BLOCK + fall(inside, within)[0]


def fall(weights: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Where `at` (B, 1) falls when weights (B, n), fp64, are laid end to end -> (which weight, how far into it)."""
    ends = weights.cumsum(-1)  # (B, n)
    total = ends[:, -1:].contiguous()
    # rounding must not point behind the last weight, nor before the first: both may be 0
    at = at.clamp(min=0.0).minimum(torch.nextafter(total, torch.zeros_like(total)))
    which = torch.searchsorted(ends, at, right=True)  # (B, 1)
    return which, at - F.pad(ends, (1, 0)).gather(-1, which)
