"""Records -> the flat files of a dataset. Every record is kept, cut or dropped: counted and named, whichever it is."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptft.data.compressed import kind_of, mentions
from gptft.data.cuts import cuts_of
from gptft.data.ledger import LEDGER, Owners
from gptft.data.plain_text import chunks, text_ids
from gptft.data.shapes import recognise, used_keys
from gptft.data.sources import TextFile, parse, raw_records
from gptft.errors import BadRecord, Unreadable, UserError
from gptft.files import json_line, sha256_file
from gptft.prompts import Template
from gptft.text.chat import ChatTemplate
from gptft.text.progress import progress
from gptft.tokenizer import Tokenizer, grow

FORMAT = 3  # part of the key by which a resumed run knows its data again: it stays
EDITION = 6  # of the cache: raise it when what is stored changes, or what the same inputs are made into
AT_ONCE = 1000  # records tokenised together
NAMED = 5  # bad records named one by one in an error
NAMED_KEYS = 20  # keys without a part that are named, the most frequent


@dataclass(frozen=True)
class Recipe:
    """Everything besides the files that decides the examples."""

    template: Template
    max_length: int
    truncation: str = "right"
    bad_records: str = "stop"
    fields: dict[str, str] | None = None

    def key(self, tokenizer: Tokenizer, paths: Sequence[Path]) -> str:
        """A hash of all that decides the examples. A run that is resumed compares it, so it does not change with how
        the cache is laid out."""
        content = [FORMAT, self.template.to_dict(), self.max_length, self.truncation, self.bad_records]
        content += [sorted((self.fields or {}).items()), tokenizer.digest]
        content += [[kind_of(path), sha256_file(path)] for path in paths]
        if self.template.today:  # a chat template that writes the day: its ids are this day's
            content.append(self.template.today)
        content += self._changes(tokenizer, paths)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def _changes(self, tokenizer: Tokenizer, paths: Sequence[Path]) -> list[str]:
        """What is made otherwise now than by an earlier version, of such data as this: a run that was begun on it must
        not go on as if nothing had changed."""
        changes = []
        if self.truncation == "left" and tokenizer.beginnings:
            changes.append("a beginning-of-text is kept")
        if isinstance(self.template, ChatTemplate) and len(self.template.ending) > 1:
            changes.append("all that ends an answer is a target")
        records = [path for path in paths if kind_of(path) in (".json", ".jsonl")]
        if any(mentions(path, b'"weight"') for path in records):
            changes.append("turns of the weight 0 are context")
        for keys in () if self.fields else LATER_READ:
            if any(all(mentions(path, b'"%s"' % key.encode()) for key in keys) for path in records):
                changes.append(f"{', '.join(keys)} are read")
        if self.bad_records == "drop" and any(mentions(path, b'"content": [') for path in records):
            changes.append("lists of text parts are read")
        if tokenizer.strips_behind:
            changes.append("special tokens take the white space behind them")
        return changes


# Keys that an earlier version did not look for, where it read such records all the same
LATER_READ = (("context", "response"), ("query", "response", "text"), ("conversations", "text"), ("answers", "text"))
Spans = list[tuple[int, int]]


def truncate(
    ids: list[int], spans: Spans, max_length: int, how: str, beginnings: Collection[int] = ()
) -> tuple[list[int], Spans] | None:
    """Cut an example to `max_length` tokens, or None where nothing worth learning survives.

    right: the end is cut, the stop with it, and none is made up, so no false end-of-text is learned.
    left: the start is cut, but a first id that is one of `beginnings` (a beginning-of-text) stays, and is counted; the
    last response must survive whole, with a token before it.
    """
    excess = len(ids) - max_length
    if excess <= 0:
        return ids, spans
    if how == "right":
        spans = [(start, min(end, max_length)) for start, end in spans if start < max_length]
        # the token at position 0 is predicted by nothing, so it is never a target
        return (ids[:max_length], spans) if any(end > max(start, 1) for start, end in spans) else None
    first = 1 if ids[0] in beginnings else 0  # what stays before the cut
    if how == "left" and spans[-1][0] > excess + first:
        cut = excess + first
        kept = [(max(start - excess, first), end - excess) for start, end in spans if end > cut]
        return ids[:first] + ids[cut:], kept
    return None


class Builder:
    """Streams records into the flat files of a dataset; memory holds some records and the offsets."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, recipe: Recipe, key: str) -> None:
        self.directory, self.tokenizer, self.recipe, self.key = directory, tokenizer, recipe, key
        self.dtype = "<u2" if tokenizer.n_vocab <= 2**16 else "<u4"
        self.offsets, self.span_offsets = array("q", [0]), array("q", [0])
        self.spans, self.sources, self.groups = array("i"), array("i"), array("Q")
        self.origin = array("i")  # of each example, tokens: the user's, the template's, repeated, cut
        self.owners = Owners(tokenizer, recipe.template)
        self.n_before = len(tokenizer.encode_segments(recipe.template.segments({"text": ""}))[0]) - 1
        self.count: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()  # keys that play no part, and how many records have them
        self.bad: list[str] = []
        # where a text file may be cut; None: it is tokenised as a whole, or is a bad record for want of other fields
        self.cut = cuts_of(tokenizer) if (recipe.fields or {"text": "text"}) == {"text": "text"} else None

    def build(self, paths: Sequence[Path]) -> None:
        """The dataset of all records of the files."""
        bar = progress(desc="tokenising", unit="records")
        with self.writing(), bar:
            for file, path in enumerate(paths):
                numbered = ((number, line, raw) for number, (line, raw) in enumerate(raw_records(path)))
                while records := list(itertools.islice(numbered, AT_ONCE)):
                    self.add(file, str(path), records)
                    bar.update(len(records))
        self.finish(paths)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While records are added."""
        with (
            open(self.directory / "ids.bin", "wb") as self.ids_file,
            open(self.directory / "lost.jsonl", "w", encoding="utf-8") as self.lost_file,
        ):
            yield

    def add(self, file: int, name: str, records: Iterable[tuple[int, int, bytes | TextFile | object]]) -> None:
        """Add (number in the file, line, record) of the file of this number and name."""
        kept = []
        for number, line, raw in records:
            self.count["records_read"] += 1
            if isinstance(raw, TextFile) and self.cut:
                ids = text_ids(self.tokenizer, self.recipe.template, raw.pieces(), self.cut)
                self._add_text(file, line, number, ids)
                continue
            try:
                record = parse(raw)
                parts = recognise(record, self.recipe.fields)
                self.unused.update(record.keys() - used_keys(record, self.recipe.fields))
                kept.append((number, line, parts, self.recipe.template.segments(parts)))
            except (BadRecord, Unreadable) as error:
                self._bad(file, name, line, str(error), raw)
        encoded = self.tokenizer.encode_parts([segments for *_, segments in kept])
        made = list(zip(kept, encoded, strict=True))
        answers = [(segments, pieces) for (*_, parts, segments), pieces in made if "text" not in parts]
        templates = iter(self.owners.count_template(answers))
        for (number, line, parts, _), pieces in made:
            ids, spans = grow(pieces)
            if "text" in parts:
                self._add_text(file, line, number, ids)
            else:
                self._add(file, line, number, ids, spans, next(templates))

    def _bad(self, file: int, name: str, line: int, why: str, raw) -> None:
        self.count["bytes_unread"] += size_of(raw)
        if len(self.bad) < NAMED:
            self.bad.append(f"{name}, line {line}: {why}")
        self.reasons["bad record"] += 1
        self._lose(file, line, "dropped", why, 0)

    def _lose(self, file: int, line: int, what: str, why: str, tokens: int) -> None:
        entry = {"file": file, "line": line, "what": what, "why": why, "tokens": tokens}
        self.lost_file.write(json_line(entry))

    def _add_text(self, file: int, line: int, number: int, ids: Iterable[int]) -> None:
        """A text is trained on whole, in chunks; each may be split from the others, or a single text could not be."""
        stored, shared = 0, -1  # neighbours share one token
        first = self.n_before  # the beginning-of-text is the template's, as is the stop
        for chunk in chunks(ids, self.recipe.max_length):
            self._store(file, line, number, chunk, [(0, len(chunk))], group_of(chunk))
            stored, shared = stored + len(chunk), shared + 1
            repeated = int(shared > 0)
            self._book(len(chunk) - first - repeated, first, repeated, 0)
            first = 0
        self.origin[-4] -= 1  # the stop stands in the last chunk
        self.origin[-3] += 1
        self.count["tokens_user"] -= 1
        self.count["tokens_template"] += 1
        self.count["records_kept"] += 1
        self.count["tokens_read"] += stored - shared
        self.count["tokens_kept"] += stored - shared
        self.count["tokens_repeated"] += shared

    def _book(self, user: int, template: int, repeated: int, cut: int) -> None:
        """Note whose the tokens of the example are that was just stored."""
        self.origin.extend((user, template, repeated, cut))
        self.count["tokens_user"] += user
        self.count["tokens_template"] += template

    def _add(self, file: int, line: int, number: int, ids: list[int], spans: Spans, template: int) -> None:
        """`template`: how many of the ids are the template's."""
        recipe, count = self.recipe, self.count
        count["tokens_read"] += len(ids)
        # records with one prompt share a group, so that a split cannot part them
        group = group_of(ids[: spans[0][0]])
        result = truncate(ids, spans, recipe.max_length, recipe.truncation, self.tokenizer.beginnings)
        if result is None:
            count["tokens_dropped"] += len(ids)
            count["tokens_user"] += len(ids) - template
            count["tokens_template"] += template
            why = f"{len(ids)} tokens; no whole response within max_length {recipe.max_length}"
            if recipe.truncation == "right":
                why = f"{len(ids)} tokens; its prompt alone fills max_length {recipe.max_length}"
            if recipe.truncation == "drop":
                why = f"{len(ids)} tokens, above max_length {recipe.max_length}"
            self.reasons["too long"] += 1
            self._lose(file, line, "dropped", why, len(ids))
            return
        count["records_kept"] += 1
        if lost := len(ids) - len(result[0]):
            count["records_cut"] += 1
            count["tokens_cut"] += lost
            self._lose(file, line, "cut", f"{len(ids)} tokens, above max_length {recipe.max_length}", lost)
        count["tokens_kept"] += len(result[0])
        self._store(file, line, number, *result, group)
        self._book(len(ids) - template, template, 0, lost)

    def _store(self, file: int, line: int, number: int, ids: list[int], spans: Spans, group: int) -> None:
        self.ids_file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.offsets.append(self.offsets[-1] + len(ids))
        for start, end in spans:
            self.spans.extend((start, end))
            self.count["targets"] += end - max(start, 1)
        self.span_offsets.append(self.span_offsets[-1] + len(spans))
        self.sources.extend((file, line, number))
        self.groups.append(group)

    def finish(self, files: Iterable[Path | str], more: dict | None = None, may_be_empty: bool = False) -> None:
        """Write what is known of the dataset now; `more` goes into its meta. Raises UserError naming the bad records,
        unless they may be dropped, and where no example is left, unless that may be."""
        if self.bad and self.recipe.bad_records == "stop":
            raise bad_records(self.bad, self.reasons["bad record"])
        if not self.groups and not may_be_empty:
            lost = ", ".join(f"{number} {why}" for why, number in self.reasons.items())
            raise UserError(f"{', '.join(map(str, files))}: no record is left to use ({lost or 'there is none'})")
        np.savez(
            self.directory / "arrays.npz",
            offsets=np.asarray(self.offsets, dtype=np.int64),
            span_offsets=np.asarray(self.span_offsets, dtype=np.int64),
            spans=np.asarray(self.spans, dtype=np.int32).reshape(-1, 2),
            sources=np.asarray(self.sources, dtype=np.int32).reshape(-1, 3),
            groups=np.asarray(self.groups, dtype=np.uint64),
            origin=np.asarray(self.origin, dtype=np.int32).reshape(-1, 4),
        )
        ledger = {name: self.count[name] for name in LEDGER}
        ledger["examples"] = len(self.groups)
        ledger["records_dropped"] = dict(self.reasons)
        ledger["unused_keys"] = dict(self.unused.most_common(NAMED_KEYS))
        size = self.offsets[-1] * np.dtype(self.dtype).itemsize
        meta = {"key": self.key, "dtype": self.dtype, "bytes": size, "ledger": ledger} | (more or {})
        (self.directory / "meta.json").write_text(json.dumps(meta))


def bad_records(named: Sequence[str], count: int) -> UserError:
    """The error that names the first of so many records that cannot be used."""
    more = f"\n  ... and {count - NAMED} more" if count > NAMED else ""
    return UserError(
        f"{count} bad record{'s' * (count > 1)} (--bad_records drop goes on without them):"
        + "".join(f"\n  {line}" for line in named)
        + more
    )


def size_of(raw) -> int:
    """The bytes of what could not be read, or used: of the line, or of what it was parsed into."""
    if isinstance(raw, TextFile):
        return raw.path.stat().st_size
    if isinstance(raw, bytes):
        return len(raw.rstrip(b"\r\n"))
    return 0 if isinstance(raw, Exception) else len(json.dumps(raw, ensure_ascii=False, default=str).encode())


def group_of(ids: list[int]) -> int:
    """A number that stands for these ids: examples with the same number stay on one side of a split."""
    digest = hashlib.blake2b(np.asarray(ids, dtype="<u4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
