"""Stands in for the attention of packed rows where there are many examples: one call for all of them, in which a mask
by blocks says who sees whom (`--packing flex`, on a GPU; torch's flex attention, arXiv 2412.05496).

    a token sees the tokens of its own example and the shared ones, those not behind it, within its sliding window

The kernel leaves out blocks of 128 queries and 128 keys of which none sees another. So that it is compiled for few
shapes, a row is filled up to whole blocks with tokens that see each other alone and have no target.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gptft.collate import IGNORE, Batch
from gptft.fast.packing import Packed

BLOCK = 128  # the kernel's own
FILL = -2  # the number of the example that tokens are of which fill a row


@functools.cache
def kernel(device: str) -> Callable[..., Tensor]:
    """Flex attention, compiled where that makes it a kernel; elsewhere all scores are written out."""
    return torch.compile(flex_attention) if device == "cuda" else flex_attention


class FlexPacked(Packed):
    """As `Packed`, in whole blocks; `doc` is FILL where a token fills the row. Its masks are by blocks."""

    def make_masks(self, sliding_windows: set[int], dtype: torch.dtype) -> None:
        for sliding_window in sliding_windows:
            self.mask(sliding_window)

    def attends(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, sliding_window: int) -> Tensor:
        """As `attention.attend`: q (1, nh, N, hs), k and v (1, n_kv, N, hs) -> (1, nh, N, hs). `dropout` must be 0."""
        mask, groups = self.mask(sliding_window), q.size(1) != k.size(1)
        return kernel(q.device.type)(q, k, v, block_mask=mask, enable_gqa=groups)

    def visible(self, sliding_window: int) -> BlockMask:
        pos, doc = self.pos[0], self.doc[0]  # (N,) each

        def sees(row, head, query, key):
            behind = pos[query] - pos[key]
            near = behind < sliding_window if sliding_window else behind == behind
            return ((doc[query] == doc[key]) | (doc[key] == -1) & (doc[query] != FILL)) & (behind >= 0) & near

        return create_block_mask(sees, None, None, len(pos), len(pos), device=pos.device)


def in_blocks(batch: Batch) -> Batch:
    """A packed batch, filled up to whole blocks; one that is not packed stays as it is."""
    layout = batch.layout
    if not isinstance(layout, Packed):
        return batch
    more = -batch.idx.size(1) % BLOCK
    idx, pos = (F.pad(x, (0, more)) for x in (batch.idx, layout.pos))
    doc, targets = F.pad(layout.doc, (0, more), value=FILL), F.pad(batch.targets, (0, more), value=IGNORE)
    layout = FlexPacked(pos, doc, shared=layout.shared, groups=layout.groups)
    return dataclasses.replace(batch, idx=idx, targets=targets, layout=layout)
