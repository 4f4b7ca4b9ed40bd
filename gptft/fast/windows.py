"""Stands in for the mask of a sliding window: the queries of a row go block by block, and each block is given the keys
alone that its windows reach.

    T = 8 tokens, a window of 3, blocks of 4       masked: 8 * 8 scores       block by block: 4 * 4 + 4 * 6

    queries 0 1 2 3    see keys  0 1 2 3
    queries 4 5 6 7    see keys      2 3 4 5 6 7

A mask hides a score and does not save it: T * T of them are computed, where T * (block + window) would do. Queries see
the same keys as under the mask, so it is the same sum of the same terms.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptft.attention import CacheLayout, Layout, attend
from gptft.collate import Batch

BLOCK = 256  # queries at least: of fewer the products are too small to pay


@dataclass
class Windows(Layout):
    """Rows of T tokens, each one document from position 0 on."""

    _parts: dict[tuple[int, int], Layout] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Windows:
        return dataclasses.replace(self, pos=self.pos.to(device), _parts={}, _masks={})

    def make_masks(self, sliding_windows: set[int], dtype: torch.dtype) -> None:
        for sliding_window in sliding_windows:
            for *_, layout in self.blocks(sliding_window):
                layout.make_masks({sliding_window}, dtype)

    def attends(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, sliding_window: int) -> Tensor:
        """As `attention.attend`: q (B, nh, T, hs), k and v (B, n_kv, T, hs) -> (B, nh, T, hs)."""
        outputs = [
            attend(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], layout, dropout, sliding_window)
            for start, end, first, layout in self.blocks(sliding_window)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def blocks(self, sliding_window: int) -> list[tuple[int, int, int, Layout]]:
        """Per block: its queries' start and end, the first key that is seen, and how they stand to one another."""
        T = self.pos.size(1)
        size = max(BLOCK, sliding_window) if 0 < sliding_window < T else T
        found = []
        for start in range(0, T, size):
            end, first = min(start + size, T), max(0, start - sliding_window + 1) if start else 0
            found.append((start, end, first, self.part(start - first, end - first)))
        return found

    def part(self, start: int, end: int) -> Layout:
        """Of queries at positions from `start` to `end`, on keys from 0 on."""
        if (start, end) not in self._parts:
            pos = torch.arange(start, end, device=self.pos.device)[None]
            rows = Layout.of_rows(end, self.pos.device)
            self._parts[start, end] = CacheLayout(pos, end=end) if start else rows
        return self._parts[start, end]


def in_windows(batch: Batch) -> Batch:
    """A batch of padded rows that are long enough for blocks, with a layout that computes them; any other as it is."""
    if batch.layout is not None or batch.idx.size(1) < 2 * BLOCK:
        return batch
    return dataclasses.replace(batch, layout=Windows.of_rows(batch.idx.size(1), batch.idx.device))
