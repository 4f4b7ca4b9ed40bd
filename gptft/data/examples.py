"""Records -> examples. Every record is kept, cut or dropped, and each of these is counted and named.

An **example** is a list of token ids and the spans in it that are trained. Examples are tokenised once and stored
flat in a memory map, cached under a key made of everything that decides them: the files' content, the template, the
tokenizer and the truncation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gptft.data.cache import cache_directory
from gptft.data.shapes import recognise, used_keys
from gptft.data.sources import Unreadable, parse, raw_records
from gptft.errors import BadRecord, UserError
from gptft.files import json_line, sha256_file, sync_tree
from gptft.prompts import Template
from gptft.tokenizer import Tokenizer

FORMAT = 3  # of the cache: raise it when what is stored, or how it is made, changes
CHUNK = 1000  # records tokenised at a time
NAMED = 5  # bad records named one by one in an error


@dataclass(frozen=True)
class Example:
    """Token ids, the spans [start, end) of them that are trained, and the record: (file, line)."""

    ids: np.ndarray
    spans: list[tuple[int, int]]
    record: tuple[str, int]


@dataclass(frozen=True)
class Recipe:
    """Everything besides the files that decides the examples."""

    template: Template
    max_length: int
    truncation: str = "right"
    bad_records: str = "stop"
    fields: dict[str, str] | None = None

    def key(self, tokenizer: Tokenizer, paths: Sequence[Path]) -> str:
        content = [FORMAT, self.template.to_dict(), self.max_length, self.truncation, self.bad_records]
        content += [sorted((self.fields or {}).items()), tokenizer.digest]
        content += [[path.suffix, sha256_file(path)] for path in paths]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


Spans = list[tuple[int, int]]


def truncate(ids: list[int], spans: Spans, max_length: int, how: str) -> tuple[list[int], Spans] | None:
    """Cut an example to `max_length` tokens, or None where nothing worth learning survives.

    right: the end is cut, the stop with it, and none is made up, so no false end-of-text is learned.
    left: the start is cut; the last response must survive whole, with a token before it.
    """
    excess = len(ids) - max_length
    if excess <= 0:
        return ids, spans
    if how == "right":
        spans = [(start, min(end, max_length)) for start, end in spans if start < max_length]
        # the token at position 0 is predicted by nothing, so it is never a target
        return (ids[:max_length], spans) if any(end > max(start, 1) for start, end in spans) else None
    if how == "left" and spans[-1][0] > excess:
        kept = [(max(start - excess, 0), end - excess) for start, end in spans if end > excess]
        return ids[excess:], kept
    return None


def windows(ids: list[int], max_length: int) -> Iterator[list[int]]:
    """Plain text -> windows of `max_length`. Neighbours share one token, so every token but the first is a target."""
    for start in range(0, max(len(ids) - 1, 1), max_length - 1):
        yield ids[start : start + max_length]


class Dataset:
    """Examples in a memory map, and the ledger of what became of every record."""

    def __init__(self, directory: Path, paths: Sequence[Path]) -> None:
        self.directory, self.files = directory, [str(path) for path in paths]
        self.meta = json.loads((directory / "meta.json").read_text())
        self.ids = np.memmap(directory / "ids.bin", dtype=self.meta["dtype"], mode="r")
        arrays = np.load(directory / "arrays.npz")
        self.offsets, self.spans, self.span_offsets = arrays["offsets"], arrays["spans"], arrays["span_offsets"]
        self.sources, self.groups = arrays["sources"], arrays["groups"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Example:
        spans = self.spans[self.span_offsets[i] : self.span_offsets[i + 1]]
        return Example(
            self.ids[self.offsets[i] : self.offsets[i + 1]], [(int(a), int(b)) for a, b in spans], self.name(i)
        )

    def name(self, i: int) -> tuple[str, int]:
        """(file, line) of example i's record."""
        file, line, _ = self.sources[i]
        return self.files[file], int(line)

    @property
    def ledger(self) -> dict:
        return self.meta["ledger"]

    def score_prompts(self) -> None:
        """Count targets as --mask_prompt false makes them: every token but the first of each example."""
        self.ledger["targets"] = len(self.ids) - len(self)

    def lost(self) -> Iterator[dict]:
        """Every record that was cut or dropped: file, line, what happened, why, tokens lost."""
        with open(self.directory / "lost.jsonl", encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                yield {"file": self.files[entry.pop("file")], **entry}

    def fetch(self, indices: Iterable[int]) -> list[dict]:
        """The user's records behind these examples, read again from their files, in the order asked for."""
        wanted = [(int(self.sources[i][0]), int(self.sources[i][2])) for i in indices]
        found = {}
        for file in {file for file, _ in wanted}:
            numbers = {number for f, number in wanted if f == file}
            for number, (_, raw) in enumerate(raw_records(Path(self.files[file]))):
                if number in numbers:
                    found[file, number] = parse(raw)
        return [found[key] for key in wanted]


@dataclass(frozen=True)
class Split:
    """Some of a dataset's examples, in a fixed order."""

    dataset: Dataset
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Example:
        return self.dataset[int(self.indices[i])]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.dataset.offsets)[self.indices]

    @property
    def target_counts(self) -> np.ndarray:
        """Targets of each example, its prompt masked."""
        starts, ends = self.dataset.spans[:, 0], self.dataset.spans[:, 1]
        counts = ends - np.maximum(starts, 1)  # position 0 is predicted by nothing
        sums = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return np.diff(sums[self.dataset.span_offsets])[self.indices]

    def records(self, chosen: Iterable[int]) -> list[dict]:
        return self.dataset.fetch(int(self.indices[i]) for i in chosen)

    def digest(self) -> str:
        """SHA-256 of which examples these are and in which order: a resumed run must find the same."""
        content = self.dataset.meta["key"].encode() + np.ascontiguousarray(self.indices, dtype="<i8").tobytes()
        return hashlib.sha256(content).hexdigest()


