"""Who attends to whom, and the KV cache: one function over every layout.

Shapes: B rows, T queries, S keys, nh query heads, n_kv key and value heads, hs channels a head. `sliding_window`: how
many tokens a token sees, itself included; 0: all before it (arXiv 2004.05150).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Layout:
    """Where the tokens of a batch stand. One rule covers padded and packed rows: a query sees the keys of its own
    document up to its own position.

    pos     (B or 1, T)  position of each token in its own document
    doc     (B, T)       which document of the row it belongs to; None: each row is one document
    causal               every row is one document from position 0 on, in order: torch's causal kernel needs no mask

    A layout with a function `attends` has its own way to the same result (`fast.packing`).
    """

    pos: Tensor
    doc: Tensor | None = None
    causal: bool = False
    attends = None
    _masks: dict[int, Tensor | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of_rows(cls, T: int, device) -> Layout:
        """Rows of T tokens, each one document; padding on the right is seen by padding alone."""
        return cls(torch.arange(T, device=device)[None], causal=True)

    def to(self, device: torch.device) -> Layout:
        doc = None if self.doc is None else self.doc.to(device)
        return Layout(self.pos.to(device), doc, self.causal)

    def is_causal(self, sliding_window: int) -> bool:
        """Whether no mask is needed: a sliding window as long as the row hides nothing."""
        return self.causal and not 0 < sliding_window < self.pos.size(1)

    def make_masks(self, sliding_windows: set[int], dtype: torch.dtype) -> None:
        """Make what `attend` will ask for, for queries of `dtype`, before the first layer: it serves all layers, and
        compiled blocks must find nothing changed."""
        for sliding_window in sliding_windows:
            if not self.is_causal(sliding_window):
                mask = self.visible(sliding_window)
                self._masks[sliding_window] = mask if mask is None else as_the_kernels_take_it(mask, dtype)

    def mask(self, sliding_window: int = 0) -> Tensor | None:
        """(B or 1, 1, T, S) True, or 0, where a query sees a key, False, or -inf, where not; None where it sees all."""
        if sliding_window not in self._masks:
            self._masks[sliding_window] = self.visible(sliding_window)
        return self._masks[sliding_window]

    def visible(self, sliding_window: int) -> Tensor | None:
        """(B or 1, 1, T, S) True where a query sees a key; None where it sees all."""
        return seen_keys(self.pos, self.pos, sliding_window, self.doc)


def seen_keys(pos: Tensor, keys: Tensor, sliding_window: int, doc: Tensor | None = None) -> Tensor:
    """Queries at positions pos (B, T), keys at positions (B or 1, S) -> (B, 1, T, S) True where one sees the other."""
    behind = pos[:, :, None] - keys[:, None, :]  # (B, T, S) how far back each key lies
    visible = behind >= 0
    if sliding_window:
        visible &= behind < sliding_window
    if doc is not None:
        visible &= doc[:, None, :] == doc[:, :, None]
    return visible[:, None]


def as_the_kernels_take_it(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask in the form that costs nothing at each layer. On CUDA that is `added_mask`; the CPU's takes a boolean."""
    return added_mask(visible, dtype) if visible.device.type == "cuda" else visible


def added_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, S) True where seen -> 0 where seen, -inf elsewhere, in the dtype of the queries.

    Of CUDA's fused kernels the memory-efficient one takes a mask. It adds it to the scores, in their dtype, and wants
    rows that start at multiples of 8 numbers: anything else is converted and copied anew by every layer
    (github.com/pytorch/pytorch, aten/src/ATen/native/transformers/attention.cpp, `preprocess_mask`).
    """
    B, _, T, S = visible.shape
    padded = torch.zeros(B, 1, T, -(-S // 8) * 8, dtype=dtype, device=visible.device)
    return padded[..., :S].masked_fill_(~visible, -torch.inf)


@torch.compiler.assume_constant_result  # to the compiler this is a fact, not a step
def kernel_takes_groups(device: torch.device, dtype: torch.dtype, masked: bool) -> bool:
    """Whether keys and values may be given with fewer heads than queries.

    Of CUDA's fused kernels only flash attention takes them: without a mask, in 16 bits, from compute capability 8.0
    on. The others would leave it to the slow path that writes all scores out
    (github.com/pytorch/pytorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). The CPU's kernel takes them.
    """
    if device.type != "cuda":
        return True
    half = dtype in (torch.bfloat16, torch.float16)
    return half and not masked and torch.cuda.get_device_capability(device)[0] >= 8


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout | None = None, dropout: float = 0.0, sliding_window: int = 0
) -> Tensor:
    """Scaled dot-product attention (arXiv 1706.03762, eq. 1): softmax(q k^T / sqrt(hs)) v over the visible keys.

    q (B, nh, T, hs), k and v (B, n_kv, S, hs) -> (B, nh, T, hs). With `layout` None each row is causal from its
    first token, and a sliding window would have to be longer than the row.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # torch's kernel for the CPU is slower in 16 bits than in 32, its backward by a factor of three, and less exact
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), layout, dropout, sliding_window)
    if layout is not None and layout.attends:
        return layout.attends(q, k, v, dropout, sliding_window)
    causal = layout is None or layout.is_causal(sliding_window)
    mask = None if causal else layout.mask(sliding_window)
    B, nh, T, hs = q.shape
    n_kv = k.size(1)
    if nh == n_kv:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    if T == 1 and not causal:
        # the queries of a group see the same keys: they stand in a column, and every kernel takes them
        column = q.reshape(B, n_kv, nh // n_kv, hs)  # (B, nh, 1, hs) -> (B, n_kv, nh / n_kv, hs)
        return F.scaled_dot_product_attention(column, k, v, mask, dropout).reshape(B, nh, 1, hs)
    if not kernel_takes_groups(q.device, q.dtype, mask is not None):
        k, v = repeat_heads(k, nh), repeat_heads(v, nh)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=k.size(1) != nh)


