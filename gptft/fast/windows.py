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
    """Rows of T tokens, each one document, in order; `begin`: behind so many others, whose keys come first."""

    begin: int = 0
    _parts: dict[tuple[int, int], Layout] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Windows:
        return dataclasses.replace(self, pos=self.pos.to(device), _parts={}, _masks={})

    def make_masks(self, sliding_windows: set[int], dtype: torch.dtype) -> None:
        for sliding_window in sliding_windows:
            for *_, layout in self.blocks(sliding_window):
                layout.make_masks({sliding_window}, dtype)

    def attends(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, sliding_window: int) -> Tensor:
        """As `attention.attend`: q (B, nh, T, hs), k and v (B, n_kv, begin + T, hs) -> (B, nh, T, hs)."""
        outputs = [
            attend(q[:, :, start:end], k[:, :, first:last], v[:, :, first:last], layout, dropout, sliding_window)
            for start, end, first, last, layout in self.blocks(sliding_window)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def blocks(self, sliding_window: int) -> list[tuple[int, int, int, int, Layout]]:
        """Per block: its queries' start and end, the first key that is seen and the end of these, and how they stand
        to one another."""
        T = self.pos.size(1)
        slides = 0 < sliding_window < self.begin + T
        size = max(BLOCK, sliding_window) if slides else T
        found = []
        for start in range(0, T, size):
            end = min(start + size, T)
            first = max(0, self.begin + start - sliding_window + 1) if slides else 0
            last = self.begin + end
            found.append((start, end, first, last, self.part(self.begin + start - first, last - first)))
        return found

    def part(self, start: int, end: int) -> Layout:
        """Of queries at positions from `start` to `end`, on keys from 0 on."""
        if (start, end) not in self._parts:
            pos = torch.arange(start, end, device=self.pos.device)[None]
            rows = Layout.of_rows(end, self.pos.device)
            self._parts[start, end] = CacheLayout(pos, end=end) if start else rows
        return self._parts[start, end]


@dataclass
class CachedWindows(Windows, CacheLayout):
    """The same beside a cache."""


def beside_cache(begin: int, T: int, sliding_window: int, device: torch.device) -> CacheLayout:
    """Where T tokens stand that follow `begin` others in every row of a cache, for a model that has this window."""
    end, pos = begin + T, torch.arange(begin, begin + T, device=device)[None]
    if end < 2 * BLOCK or not 0 < sliding_window < end:
        return CacheLayout(pos, causal=begin == 0, end=end, even=True)
    return CachedWindows(pos, causal=begin == 0, end=end, even=True, begin=begin)


def in_windows(batch: Batch) -> Batch:
    """A batch of padded rows that are long enough for blocks, with a layout that computes them; any other as it is."""
    if batch.layout is not None or batch.idx.size(1) < 2 * BLOCK:
        return batch
    return dataclasses.replace(batch, layout=Windows.of_rows(batch.idx.size(1), batch.idx.device))
