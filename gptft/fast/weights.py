"""The weights of a GPT, arranged for products with few rows: what `DecodingModel` multiplies with.

Stands in for the linear layers of a model (`nn.Linear`, `LoraLinear`, and those of `adapters.frozen`): layers that read
the same x become one product, and every weight is stored as this machine reads it fastest (`products`, `calibrate`).

Frozen layers that are held in fewer bits stay so, and adapters stand beside them as in the plain path, for in rounded
numbers they would be lost; adapters of layers in full precision are merged into them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptft.adapters.frozen import HalfLinear, Int8Linear, held_by, in_int8
from gptft.adapters.lora import LoraLinear
from gptft.fast.calibrate import Shape, choose
from gptft.fast.products import Product, exact, layouts_of
from gptft.model import GPT, Block

KINDS = ("fp32", "bf16", "int8")
WHOLE = (torch.float32, torch.float64)  # what adapters can be merged into, and the residual stream be in
AS_IT_IS = ("rows", "pieces", "packed")  # layouts that take a weight as it lies
SMALL = 4 << 20  # bytes of weights: what a smaller model takes is Python's time, whatever the layout
LARGE = 16 << 20  # bytes of weights: to start a product costs nothing beside it, so that no copy is made to save one


def base_of(layer: nn.Module) -> nn.Module:
    """The layer that holds the weight: itself, or the one beside which an adapter stands."""
    return layer.base if isinstance(layer, LoraLinear) else layer


def shape_of(layer: nn.Module) -> Shape:
    """(out, in); of an embedding, as a head multiplies with it."""
    return tuple(held_by(base_of(layer)).shape)


def dtype_of(layer: nn.Module, kind: str, stream: torch.dtype) -> torch.dtype:
    """What the weight of a layer is in, in a kind. `stream`: the dtype of the residual stream."""
    base = base_of(layer)
    if kind == "int8" or isinstance(base, Int8Linear):
        return torch.int8
    if kind == "bf16":
        return torch.bfloat16
    return base.weight.dtype if isinstance(base, HalfLinear) else stream


class Part(NamedTuple):
    """One linear layer as it will be multiplied: its weight (out, in), the scale (out,) of one in 8 bits, its bias, and
    the layer with the adapter that stands beside it."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    adapter: LoraLinear | None


def part_of(layer: nn.Module, dtype: torch.dtype) -> Part:
    """What a layer is, with its weight in `dtype`."""
    base = base_of(layer)
    if isinstance(layer, LoraLinear) and type(base) is nn.Linear and base.weight.dtype in WHOLE:
        base = layer = layer.merged(base.weight.dtype)
    adapter = layer if isinstance(layer, LoraLinear) else None
    bias = getattr(base, "bias", None)  # an embedding has none
    bias = None if bias is None else bias.detach()
    if isinstance(base, Int8Linear):
        return Part(base.q, base.scale, bias, adapter)
    weight = base.weight.detach()
    if dtype == torch.int8:
        return Part(*in_int8(weight), bias, adapter)
    return Part(weight.to(dtype), None, bias, adapter)


class Arranged:
    """A product with one or several linear layers that read the same x: (n, in) -> (n, out of all)."""

    def __init__(self, parts: Sequence[Part], layout: str, kind: str, stream: torch.dtype) -> None:
        weight = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
        self.cast = weight.dtype if weight.is_floating_point() and weight.dtype != stream else None
        self.cast_back = stream if self.cast and kind == "fp32" else None  # as `HalfLinear` gives its product
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts]).to(self.cast or stream)
        make = layouts_of(weight.dtype)[layout]
        if weight.dtype == torch.int8:
            make = make if kind == "int8" else exact  # x as it is: so the plain path multiplies what is frozen
            self.product: Product = make(weight, torch.cat([part.scale for part in parts]), bias)
        else:
            self.product = make(weight, bias)
        self.beside = Adapters(parts, stream) if any(part.adapter for part in parts) else None

    def __call__(self, x: Tensor) -> Tensor:
        y = self.product(x if self.cast is None else x.to(self.cast))
        y = y if self.cast_back is None else y.to(self.cast_back)
        return y if self.beside is None else self.beside.add(x, y)


class Apart:
    """As `Arranged`, with each layer multiplied by itself."""

    def __init__(self, products: Sequence[Arranged]) -> None:
        self.products = products

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([product(x) for product in self.products], -1)


