"""Who attends to whom, and the KV cache: one function over every layout.

Shapes: B rows, T queries, S keys, nh query heads, n_kv key and value heads, hs channels a head. `window`: how many
tokens a token sees, itself included; 0: all before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Layout:
    """Where the tokens of a batch stand. One rule covers padded, packed and cached rows: a query sees the keys of
    its own document up to its own position.

    pos   (B, T)  position of each token in its own document
    doc   (B, T)  which document of the row it belongs to; None: each row is one document
    end   with a cache: one more than the largest position so far, on the host, so that no device is waited for
    fresh with a cache: every row begins here, at position 0
    even  with a cache: all rows have the same length, so that a single query sees every filled key
    """

    pos: Tensor
    doc: Tensor | None = None
    end: int = 0
    fresh: bool = False
    even: bool = False
    _masks: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Layout:
        doc = None if self.doc is None else self.doc.to(device)
        return Layout(self.pos.to(device), doc, self.end, self.fresh, self.even)

    def make_masks(self, T: int, windows: set[int]) -> None:
        """Make what `attend` will ask for, before the first layer: compiled blocks must find nothing changed."""
        for window in windows:
            if not self.fresh or 0 < window < T:
                self.mask(self.end or T, window)

    def mask(self, n_keys: int, window: int = 0) -> Tensor | None:
        """(B, 1, T, n_keys) True where a query sees a key; None where it sees all. Made once for all layers."""
        if self.end and self.even and self.pos.size(1) == 1 and not 0 < window < self.end:
            return None
        if window not in self._masks:
            # cached: key j of a row stands at position j
            keys = torch.arange(n_keys, device=self.pos.device)[None] if self.end else self.pos  # (1 or B, S)
            behind = self.pos[:, :, None] - keys[:, None, :]  # (B, T, S) how far back each key lies
            visible = behind >= 0
            if window:
                visible &= behind < window
            if self.doc is not None:
                visible &= self.doc[:, None, :] == self.doc[:, :, None]
            self._masks[window] = visible[:, None]
        return self._masks[window]


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout | None = None, dropout: float = 0.0, window: int = 0
) -> Tensor:
    """Scaled dot-product attention (arXiv 1706.03762, eq. 1): softmax(q k^T / sqrt(hs)) v over the visible keys.

    q (B, nh, T, hs), k and v (B, n_kv, S, hs) -> (B, nh, T, hs). With `layout` None each row is causal from its
    first token, and a window would have to be longer than the row; padding on the right is then seen by padding alone.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # torch's kernel for the CPU is slower in 16 bits than in 32, its backward by a factor of three, and less exact
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), layout, dropout, window)
    grouped = q.size(1) != k.size(1)
    if layout is None or (layout.fresh and not 0 < window < q.size(2)):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, layout.mask(k.size(2), window), dropout, enable_gqa=grouped)


class KVCache:
    """Keys and values of every layer, preallocated: (n_layer, B, n_kv, size, hs) each.

    Rows have their own lengths and start at position 0; there is no left padding. What lies beyond a row's length
    is never seen, since a query sees keys up to its own position only, and is overwritten as the row grows.
    """

    def __init__(self, n_layer: int, B: int, n_kv: int, size: int, hs: int, device, dtype) -> None:
        self.k = torch.zeros(n_layer, B, n_kv, size, hs, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)

    def write(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Store k, v (B, n_kv, T, hs) at `layout.pos` -> all that is filled, (B, n_kv, layout.end, hs) each."""
        if layout.fresh or layout.even:  # all rows stand at the same places: one slice
            self.k[layer, :, :, layout.end - k.size(2) : layout.end] = k
            self.v[layer, :, :, layout.end - v.size(2) : layout.end] = v
        else:
            rows = torch.arange(k.size(0), device=k.device)[:, None]  # (B, 1) beside pos (B, T)
            self.k[layer][rows, :, layout.pos] = k.transpose(1, 2).to(self.k.dtype)  # (B, T, n_kv, hs)
            self.v[layer][rows, :, layout.pos] = v.transpose(1, 2).to(self.v.dtype)
        return self.k[layer, :, :, : layout.end], self.v[layer, :, :, : layout.end]

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these, as answers end."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]
