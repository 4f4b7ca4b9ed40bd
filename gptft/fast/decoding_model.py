"""Stands in for `model.GPT` in decoding: the same weights, arranged for passes over a few tokens.

Such a pass waits for memory, where every weight is read once, and for Python, which starts a dozen kernels a layer. So
the products are those of `weights`, and all else is what `GPT.hidden` computes, without a module, a check or a cast
that can be left out. A kind says what it computes in:

    fp32   the weights as they are (fp64 stays): logits equal up to the order of summation
    bf16   weights and products in bf16, as autocast has them; the residual stream, norms, rotary angles, attention and
           the cache in fp32
    int8   weights in 8 bits, each off by half a step of its output channel at most (`frozen.in_int8`), what they are
           multiplied with rounded to bf16; the rest as in bf16

The head is in the kind's bits as the other weights are, in a copy of its own; its rows as they are stay there, for
tokens to be looked up in where they are the embedding too, and for the few logits that come out largest: those are
computed again from them. In bf16 a logit of 20 has neighbours at a distance of 1/8, and equals would be many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptft.adapters.frozen import HalfLinear, Int8Linear
from gptft.attention import KVCache, Layout, attend
from gptft.device import free_memory, return_freed_memory
from gptft.errors import UserError
from gptft.fast.graphs import GraphedModel
from gptft.fast.sampling import largest
from gptft.fast.weights import (
    KINDS,
    SMALL,
    WHOLE,
    Apart,
    Arranged,
    Maker,
    base_of,
    groups_of,
    groups_of_block,
    head_of,
)
from gptft.model import ACTIVATIONS, GPT, MLP, Attention, Block, rotary_frequencies, weight_bytes
from gptft.parallel.ranks import here

PASSES = 32  # fewer do not make up for what it costs to arrange the weights
BEST = 8  # logits of a token that are computed again from exact weights
AT_ONCE = 64  # tokens for which that is done at a time
HELD = (nn.Linear, nn.Embedding, HalfLinear, Int8Linear)  # what holds weights that can be arranged


class Layer(NamedTuple):
    """One block. Norms are functions, the others products."""

    norm1: Callable[[Tensor], Tensor]
    qkv: Arranged | Apart
    q_norm: Callable[[Tensor], Tensor] | None
    k_norm: Callable[[Tensor], Tensor] | None
    rotary: bool
    sliding_window: int
    out: Arranged
    norm2: Callable[[Tensor], Tensor]
    up: Arranged | Apart  # gate and up, where there is a gate
    down: Arranged


def make_layer(block: Block, maker: Maker) -> Layer:
    qkv, out, up, down = groups_of_block(block)
    attn = block.attn
    return Layer(
        maker.norm(block.norm1),
        maker.product(qkv),
        maker.norm(attn.q_norm),
        maker.norm(attn.k_norm),
        attn.rotary,
        attn.sliding_window,
        maker.product(out),
        maker.norm(block.norm2),
        maker.product(up),
        maker.product(down),
    )


class DecodingModel:
    """A GPT for passes over a few tokens, with what decoding asks of one: `hidden`, `head`, `new_cache`, `config`,
    `device`. It is good for as long as the weights of the GPT do not change; nothing in it is trained.

    `kind`: the coarsest that it computes in. `rows`: how many texts are written at once. `take`: the GPT's layers give
    their weights away, one after the other, so that none is there twice; it cannot be used afterwards. `copied_bytes`:
    memory of the weights that are there beside the GPT's own, or would be without `take`.
    """

    training = False

    def __init__(self, model: GPT, kind: str = "fp32", rows: int = 1, take: bool = False) -> None:
        self.config, self.device = model.config, model.device
        self.tok, self.pos = model.tok.weight.detach(), None if model.pos is None else model.pos.weight.detach()
        self.stream = self.tok.dtype if kind == "fp32" and self.tok.dtype in WHOLE else torch.float32
        maker = Maker(model, kind, self.stream, rows, take)
        self.layers = [make_layer(block, maker) for block in model.blocks]
        self.norm = maker.norm(model.norm)
        self.head_rows = None if kind == "fp32" else head_of(model).weight.detach()  # (V, C)
        self.lm_head = maker.product([head_of(model)])
        self.copied_bytes, self.kind = maker.copied_bytes, maker.coarsest
        if take:
            return_freed_memory()
        self.act = ACTIVATIONS[self.config.activation]
        self.frequencies = rotary_frequencies(self.config, self.device) if self.config.position == "rotary" else None

    def eval(self) -> DecodingModel:
        return self

    def train(self, mode: bool = True) -> DecodingModel:
        """It is never in training mode; whoever returns to a mode returns to this one."""
        return self

    def new_cache(self, B: int, size: int, dtype: torch.dtype | None = None) -> KVCache:
        """As `GPT.new_cache`; in the dtype of the residual stream unless another is given."""
        config = self.config
        return KVCache(config.n_layer, B, config.n_kv_head, size, config.head_size, self.device, dtype or self.stream)

    @torch.no_grad()
    def hidden(
        self, idx: Tensor, layout: Layout | None = None, cache: KVCache | None = None, scored: Tensor | None = None
    ) -> Tensor:
        """As `GPT.hidden`: token ids (B, T) -> (B, T, C), or (n, C) of the `scored`."""
        B, T = idx.shape
        if layout is None and idx.size(1) > self.config.block_size:
            raise UserError(f"{T} tokens are more than the model's block_size {self.config.block_size}")
        if layout is None and 0 < self.config.window < T:
            layout = Layout.of_rows(T, idx.device)
        pos = layout.pos if layout is not None else torch.arange(T, device=idx.device)[None]  # (1 or B, T)
        x = F.embedding(idx, self.tok)  # (B, T, C)
        if self.pos is not None:
            x = x + F.embedding(pos, self.pos)
        x = x.view(B * T, -1).to(self.stream)  # (B * T, C) from here on
        table = self.table(pos)
        for number, layer in enumerate(self.layers):
            attended = self.attend(number, layer, layer.norm1(x), B, table, layout, cache)
            if scored is not None and number == len(self.layers) - 1:
                x, attended = x[scored], attended[scored]  # (n, C)
            attended = layer.out(attended)
            if self.config.parallel_residual:
                x = x + attended + self.mlp(layer, layer.norm2(x))
            else:
                x = x + attended
                x = x + self.mlp(layer, layer.norm2(x))
        x = self.norm(x)
        return x if scored is not None else x.view(B, T, -1)

    def table(self, pos: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `model.rotary_table`, in the dtype of the stream, for `turn`: the first half of the sines is negated."""
        if self.frequencies is None:
            return None
        angle = pos[:, None, :, None].float() * self.frequencies  # (B or 1, 1, T, rot / 2)
        cos, sin = angle.cos().to(self.stream), angle.sin().to(self.stream)
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def attend(
        self, number: int, layer: Layer, x: Tensor, B: int, table, layout: Layout | None, cache: KVCache | None
    ) -> Tensor:
        """x (B * T, C) -> what its tokens found (B * T, nh * hs)."""
        nh, n_kv = self.config.n_head, self.config.n_kv_head
        # (B * T, all heads * hs) -> (B, nh + 2 n_kv, T, hs)
        heads = layer.qkv(x).to(self.stream).view(B, -1, nh + 2 * n_kv, self.config.head_size).transpose(1, 2)
        qk, v = heads[:, : nh + n_kv], heads[:, nh + n_kv :]
        if layer.q_norm is not None:
            qk = torch.cat((layer.q_norm(qk[:, :nh]), layer.k_norm(qk[:, nh:])), 1)
        if layer.rotary:
            qk = turn(qk, table)
        q, k = qk[:, :nh], qk[:, nh:]
        if cache is not None:
            k, v = cache.write(number, k, v, layout)  # (B, n_kv, S, hs)
        y = attend(q, k, v, layout, 0.0, layer.sliding_window)  # (B, nh, T, hs)
        return y.transpose(1, 2).reshape(x.size(0), -1)

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        y = layer.up(x)
        if not self.config.gated_mlp:
            return layer.down(self.act(y))
        n = self.config.n_inner
        return layer.down(self.act(y[:, :n]) * y[:, n:])

    @torch.no_grad()
    def head(self, h: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., V), in the dtype of the stream."""
        shape, h = h.shape[:-1], h.reshape(-1, h.size(-1))  # (n, C)
        logits = self.lm_head(h).to(self.stream)  # (n, V)
        if self.head_rows is not None:
            for some, of in zip(logits.split(AT_ONCE), h.split(AT_ONCE), strict=True):
                best = largest(some, min(BEST, some.size(-1)))[1]  # (n, BEST)
                rows = self.head_rows[best].to(self.stream)  # (n, BEST, C)
                some.scatter_(1, best, torch.bmm(rows, of[:, :, None])[:, :, 0])
        return logits.view(*shape, -1)


def turn(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """As `model.rotate`: x cos + (x with its halves changed about) sin, where sin has the sign."""
    cos, sin = table
    rot = cos.size(-1)
    if rot < x.size(-1):
        return torch.cat((turn(x[..., :rot], table), x[..., rot:]), -1)
    return torch.addcmul(x * cos, x.roll(rot // 2, -1), sin)


def arranged(
    model: GPT | DecodingModel | GraphedModel,
    decode: str = "auto",
    rows: int = 1,
    passes: int = PASSES,
    take: bool = False,
) -> GPT | DecodingModel | GraphedModel:
    """The model that is to decode, for `decode`:

        plain              the model as it is
        fp32, bf16, int8   arranged, in this kind
        graph              on CUDA: the model as it is, its passes recorded once and replayed (`fast.graphs`)
        auto               arranged in the precision that its weights have, where that gains and memory suffices

    `rows` texts are written at once, or tokens of one text read, in `passes` passes at most. `take`: as `DecodingModel`
    has it. Raises UserError for another word, and for a model that cannot be arranged as one asks.
    """
    if decode not in ("auto", "plain", "graph", *KINDS):
        raise UserError(f"decode must be one of auto, plain, {', '.join(KINDS)}, graph, not {decode!r}")
    if decode == "plain" or isinstance(model, DecodingModel | GraphedModel):
        return model
    if decode == "graph":
        if why := not_recorded(model):
            raise UserError(f"decode 'graph': {why}; 'plain' takes it as it is")
        return GraphedModel(model)
    why = why_not(model)
    if decode != "auto":
        if why:
            raise UserError(f"decode {decode!r}: {why}; 'plain' takes it as it is")
        return DecodingModel(model, decode, rows, take)
    kind = {torch.float32: "fp32", torch.float64: "fp32", torch.bfloat16: "bf16"}.get(model.tok.weight.dtype)
    if why or kind is None or not pays(model, passes, take):
        return model
    return DecodingModel(model, kind, rows, take)


IN_PARTS = "the model is in parts, or one of another class"


def is_whole(model: GPT) -> bool:
    return type(model) is GPT and "hidden" not in vars(model)


def not_recorded(model: GPT) -> str:
    """Why a model's passes cannot be recorded; empty where they can be."""
    if model.device.type != "cuda":
        return f"CUDA records passes, and the model is on {model.device}"
    if torch.is_autocast_enabled("cuda"):
        return "autocast makes copies of weights in a pass, which another would look for"
    return "" if is_whole(model) else IN_PARTS


def why_not(model: GPT) -> str:
    """Why a model is not arranged; empty where it can be."""
    if not is_whole(model):
        return IN_PARTS
    if model.device.type != "cpu":
        return f"weights are arranged for the CPU, and the model is on {model.device}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast decides what is computed in which precision"
    for block in model.blocks:
        if (type(block), type(block.attn), type(block.mlp)) != (Block, Attention, MLP):
            return "its blocks are not those of gptft.model"
    if any(type(base_of(layer)) not in HELD for layers in groups_of(model) for layer in layers):
        return "its layers are not those of gptft"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "it has hooks, which would not be called"
    return ""


def pays(model: GPT, passes: int, take: bool) -> bool:
    """Whether to arrange a model's weights makes up for the time it takes, and for the memory of the copy."""
    if any(isinstance(base_of(layer), Int8Linear) for layers in groups_of(model) for layer in layers):
        return False  # multiplied in fp32, they take as long as in the plain path
    needed = weight_bytes(model)
    room = free_memory(model.device, here().size)
    return needed < SMALL or (passes >= PASSES and (take or 2 * needed < room))
