"""Stands in for `loss.head_losses`: the head and the loss some rows at a time. The logits of a micro-batch never exist
whole, and the gradient of each chunk is made in the place of its logits.

    forward, each chunk       logits = h W^T                              (rows, V), in one buffer for all chunks
                              loss   = log sum exp(logits) - logits[target]       in fp32
                              logits becomes d = softmax(logits) - onehot(target), the gradient of the sum of the losses
                              grad_h = d W
    the chunk after, or       grad_W = grad_W + d^T h, multiplied by what comes in from above
    backward for the last

A loss has one number as its gradient, by which all that forward made is multiplied in backward. For grad_W (V, C) that
would be a pass of its own over the largest tensor of all; therefore the last chunk's product waits for backward, and
what it writes is multiplied while it is in the cache. Where all rows are one chunk, forward makes no grad_W at all, and
of few rows d is multiplied instead, which is smaller.

In 16 bits the products are of numbers in 16 bits, as autocast has them, and what is added up is in fp32: the loss, and
grad_W over the chunks. The plain path rounds grad_W once to 16 bits, this one each chunk's part of it. d is rounded
before it is multiplied by what comes in, where the plain path rounds it after: as exact in bf16, but in fp16 small
probabilities would be lost that the scale of the gradients is there for, and `fast.choice` does not take this way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptft.fast.weights import head_of
from gptft.loss import head_losses
from gptft.model import GPT, working_dtype

# A chunk has as many rows as LOGITS bytes of logits are. Each costs a pass over grad_W, 8 bytes read and written where
# 6 times its rows are the floating-point operations: with 600 rows that is 2 to 5% of the time, and from 128 MB on
# there is nothing to gain. Fewer than ROWS would cost 10% and more, so a large vocabulary has more bytes a chunk.
LOGITS = 128 << 20
ROWS = 256
# What is done piece by piece, so that what one operation writes the next finds in the cache. Not in smaller pieces: at
# the end of each the threads wait for one another, and beside a busy process that is what costs.
BLOCK = 1 << 21  # logits that are turned into losses and gradients at a time
SLICE = 1 << 22  # numbers of grad_W that are written at a time


def chunked_head_losses(model: GPT, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (n, C), targets (n,) -> (sum of the losses, each loss (n,), detached), as `loss.head_losses`."""
    head = head_of(model)
    if type(head) not in (nn.Linear, nn.Embedding):  # a head with more to it than a weight
        return head_losses(model, h, targets)
    return chunked_losses(h, head.weight, targets)


def chunked_losses(h: Tensor, weight: Tensor, targets: Tensor, rows: int = 0) -> tuple[Tensor, Tensor]:
    """h (n, C), weight (V, C), targets (n,) -> (sum of the losses, each loss (n,)), `rows` at a time; 0: as many as
    are best. In what a linear layer would compute in here."""
    dtype = working_dtype(h)
    rows = rows or max(ROWS, LOGITS // (weight.size(0) * dtype.itemsize))
    rows = math.ceil(len(h) / max(1, math.ceil(len(h) / rows)))  # chunks of like size: none of a few rows at the end
    with torch.autocast(h.device.type, enabled=False):
        if torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad):
            return ChunkedLosses.apply(h, weight, targets, rows, dtype)
        h, weight = h.to(dtype), weight.to(dtype)
        each = torch.cat([each for *_, each in chunks_of(h, weight, targets, rows, gradient=False)])
    return each.sum(), each


