"""Adapters <-> the files of the PEFT library: `adapter_config.json` and `adapter_model.safetensors`.

GPT-2 and GPT-NeoX have q, k and v in one matrix, and PEFT puts one adapter beside it. Coming in, its A serves all
three of ours and the rows of its B are divided. Going out, three A's are stacked, and the B's stand in the blocks of a
wider one: the same sum, with a rank of its own in `rank_pattern`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptft.adapters.frozen import LAYERS, linear_layers
from gptft.adapters.lora import LoraConfig
from gptft.architecture import GPTConfig
from gptft.errors import UserError
from gptft.files import read_json
from gptft.formats.families import Place, config_to_hf
from gptft.formats.tensors import Stored, read_bin, read_safetensors
from gptft.model import GPT

TEMPLATE = "gptft_template.json"
PREFIX = "base_model.model."  # in front of every name that PEFT writes
ADAPTER_TENSORS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "m"}
# settings of PEFT that change what is computed, and the values with which nothing changes
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    # others change the base when the adapters are attached to it
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


def is_peft(directory: Path) -> bool:
    """Whether a directory has PEFT's layout."""
    return (directory / "adapter_config.json").exists()


def peft_base(directory: Path) -> str:
    """What the adapters' base is called by their `adapter_config.json`; empty where it does not say."""
    return read_json(directory / "adapter_config.json").get("base_model_name_or_path") or ""


def layer_places(config: GPTConfig) -> dict[str, Place]:
    """Their linear layers in the blocks by name, family's prefix included -> the layers of ours that each holds."""
    layers = {f"{part}.{name}" for part, names in LAYERS.items() for name in names}
    family, _ = config_to_hf(config)
    places = {}
    for place in family.places(config):
        ours = tuple(name.removesuffix(".weight") for name in place.ours)
        if place.theirs.endswith(".weight") and ".".join(ours[0].split(".")[2:]) in layers:
            name = family.prefix + place.theirs.removesuffix(".weight")
            places[name] = Place(name, ours, place.transposed, place.heads)
    return places


# ---- in


def read_peft(directory: Path, model: GPT) -> tuple[LoraConfig, dict[str, Tensor]]:
    """PEFT's adapters for `model` as ours: their settings, and the tensors under the names of `lora_state`. Layers that
    PEFT left alone are not among them.

    The rank is the largest of any layer, smaller ones are filled up with zeros; a layer whose scale is not that of the
    settings has it multiplied into B. Raises UserError for a setting that we do not compute, and for a tensor that is
    missing, unexpected or misshapen.
    """
    source = directory / "adapter_config.json"
    values = read_json(source)
    for key, plain in PLAIN.items():
        if values.get(key, plain[0]) not in plain:
            raise UserError(f"{source}: {key} = {values[key]!r} is not supported; only {plain[0]!r} is")
    dora, rslora = bool(values.get("use_dora")), bool(values.get("use_rslora"))
    alpha, dropout = _number(values, "lora_alpha", 8, source), _number(values, "lora_dropout", 0, source)
    adapters: dict[str, dict[str, Tensor]] = {}
    for stored in read_adapter_file(directory):
        module, part = _split_name(stored.name)
        if part is None:
            raise UserError(f"{directory}: unexpected tensor {stored.name!r}")
        adapters.setdefault(module, {})[part] = stored.read_all().float()
    places, layers = layer_places(model.config), {path: layer for path, _, _, layer in linear_layers(model)}
    divided: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for module, parts in adapters.items():
        if module not in places:
            raise UserError(f"{directory}: adapters beside {module!r}, which is no linear layer of this model's blocks")
        for part in ("A", "B", "m") if dora else ("A", "B"):
            if part not in parts or parts[part].dim() < (1 if part == "m" else 2):
                raise UserError(f"{directory}: the adapter of {module!r} lacks its {part}")
        rank = len(parts["A"])
        if rank != _pattern(values, "rank_pattern", module, "r", 8, source):
            raise UserError(f"{directory}: the adapter of {module!r} has rank {rank}, the settings say another")
        scale = _pattern(values, "alpha_pattern", module, "lora_alpha", 8, source)
        parts["B"] *= scale / (math.sqrt(rank) if rslora else rank)
        divided |= _divide(places[module], parts, layers, f"{directory}: {module!r}")
    if not divided:
        raise UserError(f"{directory}: it holds no adapters")
    targets = tuple(sorted({path.rpartition(".")[2] for path in divided}))
    config = LoraConfig(max(len(A) for A, _, _ in divided.values()), alpha, targets, rslora, dropout, dora)
    state = {}
    for path, (A, B, m) in divided.items():
        spare = config.rank - len(A)  # pairs of zeros change nothing
        state[f"{path}.A"] = torch.cat([A, A.new_zeros(spare, A.size(1))])
        state[f"{path}.B"] = torch.cat([B, B.new_zeros(len(B), spare)], dim=1) / config.scale
        if m is not None:
            state[f"{path}.m"] = m.contiguous()
    return config, state


def read_adapter_file(directory: Path) -> Iterator[Stored]:
    """The tensors of `adapter_model.safetensors` or `adapter_model.bin`."""
    for name, read in (("adapter_model.safetensors", read_safetensors), ("adapter_model.bin", read_bin)):
        if (directory / name).exists():
            return read(directory / name)
    raise UserError(f"{directory}: no adapter_model.safetensors and no adapter_model.bin")


def _split_name(name: str) -> tuple[str, str | None]:
    """`base_model.model.transformer.h.0.attn.c_attn.lora_A.weight` -> (transformer.h.0.attn.c_attn, A)."""
    for ending, part in ADAPTER_TENSORS.items():
        if name.endswith(f".{ending}"):
            return name.removeprefix(PREFIX).removesuffix(f".{ending}"), part
    return name, None


def _number(values: dict, key: str, default: float, source: Path) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{source}: {key} must be a number, not {value!r}")
    return float(value)


def _pattern(values: dict, key: str, module: str, otherwise: str, default: float, source: Path) -> float:
    """What `rank_pattern` or `alpha_pattern` says of a module, by regular expressions for the end of its name; else the
    setting that is called `otherwise`."""
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{source}: {key} must be an object, not {patterns!r}")
    for pattern in patterns:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return _number(patterns, pattern, default, source)
        except re.error:
            raise UserError(f"{source}: {key}: {pattern!r} is no regular expression") from None
    return _number(values, otherwise, default, source)


def _divide(place: Place, parts: dict[str, Tensor], layers: dict, where: str) -> dict[str, tuple]:
    """The adapter of one of their layers divided among ours: {path: (A, B, m or None)}."""
    n_in, n_out = layers[place.ours[0]].in_features, sum(layers[path].out_features for path in place.ours)
    A, B, m = parts["A"], parts["B"], parts.get("m")
    if tuple(A.shape) != (len(A), n_in) or tuple(B.shape) != (n_out, len(A)) or (m is not None and m.numel() != n_out):
        raise UserError(f"{where}: A {tuple(A.shape)} and B {tuple(B.shape)} do not fit a layer of {n_in} to {n_out}")
    lengths = [None] * len(place.ours) if m is None else place.split_rows(m.flatten())
    blocks = place.split_rows(B)
    used = torch.stack([(b != 0).any(0) for b in blocks])  # (layers of ours, rank)
    if not used.any() or (used.sum(0) > 1).any():  # otherwise A's were stacked: each block reads its own and no other's
        used[:] = True
    divided = {}
    for path, b, kept, length in zip(place.ours, blocks, used, lengths, strict=True):
        divided[path] = (A[kept], b[:, kept], length)
    return divided


# ---- out
