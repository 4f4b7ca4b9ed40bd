"""Hugging Face checkpoints -> our parameters, strictly: every tensor is placed, none is left over or misshapen.

Weights are streamed: the model is allocated once, in the dtype that is asked for, and filled piece by piece, so that
the peak of memory is the model and one piece.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptft.architecture import GPTConfig
from gptft.errors import UserError, need_extra
from gptft.files import read_json
from gptft.formats.families import FAMILIES, Family, Place, all_places, config_from_hf
from gptft.formats.hf_tokenizer import has_tokenizer, read_hf_tokenizer
from gptft.model import GPT
from gptft.tokenizer import Tokenizer, gpt2

# what safetensors calls a dtype (github.com/huggingface/safetensors, README.md, "Format")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
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
    dtype: str  # as safetensors calls it
    read: Callable[[int, int], Tensor]
    at_once: int = PIECE  # bytes

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, row after the last, those rows), so many at a time that a piece stays near `at_once` bytes."""
        n = self.shape[0] if self.shape else 1
        a_row = max(1, DTYPES[self.dtype].itemsize * torch.Size(self.shape).numel() // max(n, 1))
        step = max(1, self.at_once // a_row)
        for start in range(0, n, step):
            stop = min(n, start + step)
            yield start, stop, self.read(start, stop)

    def whole(self) -> Tensor:
        return self.read(0, self.shape[0] if self.shape else 1)


def load_hf(directory: Path, dtype: torch.dtype) -> GPT:
    """A GPT with the weights of a local Hugging Face directory, on the CPU, in `dtype`; no weight is ever held in
    another. Missing, extra, doubled and misshapen tensors raise UserError by name, before any memory is taken."""
    hf = read_json(directory / "config.json")
    config = config_from_hf(hf, str(directory / "config.json"))
    family, stored = FAMILIES[hf["model_type"]], list(tensors(directory))
    if config.n_layer > len(stored):  # said before so many layers are built
        raise UserError(f"{directory}: {config.n_layer} layers in config.json, {len(stored)} tensors in the files")
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    places = {place.theirs: place for place in all_places(family, config)}
    found, tied_head = _find_places(places, family, config, stored, directory)
    ours = dict(model.named_parameters())
    for name, tensor in found.items():
        due = tuple(places[name].join([ours[part] for part in places[name].ours]).shape)
        if tensor.shape != due:
            raise UserError(f"{directory}: tensor {tensor.name!r} has shape {tensor.shape}; the config asks for {due}")
    model.to_empty(device="cpu")
    ours = dict(model.named_parameters())
    for name, tensor in found.items():
        _fill(places[name], tensor, ours)
    if tied_head is not None:
        _check_tied(tied_head, ours["tok.weight"], directory)
    return model


def _find_places(
    places: dict[str, Place], family: Family, config: GPTConfig, stored: list[Stored], directory: Path
) -> tuple[dict[str, Stored], Stored | None]:
    """-> ({place: its tensor}, a head that is stored although it is the embedding). Names may lack the family's
    prefix, as GPT-2's on the hub do, and GPT-NeoX's head has two."""
    found: dict[str, Stored] = {}
    for tensor in stored:
        name = WRAPPER.sub("", tensor.name)
        name = family.head if name == "lm_head.weight" else name
        if name not in places and name != family.head:
            name = family.prefix + name
        if name not in places and name != family.head:
            if BUFFER.search(name):
                continue
            raise UserError(f"{directory}: unexpected tensor {tensor.name!r}")
        if name in found:
            raise UserError(f"{directory}: tensor {tensor.name!r} is there twice, also as {found[name].name!r}")
        if tensor.dtype not in DTYPES:
            raise UserError(f"{directory}: tensor {tensor.name!r} is of type {tensor.dtype}, which is not supported")
        found[name] = tensor
    missing = places.keys() - found.keys()
    if missing:
        raise UserError(f"{directory}: the tensor {min(missing)!r} is missing")
    return found, found.pop(family.head, None) if config.tie_embeddings else None


@torch.no_grad()
def _fill(place: Place, tensor: Stored, ours: dict[str, Tensor]) -> None:
    """Copy a stored tensor to its place, or its places, in our parameters."""
    if len(place.ours) == 1 and not place.transposed:
        for start, stop, piece in tensor.pieces():
            ours[place.ours[0]][start:stop].copy_(piece)
        return
    for name, part in zip(place.ours, place.split(tensor.whole()), strict=True):
        ours[name].copy_(part)


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
                found.append((name, tuple(part.get_shape()), part.get_dtype()))
        for name, shape, dtype in found:
            yield Stored(name, shape, dtype, reader(name, not shape), max(PIECE, path.stat().st_size // 100))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def read_bin(path: Path) -> Iterator[Stored]:
    """Every tensor of a file that torch.save wrote; code in it is not run. Raises UserError."""
    mapped = zipfile.is_zipfile(path)  # before torch 1.6 it wrote files that cannot be

    def load() -> dict:
        # weights_only: a pickle may hold code, and a checkpoint is never code
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, on what an error here says in one line
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
    plain = isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        for name, value in values.items()
    )
    if not plain:
        raise UserError(f"{path}: cannot be loaded as weights (it holds something else than tensors by name)")
    at_once = max(PIECE, path.stat().st_size // 100)
    stored = [
        Stored(
            name,
            tuple(value.shape),
            NAMES.get(value.dtype, str(value.dtype)),
            reader(name, None if mapped else value),
            at_once,
        )
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
    others = ["*/*", "consolidated*", "model.fp16*"]  # the same weights in other forms
    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=others))
        if not any(directory.glob("*.safetensors")):
            patterns += ["pytorch_model*", "adapter_model.bin"]
            directory = Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=others))
        return directory
    except GatedRepoError:
        raise UserError(f"{hub_id!r} is gated: ask for access on its page and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id!r} is no local directory, no preset and no repository on the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{hub_id!r} is no directory, not in the local cache, and the hub cannot be reached") from None
    except Exception as error:  # whatever else a network can do
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{hub_id!r} cannot be downloaded ({type(error).__name__}: {first})") from None
