"""Tensors in files, of safetensors and of torch.save: found by name, and read a piece at a time."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptft.adapters.rows import places_for_rows
from gptft.errors import UserError, need_extra
from gptft.model import GPT

# what safetensors calls a dtype (github.com/huggingface/safetensors, README.md, "Format")
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
PIECE = 2**23  # bytes of a tensor that are read at a time, or a hundredth of the file where that is more
Piece = tuple[str, int, int, Tensor]  # one of our tensors by name; the first row, the one after the last, those rows


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet. `read(start, stop)` gives some of its rows."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it
    read: Callable[[int, int], Tensor]
    at_once: int = PIECE  # bytes

    def pieces(self, first: int = 0, last: int | None = None, of: int = 1) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, row after the last, those rows), from row `first` up to `last`, so many at a time that a piece
        stays near `at_once` bytes, and always whole groups `of` so many."""
        n = self.shape[0] if self.shape else 1
        a_row = max(1, SAFETENSORS_DTYPES[self.dtype].itemsize * torch.Size(self.shape).numel() // max(n, 1))
        step, last = max(1, self.at_once // a_row // of) * of, n if last is None else last
        for start in range(first, last, step):
            stop = min(last, start + step)
            yield start, stop, self.read(start, stop)

    def read_all(self) -> Tensor:
        return self.read(0, self.shape[0] if self.shape else 1)


@dataclass(frozen=True)
class Part:
    """Those of our tensors that lie in one tensor of a file, or in some: their shapes by name, not read yet.

    `read`: which rows are wanted of each tensor, from the first to the one after the last -> pieces that hold them, and
    perhaps others too. Of a tensor that is not named no row is wanted.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[dict[str, tuple[int, int]]], Iterator[Piece]]


class Weights(Mapping):
    """The weights of a model in files, by our names, not read yet. As a mapping it reads a whole tensor, in `dtype`,
    whenever it is asked for one, and keeps none."""

    def __init__(self, parts: list[Part], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.part_of = {name: part for part in parts for name in part.shapes}

    def __len__(self) -> int:
        return len(self.part_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self.part_of)

    def __getitem__(self, name: str) -> Tensor:
        part = self.part_of[name]
        tensor = torch.empty(part.shapes[name], dtype=self.dtype)
        for each, start, stop, rows in part.read({name: (0, len(tensor))}):
            if each == name:
                tensor[start:stop].copy_(rows)
        return tensor

    @torch.no_grad()
    def fill(self, model: GPT) -> GPT:
        """Read them into a model, piece by piece, however it holds them; of one in parts, those rows that this process
        holds. Returns the model."""
        places = places_for_rows(model)
        for part in self.parts:
            for name, start, stop, rows in part.read({name: places[name].wanted for name in part.shapes}):
                places[name].put(start, stop, rows)
        return model


def as_stored(name: str, stored: Stored) -> Part:
    """A tensor that lies in a file as it is here, perhaps under another name."""

    def read(wanted: dict[str, tuple[int, int]]) -> Iterator[Piece]:
        for start, stop, rows in stored.pieces(*wanted[name]):
            yield name, start, stop, rows

    return Part({name: stored.shape}, read)


def held_against(part: Part, head: Stored, dtype: torch.dtype, differs: str) -> Part:
    """The part with the embedding, for a file that holds the head too, which is to be the same: every row that is read
    is compared with that of the head. Raises UserError, which says what `differs`."""
    if head.shape != part.shapes["tok.weight"]:
        raise UserError(differs)

    def read(wanted: dict[str, tuple[int, int]]) -> Iterator[Piece]:
        for name, start, stop, rows in part.read(wanted):
            if not torch.equal(rows.to(dtype), head.read(start, stop).to(dtype)):
                raise UserError(differs)
            yield name, start, stop, rows

    return Part(part.shapes, read)


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
            entries = []
            for name in file.keys():  # noqa: SIM118 - it is no dict
                part = file.get_slice(name)
                entries.append((name, tuple(part.get_shape()), part.get_dtype()))
        for name, shape, dtype in entries:
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

    # Opened anew once so much was read, as above; not for each piece, for opening takes as long as there are tensors.
    opened: dict = {}
    was_read = 0

    def reader(name: str, value: Tensor | None) -> Callable[[int, int], Tensor]:
        def read(start: int, stop: int) -> Tensor:
            nonlocal opened, was_read
            if value is None and (not opened or was_read > at_once):
                opened, was_read = load(), 0
            tensor = value if value is not None else opened[name]
            piece = tensor[start:stop] if tensor.dim() else tensor
            was_read += piece.numel() * piece.element_size()
            return piece

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
            SAFETENSORS_NAMES.get(value.dtype, str(value.dtype)),
            reader(name, None if mapped else value),
            at_once,
        )
        for name, value in values.items()
    ]
    del values
    yield from stored
