"""The test set before and after training: the loss of every record, and the answers to some of the prompts.

What was measured before is written at once, so that a resumed run reads it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from gptft.architecture import PRESETS
from gptft.config import Config
from gptft.data.examples import Split
from gptft.device import Precision, pick_device
from gptft.errors import UserError, nearest
from gptft.evaluation.compare import SIDES, measure, measure_lengths
from gptft.evaluation.forgetting import measure_forgetting, remember
from gptft.evaluation.losses import Losses, compare_losses, loss_rows, measure_losses, read_losses
from gptft.evaluation.metrics import METRICS, Metric, measurable
from gptft.evaluation.mistake_counts import note_mistakes
from gptft.evaluation.responses import Question, answer, describe_left_out, make_questions
from gptft.files import read_json_lines
from gptft.model import GPT
from gptft.parallel.ranks import here
from gptft.run.console import say
from gptft.run.rehearsal import LESS_TO_EVALUATE, one_line
from gptft.run.token_view import TokenView, write_first
from gptft.tokenizer import Tokenizer
from gptft.training import ToBatch, TrainState


def choose_questions(config: Config, model: GPT, tokenizer: Tokenizer, test_set: Split) -> list[Question]:
    """The test records that are asked before and after training: `test_samples` of them, by the seed."""
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test_set))[: config.test_samples])
    return make_questions(model, tokenizer, test_set, chosen.tolist(), config.fields, config.max_new_tokens)


@dataclass
class Score:
    """What --best_by asks for when it is called: the mean of a metric over the answers to validation `questions`."""

    questions: list[Question]
    metric: Metric
    config: Config
    model: GPT
    tokenizer: Tokenizer

    def __call__(self) -> float:
        precision = Precision(self.config.precision, pick_device(self.config.device))
        given = (self.config.max_new_tokens, self.config.eval_batch_size, precision)
        responses = answer(self.model, self.tokenizer, self.questions, *given)
        pairs = zip(responses, self.questions, strict=True)
        return fmean(self.metric(response.text, question.expected) for response, question in pairs)


def make_score(config: Config, model: GPT, tokenizer: Tokenizer, val_set: Split) -> Score | None:
    """The score that --best_by names; None for the loss.

    Raises UserError for an unknown metric, and where there is no validation prompt that it speaks of.
    """
    name = config.best_by
    if name == "loss":
        return None
    known, absent = measurable()
    if name not in known:
        why = absent.get(name, f"there is no such metric{nearest(name, ['loss', *known])}")
        raise UserError(f"--best_by {name}: {why}")
    if not config.test_samples:
        raise UserError(f"--best_by {name}: --test_samples is 0, and no validation prompt is answered")
    questions = [each for each in choose_questions(config, model, tokenizer, val_set) if not each.left_out]
    questions = [each for each in questions if known[name](each.expected, each.expected) is not None]
    if not questions:
        raise UserError(f"--best_by {name}: there is no validation prompt to measure it on; see --val_fraction")
    return Score(questions, known[name], config, model, tokenizer)


@dataclass
class Comparison:
    """`rows` are the lines of responses.jsonl; `losses` are those of the test set before training."""

    config: Config
    out_dir: Path
    state: TrainState
    tokenizer: Tokenizer
    test_set: Split
    questions: list[Question]
    to_batch: ToBatch
    val_set: Split

    def before(self, goes_on: bool) -> None:
        """Measure the model as it is before the first step. A run that goes on reads back what it measured then; where
        none of its checkpoints is left, what lies there may be of another model."""
        self.goes_on = goes_on
        self.rows = [
            {"record": question.record, "expected": question.expected, "before": "", "after": ""}
            | {"tokens": {}, "finished": {}, "max_new_tokens": self.config.max_new_tokens}
            | ({"left_out": question.left_out} if question.left_out else {})
            for question in self.questions
        ]
        if len(self.test_set):
            path = self.out_dir / "losses.jsonl"
            self.losses = read_losses(self._read(path), self.test_set, "before") or self._measure_losses()
            write_first(path, loss_rows(self.test_set, before=self.losses))
        # of a model that starts from nothing there is nothing to forget
        self.base = None
        if self.config.test_samples and self.config.init not in PRESETS:
            with one_line("asking what the model knows already", self.state.model.device, LESS_TO_EVALUATE):
                limits = (self.config.test_samples, self.config.max_new_tokens)
                self.base = remember(self.state.model, self.tokenizer, self.state.precision, *limits)
        self.view = TokenView(self.out_dir / "tokens.jsonl", self.tokenizer, self.to_batch, self.test_set, self.val_set)
        self.view.measure("before", self.state, self._read(self.out_dir / "tokens.jsonl"))
        path = self.out_dir / "responses.jsonl"
        earlier = self._read(path)
        if list(map(what_is_asked, earlier)) == list(map(what_is_asked, self.rows)):
            self.rows = earlier
        elif self.rows:
            if left_out := describe_left_out(self.questions, at_most=5):
                say(f"{left_out}\n  (responses.jsonl says why of each)")
            self._ask("before", "before training")
            write_first(path, self.rows)

    def after(self, summary: dict) -> dict:
        """Measure the same again -> what evaluation.json says.

        The summary gets the test loss, how many prompts are left out, and of the others the scores: METRIC by family,
        and `test_METRIC` over all, None where there is nothing to score.
        """
        evaluation = {}
        summary |= {f"test_{name}": None for name in METRICS}
        self.view.measure("after", self.state)
        if len(self.test_set):
            after = self._measure_losses()
            write_first(self.out_dir / "losses.jsonl", loss_rows(self.test_set, before=self.losses, after=after))
            evaluation["likelihood"] = compare_losses(self.losses, after)
            summary["test_loss"] = evaluation["likelihood"]["after"]["loss"]["value"]
        if self.rows:
            self._ask("after", "again")
            evaluation["mistakes"] = note_mistakes(self.rows, self.tokenizer, self.config.fields)
            write_first(self.out_dir / "responses.jsonl", self.rows)
            scored = [row for row in self.rows if "left_out" not in row]
            summary["prompts_left_out"] = len(self.rows) - len(scored)
            evaluation |= {"records": len(scored), "left_out": summary["prompts_left_out"], **measure(scored)}
            evaluation["lengths"] = {side: measure_lengths(scored, side) for side in SIDES}
            for name, tables in evaluation["metrics"].items():
                families = dict(tables["families"])
                if "all" in families:  # a family of the user's that is called so stands beside all records
                    families["all (family)"] = families.pop("all")
                families["all"] = tables["all"]
                summary[name] = {
                    family: {"n": table["n"]} | {side: table[side]["value"] for side in SIDES}
                    for family, table in families.items()
                }
                summary[f"test_{name}"] = summary[name]["all"]["after"]
        if self.base:
            evaluation["forgetting"], rows = measure_forgetting(self.base, self.state.model, self.state.precision)
            write_first(self.out_dir / "forgetting.jsonl", rows)
        return evaluation

    def _ask(self, side: str, when: str) -> None:
        """Write the model's answers into the rows."""
        if number := count_asked(self.rows):
            say(f"answering {number} test prompts {when} ...")
        config, state = self.config, self.state
        given = (self.questions, config.max_new_tokens, config.eval_batch_size, state.precision)
        for row, response in zip(self.rows, answer(state.model, self.tokenizer, *given), strict=True):
            row[side] = response.text
            if "left_out" not in row:
                row.setdefault("tokens", {})[side] = response.tokens
                row.setdefault("finished", {})[side] = response.finished

    def _read(self, path: Path) -> list[dict]:
        """What an earlier part of this run has written."""
        return here().tell(read_json_lines(path) if here().first and self.goes_on and path.exists() else [])

    def _measure_losses(self) -> Losses:
        model, size = self.state.model, self.config.eval_batch_size
        with one_line("measuring the test loss", model.device, LESS_TO_EVALUATE):
            return measure_losses(model, self.test_set, size, self.to_batch, self.state.precision)


def what_is_asked(row: dict) -> tuple[dict, bool, int | None]:
    """What must be the same for a row's response to stand."""
    return row["record"], "left_out" in row, row.get("max_new_tokens")


def count_asked(rows: list[dict]) -> int:
    return sum("left_out" not in row for row in rows)
