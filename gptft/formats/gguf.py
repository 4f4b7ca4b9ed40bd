"""Models in GGUF files, as llama.cpp, Ollama and LM Studio have them.

The architecture comes from the file's own settings; a setting that is not known, and might change the arithmetic, is
refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from gptft.architecture import GPTConfig
from gptft.errors import UserError
from gptft.formats.families import config_from_hf
from gptft.formats.gguf_file import GGUFFile
from gptft.formats.gguf_names import (
    EMBEDDING,
    FAMILY_OF,
    HEAD,
    NEIGHBOURS,
    OWN_CONFIG,
    Entry,
    entries_of,
    settings_of,
    slowing,
)
from gptft.formats.tensors import Part, Piece, Stored, Weights, held_against
from gptft.model import GPT

NEAR = 1e-5  # between two ways to compute the same fp32 numbers
# An architecture's settings that change nothing here, or are told by others
SILENT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
# ... and those that change nothing at these values
HARMLESS = {
    "rope.scaling.type": ("none", ""),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (1,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
}
# Llama 3.1's and 3.2's stretching of the rotary frequencies: (low, high, original context). A file holds the outcome.
STRETCHED = ((1.0, 4.0, 8192),)


def open_gguf(file: GGUFFile, dtype: torch.dtype) -> tuple[GPT, Weights]:
    """A GPT in `dtype` on the "meta" device, and its weights in a GGUF file, not read yet. Missing, extra and misshapen
    tensors raise UserError by name."""
    arch, config = read_config(file)
    if config.n_layer > len(file.tensors):  # said before so many layers are built
        raise UserError(f"{file.path}: {config.n_layer:,} layers in its settings, {len(file.tensors):,} tensors")
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    entries = _entries_in(file, model, arch)
    _check_tensors(file, entries)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = []
    for entry in entries:
        if not entry.made:
            shapes = {names[id(part)]: tuple(part.shape) for part in entry.parts}
            parts.append(Part(shapes, partial(_read, file.tensors[entry.name], shapes, entry.heads)))
        elif entry.name != HEAD and entry.name in file.tensors:
            _check_made(file, entry, file.tensors[entry.name])
    if config.tie_embeddings and HEAD in file.tensors:
        differs = f"{file.path}: the tensor {HEAD!r} is not what the rest of the file asks for"
        parts = [held_against(p, file.tensors[HEAD], dtype, differs) if "tok.weight" in p.shapes else p for p in parts]
    return model, Weights(parts, dtype)


def _read(
    stored: Stored, shapes: dict[str, tuple[int, ...]], heads: int, wanted: dict[str, tuple[int, int]]
) -> Iterator[Piece]:
    """The rows that are wanted of the tensors that a stored one holds, one after the other; with `heads`, in whole
    heads, whose rows lie as neighbours."""
    before = 0
    for name, (n_rows, *_) in shapes.items():
        of = n_rows // heads if heads else 1
        first, last = wanted.get(name, (0, 0))
        first, last = first // of * of, -(-last // of) * of
        for start, stop, rows in stored.pieces(before + first, before + last, of):
            if heads:  # (nh, hs/2, 2, ...) -> (nh, 2, hs/2, ...)
                rows = rows.unflatten(0, (-1, of // 2, 2)).transpose(1, 2).flatten(0, 2)
            yield name, start - before, stop - before, rows
        before += n_rows


def _entries_in(file: GGUFFile, model: GPT, arch: str) -> list[Entry]:
    """`entries_of`, and a head that is stored although it is the embedding, as many files have it."""
    entries = list(entries_of(model, arch))
    doubled = model.config.tie_embeddings and HEAD in file.tensors and all(entry.name != HEAD for entry in entries)
    return [*entries, Entry(HEAD, (model.tok.weight,), made=True)] if doubled else entries


def _is_tied(file: GGUFFile) -> bool:
    """Whether the head is the embedding: there is none, or it holds the same numbers."""
    if HEAD not in file.tensors:
        return True
    head, embedding = file.tensors[HEAD], file.tensors[EMBEDDING]
    return head.shape == embedding.shape and all(
        torch.equal(rows, embedding.read(start, stop)) for start, stop, rows in head.pieces()
    )


def _check_tensors(file: GGUFFile, entries: list[Entry]) -> None:
    due = {entry.name: entry for entry in entries}
    for entry in entries:
        if entry.name not in file.tensors and not entry.made:
            raise UserError(f"{file.path}: the tensor {entry.name!r} is missing")
    for name, tensor in file.tensors.items():
        if name not in due:
            raise UserError(f"{file.path}: unexpected tensor {name!r}")
        if tensor.shape != due[name].shape:
            raise UserError(
                f"{file.path}: tensor {name!r} has shape {tensor.shape}; its settings ask for {due[name].shape}"
            )


def _check_made(file: GGUFFile, entry: Entry, stored: Stored) -> None:
    """A tensor that follows from the rest must be what follows."""
    for start, stop, rows in stored.pieces():
        if not torch.allclose(rows, entry.parts[0][start:stop], rtol=NEAR, atol=0):
            raise UserError(f"{file.path}: the tensor {entry.name!r} is not what the rest of the file asks for")


def read_config(file: GGUFFile) -> tuple[str, GPTConfig]:
    """llama.cpp's name of the architecture, and the architecture. Raises UserError."""
    arch = file.settings.get("general.architecture")
    if not isinstance(arch, str) or arch not in FAMILY_OF:
        raise UserError(f"{file.path}: architecture {arch!r} is not supported; supported: {', '.join(FAMILY_OF)}")
    given = {
        name.removeprefix(f"{arch}."): value
        for name, value in file.settings.items()
        if name.startswith(f"{arch}.") and name.removeprefix(f"{arch}.") not in SILENT
    }
    if OWN_CONFIG in file.settings:
        config = _own_config(file)
    else:
        config = config_from_hf(_as_hf(file, arch, _alike(given)), str(file.path))
    _check_settings(file, arch, config, _alike(given))
    return arch, config