def chunks_of(
    h: Tensor, weight: Tensor, targets: Tensor, rows: int, gradient: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which rows, their d (rows, V), or what was left of their logits without `gradient`, and their losses; at least
    one chunk, which may be empty. Each d is gone when the next chunk is made: they share a buffer."""
    buffer = torch.empty(min(rows, len(h)), weight.size(0), dtype=h.dtype, device=h.device)
    for start in range(0, max(1, len(h)), max(1, rows)):
        chunk = slice(start, start + rows)
        logits = torch.mm(h[chunk], weight.T, out=buffer[: len(h[chunk])])
        yield chunk, logits, losses_in_place(logits, targets[chunk], gradient)


def losses_in_place(logits: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """Losses (n,) of logits (n, V), at least in fp32; with `gradient`, softmax - onehot is in their place then."""
    n, V = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    each = torch.empty(n, dtype=wide, device=logits.device)
    step = max(1, BLOCK // V) if logits.device.type == "cpu" else max(1, n)
    for start in range(0, n, step):
        block, target = logits[start : start + step], targets[start : start + step, None]
        x = block.to(wide)  # (step, V): the logits themselves, where they are in fp32
        x.sub_(x.amax(1, keepdim=True))
        of_target = x.gather(1, target)
        total = x.exp_().sum(1, keepdim=True)
        each[start : start + step] = (total.log() - of_target).squeeze(1)
        if gradient:
            x.div_(total).scatter_add_(1, target, torch.full_like(of_target, -1))
            if x.dtype != block.dtype:
                block.copy_(x)
    return each


class ChunkedLosses(torch.autograd.Function):
    """h (n, C), weight (V, C), targets (n,), rows a chunk, dtype of products -> (sum of losses, each (n,), which has
    no gradient). What is kept for backward has the sizes of h, grad_W and one chunk; the weight is not."""

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, targets: Tensor, rows: int, dtype: torch.dtype):
        of_h, of_weight, *_ = ctx.needs_input_grad
        low_h, low_weight = h.to(dtype), weight.to(dtype)
        grad_h = torch.empty_like(low_h) if of_h else None
        grad_weight, waiting, losses = None, (None, None), []
        for chunk, d, each in chunks_of(low_h, low_weight, targets, rows, gradient=True):
            losses.append(each)
            if of_h:
                torch.mm(d, low_weight, out=grad_h[chunk])
            if of_weight and chunk.stop < len(h):
                grad_weight = add_product(grad_weight, d, low_h[chunk], torch.promote_types(dtype, torch.float32))
            elif of_weight:
                waiting = d, low_h[chunk]
        ctx.save_for_backward(grad_h, grad_weight, *waiting)
        ctx.dtypes = h.dtype, weight.dtype
        each = torch.cat(losses)
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor, _: Tensor):
        """Of several chunks once only, for their grad_W is written into: autograd refuses a second pass."""
        grad_h, grad_weight, d, h = ctx.saved_tensors
        h_dtype, weight_dtype = ctx.dtypes
        with torch.autocast(scale.device.type, enabled=False):
            if grad_h is not None:
                grad_h = grad_h.to(h_dtype) * scale
            if grad_weight is None and d is not None and len(d) < h.size(1):  # fewer numbers than grad_W has
                d, scale = d * scale, None
            if d is not None:
                grad_weight = add_product(grad_weight, d, h, weight_dtype, scale).to(weight_dtype)
        return grad_h, grad_weight, None, None, None


def add_product(total: Tensor | None, d: Tensor, h: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """(total (V, C) + d^T h) * scale, written into `total`, which is made, of `dtype`, where there is none yet.
    d (rows, V), h (rows, C)."""
    V, C = d.size(1), h.size(1)
    first = total is None
    if first:
        total = torch.empty(V, C, dtype=dtype, device=h.device)
    step = max(1, SLICE // C) if total.device.type == "cpu" else V
    for start in range(0, V, step):
        part, columns = total[start : start + step], d[:, start : start + step].T  # (step, C), (step, rows)
        if part.dtype == h.dtype:
            torch.addmm(part, columns, h, beta=0 if first else 1, out=part)  # with 0 nothing is read of `part`
        elif first:
            part.copy_(columns @ h)
        else:
            part.add_(columns @ h)
        if scale is not None:
            part.mul_(scale)
    return total
