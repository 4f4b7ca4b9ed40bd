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

from gptft.commands.benchmarking import add_benchmarks, run_benchmarks
from gptft.commands.common import MODEL, add_decode, add_model, load_model, new_folder
from gptft.commands.judging import add_judge, check_judges, judge_answers, open_judges
from gptft.commands.mending import add_mending, find_training, mend
from gptft.commands.parser import Parser, number, whole_number
from gptft.config import resolve
from gptft.errors import UserError

if TYPE_CHECKING:
    from gptft.data.examples import Split
    from gptft.evaluation.losses import Losses
    from gptft.evaluation.responses import Question
    from gptft.generation import Response
    from gptft.tokenizer import Tokenizer

WORSE = 5  # records that got worse, shown
UNFINISHED = {"responses.jsonl", "losses.jsonl", "forgetting.jsonl"}  # what an evaluation that failed has written


def add_arguments(parser: Parser) -> None:
    """The model, the data, and how many records are answered."""
    add_model(parser)
    parser.add_fields("data", "data", "fields", "max_length", "bad_records", data="files to measure on")
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
    add_decode(parser, "evaluation")
    group.add_argument(
        "--metric", nargs="+", default=[], help="further metrics, as file.py:function of (response, expected) -> 0 to 1"
    )
    group = parser.group("several answers")
    group.add_argument(
        "--generations",
        type=whole_number(at_least=0),
        default=0,
        help="draw so many responses to each record, besides the greedy one: pass@k, what the majority says, and how "
        "far they agree",
    )
    group.add_argument("--temperature", type=number, default=0.8, help="of these draws, above 0 [0.8]")
    group.add_argument("--seed", type=whole_number(at_least=0), default=0, help="of these draws [0]")
    add_judge(parser)
    add_benchmarks(parser)
    group = parser.group("the results")
    group.add_argument(
        "--out",
        default="",
        help="a new folder for evaluation.json and what its figures are made of; of --tasks benchmarks.json",
    )
    add_mending(parser)


def run(options: Namespace) -> None:
    """Print what became of the data, and the figures; with --out keep them."""
    out = check_options(options)
    if options.tasks:
        return run_benchmarks(options, out)
    from gptft.device import pick_device
    from gptft.evaluation.losses import loss_rows
    from gptft.evaluation.mistake_counts import note_mistakes
    from gptft.files import atomic_write, write_json_lines

    training = find_training(options) if options.mend else None
    device = pick_device(resolve("", {"init": "tiny", **options.settings}).device)
    judges = open_judges(options, device) if options.judge else []
    sides = examine_all(options)
    rows, fields = rows_of(sides), options.settings.get("fields", {})
    mistakes = note_mistakes(rows, sides["after"].tokenizer, fields, tuple(sides))
    compared = comparable(sides)
    if out:  # before a judge or a metric of the user's own may fail
        out.mkdir(parents=True, exist_ok=True)
        write_json_lines(out / "responses.jsonl", rows)
        losses = {name: side.losses for name, side in sides.items() if compared or name == "after"}
        write_json_lines(out / "losses.jsonl", loss_rows(sides["after"].examples, **losses))
    judgement = judge_answers(options, judges, rows, tuple(sides)) if rows and judges else {}
    if judges and not rows:
        print("note: no record was answered, so there is nothing to judge")
    if out and judgement:
        write_json_lines(out / "responses.jsonl", rows)
    evaluation = {"likelihood": likelihood_of(sides, compared), "records": len(rows)}
    if rows:
        evaluation |= measure_answers(options, rows, tuple(sides), judgement) | {"mistakes": mistakes}
    forgotten = []
    if rows and len(sides) == 2 and compared:
        evaluation["forgetting"], forgotten = compare_knowledge(options, sides)
    print_evaluation(options, evaluation, rows)
    if out:
        if forgotten:
            write_json_lines(out / "forgetting.jsonl", forgotten)
        with atomic_write(out / "evaluation.json") as file:
            json.dump(evaluation, file, indent=1)
    if training:
        mend(options, rows, sides["after"].tokenizer, training)


def check_options(options: Namespace) -> Path | None:
    """Refuse what cannot be done before a model is opened -> the folder of --out."""
    if check_judges(options) and not options.samples:
        raise UserError("--judge: there is nothing to judge with --samples 0")
    out = new_folder(options.out, UNFINISHED)
    if options.mend and Path(options.mend).exists():
        raise UserError(f"--mend {options.mend} exists already: name another file")
    if "data" not in options.settings and not options.tasks:
        raise UserError("--data is missing: name the files to measure on, or benchmarks with --tasks")
    if options.generations and not options.temperature > 0:
        raise UserError("--temperature must be above 0: without chance all responses to a record are the same")
    from gptft.evaluation.metrics import load_metric

    for name in options.metric:
        load_metric(name)
    return out


def examine_all(options: Namespace) -> dict[str, Side]:
    """The model as `after`, and before it the one of --against; what they cannot be asked is said."""
    from gptft.evaluation.responses import describe_left_out

    after = examine(options, options.model)
    sides = {"before": examine(options, options.against, after)} if options.against else {}
    sides["after"] = after
    for name, side in sides.items():
        if left_out := describe_left_out(side.questions, at_most=len(side.questions)):
            print(f"{name}: {left_out}" if len(sides) == 2 else left_out)
    return sides


