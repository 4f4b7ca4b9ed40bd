"""What `evaluate --mend` is: for each answer that went wrong the training records nearest to it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from gptft.commands.common import load_model
from gptft.commands.parser import Parser
from gptft.config import resolve
from gptft.errors import UserError

if TYPE_CHECKING:
    from gptft.tokenizer import Tokenizer


def add_mending(parser: Parser) -> None:
    """Where it is written, and what the model was trained on."""
    group = parser.group("the results")
    group.add_argument(
        "--mend", default="", help="a new .jsonl file for what went wrong, with the training records nearest to it"
    )
    group.add_argument("--mend_data", nargs="+", default=[], help="the training data; empty: what the run was given")


def find_training(options: Namespace) -> tuple[list[Path], dict]:
    """The files of --mend_data, or those that the run of the checkpoint was given, and what their keys are named."""
    from gptft.data.sources import find

    if options.mend_data:
        return find(options.mend_data, "mend_data"), options.settings.get("fields", {})
    for folder in (Path(options.model), Path(options.model).parent):  # a run's folder, or a checkpoint in it
        if (folder / "config.toml").is_file():
            config = resolve(str(folder / "config.toml"))
            return find(config.data, "mend_data"), config.fields
    raise UserError(f"--mend: {options.model} is of no run that says what it was trained on: name that by --mend_data")


def mend(options: Namespace, rows: list[dict], tokenizer: Tokenizer, training: list[Path], fields: dict) -> None:
    """Write what went wrong with the training records nearest to it. `tokenizer`: its template is the one asked in."""
    from gptft.data.sources import find
    from gptft.evaluation.mending import find_nearest, is_failure, read_training
    from gptft.files import write_json_lines

    failures = [row for row in rows if is_failure(row, "after")]
    if not failures:
        return print(f"--mend: nothing is to be mended in {len(rows):,} answers, and {options.mend} was not written")
    entries = read_training(training, fields)
    model, _ = load_model(options, resolve("", {**options.settings, "init": options.model}).device)
    asked, places = options.settings.get("fields", {}), {path.resolve() for path in find(options.settings["data"])}
    files = {str(path) for path in training if path.resolve() in places}
    write_json_lines(Path(options.mend), find_nearest(model, tokenizer, failures, entries, asked, fields, files))
    print(
        f"{len(failures):,} answers to mend, each with the nearest of {len(entries):,} training records: {options.mend}"
    )
