"""Sources that are read as streams: record after record, and on from a place that was noted.

A **source** is what one word of `--data` names: local files, or a data set of the hub. Its **place** is a dict that
JSON holds. A source that fails is opened again at its place a few times before that is an error.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gptft.data import hub
from gptft.data.compressed import kind_of
from gptft.data.sources import find, is_json_lines, json_lines, raw_records
from gptft.data.tables import rows_of_parquet
from gptft.errors import SourceFailed, Unreadable, UserError
from gptft.files import fingerprints, is_as_before, json_line

WAITS = (1.0, 2.0, 4.0)  # seconds before a source that failed is opened again
AT_ONCE = 32  # records that are taken from a source before it is asked which is next; the more the faster


class Row(NamedTuple):
    """A record as it comes: the number of its file among its source's, its line, its number in the file, and it."""

    file: int
    line: int
    number: int
    raw: object


def find_streams(words: Sequence[str]) -> list[tuple[str, list[Path] | hub.HubData]]:
    """Each word of `--data` with the files, or the data set of the hub, behind it. Raises UserError for what is not
    there, and for what cannot be a stream."""
    found = [(word, hub.read_word(word) if word.startswith(hub.PREFIX) else find([word])) for word in words]
    for path in itertools.chain.from_iterable(files for _, files in found if isinstance(files, list)):
        if kind_of(path) == ".txt":
            raise UserError(f"--stream: {path} is one text: train on it without --stream, or give a text a line")
    return found


def describe(words: Sequence[str]) -> list[dict]:
    """What the words of `--data` name: of files their names and fingerprints, of a data set of the hub its word. Raises
    UserError as `find_streams` does."""
    entries = []
    for word, data in find_streams(words):
        if isinstance(data, hub.HubData):
            entries.append({"word": data.word, "revision": hub.pin(data).revision if data.is_local else None})
            continue
        names = [str(path.resolve()) for path in data]
        entries.append({"word": word, "files": list(map(list, zip(names, fingerprints(data), strict=True)))})
    return entries


def names_of(entry: dict) -> list[str]:
    """The names of a source's files; of a data set of the hub, its word."""
    return [name for name, _ in entry["files"]] if "files" in entry else [entry["word"]]


def pinned(entries: list[dict]) -> list[dict]:
    """The entries with the commit that the hub has of each data set now: a corpus does not change under a run."""
    return [
        entry if entry.get("revision") or "files" in entry else entry | {"revision": hub.pin(_hub_data(entry)).revision}
        for entry in entries
    ]


def _hub_data(entry: dict) -> hub.HubData:
    data = hub.read_word(entry["word"])
    return replace(data, revision=entry["revision"] or data.revision)


class FileSource:
    """Local files, one after the other. Plain JSON lines are gone on with at once, Parquet at its group of rows; of the
    other kinds what was read is gone over again."""

    def __init__(self, entry: dict, place: dict | None = None) -> None:
        self.names, self.fingerprints = names_of(entry), [fingerprint for _, fingerprint in entry["files"]]
        self.place = place or {"file": 0, "record": 0}

    def __iter__(self) -> Iterator[Row]:
        while (file := self.place["file"]) < len(self.names):
            path = Path(self.names[file])
            begun = path.stat()
            changed = not is_as_before(path, self.fingerprints[file])
            if not changed:
                for place, line, raw in self._records(path, self.place):
                    self.place = {"file": file, **place}
                    yield Row(file, line, place["record"] - 1, raw)
                stat = path.stat()
                changed = (stat.st_size, stat.st_mtime_ns) != (begun.st_size, begun.st_mtime_ns)
            if changed:  # what is read of it now would stand under the name of what it was
                raise UserError(f"{path} changed since the stream was begun")
            self.place = {"file": file + 1, "record": 0}

    @staticmethod
    def _records(path: Path, place: dict) -> Iterator[tuple[dict, int, object]]:
        """(the place behind it, line, record) of every record of a file behind the place."""
        done = place["record"]
        if is_json_lines(path):
            rest = json_lines(path, place.get("line", 0), place.get("byte", 0))
            for record, (line, raw, byte) in enumerate(rest, done + 1):
                yield {"record": record, "line": line, "byte": byte}, line, raw
            return
        parquet = kind_of(path) == ".parquet"
        rest = rows_of_parquet(path, done) if parquet else itertools.islice(raw_records(path), done, None)
        for record, (line, raw) in enumerate(rest, done + 1):
            yield {"record": record}, line, raw


