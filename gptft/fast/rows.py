"""Stands in for the rows of `decoding.decode`, which begin together: here they begin and end one by one.

The cache is one block of memory of a fixed number of rows, made once:

    row   0  P P P a a a a a .        P: what all prompts begin with, read once and copied in
          1  P P P b b . . . .        a, b, c: the rest of a prompt, and its answer so far
          2  P P P c c c c . .
          3  . . . . . . . . .        free

The rows in use come first, so that a pass computes no other and takes slices, which copy nothing. When an answer ends,
the last row moves into its place. New prompts are read into the rows behind, beside those that are being written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from gptft.architecture import GPTConfig
from gptft.attention import CacheLayout, KVCache
from gptft.fast.windows import beside_cache
from gptft.model import GPT


def cache_bytes(config: GPTConfig, rows: int, size: int, dtype: torch.dtype) -> int:
    """Memory of the keys and values of so many rows of `size` tokens; a shared beginning takes a row of its own."""
    return 2 * config.n_layer * rows * config.n_kv_head * size * config.head_size * dtype.itemsize


class Rows:
    """At most `rows` texts of at most `size` tokens, each with its keys and values. `lengths`: tokens of each that have
    been read, by row."""

    def __init__(self, model: GPT, rows: int, size: int, dtype: torch.dtype | None = None) -> None:
        self.model, self.dtype = model, dtype
        self.cache = model.new_cache(rows, size, dtype)
        self.lengths: list[int] = []
        self.shared: KVCache | None = None  # the keys and values of the beginning, one row
        self.begin = 0  # its tokens
        self.reach = 0  # nothing was ever written behind so many tokens

    def share(self, beginning: Sequence[int]) -> None:
        """Read what every prompt begins with, for all that will enter."""
        self.begin = len(beginning)
        self.shared = self.model.new_cache(1, self.begin, self.dtype)
        device = self.model.device
        idx, last = torch.tensor([beginning], device=device), torch.tensor([self.begin - 1], device=device)
        layout = beside_cache(0, self.begin, self.model.config.window, device)
        self.model.hidden(idx, layout, self.shared, scored=last)  # nobody asks for a hidden state; one is the fewest

    def enter(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts, all in one pass, into the rows behind those in use -> hidden states of their last tokens
        (n, C). Of prompts that are the same one is read."""
        unique = list(dict.fromkeys(map(tuple, prompts)))
        first, begin, device = len(self.lengths), self.begin, self.model.device
        T = max(map(len, unique)) - begin
        idx = torch.zeros(len(unique), T, dtype=torch.long)
        for row, prompt in enumerate(unique):
            idx[row, : len(prompt) - begin] = torch.tensor(prompt[begin:])
        last = torch.tensor([row * T + len(prompt) - begin - 1 for row, prompt in enumerate(unique)])  # in (n * T)
        rows = self._slice(first, first + len(unique))
        if self.shared is not None:
            rows.k[:, :, :, :begin], rows.v[:, :, :, :begin] = self.shared.k, self.shared.v
        # all stand at the same places, so that one row of positions, and of a mask, serves all
        layout = beside_cache(begin, T, self.model.config.window, device)
        h = self.model.hidden(idx.to(device), layout, rows, scored=last.to(device))  # (n, C)
        self.reach = max(self.reach, begin + T)
        self.lengths += map(len, prompts)
        if len(unique) == len(prompts):
            return h
        number = {prompt: n for n, prompt in enumerate(unique)}
        which = [number[tuple(prompt)] for prompt in prompts]
        for row in reversed(range(len(prompts))):  # none is read behind its own place: backwards all are still there
            self._copy(first + which[row], first + row)
        return h[torch.tensor(which, device=device)]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Every row gets its next token -> its hidden state (rows, C)."""
        device, end = self.model.device, max(self.lengths) + 1
        idx, pos = torch.tensor([tokens, self.lengths], device=device)[..., None]  # (rows, 1) each, in one transfer
        layout = CacheLayout(pos, end=end, even=min(self.lengths) == end - 1)
        h = self.model.hidden(idx, layout, self._slice(0, len(tokens)))[:, 0]
        self.lengths = [length + 1 for length in self.lengths]
        self.reach = max(self.reach, end)
        return h

    def leave(self, gone: Sequence[int]) -> list[int]:
        """Free these rows -> of each row that is now in use, which one it was."""
        left, all_rows = len(self.lengths) - len(gone), range(len(self.lengths))
        places = [row for row in gone if row < left]
        movers = [row for row in all_rows[left:] if row not in gone]
        order = list(all_rows[:left])
        for place, mover in zip(places, movers, strict=True):
            self._copy(mover, place)
            order[place] = mover
        # what nobody sees is multiplied by 0 all the same, and a number that is none would outlive its text
        self.cache.k[:, left : len(self.lengths), :, : self.reach] = 0
        self.cache.v[:, left : len(self.lengths), :, : self.reach] = 0
        self.lengths = [self.lengths[row] for row in order]
        return order

    def _slice(self, start: int, stop: int) -> KVCache:
        """The cache of some rows: the same memory."""
        rows = copy.copy(self.cache)
        rows.k, rows.v = self.cache.k[:, start:stop], self.cache.v[:, start:stop]
        return rows

    def _copy(self, source: int, target: int) -> None:
        """Copy a whole row, so that nothing of an older text is left behind."""
        if source != target:
            for values in (self.cache.k, self.cache.v):
                values[:, target, :, : self.reach] = values[:, source, :, : self.reach]
