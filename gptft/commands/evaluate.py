"""Measure a model on data: loss, perplexity, token accuracy, and the metrics of its answers, each with its interval.

With --against another model, the one that it came from perhaps, both are asked the same: before and after, the
difference with its own interval, the records won, lost and tied, and those that got worse.
"""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gptft.commands.common import MODEL, add_model, load_model
from gptft.commands.parser import Parser, whole_number
from gptft.config import resolve
from gptft.errors import UserError

if TYPE_CHECKING:
    from gptft.data.examples import Split
    from gptft.evaluation.losses import Losses
    from gptft.evaluation.responses import Question
    from gptft.generation import Response
    from gptft.tokenizer import Tokenizer

WORSE = 5  # records that got worse, shown


def add_arguments(parser: Parser) -> None:
    """The model, the data, and how many records are answered."""
    add_model(parser)
    parser.add_fields("data", "data", "fields", "bad_records", data="files to measure on")
    group = parser.group("evaluation")
    group.add_argument("--against", default="", help=f"a model to compare with: {MODEL}")
    group.add_argument(
        "--samples",
        type=whole_number(at_least=0),
        default=100,
        help="records to answer; one whose prompt leaves no room for its response is left out; 0: none [100]",
    )
    group.add_argument(
        "--batch_size", type=whole_number(at_least=1), default=16, help="examples a batch; changes no result [16]"
    )
    group.add_argument(
        "--max_new_tokens", type=whole_number(at_least=1), default=100, help="longest response, tokens [100]"
    )
    group.add_argument(
        "--metric", nargs="+", default=[], help="further metrics, as file.py:function of (response, expected) -> 0 to 1"
    )
    group = parser.group("benchmarks")
    group.add_argument(
        "--tasks",
        default="",
        help="tasks of EleutherAI's harness (extra eval) by name, with commas between; NAME=FILE takes the data from a "
        "file: hellaswag, truthfulqa_mc1, truthfulqa_mc2, gsm8k",
    )
    group.add_argument(
        "--limit", type=whole_number(at_least=0), default=0, help="of each task the first so many; 0: all"
    )
    group.add_argument(
        "--num_fewshot", type=whole_number(at_least=0), help="examples in the prompt; by default the task's own number"
    )
    group.add_argument(
        "--apply_chat_template", action="store_true", help="ask in the model's template, as a user would"
    )
    group.add_argument("--include_path", default="", help="a folder of your own tasks for the harness")
    group = parser.group("the results")
    group.add_argument("--out", default="", help="a new folder for evaluation.json, responses.jsonl and losses.jsonl")


def run(options: Namespace) -> None:
    """Print what became of the data, and the figures; with --out keep them."""
    out = Path(options.out) if options.out else None
    if out and out.exists():
        raise UserError(f"--out {out} exists already: name another folder")
    if options.tasks:
        return run_benchmarks(options, out)
    if "data" not in options.settings:
        raise UserError("--data is missing: name the files to measure on, or benchmarks with --tasks")
    from gptft.evaluation.compare import measure, measure_lengths
    from gptft.evaluation.losses import compare_losses, loss_rows
    from gptft.evaluation.metrics import load_metric
    from gptft.evaluation.responses import describe_left_out
    from gptft.files import atomic_write, write_json_lines
    from gptft.run.tables import describe_evaluation, describe_worse

    for name in options.metric:
        load_metric(name)
    after = examine(options, options.model)
    sides = {"after": after}
    if options.against:
        sides = {"before": examine(options, options.against, after), "after": after}
    rows = rows_of(sides)
    for name, side in sides.items():
        if left_out := describe_left_out(side.questions, at_most=len(side.questions)):
            print(f"{name}: {left_out}" if len(sides) == 2 else left_out)
    losses = {name: side.losses for name, side in sides.items()}
    if len(sides) == 2 and not same_tokens(*sides.values()):
        print("note: the two are scored on other tokens, for vocabularies or templates differ: losses are not compared")
        before = compare_losses(losses.pop("before"))["after"]
        likelihood = compare_losses(*losses.values()) | {"before": before}
    else:
        likelihood = compare_losses(*losses.values())
    if out:  # before a metric of the user's own may fail
        out.mkdir(parents=True)
        write_json_lines(out / "responses.jsonl", rows)
        write_json_lines(out / "losses.jsonl", loss_rows(after.examples, **losses))
    evaluation = {"likelihood": likelihood, "records": len(rows)}
    if rows:
        evaluation |= measure(rows, tuple(sides)) | {"lengths": {name: measure_lengths(rows, name) for name in sides}}
    print(describe_evaluation(evaluation))
    if options.against and (worse := describe_worse(rows, WORSE)):
        print(worse)
    if out:
        with atomic_write(out / "evaluation.json") as file:
            json.dump(evaluation, file, indent=1)