def comparable(sides: dict[str, Side]) -> bool:
    """Whether the losses of all sides can stand side by side; where not, it is said."""
    if len(sides) == 1 or same_tokens(*sides.values()):
        return True
    print("note: the two are scored on other tokens (vocabulary, template or length): losses are not compared")
    return False


def likelihood_of(sides: dict[str, Side], compared: bool) -> dict:
    """Loss, perplexity and token accuracy of each side, and their differences where they can be compared."""
    from gptft.evaluation.losses import compare_losses

    if compared:
        return compare_losses(*(side.losses for side in sides.values()))
    before = compare_losses(sides["before"].losses)["after"]
    return compare_losses(sides["after"].losses) | {"before": before}


def measure_answers(options: Namespace, rows: list[dict], sides: tuple[str, ...], judgement: dict) -> dict:
    """What evaluation.json says of the answers."""
    from gptft.evaluation.compare import measure, measure_lengths
    from gptft.evaluation.samples import measure_samples

    found = measure(rows, sides) | {"lengths": {name: measure_lengths(rows, name) for name in sides}}
    found["metrics"] |= judgement.get("metrics", {})
    found |= {key: value for key, value in judgement.items() if key != "metrics"}
    if options.generations:
        found["samples"] = {name: measure_samples(rows, name) for name in sides}
    return found


def print_evaluation(options: Namespace, evaluation: dict, rows: list[dict]) -> None:
    from gptft.run.tables import describe_evaluation, describe_samples, describe_worse

    print(describe_evaluation(evaluation))
    if "samples" in evaluation:
        print("\n" + describe_samples(evaluation["samples"], options.generations, options.temperature))
    if options.against and (worse := describe_worse(rows, WORSE)):
        print(worse)


class Side(NamedTuple):
    """One model on the data: its tokenizer, its examples and their losses, the questions, its greedy responses to them,
    and those that are drawn."""

    tokenizer: Tokenizer
    examples: Split
    losses: Losses
    questions: list[Question]
    responses: list[Response]
    drawn: list[list[Response]]


def examine(options: Namespace, name: str, other: Side | None = None) -> Side:
    """Measure the model of this name. `other`: a side whose records are asked, and whose ledger was printed."""
    template = options.template or "auto"  # a checkpoint's own comes before what the records' keys ask for
    nothing_held_out = {"val_fraction": 0.0, "test_fraction": 0.0}
    config = resolve("", {**options.settings, **nothing_held_out, "init": name, "template": template})
    from gptft.collate import collate
    from gptft.decoding import Sampling
    from gptft.device import Precision
    from gptft.evaluation.losses import measure_losses
    from gptft.evaluation.responses import answer, make_questions
    from gptft.evaluation.samples import sample
    from gptft.fast.decoding_model import arranged
    from gptft.finetuning import check_inputs, load_data
    from gptft.run.console import describe_ledger, print_dropped

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
        print_dropped(datasets["data"])
    if options.decode not in ("auto", "plain"):  # what is lost by fewer bits is to be seen in the losses, too
        model = arranged(model, options.decode, options.batch_size, take=True)
    to_batch = partial(collate, pad_id=tokenizer.eot)
    losses = measure_losses(model, examples, options.batch_size, to_batch, Precision("fp32", model.device))
    records = other.examples if other else examples
    asked = range(min(options.samples, len(records)))
    questions = make_questions(model, tokenizer, records, asked, config.fields, options.max_new_tokens)
    how = {"batch_size": options.batch_size, "decode": options.decode}
    responses = answer(model, tokenizer, questions, options.max_new_tokens, **how)
    sampling = Sampling(options.temperature, seed=options.seed)
    given = (options.generations, sampling, options.max_new_tokens)
    drawn = sample(model, tokenizer, questions, *given, **how) if options.generations else [[] for _ in questions]
    return Side(tokenizer, examples, losses, questions, responses, drawn)


def compare_knowledge(options: Namespace, sides: dict[str, Side]) -> tuple[dict, list[dict]]:
    """What the second model has lost of what the first knew, and the rows of forgetting.jsonl. They are loaded once
    more, one after the other, for both at once may not fit."""
    from gptft.device import Precision
    from gptft.evaluation.forgetting import measure_forgetting, remember

    device, base = resolve("", options.settings).device, None
    for name, model_name in (("before", options.against), ("after", options.model)):
        asked_for = vars(options) | {"model": model_name, "base": options.base if name == "after" else ""}
        model, _ = load_model(Namespace(**asked_for), device)
        precision = Precision("fp32", model.device)
        if base is None:
            base = remember(model, sides[name].tokenizer, precision, options.samples, options.max_new_tokens)
    return measure_forgetting(base, model, precision)


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
    for at, question in enumerate(next(iter(sides.values())).questions):
        if any(side.questions[at].left_out for side in sides.values()):
            continue
        given = {name: side.responses[at] for name, side in sides.items()}
        rows.append({"record": question.record, "expected": question.expected})
        rows[-1] |= {name: response.text for name, response in given.items()}
        rows[-1]["tokens"] = {name: response.tokens for name, response in given.items()}
        rows[-1]["finished"] = {name: response.finished for name, response in given.items()}
        if any(side.drawn[at] for side in sides.values()):
            rows[-1]["samples"] = {name: [each.text for each in side.drawn[at]] for name, side in sides.items()}
    return rows
