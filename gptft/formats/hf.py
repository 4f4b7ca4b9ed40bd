"""Hugging Face checkpoints -> our parameters, strictly: every tensor is placed, none is left over or misshapen.

Weights are streamed: the model is allocated once, in the dtype that is asked for, and filled piece by piece, so that
the peak of memory is the model and one piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptft.architecture import GPTConfig
from gptft.errors import UserError
from gptft.files import read_json
from gptft.formats.families import FAMILIES, Family, Place, all_places, config_from_hf
from gptft.formats.hf_tokenizer import has_tokenizer, read_hf_tokenizer
from gptft.formats.tensors import (
    SAFETENSORS_DTYPES,
    Part,
    Piece,
    Stored,
    Weights,
    as_stored,
    held_against,
    read_bin,
    read_safetensors,
)
from gptft.model import GPT
from gptft.tokenizer import Tokenizer, gpt2

# prefixes that wrappers leave in front of names
WRAPPER = re.compile(r"^(?:_orig_mod\.|module\.|_fsdp_wrapped_module\.)+")
# buffers of old files that hold no weights: the causal mask, the rotary frequencies
BUFFER = re.compile(r"(?:\.attn|\.attention)\.(?:masked_)?bias$|rotary_emb\.inv_freq$")


def load_hf(directory: Path, dtype: torch.dtype) -> GPT:
    """A GPT with the weights of a local Hugging Face directory, on the CPU, in `dtype`; no weight is ever held in
    another. Raises UserError."""
    model, weights = open_hf(directory, dtype)
    return weights.fill(model.to_empty(device="cpu"))


def open_hf(directory: Path, dtype: torch.dtype) -> tuple[GPT, Weights]:
    """A GPT in `dtype` on the "meta" device, and its weights in a local Hugging Face directory, not read yet. Missing,
    extra, doubled and misshapen tensors raise UserError by name."""
    hf = read_json(directory / "config.json")
    config = config_from_hf(hf, str(directory / "config.json"))
    family, stored = FAMILIES[hf["model_type"]], list(stored_in(directory))
    if config.n_layer > len(stored):  # said before so many layers are built
        raise UserError(f"{directory}: {config.n_layer} layers in config.json, {len(stored)} tensors in the files")
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    places = {place.theirs: place for place in all_places(family, config)}
    placed, tied_head = _find_places(places, family, config, stored, directory)
    ours = dict(model.named_parameters())
    for name, tensor in placed.items():
        due = tuple(places[name].join([ours[part] for part in places[name].ours]).shape)
        if tensor.shape != due:
            raise UserError(f"{directory}: tensor {tensor.name!r} has shape {tensor.shape}; the config asks for {due}")
    parts = [_part(places[name], tensor, ours) for name, tensor in placed.items()]
    if tied_head is not None:
        differs = f"{directory}: tie_word_embeddings is true, yet {tied_head.name} differs from the embedding"
        parts = [held_against(p, tied_head, dtype, differs) if "tok.weight" in p.shapes else p for p in parts]
    return model, Weights(parts, dtype)


def _find_places(
    places: dict[str, Place], family: Family, config: GPTConfig, stored: list[Stored], directory: Path
) -> tuple[dict[str, Stored], Stored | None]:
    """-> ({place: its tensor}, a head that is stored although it is the embedding). Names may lack the family's
    prefix, as GPT-2's on the hub do, and GPT-NeoX's head has two."""
    placed: dict[str, Stored] = {}
    for tensor in stored:
        name = WRAPPER.sub("", tensor.name)
        name = family.head if name == "lm_head.weight" else name
        if name not in places and name != family.head:
            name = family.prefix + name
        if name not in places and name != family.head:
            if BUFFER.search(name):
                continue
            raise UserError(f"{directory}: unexpected tensor {tensor.name!r}")
        if name in placed:
            raise UserError(f"{directory}: tensor {tensor.name!r} is there twice, also as {placed[name].name!r}")
        if tensor.dtype not in SAFETENSORS_DTYPES:
            raise UserError(f"{directory}: tensor {tensor.name!r} is of type {tensor.dtype}, which is not supported")
        placed[name] = tensor
    missing = places.keys() - placed.keys()
    if missing:
        raise UserError(f"{directory}: the tensor {min(missing)!r} is missing")
    return placed, placed.pop(family.head, None) if config.tie_embeddings else None


def _part(place: Place, tensor: Stored, ours: dict[str, Tensor]) -> Part:
    """Our tensors that are in a stored one."""
    if len(place.ours) == 1 and not place.transposed:
        return as_stored(place.ours[0], tensor)

    def read(_) -> Iterator[Piece]:
        for name, rows in zip(place.ours, place.split(tensor.read_all()), strict=True):
            yield name, 0, len(rows), rows

    return Part({name: tuple(ours[name].shape) for name in place.ours}, read)


def stored_in(directory: Path) -> Iterator[Stored]:
    """Every tensor of `model.safetensors`, its sharded form, or `pytorch_model.bin`, single or sharded."""
    for stem, ending, read in (("model", "safetensors", read_safetensors), ("pytorch_model", "bin", read_bin)):
        single, index = directory / f"{stem}.{ending}", directory / f"{stem}.{ending}.index.json"
        if single.exists():
            yield from read(single)
            return
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise UserError(f"{index}: it has no weight_map that says which shard holds a tensor")
            for file in weight_map.values():
                if not isinstance(file, str) or Path(file).name != file:  # nor one in another directory
                    raise UserError(f"{index}: weight_map names {file!r}, which is no file of this directory")
            files = sorted(set(weight_map.values()))
            for file in files:
                if not (directory / file).is_file():
                    raise UserError(f"{directory}: the shard {file!r}, named in the index, is absent")
            for file in files:
                yield from read(directory / file)
            return
    raise UserError(f"{directory}: no model.safetensors, no index of its shards and no pytorch_model.bin")


def is_hf(directory: Path) -> bool:
    """Whether a directory has Hugging Face's layout."""
    path = directory / "config.json"
    return path.exists() and "model_type" in read_json(path)


def hf_tokenizer(directory: Path, config: GPTConfig) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory: from its own files; without any, GPT-2's for a model with GPT-2's
    vocabulary size, else None."""
    if has_tokenizer(directory):
        return read_hf_tokenizer(directory)
    return gpt2() if config.vocab_size == 50257 else None
