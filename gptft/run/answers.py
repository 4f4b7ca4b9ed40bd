"""The test prompts of a run: asked before training, kept in responses.jsonl, and asked again afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gptft.config import Config
from gptft.data.examples import Split
from gptft.evaluation.metrics import METRICS, score_rows
from gptft.evaluation.responses import answer, prompt_and_expected
from gptft.files import read_json_lines, write_json_lines
from gptft.model import GPT
from gptft.run.console import say
from gptft.tokenizer import Tokenizer


def ask_before(
    config: Config, out_dir: Path, model: GPT, tokenizer: Tokenizer, test_set: Split
) -> tuple[list[dict], list[dict]]:
    """The rows of responses.jsonl with the responses before training, and the prompts to ask again afterwards.

    A resumed run reads them back: its weights are no longer those from before.
    """
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test_set))[: config.test_samples])
    rows, prompts = [], []
    for record in test_set.records(chosen):
        pair = prompt_and_expected(record, config.fields)
        if pair is not None:
            prompts.append(pair[0])
            rows.append({"record": record, "expected": pair[1], "before": "", "after": ""})
    path = out_dir / "responses.jsonl"
    if config.resume and path.exists():
        earlier = read_json_lines(path)
        if [row["record"] for row in earlier] == [row["record"] for row in rows]:
            return earlier, prompts
    if rows:
        say(f"answering {len(rows)} test prompts before training ...")
        before = answer(
            model, tokenizer, prompts, config.max_new_tokens, model.config.block_size, config.eval_batch_size
        )
        for row, text in zip(rows, before, strict=True):
            row["before"] = text
        write_json_lines(path, rows)
    return rows, prompts


def ask_after(
    config: Config, model: GPT, tokenizer: Tokenizer, rows: list[dict], prompts: list[dict], summary: dict
) -> None:
    """Ask the same prompts again; the scores go to the summary: METRIC by family, and `test_METRIC` over all."""
    if not rows:
        return
    say(f"answering {len(rows)} test prompts again ...")
    after = answer(model, tokenizer, prompts, config.max_new_tokens, model.config.block_size, config.eval_batch_size)
    for row, text in zip(rows, after, strict=True):
        row["after"] = text
    for name, metric in METRICS.items():
        summary[name] = score_rows(rows, metric)
        summary[f"test_{name}"] = summary[name]["all"]["after"]
