"""Measure a model on data: loss a target, and the share of responses that are exactly as expected."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from functools import partial
from statistics import fmean

from gptft.commands.common import add_model, load_model
from gptft.commands.parser import Parser, whole_number
from gptft.config import resolve


def add_arguments(parser: Parser) -> None:
    """The model, the data, and how many records are answered."""
    add_model(parser)
    parser.add_fields("data", "data", "fields", "bad_records", required=("data",), data="files to measure on")
    group = parser.group("evaluation")
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


def run(options: Namespace) -> None:
    """Print the ledger of the data, the loss and the scores of the answers."""
    template = options.template or "auto"  # a checkpoint's own comes before what the records' keys ask for
    nothing_held_out = {"val_fraction": 0.0, "test_fraction": 0.0}
    config = resolve("", {**options.settings, **nothing_held_out, "init": options.model, "template": template})
    from gptft.collate import collate
    from gptft.device import Precision
    from gptft.evaluation.metrics import METRICS, describe_metric
    from gptft.evaluation.responses import answer, describe_left_out, make_questions
    from gptft.finetuning import check_inputs, load_data
    from gptft.loss import Objective
    from gptft.run.console import describe_ledger
    from gptft.training import evaluate_loss

    check_inputs(config)
    model, tokenizer = load_model(options, config.device, config.fields)
    if template == "auto" and tokenizer.template and tokenizer.template.name == "plain":
        config = replace(config, template="plain")  # a run takes another then, but here nothing is trained
    datasets, (examples, _, _) = load_data(config, model, tokenizer)
    print(describe_ledger("data", datasets["data"].ledger))
    to_batch = partial(collate, pad_id=tokenizer.eot)
    loss = evaluate_loss(Objective(model), examples, options.batch_size, to_batch, Precision("fp32", model.device))
    print(f"loss {loss:.4f} nats a target, over {len(examples):,} examples")
    asked = range(min(options.samples, len(examples)))
    questions = make_questions(model, tokenizer, examples, asked, config.fields, options.max_new_tokens)
    responses = answer(model, tokenizer, questions, options.max_new_tokens, options.batch_size)
    if left_out := describe_left_out(questions, at_most=len(questions)):
        print(left_out)
    scored = [pair for pair in zip(questions, responses, strict=True) if not pair[0].left_out]
    over = "the first" if len(scored) == len(questions) else f"{len(scored):,} of the first"
    for name, metric in METRICS.items() if scored else ():
        mean = fmean(metric(response, question.expected) for question, response in scored)
        print(f"{describe_metric(name)} {mean:.1%}, over {over} {len(questions):,} records")
