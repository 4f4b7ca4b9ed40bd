"""Vary the amount of data: the same run on growing shares of it, and a forecast of what twice as much would bring.

Every share is a run of its own in --out_dir, with all files of a run; one that is finished is not made again, and one
that was interrupted is gone on with. Validation and test are the same for all.
"""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

from gptft.commands.parser import Parser
from gptft.config import Config, fields_by_heading, resolve
from gptft.errors import UserError
from gptft.files import atomic_write

FRACTIONS = "0.125,0.25,0.5,1"
SET_HERE = ("data_fraction", "resume")
STREAMS = ("stream", "mix", "shard_tokens")  # whose length is not known, so that there are no shares of them


def add_arguments(parser: Parser) -> None:
    """The shares, and every setting of a run."""
    parser.add_argument("--config", default="", help="a TOML file with any of these settings; the command line wins")
    group = parser.group("the amounts")
    group.add_argument("--fractions", default=FRACTIONS, help=f"shares of the training split [{FRACTIONS}]")
    for heading, names in fields_by_heading().items():
        names = [name for name in names if name not in (*SET_HERE, *STREAMS)]
        parser.add_fields(heading, *names, out_dir="folder of the runs; empty: checkpoints/scaling-<init>-<data>")


def read_fractions(text: str) -> list[float]:
    """The shares, in growing order. Raises UserError for what is none, and for one that stands there twice."""
    try:
        fractions = sorted(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"--fractions must be numbers, as in {FRACTIONS}, not {text!r}") from None
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"--fractions must lie above 0, up to 1, not {text!r}")
    if len(set(fractions)) < len(fractions):
        raise UserError(f"--fractions {text}: one of them stands there twice")
    return fractions


def run(options: Namespace) -> None:
    """Make the runs that are missing, then print and write the table, the forecast and the picture."""
    fractions = read_fractions(options.fractions)
    config = resolve(options.config, options.settings)
    if not config.data:
        raise UserError("--data is missing: name the files to train on")
    if config.stream:
        raise UserError(f"{options.config}: stream: how long a stream is, is not known, so that it has no shares")
    from gptft.finetuning import finetune
    from gptft.report.scaling import describe, plot_scaling
    from gptft.run.console import say
    from gptft.run.folder import default_name

    folder = Path(config.out_dir or Path("checkpoints") / f"scaling-{default_name(config)}")
    check_data(folder, config)
    rows = []
    for fraction in fractions:
        out_dir = folder / f"fraction-{fraction:g}"
        share = dataclasses.replace(config, data_fraction=fraction, out_dir=str(out_dir), resume=out_dir.exists())
        if summary := finished(out_dir, share):
            say(f"{out_dir}: finished before")
        else:
            say(f"\n--- {fraction:g} of the training split, in {out_dir}")
            summary = finetune(share).summary
        rows.append(row_of(fraction, summary))
    result = describe(rows)
    say("\n" + result["text"])
    with atomic_write(folder / "scaling.json") as file:
        json.dump({key: value for key, value in result.items() if key != "text"}, file, indent=1)
    if plot_scaling(result, folder / "scaling.png"):
        say(f"{folder / 'scaling.png'}")


def finished(out_dir: Path, config: Config) -> dict | None:
    """The summary of a run that is finished; None where there is none yet. Raises UserError where the run in the folder
    has other settings: its losses are not those that were asked for."""
    from gptft.config import FIELDS, resolve

    if not (out_dir / "config.toml").exists():
        return None
    there = resolve(str(out_dir / "config.toml"))
    for name in FIELDS:
        asked, found = getattr(config, name), getattr(there, name)
        if name not in ("resume", "out_dir") and asked != found:
            raise UserError(
                f"{out_dir} holds a run with --{name} {found}, not {asked}: name another --out_dir, or remove that one"
            )
    path = out_dir / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def check_data(folder: Path, config: Config) -> None:
    """Raise UserError where the files are not those of the runs that are there; else remember them."""
    from gptft.data.sources import find
    from gptft.files import sha256_file

    names = ("data", "val_data", "test_data")
    hashes = {name: [sha256_file(path) for path in find(getattr(config, name), name)] for name in names}
    path = folder / "data.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != hashes:
        raise UserError(f"{folder} holds runs on other data: name another --out_dir, or remove that one")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        json.dump(hashes, file, indent=1)


def row_of(fraction: float, summary: dict) -> dict:
    """What is told of one run; the loss is that of the test, where there is one, else of validation."""
    return {
        "fraction": fraction,
        "examples": summary["train_examples"],
        "steps": summary["steps"],
        "loss": summary["eval_loss"] if summary["test_loss"] is None else summary["test_loss"],
        "exact_match": summary["test_exact_match"],
    }
