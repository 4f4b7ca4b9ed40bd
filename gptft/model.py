"""The GPT, written out once and steered by its config.

    B, T, C   batch, time (tokens), channels (n_embd)      nh, hs  heads and channels a head
    V         vocabulary                                    n_kv    key and value heads, at most nh

            idx (B, T)
              |  token embedding (+ position embedding, if positions are learned)
              x (B, T, C)  the residual stream
              |-- norm1 -- attention --+          Each block reads the stream through a norm and adds
              x <----------------------+          what it found. With parallel_residual both branches
              |-- norm2 -- MLP --------+          read the same x.
              x <----------------------+
              |  ... n_layer times, then the final norm
              h (B, T, C)  hidden states   -- head -->  logits (..., V)

`hidden` and `head` are apart, so that a loss can compute logits only where there is a target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptft.architecture import GPTConfig
from gptft.attention import KVCache, Layout, attend
from gptft.errors import UserError

ACTIVATIONS = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}
# GPTConfig.norm: a module over the last dimension, made as cls(size, eps=...), that starts by its `reset_parameters`
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(config: GPTConfig, size: int) -> nn.Module:
    """The model's kind of norm over `size` channels. Raises UserError for a kind that is not there."""
    if config.norm not in NORMS:
        raise UserError(f"model config: norm is {config.norm!r}, it must be one of {tuple(NORMS)}")
    return NORMS[config.norm](size, eps=config.norm_eps)


def working_dtype(x: Tensor) -> torch.dtype:
    """In what a linear layer computes: autocast's dtype where that is on, else that of x."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def rotary_frequencies(config: GPTConfig, device) -> Tensor:
    """Radians a position (rot/2,) by which each pair of channels turns: theta^(-2i/rot), fp32.

    With `rope_original`, stretched as Llama 3.1 did it (the formula: github.com/meta-llama/llama-models,
    models/llama3/model.py): slow pairs by rope_factor, fast ones not, those between by a blend.
    """
    rot = config.rotary_size
    exponent = torch.arange(0, rot, 2, device=device, dtype=torch.float32) / rot
    frequency = 1.0 / config.rope_theta**exponent
    if config.rope_original:
        turns = config.rope_original / (2 * math.pi / frequency)  # full turns within the original context
        kept = ((turns - config.rope_low) / (config.rope_high - config.rope_low)).clamp(0, 1)  # 0: stretched, 1: as is
        frequency = (1 - kept) * frequency / config.rope_factor + kept * frequency
    return frequency


def rotary_table(config: GPTConfig, pos: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, rot) of the rotary angles at positions (B, T); arXiv 2104.09864, eq. 34.

    Always in fp32, and recomputed rather than stored: in bf16 neighbouring positions would coincide.
    """
    angle = pos[..., None].float() * rotary_frequencies(config, pos.device)  # (B, T, rot/2)
    angle = torch.cat((angle, angle), dim=-1)[:, None]  # (B, 1, T, rot)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first `rot` channels of x (B, nh, T, hs); channel i is paired with i + rot/2."""
    cos, sin = table
    rot = cos.size(-1)
    turned, rest = x[..., :rot], x[..., rot:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned.to(x.dtype), rest), dim=-1) if rest.size(-1) else turned.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; separate projections for q, k and v."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        C, hs = config.n_embd, config.head_size
        self.config, self.layer, self.dropout = config, layer, 0.0
        self.rotary = config.position == "rotary" and layer not in config.no_rope_layers
        self.sliding_window = config.sliding_window_of(layer)
        self.q = nn.Linear(C, config.n_head * hs, bias=config.qkv_bias)
        self.k = nn.Linear(C, config.n_kv_head * hs, bias=config.qkv_bias)
        self.v = nn.Linear(C, config.n_kv_head * hs, bias=config.qkv_bias)
        self.out = nn.Linear(config.n_head * hs, C, bias=config.out_bias)
        self.q_norm = make_norm(config, hs) if config.qk_norm else None
        self.k_norm = make_norm(config, hs) if config.qk_norm else None

    def forward(self, x: Tensor, table, layout: Layout | None, cache: KVCache | None) -> Tensor:
        B, T, _ = x.shape
        hs = self.config.head_size
        q = self.q(x).view(B, T, -1, hs).transpose(1, 2)  # (B, nh, T, hs)
        k = self.k(x).view(B, T, -1, hs).transpose(1, 2)  # (B, n_kv, T, hs)
        v = self.v(x).view(B, T, -1, hs).transpose(1, 2)  # (B, n_kv, T, hs)
        if self.q_norm is not None:
            # under autocast q and k come in 16 bits; norms are for 32, as x is, which comes from one
            q, k = self.q_norm(q.to(x.dtype)).to(q.dtype), self.k_norm(k.to(x.dtype)).to(k.dtype)
        if self.rotary:
            q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v = cache.write(self.layer, k, v, layout)  # (B, n_kv, S, hs)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, layout, dropout, self.sliding_window)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, nh * hs) -> (B, T, C)


