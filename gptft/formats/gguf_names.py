"""llama.cpp's names for tensors and settings, and ours: one table for both ways, `export/llamacpp.py` writes by it and
`gguf.py` beside this file reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptft.architecture import GPTConfig
from gptft.model import GPT, rotary_frequencies

# llama.cpp's architectures -> transformers' families
FAMILY_OF = {
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
FUSED = ("gpt2", "gptneox")  # q, k and v are one tensor, and the activation is GELU's tanh form
# These turn channel 2i with 2i + 1, where we and the others turn channel i with i + half: rows are put in that order.
NEIGHBOURS = ("llama", "smollm3")
OUTER = {"tok": "token_embd", "pos": "position_embd", "norm": "output_norm", "lm_head": "output"}
INNER = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.out": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Ours, of files that gptft wrote: the architecture, as far as the settings of llama.cpp do not tell it.
OWN_CONFIG = "gptft.config"


@dataclass(frozen=True)
class Entry:
    """A tensor of the file and those of ours that it holds, one after the other.

    `heads`: so many heads whose rows go from (first half, second half) to neighbours. `made`: it is no parameter of
    ours, but follows from the config; llama.cpp asks for it.
    """

    name: str
    parts: tuple[Tensor, ...]
    heads: int = 0
    made: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.size(0) for part in self.parts), *self.parts[0].shape[1:])

    def value(self) -> np.ndarray:
        """Ours -> the tensor of the file, in fp32."""
        x = torch.cat([part.detach().to("cpu", torch.float32) for part in self.parts])
        if self.heads:
            x = x.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # (nh, 2, hs/2, ...) -> (rows, ...)
        return x.contiguous().numpy()


def entries_of(model: GPT, arch: str) -> Iterator[Entry]:
    """Every tensor of the file of a model."""
    config = model.config
    for name, parameter in model.named_parameters():
        stem, _, part = name.rpartition(".")
        if not stem.startswith("blocks."):
            yield Entry(f"{OUTER[stem]}.{part}", (parameter,))
    for layer in range(config.n_layer):
        yield from entries_of_layer(model, arch, layer)
    if arch == "gptneox":  # it asks for tensors that others may leave out: zeros and a copy change nothing
        if config.tie_embeddings:
            yield Entry(HEAD, (model.tok.weight,), made=True)
        for layer in range(config.n_layer):
            if not config.qkv_bias:
                yield Entry(f"blk.{layer}.attn_qkv.bias", (torch.zeros(3 * config.n_embd),), made=True)
            if not config.out_bias:
                yield Entry(f"blk.{layer}.attn_output.bias", (torch.zeros(config.n_embd),), made=True)
    if config.rope_original:
        yield Entry("rope_freqs.weight", (slowing(config),), made=True)


def entries_of_layer(model: GPT, arch: str, layer: int) -> Iterator[Entry]:
    """Every tensor of the file of one block."""
    config, ours = model.config, dict(model.blocks[layer].named_parameters())
    for name in ours:
        inner, _, part = name.rpartition(".")
        if inner in ("attn.q", "attn.k", "attn.v") and arch in FUSED:
            if inner == "attn.q":
                yield Entry(f"blk.{layer}.attn_qkv.{part}", tuple(ours[f"attn.{x}.{part}"] for x in "qkv"))
            continue
        heads = {"attn.q": config.n_head, "attn.k": config.n_kv_head}.get(inner, 0) if arch in NEIGHBOURS else 0
        yield Entry(f"blk.{layer}.{INNER[inner]}.{part}", (ours[name],), heads)


def slowing(config: GPTConfig) -> Tensor:
    """By how much each pair of channels is slowed down by the stretching of the rotary frequencies (rot/2,)."""
    plain = rotary_frequencies(dataclasses.replace(config, rope_original=0), "cpu")
    return plain / rotary_frequencies(config, "cpu")


def settings_of(config: GPTConfig, arch: str) -> dict[str, int | float | bool]:
    """What a file says of the architecture, without the architecture's name before each."""
    settings: dict[str, int | float | bool] = {
        "vocab_size": config.vocab_size,
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
        "attention.layer_norm_rms_epsilon" if config.norm == "rms" else "attention.layer_norm_epsilon": config.norm_eps,
    }
    if config.position == "rotary":
        settings |= {"rope.dimension_count": config.rotary_size, "rope.freq_base": config.rope_theta}
    if arch not in FUSED:
        settings |= {"attention.key_length": config.head_size, "attention.value_length": config.head_size}
    if arch == "gptneox":
        settings["use_parallel_residual"] = config.parallel_residual
    return settings
