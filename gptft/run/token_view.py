"""tokens.jsonl: a few examples of the test set, or without one of validation, token by token, with each target's loss
before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptft.data.examples import Split
from gptft.evaluation.compare import SIDES
from gptft.evaluation.tokens import token_losses, token_rows
from gptft.files import write_json_lines
from gptft.parallel.ranks import here
from gptft.tokenizer import Tokenizer
from gptft.training import ToBatch, TrainState


def write_first(path: Path, rows: Sequence[dict]) -> None:
    """Write lines that every rank has: the first does."""
    if here().first:
        write_json_lines(path, rows)


class TokenView:
    """`rows` are the lines of the file."""

    def __init__(self, path: Path, tokenizer: Tokenizer, to_batch: ToBatch, test_set: Split, val_set: Split) -> None:
        self.path, self.to_batch = path, to_batch
        name, self.examples = ("test", test_set) if len(test_set) else ("validation", val_set)
        self.rows = token_rows(name, self.examples, tokenizer, to_batch)

    def measure(self, side: str, state: TrainState, earlier: Sequence[dict] = ()) -> None:
        """Write each target's loss under the model as it is; or keep what an earlier part of the run has written."""
        if earlier and list(map(what_is_shown, earlier)) == list(map(what_is_shown, self.rows)):
            self.rows = [{key: value for key, value in row.items() if key != "after"} for row in earlier]
        else:
            for row in self.rows:
                row[side] = token_losses(state.model, self.examples[row["example"]], self.to_batch, state.precision)
        if self.rows:
            write_first(self.path, self.rows)


def what_is_shown(row: dict) -> dict:
    """What must be the same for a row's losses to stand."""
    return {key: value for key, value in row.items() if key not in SIDES}
