"""The records of files as the linter looks at them: what is asked and what is learned; and those that are none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gptft.curation.findings import Finding
from gptft.data.shapes import KNOWN, recognise, used_keys
from gptft.data.sources import JSON_NAMES, TextFile, parse, raw_records
from gptft.errors import BadRecord, Unreadable, nearest
from gptft.text.unwrapping import take_out

CHARACTERS = 5_000_000  # where there is a limit, reading stops behind so many, too
FEW, ENOUGH = 0.05, 20  # a key or a type is odd below this share of so many records


class Place(NamedTuple):
    """Where a record is; `number` counts those of the file from 0."""

    file: str
    line: int
    number: int


@dataclass(frozen=True)
class Entry:
    """A record that can be used: where it is, its number in the file, what is asked of the model (without the template
    that a prompt may hold), what is learned, what else the answers depend on (a system text, tools and their calls),
    and the record and its parts."""

    file: str
    line: int
    number: int
    prompt: str
    answers: list[str]
    context: str
    record: dict
    parts: dict

    @property
    def response(self) -> str:
        """All that is learned."""
        return "\n".join(self.answers)

    def finding(self, kind: str, message: str, other: Entry | None = None) -> Finding:
        """Something that was found in this record, perhaps in comparison with another."""
        return Finding(kind, self.file, self.line, message, other and (other.file, other.line), self.number)

    def texts(self) -> list[str]:
        """Every text that becomes tokens."""
        if "messages" in self.parts:
            return [message["content"] for message in self.parts["messages"] if message.get("content")]
        return [text for text in self.parts.values() if text.strip()]


class Reader:
    """Reads files into entries, and gathers what is found on the way."""

    def __init__(self, fields: dict[str, str], unwraps: Sequence[str] = ()) -> None:
        self.fields, self.unwraps = fields, unwraps
        self.findings: list[Finding] = []
        self.records = self.characters = 0
        self.stopped = False  # before the end, by the limit
        self.lost: list[tuple[str, int, int, str, object]] = []  # file, line, number, why, what it is
        self.keys: Counter[str] = Counter()  # how many records have each key
        self.first: dict[str, Place] = {}
        self.used: set[str] = set()
        self.types: dict[str, Counter[str]] = {}
        self.odd: dict[tuple[str, str], list[Place]] = {}

    def entries(self, path: Path, limit: int = 0) -> Iterator[Entry | tuple[TextFile, str]]:
        """The entries of a file; a text file comes as (TextFile, name). `limit`: at most so many records; 0: all."""
        for number, (line, raw) in enumerate(raw_records(path)):
            if limit and (self.records >= limit or self.characters > CHARACTERS):
                self.stopped = True
                return
            self.records += 1
            if isinstance(raw, TextFile):
                yield raw, str(path)
                continue
            try:
                record = parse(raw)
            except Unreadable as error:
                self._lose("broken", Place(str(path), line, number), str(error), raw)
                continue
            self._count(record, Place(str(path), line, number))
            try:
                parts = take_out(recognise(record, self.fields), self.unwraps)
            except BadRecord as error:
                kind = "empty" if "is empty" in str(error) else "shape"
                self._lose(kind, Place(str(path), line, number), str(error), record)
                continue
            self.used.update(used_keys(record, self.fields))
            self.characters += sum(len(text) for text in parts.values() if isinstance(text, str)) or len(str(parts))
            yield Entry(str(path), line, number, *asked_and_answered(parts), record, parts)

    def _lose(self, kind: str, place: Place, why: str, raw) -> None:
        self.findings.append(Finding(kind, place.file, place.line, why, None, place.number))
        if isinstance(raw, bytes):  # bytes that are no UTF-8 stay what they are, as escapes
            raw = raw.decode(errors="surrogateescape").rstrip()
        self.lost.append((*place, why, getattr(raw, "row", None) if isinstance(raw, Exception) else raw))

    def _count(self, record: dict, place: Place) -> None:
        for key, value in record.items():
            self.keys[key] += 1
            self.first.setdefault(key, place)
            if value is not None:
                name = JSON_NAMES.get(type(value), "a number")
                self.types.setdefault(key, Counter())[name] += 1
                places = self.odd.setdefault((key, name), [])
                if len(places) <= self.records * FEW + ENOUGH:  # more are not odd
                    places.append(place)

    def drift(self) -> Iterator[Finding]:
        """Keys that few records have and that play no part, a misspelt one perhaps, and types that few records have
        under a key. To be asked when all is read."""
        if self.records < ENOUGH:
            return
        for key, count in self.keys.items():
            if key not in self.used and count < FEW * self.records:
                meant = nearest(key, (self.used or KNOWN) - {key})
                has = "1 record has" if count == 1 else f"{count} records have"
                message = f"the key {key!r}, which {has} and which plays no part{meant}"
                yield Finding("key", *self.first[key][:2], message, None, self.first[key].number)
        for key, counts in self.types.items():
            usual, often = counts.most_common(1)[0]
            for name, count in counts.items():
                if count < FEW * self.keys[key] and often > ENOUGH and key not in self.used:
                    for place in self.odd[key, name]:
                        message = f"key {key!r} holds {name}, and {usual} in {often:,} records"
                        yield Finding("type", *place[:2], message, None, place.number)


def asked_and_answered(parts: dict) -> tuple[str, list[str], str]:
    """What is asked, what is learned, and what else the answers depend on; of a conversation all that each says."""
    if "text" in parts:
        return "", [parts["text"]], ""
    if "messages" in parts:
        messages = parts["messages"]
        asked = [message["content"] for message in messages if message["role"] == "user"]
        answers = [message.get("content") or "" for message in messages if message["role"] == "assistant"]
        others = [message.get("content") or "" for message in messages if message["role"] in ("system", "tool")]
        others += [json.dumps(message["tool_calls"], default=str) for message in messages if message.get("tool_calls")]
        return "\n".join(asked), answers, "\n".join(others)
    asked = [text for part, text in parts.items() if part not in ("response", "system") and text.strip()]
    return "\n".join(asked), [parts["response"]], parts.get("system", "")
