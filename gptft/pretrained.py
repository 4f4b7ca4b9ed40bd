"""Hugging Face checkpoints -> our parameters, strictly: every tensor is placed, none is left over or misshapen.

Weights are streamed: the model is allocated once, in the dtype that is asked for, and filled piece by piece, so that
the peak of memory is the model and one piece.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptft.architecture import GPTConfig
from gptft.families import FAMILIES, Family, Place, config_from_hf
from gptft.files import UserError, need_extra, read_json
from gptft.hf_tokenizer import has_tokenizer, read_hf_tokenizer
from gptft.model import GPT
from gptft.tokenizer import Tokenizer, gpt2

PIECE = 2**23  # bytes of a tensor that are read at a time, or a hundredth of the file where that is more
# prefixes that wrappers leave in front of names
WRAPPER = re.compile(r"^(?:_orig_mod\.|module\.|_fsdp_wrapped_module\.)+")
# buffers of old files that hold no weights: the causal mask, the rotary frequencies
BUFFER = re.compile(r"(?:\.attn|\.attention)\.(?:masked_)?bias$|rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet. `read(start, stop)` gives some of its rows."""

    name: str
    shape: tuple[int, ...]
    itemsize: int  # bytes a number
    read: Callable[[int, int], Tensor]
    at_once: int = PIECE  # bytes

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, row after the last, those rows), so many at a time that a piece stays near `at_once` bytes."""
        n = self.shape[0] if self.shape else 1
        a_row = max(1, self.itemsize * torch.Size(self.shape).numel() // max(n, 1))
        step = max(1, self.at_once // a_row)
        for start in range(0, n, step):
            stop = min(n, start + step)
            yield start, stop, self.read(start, stop)

    def whole(self) -> Tensor:
        return self.read(0, self.shape[0] if self.shape else 1)


def load_hf(directory: Path, dtype: torch.dtype) -> GPT:
    """A GPT with the weights of a local Hugging Face directory, on the CPU, in `dtype`; no weight is ever held in
    another. Missing, extra and misshapen tensors raise UserError by name."""
    hf = read_json(directory / "config.json")
    config = config_from_hf(hf, str(directory / "config.json"))
    family = FAMILIES[hf["model_type"]]
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    model.to_empty(device="cpu")
    ours = dict(model.named_parameters())
    places = {place.theirs: place for place in family.places(config)}
    heads = {family.head, "lm_head.weight"}  # GPT-NeoX's has two names
    if not config.tie_embeddings:
        places["head"] = Place("head", ("lm_head.weight",))
    missing, tied_head = set(places), None
    for stored in tensors(directory):
        name = WRAPPER.sub("", stored.name)
        name = "head" if name in heads else name.removeprefix(family.prefix)
        if name == "head" and config.tie_embeddings:
            tied_head = stored
        elif name in places:
            _fill(places[name], stored, ours, directory)
            missing.discard(name)
        elif not BUFFER.search(name):
            raise UserError(f"{directory}: unexpected tensor {stored.name!r}")
    if missing:
        raise UserError(f"{directory}: the tensor {_their_name(min(missing), family)!r} is missing")
    if tied_head is not None:
        _check_tied(tied_head, ours["tok.weight"], directory)
    return model


def _their_name(name: str, family: Family) -> str:
    return family.head if name == "head" else family.prefix + name


@torch.no_grad()
def _fill(place: Place, stored: Stored, ours: dict[str, Tensor], directory: Path) -> None:
    """Copy a stored tensor to its place, or its places, in our parameters."""
    wanted = [tuple(ours[name].shape) for name in place.ours]
    if len(place.ours) == 1 and not place.transposed:
        if stored.shape != wanted[0]:
            raise _misshapen(directory, stored, place, [stored.shape], wanted)
        for start, stop, piece in stored.pieces():
            ours[place.ours[0]][start:stop].copy_(piece)
        return
    try:
        parts = place.split(stored.whole())
    except RuntimeError:
        parts = []
    if [tuple(part.shape) for part in parts] != wanted:
        raise _misshapen(directory, stored, place, [tuple(part.shape) for part in parts], wanted)
    for name, part in zip(place.ours, parts, strict=True):
        ours[name].copy_(part)


def _misshapen(directory: Path, stored: Stored, place: Place, found: list, wanted: list) -> UserError:
    gives = f", which gives {found[0]} for {place.ours[0]}" if found else ", which cannot be divided"
    return UserError(
        f"{directory}: tensor {stored.name!r} has shape {tuple(stored.shape)}{gives}; the config asks for {wanted[0]}"
    )


def _check_tied(head: Stored, embedding: Tensor, directory: Path) -> None:
    """A head that is stored although it is the embedding must be the embedding."""
    same = head.shape == tuple(embedding.shape) and all(
        torch.equal(piece.to(embedding.dtype), embedding[start:stop]) for start, stop, piece in head.pieces()
    )
    if not same:
        raise UserError(f"{directory}: tie_word_embeddings is true, yet {head.name} differs from the embedding")


def tensors(directory: Path) -> Iterator[Stored]:
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
            files = sorted(set(weight_map.values()))
            for file in files:
                if not (directory / file).is_file():
                    raise UserError(f"{directory}: the shard {file!r}, named in the index, is absent")
            for file in files:
                yield from read(directory / file)
            return
    raise UserError(f"{directory}: no model.safetensors, no index of its shards and no pytorch_model.bin")


def read_safetensors(path: Path) -> Iterator[Stored]:
    """Every tensor of a safetensors file. Raises UserError for a file that is not whole."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise need_extra("safetensors", "hf", "reading .safetensors files") from None

    def reader(name: str, scalar: bool) -> Callable[[int, int], Tensor]:
        def read(start: int, stop: int) -> Tensor:
            # opened anew for each piece: the file is mapped, and what was read would stay in memory with it
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name) if scalar else file.get_slice(name)[start:stop]

        return read

    try:
        with safe_open(path, framework="pt") as file:
            found = []
            for name in file.keys():  # noqa: SIM118 - it is no dict
                part = file.get_slice(name)
                size = {"F64": 8, "I64": 8, "F32": 4}.get(part.get_dtype(), 2)
                found.append((name, tuple(part.get_shape()), size))
        for name, shape, size in found:
            yield Stored(name, shape, size, reader(name, not shape), max(PIECE, path.stat().st_size // 100))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def read_bin(path: Path) -> Iterator[Stored]:
    """Every tensor of a file that torch.save wrote; code in it is not run. Raises UserError."""
    mapped = zipfile.is_zipfile(path)  # before torch 1.6 it wrote files that cannot be

    def load() -> dict:
        # weights_only: a pickle may hold code, and a checkpoint is never code
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    def reader(name: str, value: Tensor | None) -> Callable[[int, int], Tensor]:
        def read(start: int, stop: int) -> Tensor:
            tensor = value if value is not None else load()[name]  # opened anew for each piece, as above
            return tensor[start:stop] if tensor.dim() else tensor

        return read

    try:
        values = load()
    except Exception as error:  # pickle, zip and runtime errors all come out of a broken file
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if isinstance(error, pickle.UnpicklingError):
            what = "a pickle that is damaged, or holds other things than tensors: code is never run"
        raise UserError(f"{path}: cannot be loaded as weights ({what})") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{path}: cannot be loaded as weights (it holds something else than tensors by name)")
    at_once = max(PIECE, path.stat().st_size // 100)
    stored = [
        Stored(name, tuple(value.shape), value.element_size(), reader(name, None if mapped else value), at_once)
        for name, value in values.items()
    ]
    del values
    yield from stored


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


def download(hub_id: str) -> Path:
    """The local directory of a hub id, fetched with huggingface_hub, or found in its cache without a network."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise need_extra("huggingface_hub", "hf", f"the hub id {hub_id!r}") from None
    patterns = ["*.json", "chat_template.jinja", "merges.txt", "*.safetensors"]
    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=patterns))
        if not any(directory.glob("*.safetensors")):
            directory = Path(snapshot_download(hub_id, allow_patterns=["pytorch_model*", *patterns]))
        return directory
    except GatedRepoError:
        raise UserError(f"{hub_id!r} is gated: ask for access on its page and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id!r} is no local directory, no preset and no repository on the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{hub_id!r} is not in the local cache and the hub cannot be reached") from None
    except Exception as error:  # whatever else a network can do
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{hub_id!r} cannot be downloaded ({type(error).__name__}: {first})") from None
