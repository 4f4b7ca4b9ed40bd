"""The test prompts of a run: asked before training, kept in responses.jsonl, and asked again afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gptft.config import Config
from gptft.data.examples import Split
from gptft.evaluation.metrics import METRICS, score_rows
from gptft.evaluation.responses import Question, answer, describe_left_out, make_questions
from gptft.files import read_json_lines, write_json_lines
from gptft.model import GPT
from gptft.run.console import say
from gptft.tokenizer import Tokenizer
from gptft.training import TrainState


def choose_questions(config: Config, model: GPT, tokenizer: Tokenizer, test_set: Split) -> list[Question]:
    """The test records that are asked before and after training: `test_samples` of them, by the seed."""
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test_set))[: config.test_samples])
    return make_questions(model, tokenizer, test_set, chosen.tolist(), config.fields, config.max_new_tokens)


def ask_before(
    config: Config, out_dir: Path, state: TrainState, tokenizer: Tokenizer, questions: list[Question]
) -> list[dict]:
    """The rows of responses.jsonl with the responses before training.

    A question that leaves no room for its response is named and has a row that says so in `left_out`. A resumed run
    reads the rows back.
    """
    rows = [
        {"record": question.record, "expected": question.expected, "before": "", "after": ""}
        | ({"left_out": question.left_out} if question.left_out else {})
        for question in questions
    ]
    path = out_dir / "responses.jsonl"
    if config.resume and path.exists():
        earlier = read_json_lines(path)
        if list(map(what_is_asked, earlier)) == list(map(what_is_asked, rows)):
            return earlier
    if rows:
        if left_out := describe_left_out(questions, at_most=5):
            say(f"{left_out}\n  (responses.jsonl says why of each)")
        if number := count_asked(rows):
            say(f"answering {number} test prompts before training ...")
        before = answer(
            state.model, tokenizer, questions, config.max_new_tokens, config.eval_batch_size, state.precision
        )
        for row, text in zip(rows, before, strict=True):
            row["before"] = text
        write_json_lines(path, rows)
    return rows


def what_is_asked(row: dict) -> tuple[dict, bool]:
    """What must be the same for a row's response to stand."""
    return row["record"], "left_out" in row


def count_asked(rows: list[dict]) -> int:
    return sum("left_out" not in row for row in rows)


def ask_after(
    config: Config,
    state: TrainState,
    tokenizer: Tokenizer,
    rows: list[dict],
    questions: list[Question],
    summary: dict,
) -> None:
    """Ask the same questions again. The summary gets the number of those that are left out, and of the others the
    scores: METRIC by family, and `test_METRIC` over all, None where there is nothing to score."""
    summary |= {f"test_{name}": None for name in METRICS}
    if not rows:
        return
    if number := count_asked(rows):
        say(f"answering {number} test prompts again ...")
    after = answer(state.model, tokenizer, questions, config.max_new_tokens, config.eval_batch_size, state.precision)
    for row, text in zip(rows, after, strict=True):
        row["after"] = text
    scored = [row for row in rows if "left_out" not in row]
    summary["prompts_left_out"] = len(rows) - len(scored)
    for name, metric in METRICS.items() if scored else ():
        summary[name] = score_rows(scored, metric)
        summary[f"test_{name}"] = summary[name]["all"]["after"]
