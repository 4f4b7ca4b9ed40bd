"""Llama and its kin: Mistral, Qwen2, Qwen3, SmolLM. Rotary positions, RMSNorm, gated MLP, separate q, k and v."""

from __future__ import annotations

from collections.abc import Callable

from gptft.architecture import GPTConfig
from gptft.errors import UserError
from gptft.formats.families.common import (
    THEIRS,
    Family,
    Place,
    activation,
    boolean,
    positive_number,
    required_size,
    rotary_settings,
    unsupported,
    whole_number,
    write_rotary,
)


def read(hf: dict, source: str, theta: float = 10000.0, tied: bool = False) -> dict:
    """What Llama, Mistral, Qwen and SmolLM have in common; `theta` and `tied` are a family's defaults."""
    return {
        "vocab_size": required_size(hf, "vocab_size", source),
        "block_size": required_size(hf, "max_position_embeddings", source),
        "n_layer": required_size(hf, "num_hidden_layers", source),
        "n_head": required_size(hf, "num_attention_heads", source),
        "n_kv_head": whole_number(hf, "num_key_value_heads", 0, source),
        "n_embd": required_size(hf, "hidden_size", source),
        "head_size": whole_number(hf, "head_dim", 0, source),
        "n_inner": required_size(hf, "intermediate_size", source),
        **rotary_settings(hf, source, theta),
        "norm": "rms",
        "norm_eps": positive_number(hf, "rms_norm_eps", 1e-6, source),
        "activation": activation(hf, "hidden_act", "silu", source),
        "gated_mlp": True,
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "tie_embeddings": boolean(hf, "tie_word_embeddings", tied, source),
    }


def _biases(hf: dict, source: str) -> dict:
    """The keys for biases that Llama and SmolLM3 have."""
    biased = boolean(hf, "attention_bias", False, source)
    return {"qkv_bias": biased, "out_bias": biased, "mlp_bias": boolean(hf, "mlp_bias", False, source)}


def _windows(hf: dict, source: str, windowed: Callable[[int], bool]) -> dict:
    """`layer_types`, or where it is absent the family's own rule for which layers are windowed, as our fields."""
    n_layer, kinds = required_size(hf, "num_hidden_layers", source), hf.get("layer_types")
    on = boolean(hf, "use_sliding_window", False, source) and hf.get("sliding_window")
    if kinds is None:
        kinds = ["sliding_attention" if on and windowed(n) else "full_attention" for n in range(n_layer)]
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise UserError(f"{source}: layer_types must have an entry for each of {n_layer} layers, not {kinds!r}")
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise unsupported(source, "layer_types", kind)
    if not on:
        if "sliding_attention" in kinds:
            raise unsupported(source, "layer_types", kinds, "'full_attention' without a sliding_window")
        return {}
    full = tuple(n for n, kind in enumerate(kinds) if kind == "full_attention")
    return {"window": required_size(hf, "sliding_window", source), "full_layers": full} if len(full) < n_layer else {}


def read_mistral(hf: dict, source: str) -> dict:
    kinds = hf.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "sliding_attention" for kind in kinds):
        raise unsupported(source, "layer_types", kinds)
    seen = {"sliding_window": 4096, **hf}
    window = 0 if seen["sliding_window"] is None else required_size(seen, "sliding_window", source)
    return {**read(hf, source), "window": window}


def _windows_qwen(hf: dict, source: str) -> dict:
    first = whole_number(hf, "max_window_layers", 28, source)
    return _windows({"sliding_window": 4096, **hf}, source, lambda n: n >= first)


def read_qwen2(hf: dict, source: str) -> dict:
    return {**read(hf, source), "qkv_bias": True, **_windows_qwen(hf, source)}


def read_qwen3(hf: dict, source: str) -> dict:
    biased = boolean(hf, "attention_bias", False, source)
    return {
        **read({"head_dim": 128, **hf}, source),
        "qk_norm": True,
        "qkv_bias": biased,
        "out_bias": biased,
        **_windows_qwen(hf, source),
    }


