"""A model's adapters as the files of the PEFT library."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from gptft.adapters.frozen import dense, linear_layers
from gptft.adapters.lora import LoraLinear, adapters_of
from gptft.errors import UserError, need_extra
from gptft.files import new_directory
from gptft.formats.families import Place, config_to_hf
from gptft.formats.peft import ADAPTER_TENSORS, PREFIX, TEMPLATE, layer_places
from gptft.model import GPT


def save_peft(model: GPT, directory: Path, base: str = "", template: dict | None = None) -> None:
    """Write the adapters of a model as PEFT's files, whole or not at all. `base`: what PEFT is to load them on; empty:
    what they were trained on. `template` goes into a file that PEFT leaves alone and we read again, so that inference
    sends what was trained. Raises UserError for a directory that exists."""
    lora = adapters_of(model)
    if lora is None:
        raise UserError("the model has no adapters: only they can be written in PEFT's format")
    if directory.exists():
        raise UserError(f"{directory} exists already: name another place for the adapters")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise need_extra("safetensors", "hf", "writing .safetensors files") from None
    config, tensors = lora.config, {}
    ranks, alphas, targets = {}, {}, set()
    layers = {path: layer for path, _, _, layer in linear_layers(model)}
    for module, place in layer_places(model.config).items():
        ours = [layers[path] for path in place.ours]
        if not any(isinstance(layer, LoraLinear) for layer in ours):
            continue
        parts = _join(place, ours)
        target = ".".join(module.split(".")[-2:])  # GPT-2 has a c_proj in attention and another in the MLP
        targets.add(target)
        if len(parts["A"]) != config.rank:
            ranks[target] = len(parts["A"])
            alphas[target] = config.scale * (math.sqrt(ranks[target]) if config.rslora else ranks[target])
        for ending, part in ADAPTER_TENSORS.items():
            if part in parts:
                tensors[f"{PREFIX}{module}.{ending}"] = parts[part].detach().float().cpu().contiguous()
    family, _ = config_to_hf(model.config)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "base_model_name_or_path": base or (lora.base.name if lora.base else None),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "target_modules": sorted(targets),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": family.model_type == "gpt2",
    }
    with new_directory(directory) as temporary:
        try:
            save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk is one too
            raise OSError(str(error)) from None
        (temporary / "adapter_config.json").write_text(json.dumps(values, indent=1))
        if template:
            (temporary / TEMPLATE).write_text(json.dumps(template, indent=1))


def _join(place: Place, ours: list) -> dict[str, Tensor]:
    """The adapters of our layers as one for theirs. A layer without one counts as an adapter of zeros."""
    given = [layer for layer in ours if isinstance(layer, LoraLinear)]
    A, n = given[0].A, len(given)
    shared = all(torch.equal(layer.A, A) for layer in given)  # as they are when they came from PEFT
    rank = len(A) if shared else n * len(A)
    blocks, lengths = [], []
    for layer in ours:
        block = A.new_zeros(layer.base.out_features if layer in given else layer.out_features, rank)
        if layer in given:
            first = 0 if shared else given.index(layer) * len(A)
            block[:, first : first + len(A)] = layer.B.detach()
        blocks.append(block)
        if given[0].m is not None:
            lengths.append(layer.m.detach() if layer in given else dense(layer, A.dtype).norm(dim=1))
    parts = {"A": A if shared else torch.cat([layer.A for layer in given]), "B": place.join_rows(blocks)}
    return {**parts, "m": place.join_rows(lengths)} if lengths else parts
