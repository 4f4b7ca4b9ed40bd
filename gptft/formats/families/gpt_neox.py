"""GPT-NeoX and Pythia: partial rotary positions, parallel residual, q, k and v side by side head by head."""

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
    rotary_settings,
    write_rotary,
)


def read(hf: dict, source: str) -> dict:
    biased = boolean(hf, "attention_bias", True, source)
    return {
        "vocab_size": required_size(hf, "vocab_size", source),
        "block_size": required_size(hf, "max_position_embeddings", source),
        "n_layer": required_size(hf, "num_hidden_layers", source),
        "n_head": required_size(hf, "num_attention_heads", source),
        "n_embd": required_size(hf, "hidden_size", source),
        "n_inner": required_size(hf, "intermediate_size", source),
        **rotary_settings(hf, source, partial=0.25),
        "norm_eps": positive_number(hf, "layer_norm_eps", 1e-5, source),
        "activation": activation(hf, "hidden_act", "gelu", source),
        "qkv_bias": biased,
        "out_bias": biased,
        "parallel_residual": boolean(hf, "use_parallel_residual", True, source),
        "tie_embeddings": boolean(hf, "tie_word_embeddings", False, source),
    }


def write(config: GPTConfig) -> dict:
    return {
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": {**THEIRS, "gelu_tanh": "gelu_new"}[config.activation],
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": config.rope_fraction,
        "rotary_emb_base": config.rope_theta,
        "rope_scaling": write_rotary(config)["rope_scaling"],
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def places_of(config: GPTConfig) -> list[Place]:
    places = [Place("embed_in.weight", ("tok.weight",))]
    for part in ("weight", "bias"):
        places.append(Place(f"final_layer_norm.{part}", (f"norm.{part}",)))
        for n in range(config.n_layer):
            theirs, ours = f"layers.{n}", f"blocks.{n}"
            qkv = tuple(f"{ours}.attn.{x}.{part}" for x in "qkv")
            attention = [
                Place(f"{theirs}.attention.query_key_value.{part}", qkv, heads=config.n_head),
                Place(f"{theirs}.attention.dense.{part}", (f"{ours}.attn.out.{part}",)),
            ]
            places += attention if part == "weight" or config.qkv_bias else []
            places += [
                Place(f"{theirs}.input_layernorm.{part}", (f"{ours}.norm1.{part}",)),
                Place(f"{theirs}.post_attention_layernorm.{part}", (f"{ours}.norm2.{part}",)),
                Place(f"{theirs}.mlp.dense_h_to_4h.{part}", (f"{ours}.mlp.up.{part}",)),
                Place(f"{theirs}.mlp.dense_4h_to_h.{part}", (f"{ours}.mlp.down.{part}",)),
            ]
    return places


FAMILY = Family("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", "embed_out.weight", read, write, places_of)
