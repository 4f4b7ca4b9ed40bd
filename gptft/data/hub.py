"""Data sets of the Hugging Face hub, `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`, by the library `datasets`.

NAME may be a local folder that the library can read. The split is `train` where none is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from pathlib import Path

from gptft.data.cache import cache_directory, key_of
from gptft.errors import UserError, need_extra
from gptft.files import atomic_write, fingerprints, json_line
from gptft.text.progress import progress

PREFIX = "hf:"
LARGEST = 4 * 10**9  # bytes of records that are fetched as a whole; what is larger is for --stream


@dataclass(frozen=True)
class HubData:
    """Which data set is meant, as `word` has it."""

    word: str
    name: str
    revision: str | None
    config: str | None
    split: str

    @property
    def is_local(self) -> bool:
        return Path(self.name).is_dir()


def read_word(word: str, flag: str = "data") -> HubData:
    """What an `hf:` word names. Raises UserError where it names nothing."""
    rest = word.removeprefix(PREFIX)
    whole = rest and Path(rest).is_dir()  # a path may hold a colon
    name, *more = [rest] if whole else rest.split(":")
    if name and Path(name).is_dir():  # wherever a later run is started
        name = str(Path(name).resolve())
        word = PREFIX + ":".join([name, *more])
        return HubData(word, name, None, *_config_and_split(word, more, flag))
    name, _, revision = name.partition("@")
    return HubData(word, name, revision or None, *_config_and_split(word, more if name else ["", "", ""], flag))


def _config_and_split(word: str, more: list[str], flag: str) -> tuple[str | None, str]:
    if len(more) > 2:
        raise UserError(f"--{flag} {word}: expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT, NAME@REVISION")
    config, split = [*more, "", ""][:2]
    return config or None, split or "train"


def pin(data: HubData) -> HubData:
    """The same at the commit that the hub has now; of a local folder, at a hash of its files' names and fingerprints.
    Raises UserError where the hub cannot be asked."""
    if data.is_local:
        files = sorted(path for path in Path(data.name).rglob("*") if path.is_file())
        return replace(data, revision=key_of([*map(str, files), *fingerprints(files)]))
    _library(data)
    from huggingface_hub import HfApi

    try:
        return replace(data, revision=HfApi().dataset_info(data.name, revision=data.revision, timeout=30).sha)
    except Exception as error:  # of the network, of the hub, of the name: each has classes of its own
        raise UserError(f"--data {data.word}: {first_line(error)}") from None


def open_dataset(data: HubData):
    """The split as the library's stream (`IterableDataset`), which knows its place. Raises UserError."""
    datasets = _library(data)
    revision = None if data.is_local else data.revision
    try:
        splits = datasets.load_dataset(data.name, data.config, revision=revision, streaming=True)
    except Exception as error:  # whatever the hub, the network or a file brings
        raise UserError(f"--data {data.word}: {first_line(error)}") from None
    if data.split not in splits:
        raise UserError(f"--data {data.word}: it has no split {data.split!r}, but {', '.join(map(str, splits))}")
    return splits[data.split]


def rows_of(data: HubData) -> Iterator[dict]:
    """Every record of the split. Raises UserError behind which record it cannot be read on."""
    rows = iter(open_dataset(data))
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as above
            raise UserError(f"--data {data.word}, behind record {number}: {first_line(error)}") from None
        number += 1
        yield row


def fetch(word: str, flag: str = "data") -> Path:
    """The records of a data set as JSON lines in the cache, which from then on are a file like any other: the line is
    the record's number. What is there is not fetched again; `NAME@REVISION` names another. Raises UserError."""
    data, folder = read_word(word, flag), cache_directory() / "hub"
    name = re.sub(r"[^\w.-]+", "--", data.name.strip("/"))
    stem = "+".join(filter(None, [name, data.config])) + f"-{data.split}"
    written = re.sub(r"[^\w.-]+", "+", data.revision or "")
    asked = folder / f"{stem}@{written}.txt"  # which file it was, so that the hub need not be asked
    if not data.is_local and asked.exists() and (there := folder / asked.read_text(encoding="utf-8")).exists():
        return there
    data = pin(data)
    path = folder / f"{stem}@{data.revision[:12]}.jsonl"
    if not path.exists():
        _write(data, path, flag)
    with atomic_write(asked) as file:
        file.write(path.name)
    return path


def _write(data: HubData, path: Path, flag: str) -> None:
    """All records into a file, or none where they are too many or cannot be read to the end."""
    bar = progress(desc=f"fetching {data.word}", unit="records")
    with bar, atomic_write(path) as file:
        size = 0
        for row in rows_of(data):
            line = json_line(plain(row))
            size += len(line)
            if size > LARGEST:
                raise UserError(
                    f"--{flag} {data.word}: more than {LARGEST / 1e9:.0f} GB of records: train on it with --stream "
                    "true --max_steps N, which makes its tokens beside the training"
                )
            file.write(line)
            bar.update()
        if not size:
            raise UserError(f"--{flag} {data.word}: it holds no record")


def plain(value):
    """A value as JSON has it: times as texts, and what is no text, bytes or a picture, as the name of its kind."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"({type(value).__name__})"  # not lost without a word


def _library(data: HubData):
    try:
        import datasets
    except ImportError:
        raise need_extra("datasets", "data", f"--data {data.word}: to read it") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def first_line(error: Exception) -> str:
    """What went wrong, on one line, with its cause: the library wraps what it finds in errors of its own."""
    texts = [str(each).strip().partition("\n")[0] for each in (error, error.__cause__) if each]
    texts = list(dict.fromkeys(filter(None, texts)))
    return f"{texts[0]} ({texts[1]})" if len(texts) > 1 else "".join(texts) or type(error).__name__
