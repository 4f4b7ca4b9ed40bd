"""The process that makes the shards of a corpus beside the training: `python -m gptft.data.maker FOLDER stop|drop`.

Standard input says, a number a line, which shard is wanted; its end ends the process, so that it never outlives the
run that started it. Shards are made in order, each from the place in the sources at which the one before it ended.
Several such processes may work on one corpus: a lock has one make a shard, and the others find it made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptft.data.build import Builder, Recipe
from gptft.data.examples import is_complete
from gptft.data.streams import AT_ONCE, Mix
from gptft.errors import UserError
from gptft.files import atomic_write, lock, read_json, sync_tree
from gptft.tokenizer import Tokenizer

MOST_AT_ONCE = 1000  # records that are tokenised together
TO_WAIT = 0.1  # seconds until a lock is tried again


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06}"


def shards_in_all(folder: Path) -> int | None:
    """How many shards the corpus has, None while its end is not reached."""
    try:
        return read_json(folder / "end.json")["shards"]
    except UserError:
        return None


class Maker:
    """Makes the shards of the corpus in `folder`, whose `corpus.json` says all that decides them."""

    def __init__(self, folder: Path, bad_records: str) -> None:
        self.folder, self.values, self.tokenizer = folder, read_json(folder / "corpus.json"), Tokenizer.load(folder)
        self.recipe = Recipe(self.tokenizer.template, **self.values["recipe"], bad_records=bad_records)
        self.mix: Mix | None = None  # open, and at the end of the shard that was made last
        self.number = 0  # the first that may be missing

    def make_next(self, wanted: int) -> bool:
        """Make the first shard that is missing; False where none is missing up to the one that is wanted. Raises
        UserError where its records cannot be used, SourceFailed where its source cannot be read."""
        with self._locked():
            while is_complete(shard_path(self.folder, self.number)):
                self.number, self.mix = self.number + 1, None
            end = shards_in_all(self.folder)
            if self.number > wanted or (end is not None and self.number >= end):
                return False
            if self.mix is None:
                before = shard_path(self.folder, self.number - 1)
                state = read_json(before / "meta.json")["next"] if self.number else None
                self.mix = Mix(self.values["entries"], self.values["weights"], state)
            try:
                made = self._make()
            except BaseException:
                self.mix = None
                raise
            if not made:
                with atomic_write(self.folder / "end.json") as file:
                    file.write(f'{{"shards": {self.number}}}')
                return False
            self.number += 1
            return True

    def _make(self) -> bool:
        """Make the shard; False where the stream has no record for it."""
        temporary = Path(tempfile.mkdtemp(prefix=".shard-", dir=self.folder))
        try:
            builder = Builder(temporary, self.tokenizer, self.recipe, f"{self.values['key']}-{self.number}")
            with builder.writing():
                while (left := self.values["shard_tokens"] - builder.offsets[-1]) > 0:
                    if not (taken := self.mix.take(self._how_many(builder, left))):
                        break
                    which, rows = taken
                    before = builder.offsets[-1]
                    for file, its in itertools.groupby(rows, lambda row: row.file):
                        at = self.mix.first[which] + file
                        builder.add(at, self.mix.names[at], [(row.number, row.line, row.raw) for row in its])
                    self.mix.tokens[which] += builder.offsets[-1] - before
                    if builder.bad and self.recipe.bad_records == "stop":
                        break
            if not builder.count["records_read"] and self.number:
                return False
            # the last records of a stream may all be left out: the shard tells of them
            builder.finish(self.mix.names, {"next": self.mix.state}, may_be_empty=self.number > 0)
            sync_tree(temporary)
            if not is_complete(path := shard_path(self.folder, self.number)):
                shutil.rmtree(path, ignore_errors=True)
                os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True

    def _how_many(self, builder: Builder, left: int) -> int:
        """How many records to take: many at once are tokenised faster, but a shard is not to grow much beyond its size,
        nor a mix to be coarse. By what is in this shard alone, so that it is made the same at any time."""
        if self.mix.weights or not builder.offsets[-1]:
            return AT_ONCE
        each = builder.offsets[-1] / builder.count["records_read"]
        return max(1, min(MOST_AT_ONCE, round(left / each / 2)))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / ".lock", "a") as file:
            while True:
                try:
                    lock(file.fileno())
                except BlockingIOError:
                    time.sleep(TO_WAIT)
                    continue
                except OSError:  # a file system without locks: two makers may make the same shard
                    yield
                    return
                for left in self.folder.glob(".shard-*"):  # by a process that was killed: none else writes here now
                    shutil.rmtree(left, ignore_errors=True)
                yield
                return


class Wanted:
    """The highest shard that was asked for on standard input; at its end the process ends."""

    def __init__(self) -> None:
        self.highest, self.changed = -1, threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            with self.changed:
                self.highest = max(self.highest, int(line))
                self.changed.notify()
        os._exit(0)

    def behind(self, number: int) -> int:
        """The highest that is wanted, once that is above `number`."""
        with self.changed:
            self.changed.wait_for(lambda: self.highest > number)
            return self.highest


def work(maker: Maker, wanted_behind: Callable[[int], int]) -> None:
    """Make what is wanted, until the corpus has ended."""
    done = -1
    while shards_in_all(maker.folder) is None or maker.number < shards_in_all(maker.folder):
        done = wanted_behind(done)
        while maker.make_next(done):
            pass


def main(folder: str, bad_records: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process by its input's end
    if hasattr(os, "nice"):
        os.nice(10)  # the training goes before, yet on a busy machine this is not to starve
    try:
        work(Maker(Path(folder), bad_records), Wanted().behind)
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{folder}: {error.strerror or error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
