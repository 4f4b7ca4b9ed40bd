"""What lies in a run's folder, read for its report: nothing else goes into it."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from gptft.errors import UserError
from gptft.files import read_json
from gptft.run.metrics_file import read_metrics


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell it: {} and [] for those that are not there. `going_on`: its end is still to come, and
    what an earlier end has left does not count."""

    folder: Path
    going_on: bool
    config: dict
    metrics: list[dict]
    summary: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    responses: list[dict] = field(default_factory=list)
    losses: list[dict] = field(default_factory=list)
    tokens: list[dict] = field(default_factory=list)
    lost: list[dict] = field(default_factory=list)
    forgetting: list[dict] = field(default_factory=list)
    training_losses: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def steps(self) -> list[dict]:
        """The rows of metrics.jsonl that tell of a step."""
        return [row for row in self.metrics if "loss" in row]

    @property
    def evaluations(self) -> list[dict]:
        return [row for row in self.metrics if "eval_loss" in row]

    @property
    def last_step(self) -> int:
        return max((row["step"] for row in self.metrics), default=0)

    def tokens_by_step(self) -> list[tuple[float, float]]:
        """(step, tokens read until then) for every logged step. Of steps that were not logged (--log_every) the tokens
        are taken to be those of the next one that was."""
        rows, before = self.steps, [0, *(row["step"] for row in self.steps)]
        read = [
            row["tokens_per_second"] * row["iter_time"] * (row["step"] - earlier)
            for row, earlier in zip(rows, before, strict=False)
        ]
        return [(float(row["step"]), total) for row, total in zip(rows, accumulate(read), strict=True)]


def read_run(folder: Path, going_on: bool = False) -> RunFiles:
    """Read a run's folder. Raises UserError where it holds none, and for a file that cannot be read."""
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run: it has no config.toml")
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.toml'}: {error}") from None
    metrics = read_metrics(folder / "metrics.jsonl")
    if going_on:
        return RunFiles(folder, True, config, metrics)
    objects = {name: read_object(folder / f"{name}.json") for name in ("summary", "evaluation")}
    if objects["summary"].get("steps", math.inf) < steps_taken(folder, metrics):
        return RunFiles(folder, False, config, metrics)  # the rest is of an earlier end: the run was gone on with since
    names = ("responses", "losses", "tokens", "lost", "forgetting", "training_losses")
    rows = {name: read_rows(folder / f"{name}.jsonl") for name in names}
    return RunFiles(folder, False, config, metrics, **objects, **rows)


def steps_taken(folder: Path, metrics: list[dict]) -> int:
    """How many steps a run has taken: those that were logged (--log_every), or after which `last` was saved."""
    logged = max((row["step"] for row in metrics), default=0)
    return max(logged, read_object(folder / "last" / "manifest.json").get("step", 0))


def read_object(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def read_rows(path: Path) -> list[dict]:
    """The objects of a .jsonl file. Raises UserError with the line for what is none."""
    try:
        # not splitlines: a text may hold other line separators, which JSON does not escape
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line:
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            if not isinstance(rows[-1], dict):
                raise UserError(f"{path}, line {number}: expected a JSON object")
    return rows