def is_whole(directory: Path) -> bool:
    """Whether a cached dataset is there, and not cut short by a power failure."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        return (directory / "ids.bin").stat().st_size == meta["bytes"] and (directory / "arrays.npz").exists()
    except (OSError, ValueError, KeyError):
        return False


def load_dataset(paths: Sequence[Path], tokenizer: Tokenizer, recipe: Recipe) -> Dataset:
    """Tokenise the files, or find them in the cache.

    Raises UserError naming file, line and key of the first bad records and their count, unless they may be dropped.
    """
    key = recipe.key(tokenizer, paths)
    directory = cache_directory() / key
    if not is_whole(directory):
        shutil.rmtree(directory, ignore_errors=True)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=directory.parent))
        except OSError as error:
            raise UserError(
                f"the cache folder {directory.parent} cannot be used ({error.strerror}); set GPTFT_CACHE to another"
            ) from None
        try:
            _Builder(temporary, tokenizer, recipe, key).build(paths)
            sync_tree(temporary)
            try:
                os.replace(temporary, directory)
            except OSError:
                if not is_whole(directory):  # else another process was first, with the same content
                    raise
        except OSError as error:
            raise UserError(f"while tokenising into {directory.parent}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Dataset(directory, paths)


class _Builder:
    """Streams records into the flat files of a dataset; memory holds one chunk of records and the offsets."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, recipe: Recipe, key: str) -> None:
        self.directory, self.tokenizer, self.recipe, self.key = directory, tokenizer, recipe, key
        self.dtype = "<u2" if tokenizer.n_vocab <= 2**16 else "<u4"
        self.offsets, self.span_offsets = array("q", [0]), array("q", [0])
        self.spans, self.sources, self.groups = array("i"), array("i"), array("Q")
        self.count: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()  # keys that play no part, and how many records have them
        self.bad: list[str] = []

    def build(self, paths: Sequence[Path]) -> None:
        with (
            open(self.directory / "ids.bin", "wb") as self.ids_file,
            open(self.directory / "lost.jsonl", "w", encoding="utf-8") as self.lost_file,
            tqdm(desc="tokenising", unit=" records", disable=not sys.stderr.isatty(), leave=False) as bar,
        ):
            for file, path in enumerate(paths):
                numbered = enumerate(raw_records(path))
                while chunk := list(itertools.islice(numbered, CHUNK)):
                    self._chunk(file, path, chunk)
                    bar.update(len(chunk))
        if self.bad and self.recipe.bad_records == "stop":
            count = self.reasons["bad record"]
            more = f"\n  ... and {count - NAMED} more" if count > NAMED else ""
            raise UserError(
                f"{count} bad record{'s' * (count > 1)} (--bad_records drop goes on without them):"
                + "".join(f"\n  {line}" for line in self.bad)
                + more
            )
        if not self.groups:
            lost = ", ".join(f"{number} {why}" for why, number in self.reasons.items())
            raise UserError(f"{', '.join(map(str, paths))}: no record is left to use ({lost or 'there is none'})")
        self._finish()

    def _chunk(self, file: int, path: Path, chunk: list[tuple[int, tuple[int, bytes | object]]]) -> None:
        kept = []
        for number, (line, raw) in chunk:
            self.count["records_read"] += 1
            try:
                record = parse(raw)
                parts = recognise(record, self.recipe.fields)
                self.unused.update(record.keys() - used_keys(record, self.recipe.fields))
                kept.append((number, line, parts, self.recipe.template.segments(parts)))
            except (BadRecord, Unreadable) as error:
                self._bad(file, path, line, str(error))
        encoded = self.tokenizer.encode_many([segments for *_, segments in kept])
        for (number, line, parts, _), (ids, spans) in zip(kept, encoded, strict=True):
            self._add(file, line, number, parts, ids, spans)

    def _bad(self, file: int, path: Path, line: int, why: str) -> None:
        if len(self.bad) < NAMED:
            self.bad.append(f"{path}, line {line}: {why}")
        self.reasons["bad record"] += 1
        self._lose(file, line, "dropped", why, 0)

    def _lose(self, file: int, line: int, what: str, why: str, tokens: int) -> None:
        entry = {"file": file, "line": line, "what": what, "why": why, "tokens": tokens}
        self.lost_file.write(json_line(entry))

    def _add(self, file: int, line: int, number: int, parts: dict, ids: list[int], spans: Spans) -> None:
        recipe, count = self.recipe, self.count
        count["tokens_read"] += len(ids)
        # records with one prompt share a group, so that a split cannot part them
        if "text" in parts:
            count["records_kept"] += 1
            for part in windows(ids, recipe.max_length):
                # a single document that fills many windows could not be split otherwise
                self._store(file, line, number, part, [(0, len(part))], _group(part))
                count["tokens_kept"] += len(part)
            repeated = max(0, (len(ids) - 2) // (recipe.max_length - 1))
            count["tokens_repeated"] += repeated
            count["tokens_kept"] -= repeated
            return
        group = _group(ids[: spans[0][0]])
        result = truncate(ids, spans, recipe.max_length, recipe.truncation)
        if result is None:
            count["tokens_dropped"] += len(ids)
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

    def _store(self, file: int, line: int, number: int, ids: list[int], spans: Spans, group: int) -> None:
        self.ids_file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.offsets.append(self.offsets[-1] + len(ids))
        for start, end in spans:
            self.spans.extend((start, end))
            self.count["targets"] += end - max(start, 1)
        self.span_offsets.append(self.span_offsets[-1] + len(spans))
        self.sources.extend((file, line, number))
        self.groups.append(group)

    def _finish(self) -> None:
        np.savez(
            self.directory / "arrays.npz",
            offsets=np.frombuffer(self.offsets, dtype=np.int64),
            span_offsets=np.frombuffer(self.span_offsets, dtype=np.int64),
            spans=np.frombuffer(self.spans, dtype=np.int32).reshape(-1, 2),
            sources=np.frombuffer(self.sources, dtype=np.int32).reshape(-1, 3),
            groups=np.frombuffer(self.groups, dtype=np.uint64),
        )
        ledger = {name: self.count[name] for name in LEDGER}
        ledger["examples"] = len(self.groups)
        ledger["records_dropped"] = dict(self.reasons)
        ledger["unused_keys"] = dict(self.unused.most_common(20))
        size = self.offsets[-1] * np.dtype(self.dtype).itemsize
        meta = {"key": self.key, "dtype": self.dtype, "bytes": size, "ledger": ledger}
        (self.directory / "meta.json").write_text(json.dumps(meta))


# tokens_read = targets + tokens_masked + tokens_cut + tokens_dropped, where tokens_masked are those kept as context
# alone (prompts, and the first token of a text); tokens_repeated stand in two windows and are counted once.
LEDGER = (
    "records_read",
    "records_kept",
    "records_cut",
    "tokens_read",
    "tokens_kept",
    "tokens_cut",
    "tokens_dropped",
    "tokens_repeated",
    "targets",
)


def _group(ids: list[int]) -> int:
    digest = hashlib.blake2b(np.asarray(ids, dtype="<u4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def split(dataset: Dataset, val_fraction: float, test_fraction: float, seed: int) -> tuple[Split, Split, Split]:
    """Seeded (train, validation, test). Records with the same prompt stay on one side.

    Whole groups of records are dealt to the test, then to validation, until each has its share, rounded; a group
    too large for what is left of a share is passed over, so that one very common prompt does not leave it empty.
    """
    groups, member = np.unique(dataset.groups, return_inverse=True)
    sizes = np.bincount(member, minlength=len(groups)).tolist()
    room = {2: round(test_fraction * len(dataset)), 1: round(val_fraction * len(dataset))}
    part_of = np.zeros(len(groups), dtype=np.int8)  # 0: training
    for group in np.random.default_rng(seed).permutation(len(groups)).tolist():
        if not any(room.values()):
            break
        for part in room:
            if sizes[group] <= room[part]:
                part_of[group] = part
                room[part] -= sizes[group]
                break
    of_example = part_of[member]
    train, val, test = (Split(dataset, np.flatnonzero(of_example == number)) for number in (0, 1, 2))
    return train, val, test
