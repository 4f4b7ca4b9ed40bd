"""A GGUF file's metadata and tensors (github.com/ggml-org/ggml, docs/gguf.md), read within bounds.

The file is somebody else's: no count, length or offset in it is believed before it has been held against the bytes
that are there. The package `gguf` is asked for one thing, to turn the rows of a stored tensor into numbers.

    magic "GGUF", version, number of tensors, number of settings | settings: name, kind, value | tensors: name, sizes,
    type, offset | padding | the tensors' bytes, each at a multiple of general.alignment
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gptft.errors import UserError, need_extra
from gptft.formats.tensors import Stored

MAGIC = b"GGUF"
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOLEAN, TEXT, LIST = 7, 8, 9
LARGEST_HEADER = 1 << 29  # bytes of settings and list of tensors; the largest vocabularies take some 20 MB
MOST_NAMES = 1 << 16  # settings, and tensors
MOST_VALUES = 1 << 23  # texts in all lists: each takes far more memory than the file
DEEPEST = 4  # lists within lists


@dataclass(frozen=True)
class GGUFFile:
    """What a file says of itself, and its tensors, not read yet. A list of numbers is a numpy array."""

    path: Path
    settings: dict[str, object]
    tensors: dict[str, Stored]  # as fp32, rows first: the sizes in the file come last first
    types: dict[str, str]  # how each is stored, as ggml calls it


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file, or calls itself one."""
    if path.suffix == ".gguf":
        return path.is_file()
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GGUFFile:
    """Read everything but the tensors' numbers. Raises UserError for a file that is not whole, or cannot be read."""
    try:
        import gguf
    except ImportError:
        raise need_extra("gguf", "gguf", "reading a GGUF file") from None
    try:
        with open(path, "rb") as file:
            header = _Header(path, file, path.stat().st_size)
            n_tensors, n_settings = header.begin()
            settings = header.settings(n_settings)
            listed = header.tensors(n_tensors)
            alignment = settings.get("general.alignment", 32)
            if type(alignment) is not int or not 0 < alignment <= 1 << 16:
                raise UserError(f"{path}: general.alignment cannot be {alignment!r}")
            start = -(-header.position // alignment) * alignment
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None

    @cache
    def known(number: int) -> tuple[gguf.GGMLQuantizationType, int, int]:
        kind = gguf.GGMLQuantizationType(number)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
        return kind, block, size

    tensors, types = {}, {}
    for name, shape, number, offset in listed:
        try:
            kind, block, size = known(number)
        except (ValueError, KeyError, NotImplementedError):
            raise UserError(
                f"{path}: tensor {name!r} is stored as ggml's type {number}, which the package gguf "
                f"{_version()} cannot turn into numbers"
            ) from None
        if shape[-1] % block:
            raise UserError(f"{path}: tensor {name!r} has rows of {shape[-1]:,}, no multiple of {kind.name}'s {block}")
        n_rows = 1
        for n in shape[:-1]:
            n_rows *= n
        a_row = shape[-1] // block * size
        if offset % alignment or start + offset + n_rows * a_row > header.size:
            raise UserError(
                f"{path}: tensor {name!r} should have {n_rows * a_row:,} bytes from {start + offset:,} on; "
                f"the file has {header.size:,} bytes: it is cut short or damaged"
            )
        read = _reader(path, start + offset, shape, a_row, lambda raw, kind=kind: gguf.quants.dequantize(raw, kind))
        tensors[name] = Stored(name, shape, "F32", read)
        types[name] = kind.name
    return GGUFFile(path, settings, tensors, types)


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


def _reader(
    path: Path, offset: int, shape: tuple[int, ...], a_row: int, dequantize: Callable[[np.ndarray], np.ndarray]
) -> Callable[[int, int], Tensor]:
    """Some rows of a tensor as fp32. A vector is one row, whatever part of it is asked for."""
    inner = 1  # rows of the file in one of ours
    for n in shape[1:-1]:
        inner *= n

    def read(start: int, stop: int) -> Tensor:
        first, n_rows = (0, 1) if len(shape) == 1 else (start * inner, (stop - start) * inner)
        with open(path, "rb") as file:
            file.seek(offset + first * a_row)
            raw = file.read(n_rows * a_row)
        if len(raw) != n_rows * a_row:
            raise UserError(f"{path}: it has become shorter while it was read")
        values = torch.from_numpy(dequantize(np.frombuffer(bytearray(raw), np.uint8).reshape(n_rows, a_row)))
        return values[0, start:stop] if len(shape) == 1 else values.reshape(stop - start, *shape[1:])

    return read


class _Header:
    """The part of a file before its tensors, read from front to back; no more bytes than there are, or than a header
    may have."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.position, self.values = 0, 0

    @property
    def left(self) -> int:
        return min(self.size, LARGEST_HEADER) - self.position

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            more = "the file is cut short or damaged" if n > self.size - self.position else "no header is as large"
            raise UserError(f"{self.path}: {what} would take {n:,} bytes more, {self.left:,} are left: {more}")
        raw = self.file.read(n)
        if len(raw) < n:
            raise UserError(f"{self.path}: it has become shorter while it was read")
        self.position += n
        return raw

    def number(self, form: str, what: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, what: str, at_least: int) -> int:
        """A number of things that take `at_least` so many bytes each."""
        n = self.number("<Q", what)
        if n * at_least > self.left:
            raise UserError(
                f"{self.path}: {what} is {n:,}, which {self.left:,} bytes cannot hold: the file is cut short or damaged"
            )
        return n

    def text(self, what: str) -> str:
        raw = self.take(self.count(f"the length of {what}", 1), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {what} is no UTF-8 ({error.reason} at byte {error.start})") from None

    def begin(self) -> tuple[int, int]:
        """The number of tensors and of settings."""
        if self.take(4, "the magic number") != MAGIC:
            raise UserError(f"{self.path}: not a GGUF file: it does not begin with {MAGIC.decode()}")
        version = self.number("<I", "the version")
        if version not in (2, 3):
            big = version in (2 << 24, 3 << 24)
            raise UserError(
                f"{self.path}: "
                + ("it is written big-endian" if big else f"version {version} of GGUF")
                + "; versions 2 and 3, little-endian, can be read"
            )
        counts = self.count("the number of tensors", 24), self.count("the number of settings", 13)
        if max(counts) > MOST_NAMES:
            raise UserError(f"{self.path}: {counts[0]:,} tensors and {counts[1]:,} settings are more than can be read")
        return counts

    def settings(self, n: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for number in range(n):
            name = self.text(f"the name of setting {number + 1}")
            if name in found:
                raise UserError(f"{self.path}: the setting {name!r} is there twice")
            found[name] = self.value(name, self.number("<I", name))
        return found

    def value(self, name: str, kind: int, depth: int = 0):
        if kind in NUMBERS:
            dtype = np.dtype(NUMBERS[kind])
            return np.frombuffer(self.take(dtype.itemsize, name), dtype)[0].item()
        if kind == BOOLEAN:
            return self.take(1, name) != b"\0"
        if kind == TEXT:
            return self.text(f"the setting {name!r}")
        if kind != LIST or depth == DEEPEST:
            raise UserError(f"{self.path}: the setting {name!r} is of kind {kind}, which cannot be read")
        kind = self.number("<I", name)
        if kind in NUMBERS or kind == BOOLEAN:
            dtype = np.dtype(NUMBERS.get(kind, "<u1"))
            n = self.count(f"the length of {name!r}", dtype.itemsize)
            return np.frombuffer(self.take(n * dtype.itemsize, name), dtype)
        n = self.count(f"the length of {name!r}", 8)
        self.values += n
        if self.values > MOST_VALUES:
            raise UserError(f"{self.path}: its lists hold more than {MOST_VALUES:,} texts, as {name!r} is read")
        return [self.value(f"{name}[{i}]", kind, depth + 1) for i in range(n)]

    def tensors(self, n: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        """(name, shape, type, offset) of each."""
        listed, names = [], set()
        for number in range(n):
            name = self.text(f"the name of tensor {number + 1}")
            if name in names:
                raise UserError(f"{self.path}: the tensor {name!r} is there twice")
            names.add(name)
            n_dims = self.number("<I", name)
            if not 1 <= n_dims <= 4:
                raise UserError(f"{self.path}: tensor {name!r} has {n_dims:,} dimensions; one to four can be")
            shape = tuple(self.number("<Q", name) for _ in range(n_dims))[::-1]
            if min(shape) < 1:
                raise UserError(f"{self.path}: tensor {name!r} has the sizes {shape}: it is empty")
            listed.append((name, shape, self.number("<I", name), self.number("<Q", name)))
        return listed