class MLP(nn.Module):
    """Two layers with a nonlinearity between, or the gated form act(gate(x)) * up(x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias) if config.gated_mlp else None
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.norm1, self.attn = make_norm(config, config.n_embd), Attention(config, layer)
        self.norm2, self.mlp = make_norm(config, config.n_embd), MLP(config)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, table, layout: Layout | None, cache: KVCache | None, scored: Tensor | None) -> Tensor:
        attended = self.drop(self.attn(self.norm1(x), table, layout, cache))
        if scored is not None:  # from here on no token looks at another, so those that nobody asks for can go
            x, attended = x.flatten(0, 1)[scored], attended.flatten(0, 1)[scored]  # (n, C)
        if self.parallel:
            return x + attended + self.drop(self.mlp(self.norm2(x)))
        x = x + attended
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """A decoder-only transformer. Build it with `GPT.create`, or on the "meta" device to load weights into."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok = nn.Embedding(config.vocab_size, config.n_embd)
        self.pos = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.checkpoint_activations = False

    @classmethod
    def create(cls, config: GPTConfig, seed: int = 0, device="cpu", dtype=torch.float32) -> GPT:
        """A fresh model with initialised weights; they depend on the seed, not on the device."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device="cpu").to(dtype)
        model.init_weights(torch.Generator().manual_seed(seed))
        return model.to(device)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise as GPT-2 did (github.com/openai/gpt-2; the scaling: section 2.3 of its paper).

        token and position embeddings, head      normal(0, 0.02)
        every linear layer                       normal(0, 0.02), bias 0
        those that write to the residual stream  normal(0, 0.02 / sqrt(2 * n_layer)), bias 0
        norms                                    as their class says: weight 1, bias 0
        """
        writes_to_stream = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = writes_to_stream if name.endswith(("attn.out", "mlp.down")) else 0.02
                module.weight.normal_(0.0, std, generator=generator)
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
            elif next(module.parameters(recurse=False), None) is not None:
                module.reset_parameters()  # a norm

    def hidden(
        self, idx: Tensor, layout: Layout | None = None, cache: KVCache | None = None, scored: Tensor | None = None
    ) -> Tensor:
        """Token ids (B, T) -> final hidden states (B, T, C). `layout` None: every row starts at position 0.

        With a cache the layout is the one that the cache made. `scored` (n,): only these of the flattened (B * T)
        tokens are wanted, and the last block computes no more -> (n, C).
        """
        n_tokens, sliding_window = idx.size(1), self.config.window
        if layout is None and n_tokens > self.config.block_size:
            raise UserError(f"{n_tokens} tokens are more than the model's block_size {self.config.block_size}")
        if layout is None and 0 < sliding_window < n_tokens:
            layout = Layout.of_rows(n_tokens, idx.device)  # the layers that see less than the row need a mask
        pos = layout.pos if layout is not None else torch.arange(n_tokens, device=idx.device)[None]  # (1 or B, T)
        x = self.tok(idx)  # (B, T, C)
        if layout is not None:
            layout.make_masks({block.attn.sliding_window for block in self.blocks}, working_dtype(x))
        if self.pos is not None:
            x = x + self.pos(pos)
        x = self.drop(x)
        table = rotary_table(self.config, pos) if self.config.position == "rotary" else None
        for block in self.blocks:
            kept = scored if block is self.blocks[-1] else None
            if self.checkpoint_activations and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, table, layout, cache, kept, use_reentrant=False)
            else:
                # compiled blocks serve training: with a cache, every length would be compiled anew
                x = (block if cache is None else block.forward)(x, table, layout, cache, kept)
        return self.norm(x)

    def head(self, h: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., V)."""
        return F.linear(h, self.tok.weight if self.lm_head is None else self.lm_head.weight)

    def forward(self, idx: Tensor, layout: Layout | None = None, cache: KVCache | None = None) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        return self.head(self.hidden(idx, layout, cache))

    def set_dropout(self, p: float) -> None:
        """Dropout probability on embeddings, attention weights and both branches; a matter of the run, not of the
        architecture."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p
            elif isinstance(module, Attention):
                module.dropout = p

    def new_cache(self, B: int, size: int, dtype: torch.dtype | None = None) -> KVCache:
        """A cache for B rows of at most `size` tokens, in the dtype of the weights unless another is given."""
        config, weight = self.config, self.tok.weight
        dtype = dtype or weight.dtype
        return KVCache(config.n_layer, B, config.n_kv_head, size, config.head_size, weight.device, dtype)

    @property
    def device(self) -> torch.device:
        return self.tok.weight.device

    def n_parameters(self) -> int:
        """Weights, the tied head counted once."""
        return count_parameters(self)[1]


