"""What `evaluate --mend` is: for each answer that went wrong the training records nearest to it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gptft.commands.common import load_model
from gptft.commands.parser import Parser
from gptft.config import resolve
from gptft.errors import UserError

if TYPE_CHECKING:
    from gptft.curation.entries import Entry
    from gptft.tokenizer import Tokenizer


def add_mending(parser: Parser) -> None:
    """Where it is written, and what the model was trained on."""
    group = parser.group("the results")
    group.add_argument(
        "--mend", default="", help="a new .jsonl file for what went wrong, with the training records nearest to it"
    )
    group.add_argument("--mend_data", nargs="+", default=[], help="the training data; empty: what the run was given")


class Training(NamedTuple):
    """The records that a model was trained on, their files, and what their keys are named."""

    entries: list[Entry]
    files: list[Path]
    fields: dict


def find_training(options: Namespace) -> Training:
    """The records of --mend_data, or of the files that the run of the checkpoint was given; where that says which of
    them it trained on, no others."""
    from gptft.data.sources import find
    from gptft.evaluation.mending import read_training

    if options.mend_data:
        files, fields, trained = find(options.mend_data, "mend_data"), options.settings.get("fields", {}), None
    elif folder := run_of(Path(options.model)):
        config = resolve(str(folder / "config.toml"))
        files, fields, trained = find(config.data, "mend_data"), config.fields, trained_records(folder)
    else:
        raise UserError(
            f"--mend: {options.model} is of no run that says what it was trained on: name that by --mend_data"
        )
    entries, lost = read_training(files, fields)
    if lost:
        print(f"--mend: {lost:,} records of {', '.join(map(str, files))} ask nothing, or cannot be used")
    if trained:
        entries = [entry for entry in entries if (Path(entry.file).name, entry.line) in trained] or entries
    return Training(entries, files, fields)


def run_of(model: Path) -> Path | None:
    """The folder of the run that a checkpoint is in."""
    folders = (model, model.parent) if model.is_dir() else ()
    return next((folder for folder in folders if (folder / "config.toml").is_file()), None)


def trained_records(folder: Path) -> set[tuple[str, int]]:
    """(file, line) of the records that a run trained on; none where it keeps no such list."""
    from gptft.files import read_json_lines

    path = folder / "training_losses.jsonl"
    return {(Path(row["file"]).name, row["line"]) for row in read_json_lines(path)} if path.exists() else set()


def mend(options: Namespace, rows: list[dict], tokenizer: Tokenizer, training: Training) -> None:
    """Write what went wrong with the training records nearest to it. `tokenizer`: its template is the one asked in."""
    from gptft.data.sources import find
    from gptft.evaluation.mending import find_nearest, is_failure, that_can_be_asked
    from gptft.files import write_json_lines

    failures = [row for row in rows if is_failure(row, "after")]
    if not failures:
        return print(f"--mend: nothing is to be mended in {len(rows):,} answers, and {options.mend} was not written")
    entries = that_can_be_asked(tokenizer, training.entries, training.fields)
    model, _ = load_model(options, resolve("", {**options.settings, "init": options.model}).device)
    asked, places = options.settings.get("fields", {}), {path.resolve() for path in find(options.settings["data"])}
    files = {str(path) for path in training.files if path.resolve() in places}
    nearest = find_nearest(model, tokenizer, failures, entries, asked, training.fields, files)
    write_json_lines(Path(options.mend), nearest)
    print(
        f"{len(failures):,} answers to mend, each with the nearest of {len(entries):,} training records: {options.mend}"
    )
