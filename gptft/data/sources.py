"""Files -> records: JSON arrays, JSON lines, tables and plain text, each record with the line on which it begins.

A **record** is a dict from the user's file. A Parquet file has no lines: there it is the number of the row.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptft.data import hub
from gptft.data.compressed import AT_ONCE, COMPRESSED, kind_of, opened
from gptft.data.shapes import readings_of
from gptft.data.tables import rows_of_parquet, rows_of_text
from gptft.errors import Unreadable, UserError
from gptft.files import resource


def find(paths: Sequence[str], flag: str = "data") -> list[Path]:
    """The files behind `--data` words: of a folder, all in it; `hf:NAME` is a data set of the hub, which is fetched,
    and `embedded:NAME` a file that gptft carries. Missing or empty: UserError."""
    files = []
    for word in paths:
        if word.startswith(hub.PREFIX):
            files.append(hub.fetch(word, flag))
            continue
        path = resource(f"data/{word.removeprefix('embedded:')}") if word.startswith("embedded:") else Path(word)
        if path.is_dir():
            files += _files_in(path, flag)
            continue
        if not path.exists():
            raise UserError(f"--{flag}: no such file: {path}")
        if kind_of(path) not in KINDS:
            raise UserError(
                f"--{flag}: {path}: expected a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, or one of these as "
                f"{', '.join(COMPRESSED)}"
            )
        if not path.stat().st_size:
            raise UserError(f"--{flag}: {path} is empty")
        files.append(path)
    return files


def _files_in(folder: Path, flag: str) -> list[Path]:
    """The data files of a folder, in the order of their names. Raises UserError where they are of several kinds, or
    where their names tell of several splits: a test that is trained on would never be noticed."""
    files = [path for path in sorted(folder.iterdir()) if kind_of(path) in KINDS and not path.name.startswith(".")]
    if not files:
        raise UserError(f"--{flag}: {folder} holds no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
    for what, told in (("kinds", kind_of), ("splits", _split_of)):
        found = dict.fromkeys(map(told, files))
        if len(found) > 1:
            named = ", ".join(str(next(path for path in files if told(path) == each).name) for each in found)
            raise UserError(f"--{flag}: {folder} holds files of several {what} ({named}): name those that are meant")
    return find([str(path) for path in files], flag)


def _split_of(path: Path) -> str:
    """The split that a file's name tells of; "train" where it tells of none."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((split for split, names in SPLITS.items() if names.intersection(words)), "train")


