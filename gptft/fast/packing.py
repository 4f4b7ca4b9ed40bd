"""Stands in for the padded rows of `collate.collate`: the tokens of a micro-batch stand behind one another in one row
without padding, and what its examples begin with alike is there once.

    padded   S S S a a a .        packed   S S S  a a a  b b  c c c c     S: the tokens that all begin with
             S S S b b . .        pos      0 1 2  3 4 5  3 4  3 4 5 6     positions begin anew in each
             S S S c c c c        doc            -1  0 0 0  1 1  2 2 2 2   a token sees S, and its own before it

All linear layers compute on real tokens alone; attention is inside each example, those of one length side by side. It
is the same loss and the same gradient: a shared token's gradient is the sum over all that share it. With dropout the
copies of a shared token would differ, so sharing is for dropout 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gptft.attention import CacheLayout, Layout, attend
from gptft.collate import IGNORE, Batch
from gptft.fast.windows import Windows

FEWEST = 8  # tokens that examples must begin with alike, for sharing them to pay for its masks


@dataclass
class Packed(Layout):
    """pos (1, N), doc (1, N) the number of each token's example, -1 where it is shared.

    shared   how many tokens stand at the beginning, for all
    groups   per run of examples of one length: (how many, tokens of each), in the order of the row
    windows  whether sliding windows of examples that share nothing are computed block by block
    """

    shared: int = 0
    groups: list[tuple[int, int]] = field(default_factory=list)
    windows: bool = False
    _layouts: dict[int, Layout] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Packed:
        return dataclasses.replace(self, pos=self.pos.to(device), doc=self.doc.to(device), _layouts={}, _masks={})

    def make_masks(self, sliding_windows: set[int], dtype: torch.dtype) -> None:
        asked = {(length, False) for _, length in self.groups} | ({(self.shared, True)} if self.shared else set())
        for length, beginning in asked:
            self.layout_of(length, beginning).make_masks(sliding_windows, dtype)

    def attends(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, sliding_window: int) -> Tensor:
        """As `attention.attend`: q (1, nh, N, hs), k and v (1, n_kv, N, hs) -> (1, nh, N, hs)."""
        sizes = [self.shared, *(count * length for count, length in self.groups)]
        # (1, heads, N, hs) -> per group (its tokens, heads, hs); the gradient of a split is one concatenation
        parts = [x.squeeze(0).transpose(0, 1).split(sizes) for x in (q, k, v)]
        beginning = [rows_of(part[0], 1) for part in parts]
        outputs = []
        if self.shared:
            outputs.append(tokens_of(attend(*beginning, self.layout_of(self.shared, True), dropout, sliding_window)))
        for (count, length), *group in zip(self.groups, *(part[1:] for part in parts), strict=True):
            q, k, v = (rows_of(x, count) for x in group)
            if self.shared:
                k, v = (
                    torch.cat((x.expand(count, -1, -1, -1), own), dim=2)
                    for x, own in zip(beginning[1:], (k, v), strict=True)
                )
            outputs.append(tokens_of(attend(q, k, v, self.layout_of(length, False), dropout, sliding_window)))
        return torch.cat(outputs)[None].transpose(1, 2)

    def layout_of(self, length: int, beginning: bool) -> Layout:
        """Of rows of `length` tokens, which stand behind the shared ones unless they are these."""
        key = -1 if beginning else length
        if key not in self._layouts:
            if beginning or not self.shared:
                kind = Windows if self.windows else Layout
                self._layouts[key] = kind.of_rows(length, self.pos.device)
            else:
                pos = torch.arange(self.shared, self.shared + length, device=self.pos.device)[None]
                self._layouts[key] = CacheLayout(pos, end=self.shared + length)
        return self._layouts[key]


def rows_of(tokens: Tensor, count: int) -> Tensor:
    """(count * T, heads, hs) -> (count, heads, T, hs)"""
    return tokens.reshape(count, -1, *tokens.shape[1:]).transpose(1, 2)


def tokens_of(rows: Tensor) -> Tensor:
    """(count, heads, T, hs) -> (count * T, heads, hs)"""
    return rows.transpose(1, 2).flatten(0, 1)


def pack(batch: Batch, share: bool, saving: float = 0.0, windows: bool = False) -> Batch:
    """A padded batch as one row, with the same targets in the same order. `share`: let what the examples begin with
    alike stand there once. A batch in which less than `saving` of the positions would go, 0 to 1, stays as it is, and
    so does one without examples."""
    if not batch.lengths:
        return batch
    T, lengths = batch.idx.size(1), np.array(batch.lengths)
    idx, targets, scored = (x.numpy() for x in (batch.idx, batch.targets, batch.scored))
    shared = beginning_in_common(idx, lengths, scored % T) if share else 0
    if lengths.sum() - (len(lengths) - 1) * shared > (1 - saving) * idx.size:
        return batch
    order = np.argsort(lengths, kind="stable")  # those of one length side by side
    where = np.arange(T)
    places = [where[:shared], *(row * T + where[shared : lengths[row]] for row in order)]
    source = np.concatenate(places)  # (N,) where each token stands in the padded rows
    doc = source // T
    doc[:shared] = -1
    new = np.full(idx.size, -1)
    new[source] = np.arange(len(source))
    sizes, counts = np.unique(lengths - shared, return_counts=True)
    layout = Packed(
        torch.from_numpy(source % T)[None],
        torch.from_numpy(doc)[None],
        shared=shared,
        groups=list(zip(counts.tolist(), sizes.tolist(), strict=True)),
        windows=windows,
    )
    return dataclasses.replace(
        batch,
        idx=torch.from_numpy(idx.flat[source])[None],
        targets=torch.from_numpy(np.where(doc < 0, IGNORE, targets.flat[source]))[None],
        scored=torch.from_numpy(new[scored]),
        layout=layout,
    )


def beginning_in_common(idx: np.ndarray, lengths: np.ndarray, scored: np.ndarray) -> int:
    """With how many tokens all rows begin alike; none of them scored, each row with one more, and 0 where they are so
    few that sharing does not pay. `scored`: the positions that are."""
    if len(lengths) < 2:
        return 0
    most = min(int(lengths.min()) - 1, int(scored.min(initial=len(idx[0]))))
    alike = (idx[:, :most] == idx[0, :most]).all(axis=0)
    shared = most if alike.all() else int(alike.argmin())
    return shared if shared >= FEWEST else 0