class HubSource:
    """A data set of the hub, or a folder, as the library `datasets` streams it; it keeps the place itself."""

    def __init__(self, entry: dict, place: dict | None = None) -> None:
        self.data, self.names = _hub_data(entry), names_of(entry)
        self.record, self.state, self.dataset = (place["record"], place["state"], None) if place else (0, None, None)

    @property
    def place(self) -> dict:
        if self.dataset is not None:
            self.state = self.dataset.state_dict()
        return {"record": self.record, "state": self.state}

    def __iter__(self) -> Iterator[Row]:
        state = self.place["state"]
        self.dataset = None  # until it is opened: the place stays what it is
        if self.data.is_local and hub.pin(self.data) != self.data:  # the library would go by what it finds now
            raise UserError(f"{self.data.word}: the folder's files changed since the stream was begun")
        dataset = hub.open_dataset(self.data)
        if state is not None:
            dataset.load_state_dict(state)
        self.dataset, self.state = dataset, state
        for raw in dataset:
            self.record += 1
            yield Row(0, self.record, self.record - 1, raw)


def open_source(entry: dict, place: dict | None = None) -> FileSource | HubSource:
    return FileSource(entry, place) if "files" in entry else HubSource(entry, place)


class Mix:
    """The sources as one stream. Without weights one is read after the other, and the stream ends with the last. With
    weights the one that is furthest behind its share of the tokens is read next; one that ends begins again, and the
    stream has no end. `state` is all that going on needs."""

    def __init__(self, entries: list[dict], weights: Sequence[float] = (), state: dict | None = None) -> None:
        self.entries, self.weights = entries, weights
        self.begun: list[int | None] = [None if state else 0] * len(entries)  # each source's tokens as its pass began
        state = state or {"places": [None] * len(entries), "tokens": [0] * len(entries), "passes": [0] * len(entries)}
        self.tokens, self.passes = list(state["tokens"]), list(state["passes"])
        self.sources = [open_source(entry, place) for entry, place in zip(entries, state["places"], strict=True)]
        self.rows: list[Iterator[Row] | None] = [None] * len(entries)
        counts = [len(source.names) for source in self.sources]
        self.first = list(itertools.accumulate(counts, initial=0))[:-1]  # of each source's files among all
        self.names = [name for source in self.sources for name in source.names]

    @property
    def state(self) -> dict:
        return {
            "places": [source.place for source in self.sources],
            "tokens": list(self.tokens),
            "passes": list(self.passes),
        }

    def take(self, count: int = AT_ONCE) -> tuple[int, list[Row]] | None:
        """(which source, its next records, `count` or fewer), None where the stream has ended. Raises SourceFailed,
        UserError."""
        while (which := self._next()) is not None:
            if rows := self._read(which, count):
                return which, rows
            self.passes[which] += 1
            self.rows[which] = None
            if self.weights:
                if self.begun[which] == self.tokens[which]:
                    raise UserError(f"{self.entries[which]['word']}: it holds no record that can be trained on")
                self.begun[which] = self.tokens[which]
                self.sources[which] = open_source(self.entries[which])
        return None

    def _next(self) -> int | None:
        """The source that is read next."""
        numbers = range(len(self.sources))
        if not self.weights:
            return next((number for number in numbers if not self.passes[number]), None)
        return min(numbers, key=lambda number: self.tokens[number] / self.weights[number])

    def _read(self, which: int, count: int) -> list[Row]:
        """The next records of a source, none at its end."""
        source, rows, waits = self.sources[which], [], list(WAITS)
        while True:
            try:
                self.rows[which] = self.rows[which] or iter(source)
                while len(rows) < count:
                    rows.append(next(self.rows[which]))
                return rows
            except StopIteration:
                return rows
            # the library, the network and the files bring errors of many classes; what lasts is an error of ours
            except Exception as error:
                self.rows[which] = None
                if not waits:
                    word = self.entries[which]["word"]
                    text = str(error) if isinstance(error, UserError) else f"{word}: {hub.first_line(error)}"
                    raise SourceFailed(f"{text}; read until record {source.place['record']} of {word}") from None
                time.sleep(waits.pop(0))


def head_of(entry: dict, records: int) -> Iterator[bytes]:
    """The first records of a source as JSON lines, what cannot be read left as it is or out."""
    mix = Mix([entry])
    while records > 0 and (taken := mix.take()):
        for row in taken[1][:records]:
            records -= 1
            if isinstance(row.raw, bytes):
                yield row.raw.rstrip(b"\r\n") + b"\n"
            elif not isinstance(row.raw, Unreadable):
                yield json_line(hub.plain(row.raw)).encode()
