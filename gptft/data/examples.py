"""Records -> examples, and their splits. build.py makes the examples; here they are kept, found again and dealt out.

An **example** is a list of token ids and the spans in it that are trained. Examples are tokenised once and stored
flat in a memory map, cached under a key made of everything that decides them: the files' content, the template, the
tokenizer and the truncation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptft.data.build import EDITION, Builder, Recipe
from gptft.data.cache import cache_directory
from gptft.data.sources import TextFile, parse, raw_records
from gptft.errors import UserError
from gptft.files import sync_tree
from gptft.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """Token ids, the spans [start, end) of them that are trained, and the record: (file, line)."""

    ids: np.ndarray
    spans: list[tuple[int, int]]
    record: tuple[str, int]


class Dataset:
    """Examples in a memory map, and the ledger of what became of every record."""

    def __init__(self, directory: Path, paths: Sequence[Path]) -> None:
        self.directory, self.files = directory, [str(path) for path in paths]
        self.surveyed, self.in_part = self.files, False  # what can be looked through: of a corpus, its sources' heads
        self.further: list[Path] = []  # of a corpus, the other shards that were trained on
        self.meta = json.loads((directory / "meta.json").read_text())
        self.ids = np.zeros(0, dtype=self.meta["dtype"])
        if self.meta["bytes"]:  # a corpus may end in a shard of which no example is left
            self.ids = np.memmap(directory / "ids.bin", dtype=self.meta["dtype"], mode="r")
        arrays = np.load(directory / "arrays.npz")
        self.offsets, self.spans, self.span_offsets = arrays["offsets"], arrays["spans"], arrays["span_offsets"]
        self.sources, self.groups, self.origin = arrays["sources"], arrays["groups"], arrays["origin"]

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
        for directory in (self.directory, *self.further):
            with open(directory / "lost.jsonl", encoding="utf-8") as file:
                for line in file:
                    entry = json.loads(line)
                    yield {"file": self.files[entry.pop("file")], **entry}

    def fetch(self, indices: Iterable[int]) -> list[dict | None]:
        """The user's record behind each of these examples, read again from its file, in the order asked for. None for
        a chunk of a text file, which may be too long to be read as a whole."""
        wanted = [(int(self.sources[i][0]), int(self.sources[i][2])) for i in indices]
        records = {}
        for file in {file for file, _ in wanted}:
            numbers = {number for f, number in wanted if f == file}
            for number, (_, raw) in enumerate(raw_records(Path(self.files[file]))):
                if number in numbers and not isinstance(raw, TextFile):
                    records[file, number] = parse(raw)
        return [records.get(key) for key in wanted]


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

    def part(self, number: int, should_stop: Callable[[], bool] = lambda: False) -> Split:
        """What the pass of this number goes over: all of it. Of a corpus it is a shard."""
        return self

    def records(self, chosen: Iterable[int]) -> list[dict | None]:
        """The user's record behind each of the chosen examples; None for a chunk of a text file."""
        return self.dataset.fetch(int(self.indices[i]) for i in chosen)

    def digest(self) -> str:
        """SHA-256 of which examples these are and in which order: a resumed run must find the same."""
        content = self.dataset.meta["key"].encode() + np.ascontiguousarray(self.indices, dtype="<i8").tobytes()
        return hashlib.sha256(content).hexdigest()


def subset(split: Split, fraction: float, seed: int) -> Split:
    """A share of a split's examples, one at least, in their order. With one seed a smaller share lies in a larger."""
    order = np.random.default_rng((seed, 0)).permutation(len(split))
    return Split(split.dataset, split.indices[np.sort(order[: max(1, round(fraction * len(split)))])])


def is_complete(directory: Path) -> bool:
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
    directory = cache_directory() / f"{key}-{EDITION}"
    if not is_complete(directory):
        shutil.rmtree(directory, ignore_errors=True)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=directory.parent))
        except OSError as error:
            raise UserError(
                f"the cache folder {directory.parent} cannot be used ({error.strerror}); set GPTFT_CACHE to another"
            ) from None
        try:
            Builder(temporary, tokenizer, recipe, key).build(paths)
            sync_tree(temporary)
            try:
                os.replace(temporary, directory)
            except OSError:
                if not is_complete(directory):  # else another process was first, with the same content
                    raise
        except OSError as error:
            raise UserError(f"while tokenising into {directory.parent}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Dataset(directory, paths)


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
