"""A corpus: streams as numbered shards of tokens on disk. Each is a dataset like any other, so the loop, `plan` and
resuming are what they are: a run stands at a window of a shard.

Shards are made beside the training by a process of its own (maker.py) and lie in the cache, under a key of all that
decides them: runs on the same corpus share them. The order is: within a shard as `plan` draws it from the run's seed
and the number of the pass; between shards that of the sources, or of their mix.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptft.data import ledger
from gptft.data.build import EDITION, NAMED, Recipe, bad_records
from gptft.data.cache import cache_directory, key_of
from gptft.data.examples import Dataset, Split, is_complete
from gptft.data.maker import shard_path, shards_in_all
from gptft.data.streams import describe, head_of, names_of, pinned
from gptft.errors import Interrupted, SourceFailed, UserError
from gptft.files import atomic_write, read_json
from gptft.text.progress import progress
from gptft.tokenizer import Tokenizer

AHEAD = 2  # shards that are made before they are needed
HEAD = 1000  # records of each source by which its shape and template are told
TO_WAIT = 0.02  # seconds between two looks whether a shard is there


class Corpus:
    """The shards of some sources under one recipe."""

    def __init__(self, words: Sequence[str], weights: Sequence[float], shard_tokens: int, makes: bool = True) -> None:
        """`makes`: whether shards are made here; else they are waited for, which another process makes. Raises
        UserError for a source that is not there, or of which nothing can be read."""
        self.makes = makes
        entries = describe(words)
        self.weights, self.shard_tokens = list(weights), shard_tokens
        self.home = cache_directory() / "corpora" / key_of([EDITION, entries, HEAD])
        if not (self.home / "sources.json").exists():
            self._begin(entries)
        self.entries = read_json(self.home / "sources.json")["entries"]
        self.heads = sorted(self.home.glob("head-*.jsonl"))
        self.folder, self.bad_records, self.maker, self.asked = self.home, "stop", None, -1
        self.parts: dict[int, Split] = {}  # by pass, the last two that were asked for: what a stream goes over
        self.filled: list[int] = []  # the shards of which something is trained, in order
        self.looked_at, self.ended = 0, False  # how many shards were looked at for that, and whether these are all

    def _begin(self, entries: list[dict]) -> None:
        """Note what the sources are from now on, and their heads."""
        self.home.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".corpus-", dir=self.home.parent))
        try:
            entries = pinned(entries)
            for number, entry in enumerate(entries):
                with atomic_write(temporary / f"head-{number}.jsonl", "wb") as file:
                    file.writelines(head_of(entry, HEAD))
                    if not file.tell():
                        raise UserError(f"--data {entry['word']}: it holds no record")
            with atomic_write(temporary / "sources.json") as file:
                json.dump({"entries": entries}, file, indent=1)
            with contextlib.suppress(OSError):  # another run was first
                os.replace(temporary, self.home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def begin(self, recipe: Recipe, tokenizer: Tokenizer) -> Dataset:
        """The first shard, once it is made, and from now on those behind it beside whatever is done with it."""
        self.bad_records = recipe.bad_records
        values = {"max_length": recipe.max_length, "truncation": recipe.truncation, "fields": recipe.fields or {}}
        decides = [recipe.template.to_dict(), recipe.template.today, sorted(values.items()), tokenizer.digest]
        key = key_of([self.entries, self.weights, self.shard_tokens, *decides])
        self.folder = self.home / key
        if not (self.folder / "corpus.json").exists():
            self.folder.mkdir(exist_ok=True)
            tokenizer.save(self.folder)
            content = {"key": key, "entries": self.entries, "weights": self.weights, "recipe": values}
            with atomic_write(self.folder / "corpus.json") as file:
                json.dump(content | {"shard_tokens": self.shard_tokens}, file, indent=1)
        first = self.shard(0)
        first.surveyed = [str(path) for path in self.heads]
        first.in_part = any(path.read_bytes().count(b"\n") >= HEAD for path in self.heads)
        return first

    @property
    def names(self) -> list[str]:
        """Of all files, and data sets of the hub, in the order in which the shards count them."""
        return [name for entry in self.entries for name in names_of(entry)]

    def shard(self, number: int, should_stop: Callable[[], bool] = lambda: False) -> Dataset | None:
        """The shard, waited for where it is not there yet; None behind the corpus' end.

        Raises SourceFailed where it cannot be made, or left out records that this run stops for, and Interrupted.
        """
        path = shard_path(self.folder, number)
        with progress(total=self.shard_tokens, desc=f"shard {number}", unit="tokens", delay=1) as bar:
            self._ask_for(number)
            while not is_complete(path):
                if (end := shards_in_all(self.folder)) is not None and number >= end:
                    return None
                if should_stop():
                    raise Interrupted
                self._ask_for(number)
                bar.n = self._tokens_so_far()
                bar.refresh()
                time.sleep(TO_WAIT)
        return self._open(path)

    def _open(self, path: Path) -> Dataset:
        dataset = Dataset(path, self.names)
        if (count := dataset.ledger["records_dropped"].get("bad record")) and self.bad_records == "stop":
            bad = (entry for entry in dataset.lost() if not entry["tokens"])
            named = [f"{entry['file']}, line {entry['line']}: {entry['why']}" for entry in itertools.islice(bad, NAMED)]
            raise SourceFailed(str(bad_records(named, count)))
        return dataset

    def _tokens_so_far(self) -> int:
        size = 0
        for path in self.folder.glob(".shard-*/ids.bin"):
            with contextlib.suppress(OSError):  # it was renamed meanwhile
                size = max(size, path.stat().st_size)
        return min(size // 2, self.shard_tokens)

    def _ask_for(self, number: int) -> None:
        """Have all shards up to this one made, and some further."""
        if not self.makes:
            return
        end = shards_in_all(self.folder)
        last = number + AHEAD if end is None else min(number + AHEAD, end - 1)
        if all(is_complete(shard_path(self.folder, each)) for each in range(number, last + 1)):
            return
        if self.maker is not None and self.maker.poll() is not None:
            self._explain(number)
            self.close()
        if self.maker is not None and last < self.asked:  # a shard that was there is gone from the cache
            self.close()
        if self.maker is None:
            self.asked = -1
            self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            package = str(Path(__file__).resolve().parent.parent.parent)
            paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
            self.maker = subprocess.Popen(
                [sys.executable, "-m", "gptft.data.maker", str(self.folder), self.bad_records],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                text=True,
                start_new_session=True,  # Ctrl-C and Ctrl-Z are for the run
                env=os.environ | {"PYTHONPATH": paths},
            )
            self.close_at_exit = weakref.finalize(self, stop, self.maker)
        if last > self.asked:
            self.asked = last
            with contextlib.suppress(BrokenPipeError):  # it has ended: whoever waits for it will see
                self.maker.stdin.write(f"{last}\n")
                self.maker.stdin.flush()

    def _explain(self, number: int) -> None:
        """Raise SourceFailed where the process that makes the shards has failed and this shard is not there."""
        status = self.maker.returncode
        if not status or is_complete(shard_path(self.folder, number)):
            return
        self.errors.seek(0)
        said = self.errors.read().strip()
        self.close()
        if "Traceback" in said or not said:  # a fault of ours, or a kill
            said = f"the process that makes the shards ended with status {status}: {said.rpartition(chr(10))[2]}"
        raise SourceFailed(said)

    def close(self) -> None:
        """End the process that makes shards, if there is one."""
        if self.maker is not None:
            self.close_at_exit()
            self.errors.close()
            self.maker = None


def stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait()


@dataclass(frozen=True)
class Stream(Split):
    """The training split of a corpus: of its first shard, as which it passes, and by `part` of all others, without the
    examples whose prompts were dealt to the validation."""

    corpus: Corpus
    held_out: np.ndarray

    def part(self, number: int, should_stop: Callable[[], bool] = lambda: False) -> Split:
        """What the pass of this number goes over: a shard. Behind the last comes the first again."""
        parts = self.corpus.parts
        if number not in parts:
            filled = self._find_filled(number, should_stop)
            parts[number] = self.kept_of(filled[number % len(filled)], should_stop)
            if len(parts) > 2:
                del parts[next(iter(parts))]
        return parts[number]

    def _find_filled(self, number: int, should_stop: Callable[[], bool] = lambda: False) -> list[int]:
        """The shards of which something is trained: so many that one is at this place, or all."""
        corpus = self.corpus
        while len(corpus.filled) <= number and not corpus.ended:
            kept = self.kept_of(corpus.looked_at, should_stop)
            if kept is None:
                corpus.ended = True
            else:
                corpus.filled += [corpus.looked_at] * bool(len(kept))
                corpus.looked_at += 1
        return corpus.filled

    def kept_of(self, shard: int, should_stop: Callable[[], bool] = lambda: False) -> Split | None:
        """What of a shard is trained, which may be nothing; None behind the end."""
        if shard == 0:
            return Split(self.dataset, self.indices)
        dataset = self.corpus.shard(shard, should_stop)
        if dataset is None:
            return None
        return Split(dataset, np.flatnonzero(~np.isin(dataset.groups, self.held_out)))

    def shards_begun(self, passes: int) -> int:
        """How many shards so many passes have come to."""
        filled = self._find_filled(passes - 1)
        return self.corpus.looked_at if passes >= len(filled) and self.corpus.ended else filled[max(passes, 1) - 1] + 1


def stream_of(corpus: Corpus, first: Split, *held_out: Split) -> Stream:
    """The training split over all shards, `first` that of the first one; nothing of `held_out` comes in a later one."""
    groups = [split.dataset.groups[split.indices] for split in held_out if split.dataset is first.dataset]
    return Stream(first.dataset, first.indices, corpus, np.unique(np.concatenate([first.dataset.groups[:0], *groups])))


def close_books(datasets: dict[str, Dataset], train_set: Split, progress, mask_prompt: bool) -> dict[str, dict]:
    """The ledgers of a run that stands at `progress`. That of a stream tells of all shards that were begun; what is
    left out of later ones, since the validation holds its prompts, is set aside. No more shards are made."""
    if isinstance(train_set, Stream):
        add_shards(train_set, train_set.shards_begun(progress.epoch + (progress.window > 0)), mask_prompt)
        train_set.corpus.close()
    return {name: dataset.ledger for name, dataset in datasets.items()}


def add_shards(stream: Stream, shards: int, mask_prompt: bool) -> None:
    """Let the ledger of the first shard tell of the first `shards`. One that is gone from the
    cache and cannot be made again is counted alone: the run is over, and is not to fail for that."""
    books = stream.dataset.ledger
    by_source: Counter[str] = Counter()
    for number in range(shards):
        try:
            dataset = stream.dataset if number == 0 else stream.corpus.shard(number)
        except SourceFailed:
            books["shards_gone"] = books.get("shards_gone", 0) + 1
            continue
        lengths = np.diff(dataset.offsets)
        for file in np.unique(dataset.sources[:, 0]).tolist():
            by_source[dataset.files[file]] += int(lengths[dataset.sources[:, 0] == file].sum())
        if number:
            stream.dataset.further.append(dataset.directory)
            if not mask_prompt:
                dataset.score_prompts()
            part = stream.kept_of(number)
            every = Split(dataset, np.arange(len(dataset)))
            ledger.add(books, dataset.ledger, *(ledger.books(split, mask_prompt) for split in (part, every)))
    books["shards"], books["tokens_by_source"] = shards, dict(by_source)
