"""Tensors in files, of safetensors and of torch.save: found by name, and read a piece at a time."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptft.errors import UserError, need_extra

# what safetensors calls a dtype (github.com/huggingface/safetensors, README.md, "Format")
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
PIECE = 2**23  # bytes of a tensor that are read at a time, or a hundredth of the file where that is more


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
        a_row = max(1, SAFETENSORS_DTYPES[self.dtype].itemsize * torch.Size(self.shape).numel() // max(n, 1))
        step = max(1, self.at_once // a_row)
        for start in range(0, n, step):
            stop = min(n, start + step)
            yield start, stop, self.read(start, stop)

    def read_all(self) -> Tensor:
        return self.read(0, self.shape[0] if self.shape else 1)


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