def run_benchmarks(options: Namespace, out: Path | None) -> None:
    """Print the harness's table, and keep its results."""
    for name in ("against", "metric", "data"):
        if getattr(options, name, None) or name in options.settings:
            raise UserError(f"--{name} and --tasks: measure one after the other")
    from gptft.evaluation.harness import harness_model
    from gptft.evaluation.tasks import run_tasks
    from gptft.files import atomic_write

    config = resolve("", {**options.settings, "init": options.model})
    model, tokenizer = load_model(options, config.device)
    results = run_tasks(
        harness_model(model, tokenizer, options.batch_size),
        [spec.strip() for spec in options.tasks.split(",") if spec.strip()],
        options.include_path,
        limit=options.limit or None,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=bool(options.apply_chat_template and tokenizer.template and tokenizer.template.multi_turn),
    )
    from lm_eval.utils import make_table

    print(make_table(results))
    if out:
        out.mkdir(parents=True)
        with atomic_write(out / "benchmarks.json") as file:
            json.dump(results, file, indent=1, default=str)


class Side(NamedTuple):
    """One model on the data: its tokenizer, its examples and their losses, the questions and its responses to them."""

    tokenizer: Tokenizer
    examples: Split
    losses: Losses
    questions: list[Question]
    responses: list[Response]


def examine(options: Namespace, name: str, other: Side | None = None) -> Side:
    """Measure the model of this name. `other`: a side whose records are asked, and whose ledger was printed."""
    template = options.template or "auto"  # a checkpoint's own comes before what the records' keys ask for
    nothing_held_out = {"val_fraction": 0.0, "test_fraction": 0.0}
    config = resolve("", {**options.settings, **nothing_held_out, "init": name, "template": template})
    from gptft.collate import collate
    from gptft.device import Precision
    from gptft.evaluation.losses import measure_losses
    from gptft.evaluation.responses import answer, make_questions
    from gptft.finetuning import check_inputs, load_data
    from gptft.run.console import describe_ledger

    check_inputs(config)
    asked_for = vars(options) | {"model": name, "base": "" if other else options.base}
    model, tokenizer = load_model(Namespace(**asked_for), config.device, config.fields)
    if other and tokenizer.template is None:  # it was never tuned: it is asked as the other was
        tokenizer.template = other.tokenizer.template
    if template == "auto" and tokenizer.template and tokenizer.template.name == "plain":
        config = replace(config, template="plain")  # a run takes another then, but here nothing is trained
    datasets, (examples, _, _) = load_data(config, model, tokenizer)
    if other is None:
        print(describe_ledger("data", datasets["data"].ledger))
    to_batch = partial(collate, pad_id=tokenizer.eot)
    losses = measure_losses(model, examples, options.batch_size, to_batch, Precision("fp32", model.device))
    records = other.examples if other else examples
    asked = range(min(options.samples, len(records)))
    questions = make_questions(model, tokenizer, records, asked, config.fields, options.max_new_tokens)
    responses = answer(model, tokenizer, questions, options.max_new_tokens, options.batch_size)
    return Side(tokenizer, examples, losses, questions, responses)


def same_tokens(a: Side, b: Side) -> bool:
    """Whether two models are given the same tokens and scored on the same: only then their losses can be compared."""
    import numpy as np

    ids = [side.examples.dataset.ids for side in (a, b)]
    return (
        np.array_equal(*ids)
        and np.array_equal(a.losses.targets, b.losses.targets)
        and all(a.tokenizer.token_bytes(i) == b.tokenizer.token_bytes(i) for i in np.unique(ids[0]).tolist())
    )


def rows_of(sides: dict[str, Side]) -> list[dict]:
    """The rows of responses.jsonl: what no side leaves out, with every side's answer."""
    rows = []
    for number, question in enumerate(next(iter(sides.values())).questions):
        if any(side.questions[number].left_out for side in sides.values()):
            continue
        given = {name: side.responses[number] for name, side in sides.items()}
        rows.append({"record": question.record, "expected": question.expected})
        rows[-1] |= {name: response.text for name, response in given.items()}
        rows[-1]["tokens"] = {name: response.tokens for name, response in given.items()}
        rows[-1]["finished"] = {name: response.finished for name, response in given.items()}
    return rows
