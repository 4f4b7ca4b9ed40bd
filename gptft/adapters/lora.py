"""Low-rank adapters: a model's weights stay as they are, and beside its linear layers thin matrices are trained.

    y = x W^T + b                        the layer as it was, frozen                W (out, in)
      + s * dropout(x) A^T B^T           its adapter                                A (r, in), B (out, r)

    s = alpha / r  (LoRA, arXiv 2106.09685)  or  alpha / sqrt(r)  (rank-stabilised, arXiv 2312.03732)

B starts at zero, so training starts from exactly the model that was given. Once trained, W + s B A is a layer like
any other: `merge_lora`. DoRA (arXiv 2402.09353) trains the length of each row of that sum apart from its direction:

    W' = g * (W + s B A),   g = m / |W + s B A|, a number a row;   m (out,) is trained and starts at |W|

Adapters are fp32 whatever holds the frozen weights (adapters/frozen.py): what a small learning rate adds to a bf16
number would be rounded away.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptft.adapters.frozen import (
    LAYERS,
    HalfLinear,
    Int8Linear,
    dense,
    dense_pieces,
    freeze_layers_as,
    held_by,
    linear_layers,
)
from gptft.config import FIELDS, Config
from gptft.device import put_rows, rows_here
from gptft.errors import UserError, nearest
from gptft.model import GPT, working_dtype

TARGETS = FIELDS["lora_targets"].metadata["choices"]  # all, these two, and each of their layers by name


@dataclass(frozen=True)
class LoraConfig:
    """What is put beside which layers. Raises UserError for what cannot be."""

    rank: int  # r
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn", "mlp")
    rslora: bool = False
    dropout: float = 0.0  # probability, on what the adapters read
    dora: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # a list, from JSON
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"lora: rank must be at least 1, alpha above 0 and dropout from 0 to below 1; they are {self.rank}, "
                f"{self.alpha} and {self.dropout}"
            )
        for target in self.targets:
            if target not in TARGETS:
                raise UserError(f"lora: there is no target {target!r}{nearest(target, TARGETS)}")

    @classmethod
    def asked(cls, config: Config) -> LoraConfig:
        """What a run's settings ask for."""
        return cls(*(getattr(config, f"lora_{field.name}") for field in dataclasses.fields(cls)))

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def layers(self) -> set[str]:
        """The names of the layers that the targets stand for."""
        parts = [LAYERS if target == "all" else (target,) for target in self.targets]
        return {layer for part in parts for name in part for layer in LAYERS.get(name, (name,))}


@dataclass(frozen=True)
class Base:
    """The model that adapters belong to: what loads it, and its model id in fp32 and rounded to bf16; the latter alone
    where it was only seen so.

    `seed`: of a preset's fresh weights.
    """

    name: str
    model_id: dict[str, str]
    seed: int | None = None

    @property
    def id(self) -> str:
        return self.model_id.get("fp32") or self.model_id["bf16"]


@dataclass
class Adapters:
    """What a model with adapters remembers (`model.lora`). `frozen_as`: what holds its frozen linear layers."""

    config: LoraConfig
    base: Base | None = field(default=None)
    frozen_as: str = "fp32"


def adapters_of(model: GPT) -> Adapters | None:
    """The adapters that `add_lora` gave to a model, or None."""
    return getattr(model, "lora", None)


class LoraLinear(nn.Module):
    """A frozen linear layer, `base`, and the adapter beside it: A (r, in), B (out, r) and, with DoRA, m (out,)."""

    def __init__(self, base: nn.Module, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, config.scale, config.dropout
        n_out, n_in = base.out_features, base.in_features
        weight = held_by(base)
        dtype, device = torch.float64 if weight.dtype == torch.float64 else torch.float32, weight.device
        self.A = nn.Parameter(torch.empty(config.rank, n_in, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(n_out, config.rank, device=device, dtype=dtype))
        self.m = None
        if config.dora:
            # |w|^2 (out,) of the frozen weights' rows: they never change
            self.register_buffer("squares", torch.empty(n_out, device=device, dtype=dtype), persistent=False)
            self.m = nn.Parameter(torch.empty(n_out, device=device, dtype=dtype))
        if not weight.is_meta:
            self.start(generator)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Set what training starts from; of tensors in parts, those rows that this process holds."""
        bound = 1 / math.sqrt(self.A.size(1))  # kaiming_uniform with a = sqrt(5), as the paper's code and PEFT have it
        put_rows(self.A, 0, len(self.A), torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator))
        rows_here(self.B)[0].zero_()
        if self.m is not None:
            _, row = rows_here(held_by(self.base))
            for rows in dense_pieces(self.base, self.A.dtype):
                self.squares[row : row + len(rows)] = rows.square().sum(1)
                row += len(rows)
            m, first = rows_here(self.m)
            m.copy_(self.squares[first : first + len(m)].sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that an ordinary linear layer would give.

        The low-rank product is added into the output of the frozen layer as it is computed: no other tensor of that
        size is made.
        """
        dtype = working_dtype(x)
        rows = x.to(dtype).reshape(-1, x.size(-1))  # (n, in)
        y = self.base(rows)  # (n, out)
        B = self.B * self.scale
        if self.m is not None:
            # y + (g - 1)(y - b), since g itself, near 1, would be rounded away in bf16
            excess = self.gain() - 1  # (out,)
            y = torch.addcmul(y, y, excess.to(dtype))
            if self.base.bias is not None:
                y = y - (excess * self.base.bias).to(dtype)
            B = B + excess[:, None] * B
        read = F.dropout(rows, self.dropout) if self.training and self.dropout else rows
        h = F.linear(read, self.A.to(dtype))  # (n, r)
        return y.addmm_(h, B.to(dtype).t()).view(*x.shape[:-1], self.base.out_features)

    def gain(self) -> Tensor:
        """DoRA's g (out,). The norm counts as a constant in backward (section 4.3 of the paper); it comes from
        |W + sBA|^2 = |W|^2 + 2s <W A^T, B> + s^2 <B A A^T, B> by rows, without the (out, in) product."""
        with torch.no_grad(), torch.autocast(self.A.device.type, enabled=False):
            A, B = self.A, self.B * self.scale
            WA = torch.cat([rows @ A.t() for rows in dense_pieces(self.base, A.dtype)])  # (out, r)
            squares = self.squares + (B * (2 * WA + B @ (A @ A.t()))).sum(1)  # (out,)
            norm = squares.clamp_min(torch.finfo(A.dtype).tiny).sqrt()
        return self.m / norm

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Linear:
        """An ordinary linear layer that computes the same. Summed in fp32 (fp64 stays), rounded once."""
        weight = dense(self.base, self.A.dtype) + self.scale * (self.B @ self.A)  # (out, in)
        if self.m is not None:
            weight = weight * self.gain()[:, None]
        bias = self.base.bias
        layer = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight.to(dtype))
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(dtype))
        return layer.train(self.training)