SPLITS = {"test": {"test", "eval"}, "validation": {"validation", "valid", "val", "dev"}}
KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
JSON_NAMES = {str: "a text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
PIECE = 100_000  # characters of a text that are read at a time


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
    elif kind == ".parquet":
        yield from rows_of_parquet(path)
    elif kind in (".csv", ".tsv"):
        try:
            yield from rows_of_text(path, "," if kind == ".csv" else "\t")
        except UnicodeDecodeError:
            raise _not_utf8(path) from None
    elif is_json_lines(path):
        yield from ((line, content) for line, content, _ in json_lines(path))
    elif _first_character(path) == b"{":
        yield from _json_object(path, "".join(TextFile(path).pieces()))
    else:
        yield from _json_array(path, "".join(TextFile(path).pieces()))


def is_json_lines(path: Path) -> bool:
    """Whether a file has a record on each line, as many a `.json` file has."""
    if kind_of(path) == ".json":
        return _first_character(path) == b"{" and not _is_one_object(path)
    return kind_of(path) == ".jsonl"


def json_lines(path: Path, lines: int = 0, start: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """(line, content, the byte behind it) for every line of JSON lines that is not blank, behind the first `lines`,
    which are `start` bytes."""
    with opened(path) as file:
        if start and file.seekable():
            file.seek(start)
        left = 0 if file.seekable() else start
        while left and (piece := file.read(min(left, AT_ONCE))):
            left -= len(piece)
        end = start
        for line, content in enumerate(file, lines + 1):
            end += len(content)
            if line == 1:
                content = content.removeprefix(codecs.BOM_UTF8)
            if content.strip():
                yield line, content, end


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
        except ValueError as error:  # a number of thousands of digits
            raise Unreadable(f"broken JSON: {error}") from None
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


def _first_character(path: Path) -> bytes:
    """The first that is no white space; b"" where there is none."""
    with opened(path) as file:
        lines = (_without_mark(line).strip() for line in file)
        return next((line[:1] for line in lines if line), b"")


def _without_mark(line: bytes) -> bytes:
    """A line without the byte-order mark that a file may begin with."""
    return line.removeprefix(codecs.BOM_UTF8)


def _is_one_object(path: Path) -> bool:
    """Whether a `.json` file that begins with `{` is one object with the records inside. Many a `.json` file really
    holds JSON lines: then its first line is a record, or another follows."""
    with opened(path) as file:
        filled = (line for line in map(_without_mark, file) if line.strip())
        lines = list(itertools.islice(filled, 2))
    try:
        first = json.loads(lines[0])
    except (ValueError, RecursionError):  # it goes on in the next line, or is broken
        return len(lines) == 1 or not lines[0].rstrip().endswith(b"}") or not lines[1].lstrip().startswith(b"{")
    return len(lines) == 1 and not _is_record(first) and any(map(_holds_records, first.values()))


def _is_record(keys) -> bool:
    """Whether these keys make a record; a text beside a list of records tells of them."""
    return any("text" not in reading.parts for reading in readings_of(keys))


def _holds_records(value) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


@dataclass
class _Scanner:
    """A place in a JSON text, which values are taken from one by one."""

    path: Path
    text: str
    position: int = 0

    def skip(self) -> str:
        """Go over white space; -> the character that follows, "" at the end."""
        while self.text[self.position : self.position + 1] in (" ", "\t", "\r", "\n"):
            self.position += 1
        return self.text[self.position : self.position + 1]

    def take(self, characters: str, why: str) -> str:
        """Go over white space and one of the characters; UserError with `why` where something else stands."""
        found = self.skip()
        if not found or found not in characters:
            raise self.broken(self.position, why)
        self.position += 1
        return found

    def value(self):
        """The value that begins here."""
        self.skip()
        try:
            value, self.position = DECODER.raw_decode(self.text, self.position)
        except json.JSONDecodeError as error:
            raise self.broken(error.pos, error.msg) from None
        except RecursionError:
            raise self.broken(self.position, "nested too deeply") from None
        except ValueError as error:  # a number of thousands of digits
            raise self.broken(self.position, str(error)) from None
        return value

    def broken(self, position: int, why: str) -> UserError:
        line = self.text.count("\n", 0, position) + 1
        return UserError(f"{self.path}, line {line}: broken JSON: {why}")

    def end(self, what: str) -> None:
        """Nothing may follow: two lists in one file, say, whose records would be lost without a word."""
        if self.skip():
            raise self.broken(self.position, f"something follows the {what}")


DECODER = json.JSONDecoder()


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The records of a JSON array, each with the line on which it begins."""
    scanner = _Scanner(path, text)
    yield from _elements(scanner, 1)
    scanner.end("list of records")


def _elements(scanner: _Scanner, line: int) -> Iterator[tuple[int, object]]:
    """The values of the list that begins here, each with its line; `line` is that of this place."""
    counted = scanner.position
    scanner.take("[", "expected a list of records")
    while scanner.skip() != "]":
        line += scanner.text.count("\n", counted, scanner.position)
        counted = scanner.position
        yield line, scanner.value()
        if scanner.skip() == ",":
            scanner.position += 1
            scanner.skip()
        elif scanner.skip() != "]":
            raise scanner.broken(
                scanner.position, "expected ',' or ']'" if scanner.skip() else "the list is not closed"
            )
    scanner.position += 1


def _json_object(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The records of the one list of objects that a JSON object holds, each with its line; or the object itself, where
    it is a record."""
    scanner, lists, keys = _Scanner(path, text), {}, []
    scanner.skip()
    first = scanner.position
    scanner.take("{", "expected an object")
    while scanner.skip() != "}":
        if scanner.skip() != '"':
            raise scanner.broken(scanner.position, "expected a key")
        keys.append(scanner.value())
        if keys[-1] in keys[:-1]:
            raise scanner.broken(scanner.position, f"the key {keys[-1]!r} stands there twice")
        scanner.take(":", "expected ':'")
        scanner.skip()
        begin = scanner.position
        if _holds_records(scanner.value()):
            lists[keys[-1]] = begin
        if scanner.take(",}", "expected ',' or '}'") == "}":
            scanner.position -= 1
        elif scanner.skip() == "}":
            raise scanner.broken(scanner.position, "expected a key")
    scanner.position += 1
    scanner.end("object")
    if _is_record(keys) or (readings_of(keys) and not lists):
        yield text.count("\n", 0, first) + 1, json.loads(text[first : scanner.position])
        return
    if len(lists) != 1:
        found = " and ".join(map(repr, lists)) or f"none among {', '.join(map(repr, keys)) or 'no keys'}"
        raise UserError(
            f"{path}: one JSON object; expected a list of records, a record a line, or one such list in it: {found}"
        )
    scanner.position = begin = next(iter(lists.values()))
    yield from _elements(scanner, text.count("\n", 0, begin) + 1)