def flops_per_token(config: GPTConfig, context: float) -> int:
    """Floating-point operations of one token's forward pass through the blocks; the head is `flops_of_head`.

    A matrix product of a token with an (m, n) weight costs 2mn; attention over `context` keys costs 2 * 2 * context
    * nh * hs (scores and weighted sum). Norms, activations and biases are left out, as is usual (arXiv 2001.08361,
    table 1). A causal row of T tokens has a mean context of (T + 1) / 2. Training costs three forward passes.
    """
    C, hs = config.n_embd, config.head_size
    projections = C * hs * (2 * config.n_head + 2 * config.n_kv_head)  # q and out, k and v
    mlp = C * config.n_inner * (3 if config.gated_mlp else 2)
    reaches = (config.sliding_window_of(layer) for layer in range(config.n_layer))
    seen = sum(min(context, reach or context) for reach in reaches)  # over all layers
    return int(config.n_layer * 2 * (projections + mlp) + 4 * seen * config.n_head * hs)


def flops_of_head(config: GPTConfig) -> int:
    """Floating-point operations of the logits at one position."""
    return 2 * config.n_embd * config.vocab_size


def training_flops(model: GPT, lengths: Sequence[float], n_targets: float) -> float:
    """Floating-point operations of training on rows of so many tokens, logits at targets.

    A product costs as much again for each gradient it has to give: that of its input, and that of its weight. Frozen
    weights ask for none of their own: two forward passes in all, where others cost three. Attention has no weights,
    so it costs three, and so does what is trained beside frozen weights.
    """
    config, tokens = model.config, sum(lengths)
    weights = tokens * flops_per_token(config, 0) + n_targets * flops_of_head(config)
    attention = sum(n * (flops_per_token(config, (n + 1) / 2) - flops_per_token(config, 0)) for n in lengths)
    if model.tok.weight.requires_grad:
        return 3.0 * (weights + attention)
    beside = tokens * 2 * count_parameters(model)[0]
    return 2.0 * weights + 3.0 * (attention + beside)


def count_parameters(model: GPT) -> tuple[int, int]:
    """(those that are trained, all), a tied head counted once. Frozen weights in 8 bits are buffers, and count."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    in_8_bits = sum(buffer.numel() for buffer in model.buffers() if buffer.dtype == torch.int8)
    return trained, in_8_bits + sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: GPT) -> int:
    """Memory of the weights, and of what stands beside them."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
