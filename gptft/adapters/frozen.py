"""Frozen weights in fewer bits: the linear layers of a model that nothing trains, held in 16 bits or 8.

    HalfLinear   y = x W^T + b,              W in bf16, or in fp16 where the products are in fp16
    Int8Linear   y = scale * (x q^T) + b,    q in int8 (whole numbers up to 127), scale (out,) in fp32

Both are multiplied as they are held or, for 8 bits, in what the caller computes in; where a processor has no bf16, in
fp32. No gradient is taken of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptft.device import cpu_has_bf16, rows_here
from gptft.errors import UserError
from gptft.model import GPT, working_dtype

# the linear layers of a block; a model without a gated MLP (GPT-2, Pythia) has no gate
LAYERS = {"attn": ("q", "k", "v", "out"), "mlp": ("gate", "up", "down")}
ROUNDED = "the model's linear layers are held in fewer bits, for adapters alone: load it as it is to save or export it"
DENSE_AT_ONCE = 1 << 20  # numbers of a weight that are held at full width at a time
FP16_MAX = torch.finfo(torch.float16).max


class HalfLinear(nn.Module):
    """A frozen linear layer held in 16 bits, bf16 or fp16. Autocast would round fp32 weights to that anew at every
    pass, and would cast 16 bits of the other kind."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), multiplied in what the weights are held in whatever autocast says, given back in the
        dtype that the caller computes in."""
        with torch.autocast(x.device.type, enabled=False):
            rounded = x.to(self.weight.dtype)
            if is_emulated(self.weight):
                y = WidenedProduct.apply(rounded, self.weight, self.bias)
            else:
                y = F.linear(rounded, self.weight, self.bias)
        return y.to(working_dtype(x))


def is_emulated(weight: Tensor) -> bool:
    """Whether the processor makes a product with a weight number by number: that takes ten times as long as in fp32."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not cpu_has_bf16()


class WidenedProduct(torch.autograd.Function):
    """x (..., in), weight (out, in), bias (out,) or None, all in bf16 -> (..., out): the sums are in fp32, and rounded
    once, as where bf16 is multiplied. Nothing wide is kept for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (grad.float() @ weight.float()).to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """A frozen linear layer held in 8 bits: weight[i, j] ~ scale[i] * q[i, j], with q a whole number up to 127.

    A row's largest weight decides its scale, so every weight is off by half of the scale at most.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        q, scale = in_int8(layer.weight.detach())
        self.register_buffer("q", q)  # (out, in)
        self.register_buffer("scale", scale)  # (out,)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = Int8Product.apply(x.to(working_dtype(x)), self.q, self.scale)  # (..., out)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def in_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, in) of a weight -> q (n, in) and scale (n,): each row is rounded by itself."""
    rows = rows.float()
    scale = rows.abs().amax(1) / 127
    scale = scale.masked_fill(scale == 0, 1.0)  # a row of zeros
    return (rows / scale[:, None]).round().to(torch.int8), scale


class Int8Product(torch.autograd.Function):
    """x (..., in), q (out, in), scale (out,) -> x (scale * q)^T. Whole numbers up to 127 are exact in bf16 too, so the
    scale is applied to the product; in fp16 that product could overflow, and the scale goes first.

    Autograd by itself would keep the weights at full width for the backward pass.
    """

    @staticmethod
    def forward(ctx, x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(q, scale)
        if x.dtype == torch.float16:
            return F.linear(x, (q * scale[:, None]).to(x.dtype))
        return F.linear(x, q.to(x.dtype)).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        q, scale = ctx.saved_tensors
        if grad.dtype == torch.float16:
            return grad @ (q * scale[:, None]).to(grad.dtype), None, None
        return (grad * scale).to(grad.dtype) @ q.to(grad.dtype), None, None


def dense(layer: nn.Module, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """The weight (out, in) of a frozen layer, or some of its rows, however it is held; of one in parts, of the rows
    that this process holds."""
    mine, first = rows_here(held_by(layer))
    if isinstance(layer, Int8Linear):
        scale = layer.scale[first : first + len(mine)]
        return mine[rows].to(dtype).mul_(scale[rows, None].to(dtype))
    return mine[rows].to(dtype)


def held_by(layer: nn.Module) -> Tensor:
    """The tensor (out, in) that a layer holds its weight in."""
    return layer.q if isinstance(layer, Int8Linear) else layer.weight.detach()


def dense_pieces(layer: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """The same weight some rows (n, in) at a time, so that of one held in fewer bits there is never a copy at full
    width; one that is held in `dtype` comes in one piece, which is no copy."""
    n_rows = all_rows = len(rows_here(held_by(layer))[0])
    if held_by(layer).dtype != dtype:
        n_rows = max(1, DENSE_AT_ONCE // layer.in_features)
    for start in range(0, all_rows, n_rows or 1):
        yield dense(layer, dtype, slice(start, start + n_rows))


def linear_layers(model: GPT) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(full name, parent, name, module) of every linear layer in the blocks."""
    for n, block in enumerate(model.blocks):
        for part, names in LAYERS.items():
            parent = getattr(block, part)
            for name in names:
                if getattr(parent, name, None) is not None:
                    yield f"blocks.{n}.{part}.{name}", parent, name, getattr(parent, name)


def kind_for(lora_base: str, precision: str) -> str:
    """How to freeze layers for --lora_base where products are in `precision`: its 16 bits are those of the products,
    which spares casts. From 6e-5 to 65504, where weights are, fp16 keeps 11 bits of a number and bf16 keeps 8."""
    return "fp16" if (lora_base, precision) == ("bf16", "fp16") else lora_base


def freeze_layers_as(model: GPT, kind: str) -> GPT:
    """Hold the linear layers of the blocks in "bf16", "fp16" or "int8"; "fp32" leaves them as they are, as those are
    left that are held so already. Embeddings, norms and the head stay: they are where rounding hurts most, and few.
    Returns the model.

    One layer after the other, so that no more than one is there twice. Raises UserError, with the model as it was, for
    numbers beyond fp16's range. One on the "meta" device stays there, to have its weights read into it so.
    """
    if kind == "fp32":
        return model
    if kind == "fp16" and not model.tok.weight.is_meta:
        for path, _, _, layer in linear_layers(model):
            for name, parameter in layer.named_parameters():
                check_range(parameter, f"{path}.{name}")
    frozen = {"bf16": HalfLinear, "fp16": partial(HalfLinear, dtype=torch.float16), "int8": Int8Linear}[kind]
    for _, parent, name, layer in linear_layers(model):
        if not isinstance(layer, HalfLinear | Int8Linear):
            setattr(parent, name, frozen(layer))
    return model


def is_frozen(model: GPT) -> bool:
    """Whether linear layers of a model are held in fewer bits, so that its own weights are not there."""
    return any(isinstance(layer, HalfLinear | Int8Linear) for *_, layer in linear_layers(model))


def check_range(numbers: Tensor, path: str) -> None:
    """Raise UserError for numbers beyond fp16's range; `path`: LAYER.weight, or .bias."""
    if not numbers.abs().max() <= FP16_MAX:  # a nan is not either
        raise UserError(
            f"{path.rpartition('.')[0]} holds numbers beyond fp16's {FP16_MAX:.0f}, and is not frozen in it: take "
            "another --precision, or --lora_base int8 or fp32"
        )
