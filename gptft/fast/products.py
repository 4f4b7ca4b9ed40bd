"""Stands in for `F.linear(x, weight, bias)` where x has few rows, as in decoding: the same product, from a weight that
is stored in the order in which this machine reads it fastest.

Such a product waits for memory: every weight is read once, and used for one number a row. A layout is a function that
stores a weight and gives what multiplies with it, x (n, in) -> (n, out):

    of a weight (out, in) in floating point
      rows      as `F.linear` has it
      columns   stored as (in, out): under its old name and shape `F.linear` takes it another way
      blocks    as oneDNN has it, in blocks of rows and columns (torch.compile stores frozen weights so)
    of whole numbers (out, in) in 8 bits, a scale for each row, x rounded to bf16, sums in fp32 rounded to bf16
      pieces    made floating point a piece at a time, so that each is multiplied while it is in the cache
      packed    multiplied as they are, by torch's own kernel

`calibrate` says which is fastest; what a layout gives is checked there before it is used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gptft.device import cpu_has_bf16

Product = Callable[[Tensor], Tensor]

FEW = 8  # rows, for which oneDNN chooses its blocks; with one they are as fast as those that it has for one
FEWEST_WIDENED = 4  # rows; fewer wait for memory, of which weights in fp32 take twice as much
MOST_PACKED = 20  # rows; with more, the kernel for few is slower than floating point: at 16 it was faster, at 24 not
PIECE = 1 << 20  # numbers that are made others at a time
ALIGNED = 32  # the kernel for 8 bits reads 16 numbers at a time or 32, and beyond the row's end where it is no multiple


def rows(weight: Tensor, bias: Tensor | None = None) -> Product:
    if weight.dtype != torch.bfloat16 or cpu_has_bf16():
        return lambda x: F.linear(x, weight, bias)
    many = widened(weight, bias)
    return lambda x: F.linear(x, weight, bias) if x.size(0) < FEWEST_WIDENED else many(x)


def widened(weight: Tensor, bias: Tensor | None = None) -> Product:
    """As `rows`, with weights in bf16 made fp32 a piece at a time, so that each is multiplied while it is in the cache:
    a processor without bf16 takes ten times as long for many rows as in fp32."""
    each, wide = in_pieces(weight), None if bias is None else bias.float()

    def product(x: Tensor) -> Tensor:
        y = torch.cat([F.linear(x.float(), piece.float()) for piece in each], -1)
        return (y if wide is None else y + wide).to(x.dtype)

    return product


def in_pieces(weight: Tensor) -> tuple[Tensor, ...]:
    """A weight (out, in) as some rows after the others."""
    return weight.split(max(1, PIECE // weight.size(1)))


def columns(weight: Tensor, bias: Tensor | None = None) -> Product:
    weight = weight.t().contiguous().t()  # (out, in) still, by another step from number to number
    return lambda x: F.linear(x, weight, bias)


def blocks(weight: Tensor, bias: Tensor | None = None) -> Product:
    stored = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), FEW)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, stored, bias, "none", [], "")


def pieces(weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Product:
    each = in_pieces(weight)
    # emulated, products in bf16 would be slower than in fp32; the numbers are those of bf16 all the same
    dtype = torch.bfloat16 if cpu_has_bf16() else torch.float32

    def product(x: Tensor) -> Tensor:
        x = x.to(torch.bfloat16).to(dtype)
        return scaled(torch.cat([F.linear(x, piece.to(dtype)) for piece in each], -1), scale, bias)

    return product


def packed(weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Product:
    if weight.size(1) % ALIGNED:
        return pieces(weight, scale, bias)
    many = pieces(weight, scale, bias)
    ones = torch.ones(weight.size(0), dtype=torch.bfloat16)  # the kernel's scale would be rounded to bf16

    def product(x: Tensor) -> Tensor:
        if x.size(0) > MOST_PACKED:
            return many(x)
        return scaled(torch._weight_int8pack_mm(x.to(torch.bfloat16), weight, ones), scale, bias)

    return product


def scaled(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Products with whole numbers (n, out) -> those with the weights, in fp32."""
    y = y * scale
    return y if bias is None else y + bias


def exact(weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Product:
    """As `pieces`, with x as it is and all in its dtype: what the plain path computes of frozen weights in 8 bits."""
    each = in_pieces(weight)
    return lambda x: scaled(torch.cat([F.linear(x, piece.to(x.dtype)) for piece in each], -1), scale.to(x.dtype), bias)


# the first of a kind is there on every machine, and copies nothing
LAYOUTS: dict[torch.dtype, dict[str, Callable[..., Product]]] = {
    torch.float32: {"rows": rows, "columns": columns, "blocks": blocks},
    torch.bfloat16: {"rows": rows, "columns": columns, "blocks": blocks},
    torch.int8: {"pieces": pieces, "packed": packed},
}
OTHERS = {"rows": rows}  # fp64, fp16


def layouts_of(dtype: torch.dtype) -> dict[str, Callable[..., Product]]:
    """The layouts of weights of this dtype, by name; the plain one first."""
    return LAYOUTS.get(dtype, OTHERS)