def read_smollm3(hf: dict, source: str) -> dict:
    n_layer = required_size(hf, "num_hidden_layers", source)
    every = required_size({"no_rope_layer_interval": 4, **hf}, "no_rope_layer_interval", source)
    # in spite of its name, the list says 1 for a layer with rotary positions and 0 for one without
    rotated = hf.get("no_rope_layers") or [int((n + 1) % every != 0) for n in range(n_layer)]
    if not isinstance(rotated, list) or len(rotated) != n_layer or not {*map(str, rotated)} <= {"0", "1"}:
        raise UserError(f"{source}: no_rope_layers must have a 0 or 1 for each of {n_layer} layers, not {rotated!r}")
    return {
        **read(hf, source, 2e6, tied=True),
        **_biases(hf, source),
        **_windows(hf, source, lambda n: not rotated[n]),
        "no_rope_layers": tuple(n for n, has in enumerate(rotated) if not has),
    }


def write(config: GPTConfig) -> dict:
    return {
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "hidden_size": config.n_embd,
        "head_dim": config.head_size,
        "intermediate_size": config.n_inner,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": THEIRS[config.activation],
        "attention_bias": config.qkv_bias and config.out_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": 0.0,
        **write_rotary(config),
    }


def write_windows(config: GPTConfig) -> dict:
    kinds = ["sliding_attention" if config.sliding_window_of(n) else "full_attention" for n in range(config.n_layer)]
    return {
        **write(config),
        "use_sliding_window": bool(config.window),
        "sliding_window": config.window or None,
        "max_window_layers": config.n_layer,
        "layer_types": kinds,
    }


def write_smollm3(config: GPTConfig) -> dict:
    rotary = [int(n not in config.no_rope_layers) for n in range(config.n_layer)]
    return {**write_windows(config), "no_rope_layers": rotary}


def places_of(config: GPTConfig) -> list[Place]:
    biased = {"q": config.qkv_bias, "k": config.qkv_bias, "v": config.qkv_bias, "out": config.out_bias}
    places = [Place("embed_tokens.weight", ("tok.weight",)), Place("norm.weight", ("norm.weight",))]
    for n in range(config.n_layer):
        theirs, ours = f"layers.{n}", f"blocks.{n}"
        places += [
            Place(f"{theirs}.input_layernorm.weight", (f"{ours}.norm1.weight",)),
            Place(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.norm2.weight",)),
        ]
        if config.qk_norm:
            places += [Place(f"{theirs}.self_attn.{x}_norm.weight", (f"{ours}.attn.{x}_norm.weight",)) for x in "qk"]
        for name in ("q", "k", "v", "out"):
            for part in ("weight", "bias") if biased[name] else ("weight",):
                their_name = f"{theirs}.self_attn.{'o' if name == 'out' else name}_proj.{part}"
                places.append(Place(their_name, (f"{ours}.attn.{name}.{part}",)))
        for name in ("gate", "up", "down"):
            for part in ("weight", "bias") if config.mlp_bias else ("weight",):
                places.append(Place(f"{theirs}.mlp.{name}_proj.{part}", (f"{ours}.mlp.{name}.{part}",)))
    return places


def read_llama(hf: dict, source: str) -> dict:
    return {**read(hf, source), **_biases(hf, source)}


def write_mistral(config: GPTConfig) -> dict:
    return {**write(config), "sliding_window": config.window or None}


FAMILIES = [
    Family(model_type, architecture, "model.", "lm_head.weight", reads, writes, places_of)
    for model_type, architecture, reads, writes in (
        ("llama", "LlamaForCausalLM", read_llama, write),
        ("mistral", "MistralForCausalLM", read_mistral, write_mistral),
        ("qwen2", "Qwen2ForCausalLM", read_qwen2, write_windows),
        ("qwen3", "Qwen3ForCausalLM", read_qwen3, write_windows),
        ("smollm3", "SmolLM3ForCausalLM", read_smollm3, write_smollm3),
    )
]