class Adapters:
    """What stands beside frozen layers that read the same x, computed as `LoraLinear.forward` does."""

    def __init__(self, parts: Sequence[Part], stream: torch.dtype) -> None:
        self.stream, self.each, self.excess = stream, [], None
        self.A = torch.cat([part.adapter.A.detach() for part in parts if part.adapter]).to(stream)  # (r of all, in)
        excess, shift = (torch.zeros(sum(len(part.weight) for part in parts), dtype=stream) for _ in range(2))
        row = column = 0
        for part in parts:
            rows = slice(row, row := row + len(part.weight))
            if part.adapter is None:
                continue
            B = part.adapter.B.detach() * part.adapter.scale
            if part.adapter.m is not None:
                excess[rows] = part.adapter.gain().detach() - 1
                B = B + excess[rows, None] * B
                if part.bias is not None:
                    shift[rows] = excess[rows] * part.bias
                self.excess, self.shift = excess, shift
            self.each.append((rows, slice(column, column := column + B.size(1)), B.to(stream).t()))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.to(self.stream), y.to(self.stream)
        if self.excess is not None:
            y = torch.addcmul(y, y, self.excess) - self.shift
        h = F.linear(x, self.A)  # (n, r of all)
        for rows, columns, B in self.each:
            y[:, rows].addmm_(h[:, columns], B)
        return y


def groups_of(model: GPT) -> Iterator[list[nn.Module]]:
    """The layers that are one product each, in the order of the blocks; the head at last."""
    for block in model.blocks:
        yield from groups_of_block(block)
    yield [head_of(model)]


def groups_of_block(block: Block) -> list[list[nn.Module]]:
    attn, mlp = block.attn, block.mlp
    up = [mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]
    return [[attn.q, attn.k, attn.v], [attn.out], up, [mlp.down]]


def head_of(model: GPT) -> nn.Module:
    return model.tok if model.lm_head is None else model.lm_head


def choose_layouts(model: GPT, kind: str, stream: torch.dtype, rows: int) -> dict[tuple[torch.dtype, Shape], str]:
    """The layout of every product's weight, by its dtype and shape."""
    shapes: dict[torch.dtype, set[Shape]] = {}
    total = 0
    for layers in groups_of(model):
        dtype, n_in = dtype_of(layers[0], kind, stream), shape_of(layers[0])[1]
        n_out = sum(shape_of(layer)[0] for layer in layers)
        shapes.setdefault(dtype, set()).add((n_out, n_in))
        total += n_out * n_in * dtype.itemsize
    if total < SMALL:
        plain = {dtype: next(iter(layouts_of(dtype))) for dtype in shapes}
        return {(dtype, shape): plain[dtype] for dtype, each in shapes.items() for shape in each}
    found = {dtype: choose(sorted(each), dtype, rows) for dtype, each in shapes.items()}
    return {(dtype, shape): layout for dtype, each in found.items() for shape, layout in each.items()}


class Maker:
    """Makes the products of a model. `take`: the model's layers give their weights away, so that none is there twice.

    `copied_bytes`: of weights that are there beside the model's own. `coarsest`: the kind, or that of layers which are
    held in fewer bits.
    """

    def __init__(self, model: GPT, kind: str, stream: torch.dtype, rows: int, take: bool) -> None:
        self.kind, self.stream, self.take, self.copied_bytes = kind, stream, take, 0
        held = {dtype_of(layer, kind, stream) for layers in groups_of(model) for layer in layers}
        self.coarsest = "bf16" if kind == "fp32" and held & {torch.bfloat16, torch.float16} else kind
        self.layouts = choose_layouts(model, kind, stream, rows)

    def product(self, layers: Sequence[nn.Module]) -> Arranged | Apart:
        """One product of layers that read the same x."""
        dtype = dtype_of(layers[0], self.kind, self.stream)
        parts = [part_of(layer, dtype) for layer in layers]
        layout = self.layouts[dtype, (sum(len(part.weight) for part in parts), parts[0].weight.size(1))]
        own = [held_by(base_of(layer)).data_ptr() for layer in layers]
        stays = layout in AS_IT_IS and [part.weight.data_ptr() for part in parts] == own
        if stays and len(parts) > 1 and sum(part.weight.nbytes for part in parts) >= LARGE:
            return Apart([Arranged([part], layout, self.kind, self.stream) for part in parts])
        if not stays or len(parts) > 1:
            self.copied_bytes += sum(part.weight.nbytes for part in parts)
        made = Arranged(parts, layout, self.kind, self.stream)
        if self.take:
            for layer in layers:
                give_away(layer)
        return made

    def norm(self, norm: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
        """A norm as a function, in the dtype of the stream."""
        if norm is None:
            return None
        if any(parameter.dtype != self.stream for parameter in norm.parameters()):
            norm = copy.deepcopy(norm).to(self.stream)
        return by_layer_norm(norm) if type(norm) is nn.RMSNorm else norm.forward


def by_layer_norm(norm: nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    """RMSNorm by the kernel of LayerNorm, which is one where torch takes six for RMSNorm: x and -x side by side have a
    mean of 0, and the mean square of x for their variance."""
    (C,), weight, eps = norm.normalized_shape, norm.weight.detach(), norm.eps
    twice = torch.cat((weight, weight))
    return lambda x: F.layer_norm(torch.cat((x, -x), -1), (2 * C,), twice, None, eps)[..., :C]


def give_away(layer: nn.Module) -> None:
    """Let go of the tensors of a layer."""
    for module in layer.modules():
        for name in [*module._parameters, *module._buffers]:
            setattr(module, name, None)
