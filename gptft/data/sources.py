"""Files -> records: JSON arrays, JSON lines, tables and plain text, each record with the line on which it begins.

A **record** is a dict from the user's file.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptft.errors import UserError
from gptft.files import resource


def find(paths: Sequence[str], flag: str = "data") -> list[Path]:
    """The files behind `--data` words; `embedded:NAME` is a file that gptft carries. Missing or empty: UserError."""
    files = []
    for word in paths:
        path = resource(f"data/{word.removeprefix('embedded:')}") if word.startswith("embedded:") else Path(word)
        if path.is_dir():
            raise UserError(f"--{flag}: {path} is a folder; name its files")
        if not path.exists():
            raise UserError(f"--{flag}: no such file: {path}")
        if kind_of(path) not in KINDS:
            raise UserError(
                f"--{flag}: {path}: expected a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, or one of these as "
                f"{' or '.join(COMPRESSED)}"
            )
        if not path.stat().st_size:
            raise UserError(f"--{flag}: {path} is empty")
        files.append(path)
    return files


KINDS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open}
JSON_NAMES = {str: "a text", list: "a list", bool: "true or false", type(None): "null"}


PIECE = 100_000  # characters of a text that are read at a time


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
        while piece := file.read(1 << 20):
            if word in before + piece:
                return True
            before = piece[1 - len(word) :]
    return False


class Unreadable(ValueError):
    """A line that is no JSON object; the message says why."""


@dataclass(frozen=True)
class TextFile:
    """A `.txt` file: one record, which need not be in memory as a whole."""

    path: Path

    def pieces(self) -> Iterator[str]:
        """The text, a piece at a time. Raises UserError where it is no UTF-8, and where it holds nothing."""
        blank = True
        try:
            with opened(self.path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
                while piece := file.read(PIECE):
                    blank = blank and not piece.strip()
                    yield piece
        except UnicodeDecodeError:
            raise _not_utf8(self.path) from None
        if blank:
            raise UserError(f"{self.path} holds nothing but white space")


def raw_records(path: Path) -> Iterator[tuple[int, bytes | TextFile | object]]:
    """(line, record) for every record, streamed. JSON lines come as bytes, unparsed, so that a reader may skip them;
    a `.txt` file as a TextFile, unread.

    Raises UserError naming the line for a `.json` file that cannot be parsed: nothing after it can be found.
    """
    kind = kind_of(path)
    if kind == ".txt":
        yield 1, TextFile(path)
    elif kind in (".csv", ".tsv"):
        yield from _rows(path, "," if kind == ".csv" else "\t")
    elif kind == ".json" and not _is_json_lines(path):
        yield from _json_array(path, "".join(TextFile(path).pieces()))
    else:
        with opened(path) as file:
            for line, content in enumerate(file, 1):
                if line == 1:
                    content = content.removeprefix(codecs.BOM_UTF8)
                if content.strip():
                    yield line, content


def parse(raw: bytes | TextFile | object) -> dict:
    """A raw record -> dict. Raises Unreadable with the column or the type that was found."""
    if isinstance(raw, TextFile):
        return {"text": "".join(raw.pieces())}
    if isinstance(raw, Unreadable):
        raise raw
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw.decode().rstrip())  # an error at the line's end would be in column 1 of the next
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8 (byte {error.start + 1} of the line)") from None
        except json.JSONDecodeError as error:
            raise Unreadable(f"broken JSON: {error.msg} (column {error.colno})") from None
        except RecursionError:
            raise Unreadable("broken JSON: nested too deeply") from None
    if not isinstance(raw, dict):
        raise Unreadable(f"a record must be a JSON object, not {JSON_NAMES.get(type(raw), 'a number')}")
    return raw


def _not_utf8(path: Path) -> UserError:
    """The error that names the first line which is no UTF-8."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return UserError(f"{path}, line {number}: not UTF-8")
    return UserError(f"{path}: not UTF-8")  # it was mended meanwhile


def _is_json_lines(path: Path) -> bool:
    """Many a `.json` file really holds JSON lines: its first character tells. One object over several lines is
    refused: its lines would be reported as broken one by one."""
    with opened(path) as file:
        first = next((line for line in file if line.removeprefix(codecs.BOM_UTF8).strip()), b"")
    if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return False
    if first.rstrip() in (b"{", codecs.BOM_UTF8 + b"{"):
        raise UserError(f"{path}: one JSON object; expected a list of records, or a record a line")
    return True


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict | Unreadable]]:
    """The rows of a table under its first row's names, each with the line on which it begins. A row with more or fewer
    fields is Unreadable. Raises UserError where names are missing or double, and for what is no UTF-8 or no table."""
    csv.field_size_limit(1 << 30)  # characters; the default cuts a long answer off with an error
    begin = 1
    try:
        with opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = next((row for row in rows if row), [])
            if not all(names) or len(set(names)) < len(names):
                raise UserError(f"{path}, line {rows.line_num}: every column must have a name of its own, not {names}")
            begin = rows.line_num + 1
            for row in rows:
                if len(row) == len(names):
                    yield begin, dict(zip(names, row, strict=True))
                elif any(field.strip() for field in row):  # not an empty line
                    yield begin, Unreadable(f"it has {len(row)} of {len(names)} fields")
                begin = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begin}: no table that can be read: {error}; a field that begins with a quotation mark must "
            "end with one, and have those inside it doubled"
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The records of a JSON array, each with the line on which it begins."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    def broken(position: int, why: str) -> UserError:
        return UserError(f"{path}, line {text.count(chr(10), 0, position) + 1}: broken JSON: {why}")

    position = skip(0)
    if text[position] != "[":
        raise broken(position, "expected a list of records")
    position = skip(position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise broken(error.pos, error.msg) from None
        except RecursionError:
            raise broken(position, "nested too deeply") from None
        yield line, record
        position = skip(position)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            raise broken(position, "expected ',' or ']'" if position < len(text) else "the list is not closed")
    position = skip(position + 1)
    if position < len(text):  # two lists in one file, say: records must not be lost without a word
        raise broken(position, "something follows the list of records")
