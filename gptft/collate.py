"""Examples -> batches: the shift, the -100s, the padding; and which examples make up each window.

A **micro-batch** is one forward and backward; a **window** is the micro-batches of one optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptft.attention import Layout
from gptft.data.examples import Example

IGNORE = -100  # the target of a position that is not scored: padding, and the prompt when it is masked


@dataclass
class Batch:
    """What the loss receives.

    idx      (B, T)  token ids in
    targets  (B, T)  the token that follows each, or -100 where none is scored
    scored   (n,)    the places of the flattened (B * T) that have a target, found on the host: asking the device
                     would wait for it
    lengths          per row, its tokens that are no padding
    records          per row, the (file, line) of its record
    layout           None: a row is one document that starts at position 0, padded on the right
    """

    idx: Tensor
    targets: Tensor
    scored: Tensor
    lengths: list[int]
    records: list[tuple[str, int]]
    layout: Layout | None = None

    @property
    def n_targets(self) -> int:
        return self.scored.numel()

    @property
    def whose(self) -> Tensor:
        """(n,) the number in `records` of the example that each of `scored` is of."""
        if self.layout is not None and self.layout.doc is not None:
            return self.layout.doc.flatten()[self.scored]
        return self.scored // self.idx.size(1)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        tensors = (self.idx, self.targets, self.scored)
        if device.type == "cuda":  # from pinned memory the copies are queued behind the work, and the host goes on
            tensors = (tensor.pin_memory() for tensor in tensors)
        idx, targets, scored = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(idx, targets, scored, self.lengths, self.records, self.layout and self.layout.to(device))


def collate(examples: Sequence[Example], pad_id: int, mask_prompt: bool = True) -> Batch:
    """Shift once, mask, and pad on the right to the longest example.

        ids      Q  Q  Q  R  R  EOT            Q: prompt, R: response, EOT: the response's own end
        idx      Q  Q  Q  R  R                 ids without the last
        targets  .  .  R  R  EOT               ids without the first; '.' is -100: the prompt is not scored

    The mask goes by position, never by value, so `pad_id` may be the end-of-text id itself. With `mask_prompt` false
    every token but the first is a target. No examples make a row of padding, for a pass that changes nothing.
    """
    B, T = max(1, len(examples)), max((len(example.ids) for example in examples), default=2) - 1
    idx = torch.full((B, T), pad_id, dtype=torch.long)
    targets = torch.full((B, T), IGNORE, dtype=torch.long)
    for row, example in enumerate(examples):
        ids = torch.from_numpy(example.ids.astype(np.int64))
        idx[row, : len(ids) - 1] = ids[:-1]
        for start, end in example.spans if mask_prompt else [(0, len(ids))]:
            start = max(start, 1)  # position 0 is predicted by nothing
            targets[row, start - 1 : end - 1] = ids[start:end]
    scored = (targets.flatten() != IGNORE).nonzero()[:, 0]  # (n,)
    lengths = [len(example.ids) - 1 for example in examples]
    return Batch(idx, targets, scored, lengths, [example.record for example in examples])


Window = list[list[int]]  # micro-batches of example numbers


def plan(
    lengths: np.ndarray, batch_size: int, grad_accum: int, seed: int, epoch: int, batching: str = "length"
) -> list[Window]:
    """Which examples make up each window of an epoch: a pure function, so that a resumed run needs no history.

    Every example appears once. With batching "length", examples of like length share a micro-batch, drawn from
    shuffled pools of 64 micro-batches so that their company changes from epoch to epoch; the order of micro-batches
    is random again. The last window may be smaller: it is scaled by its own targets like any other.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    if batching == "length":
        pool = 64 * batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    if batching == "length":
        batches = [batches[number] for number in rng.permutation(len(batches))]
    return [batches[start : start + grad_accum] for start in range(0, len(batches), grad_accum)]


def by_length(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batches for evaluation, longest first: little padding, and what will not fit fails at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