def repeat_heads(x: Tensor, nh: int) -> Tensor:
    """Keys or values (B, n_kv, S, hs) -> (B, nh, S, hs): each head stands once for every query head of its group."""
    return x.repeat_interleave(nh // x.size(1), dim=1)


@dataclass
class CacheLayout(Layout):
    """Where the tokens of one pass stand beside a filled KV cache; `KVCache` makes it.

    end   one more than the largest position so far, on the host, so that no device is waited for
    even  all rows have the same length, so that a single query sees every filled key
    """

    end: int = 0
    even: bool = False

    def visible(self, sliding_window: int) -> Tensor | None:
        if self.even and self.pos.size(1) == 1 and not 0 < sliding_window < self.end:
            return None
        keys = torch.arange(self.end, device=self.pos.device)[None]  # (1, S): key j of a row stands at position j
        return seen_keys(self.pos, keys, sliding_window)


class KVCache:
    """Keys and values of every layer, preallocated: (n_layer, B, n_kv, size, hs) each; how far each row is filled.

    Rows have their own lengths and start at position 0; there is no left padding. What lies beyond a row's length
    is never seen, since a query sees keys up to its own position only, and is overwritten as the row grows.
    """

    def __init__(self, n_layer: int, B: int, n_kv: int, size: int, hs: int, device, dtype) -> None:
        self.k = torch.zeros(n_layer, B, n_kv, size, hs, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.lengths = torch.zeros(B, dtype=torch.long)  # tokens of each row, on the host

    def begin(self, lengths: Sequence[int]) -> CacheLayout:
        """Rows of so many tokens, padded on the right to the longest, are the first -> where they stand."""
        self.lengths = torch.tensor(lengths)
        T = max(lengths)
        pos = torch.arange(T, device=self.k.device).expand(len(lengths), -1)  # (B, T)
        return CacheLayout(pos, causal=True, end=T)

    def extend(self, T: int = 1, growing: Sequence[int] | None = None) -> CacheLayout:
        """Every row gets T more tokens -> where they stand. `growing`: the rows whose tokens count, None: all; the
        others have ended and may stand anywhere."""
        lengths = self.lengths if growing is None else self.lengths[growing]
        end = int(lengths.max()) + T
        pos = self.lengths[:, None] + torch.arange(T)  # (B, T)
        even = bool((self.lengths == self.lengths[0]).all())
        self.lengths = self.lengths + T
        return CacheLayout(pos.clamp(max=end - 1).to(self.k.device), end=end, even=even)

    def write(self, layer: int, k: Tensor, v: Tensor, layout: CacheLayout) -> tuple[Tensor, Tensor]:
        """Store k, v (B, n_kv, T, hs) where `layout` says -> all that is filled, (B, n_kv, layout.end, hs) each."""
        if layout.causal or layout.even:  # all rows stand at the same places: one slice
            self.k[layer, :, :, layout.end - k.size(2) : layout.end] = k
            self.v[layer, :, :, layout.end - v.size(2) : layout.end] = v
        else:
            rows = torch.arange(k.size(0), device=k.device)[:, None]  # (B, 1) beside pos (B, T)
            self.k[layer][rows, :, layout.pos] = k.transpose(1, 2).to(self.k.dtype)  # (B, T, n_kv, hs)
            self.v[layer][rows, :, layout.pos] = v.transpose(1, 2).to(self.v.dtype)
        return self.k[layer, :, :, : layout.end], self.v[layer, :, :, : layout.end]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these, as answers end."""
        kept = torch.tensor(rows)
        self.lengths = self.lengths[kept]
        kept = kept.to(self.k.device)
        self.k, self.v = self.k[:, kept], self.v[:, kept]