def _own_config(file: GGUFFile) -> GPTConfig:
    source = f"{file.path}, {OWN_CONFIG}"
    try:
        values = json.loads(file.settings[OWN_CONFIG])
    except (ValueError, TypeError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{source}: it is no JSON object")
    return GPTConfig.from_dict(values, source)


def _alike(given: dict) -> dict:
    """A list with a number for each layer, all alike, as that number."""
    return {
        name: value[0].item() if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all() else value
        for name, value in given.items()
    }


def _as_hf(file: GGUFFile, arch: str, given: dict) -> dict:
    """The settings as the `config.json` of the family."""
    has = file.tensors.keys()
    if EMBEDDING not in has:
        raise UserError(f"{file.path}: the tensor {EMBEDDING!r} is missing")
    common = {
        "model_type": FAMILY_OF[arch],
        "vocab_size": file.tensors[EMBEDDING].shape[0],
        "tie_word_embeddings": _is_tied(file),
    }
    if arch == "gpt2":
        return common | {
            "n_positions": given.get("context_length"),
            "n_embd": given.get("embedding_length"),
            "n_layer": given.get("block_count"),
            "n_head": given.get("attention.head_count"),
            "n_inner": given.get("feed_forward_length"),
            "layer_norm_epsilon": given.get("attention.layer_norm_epsilon", 1e-5),
            "activation_function": "gelu_new",
        }
    width, heads = given.get("embedding_length"), given.get("attention.head_count")
    known = type(width) is int and type(heads) is int and heads > 0
    head_size = given.get("attention.key_length", width // heads if known else None)
    shared = common | {
        "max_position_embeddings": given.get("context_length"),
        "num_hidden_layers": given.get("block_count"),
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": given.get("feed_forward_length"),
        "rope_theta": given.get("rope.freq_base", 10000.0),
        "attention_bias": "blk.0.attn_output.bias" in has,
    }
    if arch == "gptneox":
        rotated = given.get("rope.dimension_count")
        sized = type(rotated) is int and type(head_size) is int and head_size
        return shared | {
            "layer_norm_eps": given.get("attention.layer_norm_epsilon"),
            "use_parallel_residual": given.get("use_parallel_residual"),
            "rotary_pct": rotated / head_size if sized else 1.0,
        }
    if arch in ("qwen2", "qwen3"):
        shared.pop("attention_bias")  # qwen2 has its own rule, and qwen3 in llama.cpp none
    return shared | {
        "num_key_value_heads": given.get("attention.head_count_kv", heads),
        "head_dim": head_size,
        "rms_norm_eps": given.get("attention.layer_norm_rms_epsilon"),
        "mlp_bias": "blk.0.ffn_up.bias" in has,
        "rope_scaling": _stretching(file, shared, head_size) if "rope_freqs.weight" in has else None,
    }


def _stretching(file: GGUFFile, hf: dict, head_size: int) -> dict:
    """Which stretching of the rotary frequencies gives what the file's `rope_freqs` holds. Raises UserError."""
    stored, theta = file.tensors["rope_freqs.weight"], hf["rope_theta"]
    if type(head_size) is not int or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise UserError(f"{file.path}: attention.key_length {head_size!r} or rope.freq_base {theta!r} is impossible")
    if stored.shape != (head_size // 2,):
        raise UserError(f"{file.path}: tensor 'rope_freqs.weight' has shape {stored.shape}; not ({head_size // 2},)")
    slowed = stored.read_all()
    for low, high, original in STRETCHED:
        factor = float(slowed.max())
        config = GPTConfig(
            1,
            1,
            n_layer=1,
            n_head=1,
            n_embd=head_size,
            position="rotary",
            rope_theta=theta,
            rope_original=original,
            rope_factor=max(factor, 1.0),
            rope_low=low,
            rope_high=high,
        )
        if torch.allclose(slowing(config), slowed, rtol=NEAR, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UserError(f"{file.path}: rope_freqs.weight stretches the rotary frequencies in a way that is not known")


def _check_settings(file: GGUFFile, arch: str, config: GPTConfig, given: dict) -> None:
    """Every setting of the architecture must be what the config says, or be one that changes nothing."""
    due = settings_of(config, arch)
    if arch in NEIGHBOURS and config.rotary_size != given.get("rope.dimension_count", config.rotary_size):
        raise UserError(
            f"{file.path}: {arch}.rope.dimension_count = {given['rope.dimension_count']!r} is not supported; only the "
            f"whole head ({config.head_size}) is"
        )
    for name, value in given.items():
        if not isinstance(value, int | float | str):  # a list with other numbers for other layers
            same = False
        elif name in due:
            same = not isinstance(value, str) and abs(due[name] - value) <= 1e-6 * abs(due[name])
        else:
            same = value in HARMLESS.get(name, ())
            same |= name == "attention.sliding_window" and not isinstance(value, str) and value >= config.block_size
        if not same:
            raise UserError(f"{file.path}: {arch}.{name} = {value!r} is not supported here, and may change the result")
