"""The bytes of a file, also of a compressed one. One that is damaged or cut short is an error, never a shorter file."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gptft.errors import UserError, need_extra

AT_ONCE = 1 << 20  # bytes that are read at a time


def kind_of(path: Path) -> str:
    """The ending of a file's name, or of what it is the compressed form of."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def open_bytes(path: Path) -> BinaryIO:
    return COMPRESSED.get(path.suffix, open)(path, "rb")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed. Raises UserError where that cannot be."""
    try:
        with open_bytes(path) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        if path.suffix not in COMPRESSED:
            raise
        raise UserError(f"{path}: cannot be decompressed: it is damaged, or cut short ({error})") from None


def mentions(path: Path, word: bytes) -> bool:
    """Whether a file's bytes have the word in them; in bounded memory."""
    with opened(path) as file:
        before = b""
        while piece := file.read(AT_ONCE):
            if word in before + piece:
                return True
            before = piece[1 - len(word) :]
    return False


class ZstandardFile(io.RawIOBase):
    """The decompressed bytes of a `.zst` file, of all its frames. The package's own stream ends without a word where
    a frame is cut short; here that is an EOFError. Raises UserError where the package is absent."""

    def __init__(self, path: Path, mode: str = "rb") -> None:
        try:
            import zstandard
        except ImportError:
            raise need_extra("zstandard", "data", f"{path}: to read it") from None
        self.error, self.decompressor = zstandard.ZstdError, zstandard.ZstdDecompressor(max_window_size=2**31)
        self.frame, self.ready = None, b""  # the frame that is being read, and what of it was not asked for yet
        self.file = open(path, mode)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self.ready:
            compressed = self.frame.unused_data if self.frame and self.frame.eof else b""
            compressed = compressed or self.file.read(AT_ONCE // 16)
            if not compressed:
                if self.frame and not self.frame.eof:
                    raise EOFError("the last frame is not complete")
                return 0
            if not self.frame or self.frame.eof:
                self.frame = self.decompressor.decompressobj()
            try:
                self.ready = self.frame.decompress(compressed)
            except self.error as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def open_zstandard(path: Path, mode: str) -> BinaryIO:
    return io.BufferedReader(ZstandardFile(path, mode), AT_ONCE)


COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".zst": open_zstandard}