def add_lora(model: GPT, config: LoraConfig, seed: int = 0, base: Base | None = None, frozen_as: str = "fp32") -> GPT:
    """Freeze the model, hold its linear layers as `frozen_as` says, and put adapters beside the targets. Returns the
    model.

    `base` names it in checkpoints. Raises UserError for a target that the model does not have, unless it was meant as
    part of `mlp` or `all`, and for a model that has adapters.
    """
    if adapters_of(model) is not None:
        raise UserError("the model has adapters already: merge them before adding others")
    names = {name for _, _, name, _ in linear_layers(model)}
    if config.rank > model.config.n_embd:
        raise UserError(
            f"--lora_rank {config.rank} is above the model's width {model.config.n_embd}: that is no low rank"
        )
    for target in config.targets:
        if target not in ("all", *LAYERS) and target not in names:
            raise UserError(f"--lora_targets {target}: this model has no such layer; it has {', '.join(sorted(names))}")
    freeze_layers_as(model, frozen_as).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for _, parent, name, layer in linear_layers(model):
        if name in config.layers():
            setattr(parent, name, LoraLinear(layer, config, generator).train(layer.training))
    model.lora = Adapters(config, base, frozen_as)
    return model


def start_adapters(model: GPT, seed: int) -> None:
    """Have a model's adapters as `add_lora` made them, where it stood on the "meta" device, or where they were trained;
    of tensors in parts, those rows that this process holds."""
    generator = torch.Generator().manual_seed(seed)
    for *_, layer in linear_layers(model):
        if isinstance(layer, LoraLinear):
            layer.start(generator)


def merge_lora(model: GPT) -> GPT:
    """Fold the adapters into the weights, which leaves an ordinary model, all of it trainable. Returns the model.

    Without adapters nothing is done, so merging twice is merging once. Only the layers that have one change.
    Raises UserError where the frozen weights are rounded: their error would be folded in for good.
    """
    lora = adapters_of(model)
    if lora is None:
        return model
    bases = [layer.base for *_, layer in linear_layers(model) if isinstance(layer, LoraLinear)]
    if lora.frozen_as != "fp32" or any(isinstance(base, HalfLinear | Int8Linear) for base in bases):
        held = "fewer bits" if lora.frozen_as == "fp32" else lora.frozen_as
        raise UserError(
            f"the frozen weights are held in {held}: adapters are merged into exact weights; "
            "`python -m gptft merge ADAPTER OUT` takes those of the base"
        )
    for _, parent, name, layer in linear_layers(model):
        if isinstance(layer, LoraLinear):
            setattr(parent, name, layer.merged(model.tok.weight.dtype))
    del model.lora
    return model.requires_grad_(True)


def lora_state(model: GPT) -> dict[str, Tensor]:
    """The adapters alone, by name: blocks.N.PART.LAYER.A, .B and, with DoRA, .m. All that is trained."""
    return {
        f"{path}.{name}": parameter
        for path, _, _, layer in linear_layers(model)
        if isinstance(layer, LoraLinear)
        for name, parameter in layer.named_parameters(recurse=False)
    }


def describe_lora(model: GPT) -> dict:
    """The adapters' settings and base as JSON has them, for a run's summary."""
    lora = adapters_of(model)
    base = dataclasses.asdict(lora.base) if lora.base else None
    return {
        **dataclasses.asdict(lora.config),
        "targets": list(lora.config.targets),
        "held": lora.frozen_as,
        "base": base,
    }
