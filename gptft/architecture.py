"""The architecture of a model as data: one config for every family, and the from-scratch presets. No torch."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass

from gptft.errors import UserError, nearest

LARGEST = 2**31 - 1  # of any size: beyond it is a slip, or an attack


@dataclass(frozen=True)
class GPTConfig:
    """The architecture. Every family is a point in this space; nothing is read off a model's name."""

    vocab_size: int  # V: rows of the embedding; at least the tokenizer's size
    block_size: int  # longest sequence, tokens
    n_layer: int
    n_head: int  # nh
    n_embd: int  # C
    n_kv_head: int = 0  # key and value heads; 0: n_head. Fewer is grouped-query attention (arXiv 2305.13245)
    head_size: int = 0  # hs; 0: n_embd // n_head
    n_inner: int = 0  # width inside the MLP; 0: 4 * n_embd
    position: str = "learned"  # "learned" (a table) or "rotary" (arXiv 2104.09864)
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_fraction: float = 1.0  # share of each head that is rotated
    rope_original: int = 0  # Llama 3.1's scaling: the context before it was stretched, tokens; 0: no scaling
    rope_factor: float = 1.0  # ... by how much; wavelengths beyond original / low are stretched by it,
    rope_low: float = 1.0  #     those below original / high stay as they are,
    rope_high: float = 4.0  #    and between the two it is blended
    no_rope_layers: tuple[int, ...] = ()  # layers that see no positions (SmolLM3; arXiv 2501.18795)
    # the sliding window, by its stored name: a token sees so many tokens, itself included; 0: all before it
    window: int = 0  # (arXiv 2004.05150)
    full_layers: tuple[int, ...] = ()  # layers that see beyond the sliding window
    norm: str = "layer"  # one of model.NORMS: "layer" (with bias) or "rms" (arXiv 1910.07467)
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"  # "gelu_tanh", "gelu" (exact) or "silu"
    gated_mlp: bool = False  # act(gate(x)) * up(x), as in SwiGLU (arXiv 2002.05202)
    qkv_bias: bool = True
    out_bias: bool = True  # on attention's output projection
    mlp_bias: bool = True
    qk_norm: bool = False  # the norm over each head of q and k too, before the rotation, as in Qwen3 (arXiv 2302.05442)
    parallel_residual: bool = False  # x + attn(norm1(x)) + mlp(norm2(x)), as in GPT-NeoX
    tie_embeddings: bool = True  # the head is the token embedding

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.type == "float" and type(getattr(self, f.name)) is int:  # 10000 and 10000.0 are one architecture
                object.__setattr__(self, f.name, float(getattr(self, f.name)))

        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type == "float" and not 0 < value < math.inf:  # a nan neither
                raise UserError(f"model config: {f.name} is {value}, it must be above 0")
            if f.type == "int" and not 0 <= value <= LARGEST:
                raise UserError(f"model config: {f.name} is {value}, it must be from 0 to {LARGEST:,}")
        if self.rope_fraction > 1:
            raise UserError(f"model config: rope_fraction is {self.rope_fraction}, it must be at most 1")

        def derive(name: str, value: int) -> None:
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)  # the dataclass is frozen; zeros mean "derive it"

        derive("n_kv_head", self.n_head)
        derive("head_size", self.n_embd // self.n_head)
        derive("n_inner", 4 * self.n_embd)
        for name in ("n_kv_head", "head_size", "n_inner"):
            if getattr(self, name) < 1:
                raise UserError(f"model config: {name} is {getattr(self, name)}, it must be at least 1")
        legal = {
            "position": ("learned", "rotary"),
            "activation": ("gelu_tanh", "gelu", "silu"),
        }
        for name, words in legal.items():
            if getattr(self, name) not in words:
                raise UserError(f"model config: {name} is {getattr(self, name)!r}, it must be one of {words}")
        if self.n_head % self.n_kv_head:
            raise UserError(f"model config: n_head {self.n_head} is no multiple of n_kv_head {self.n_kv_head}")
        if self.rotary_size % 2:
            raise UserError(f"model config: {self.rotary_size} rotated channels a head; it must be an even number")
        if self.rope_original and not self.rope_low < self.rope_high:
            raise UserError(f"model config: rope_low {self.rope_low} must be below rope_high {self.rope_high}")
        if self.window < 0 or self.rope_factor <= 0:
            raise UserError(f"model config: window {self.window} or rope_factor {self.rope_factor} is impossible")
        for name in ("no_rope_layers", "full_layers"):
            if any(not 0 <= layer < self.n_layer for layer in getattr(self, name)):
                raise UserError(f"model config: {name} {getattr(self, name)} names a layer beyond the {self.n_layer}")

    @property
    def rotary_size(self) -> int:
        """Channels of each head that are rotated."""
        return int(self.head_size * self.rope_fraction) if self.position == "rotary" else 0

    def sliding_window_of(self, layer: int) -> int:
        """How many tokens a token sees in this layer, itself included; 0: all before it."""
        return 0 if layer in self.full_layers else self.window

    @classmethod
    def from_dict(cls, values: dict, source: str) -> GPTConfig:
        """Build from a JSON object; unknown, missing or ill-typed keys are refused, naming `source`."""
        hints = typing.get_type_hints(cls)
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        values = {
            key: float(value) if hints.get(key) is float and type(value) is int else value
            for key, value in values.items()
        }
        for key, value in values.items():
            if key not in hints:
                raise UserError(f"{source}: unknown key {key!r}{nearest(key, hints)}")
            if typing.get_origin(hints[key]) is tuple:
                if not isinstance(value, tuple) or any(type(number) is not int for number in value):
                    raise UserError(f"{source}: {key} must be a list of whole numbers, not {value!r}")
            elif not isinstance(value, hints[key]) or (isinstance(value, bool) and hints[key] is not bool):
                raise UserError(f"{source}: {key} must be of type {hints[key].__name__}, not {value!r}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise UserError(f"{source}: {missing[0]!r} is missing")
        for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if values[key] < 1:
                raise UserError(f"{source}: {key} must be at least 1, not {values[key]}")
        return cls(**values)


# From-scratch models. The vocabulary size is filled in from the embedded tokenizer.
PRESETS: dict[str, dict] = {
    "tiny": {"block_size": 256, "n_layer": 3, "n_head": 4, "n_embd": 128, "position": "rotary"},
}
