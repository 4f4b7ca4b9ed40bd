"""GPT-2: learned positions, linear weights stored as (in, out), q, k and v side by side."""

from __future__ import annotations

from gptft.architecture import GPTConfig
from gptft.formats.families.common import (
    THEIRS,
    Family,
    Place,
    activation,
    boolean,
    positive_number,
    required_size,
    unsupported,
    whole_number,
)

GPT2_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def read(hf: dict, source: str) -> dict:
    for key, value in GPT2_FIXED.items():
        if hf.get(key, value) != value:
            raise unsupported(source, key, hf[key], repr(value))
    return {
        "vocab_size": required_size(hf, "vocab_size", source),
        "block_size": required_size(hf, "n_positions" if "n_positions" in hf else "n_ctx", source),
        "n_layer": required_size(hf, "n_layer", source),
        "n_head": required_size(hf, "n_head", source),
        "n_embd": required_size(hf, "n_embd", source),
        "n_inner": whole_number(hf, "n_inner", 0, source),
        "norm_eps": positive_number(hf, "layer_norm_epsilon", 1e-5, source),
        "activation": activation(hf, "activation_function", "gelu_new", source),
        "tie_embeddings": boolean(hf, "tie_word_embeddings", True, source),
    }


def write(config: GPTConfig) -> dict:
    activation = {**THEIRS, "gelu_tanh": "gelu_new"}[config.activation]
    return {
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": activation,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def places_of(config: GPTConfig) -> list[Place]:
    places = [Place("wte.weight", ("tok.weight",)), Place("wpe.weight", ("pos.weight",))]
    for part in ("weight", "bias"):
        places.append(Place(f"ln_f.{part}", (f"norm.{part}",)))
        for n in range(config.n_layer):
            theirs, ours = f"h.{n}", f"blocks.{n}"
            places += [
                Place(f"{theirs}.ln_1.{part}", (f"{ours}.norm1.{part}",)),
                Place(f"{theirs}.ln_2.{part}", (f"{ours}.norm2.{part}",)),
                Place(f"{theirs}.attn.c_attn.{part}", tuple(f"{ours}.attn.{x}.{part}" for x in "qkv"), True),
                Place(f"{theirs}.attn.c_proj.{part}", (f"{ours}.attn.out.{part}",), True),
                Place(f"{theirs}.mlp.c_fc.{part}", (f"{ours}.mlp.up.{part}",), True),
                Place(f"{theirs}.mlp.c_proj.{part}", (f"{ours}.mlp.down.{part}",), True),
            ]
    return places


FAMILY = Family("gpt2", "GPT2LMHeadModel", "transformer.", "lm_head.weight", read, write, places_of)
