"""Show examples token by token: what is masked and what is a target, from the tensors that the loss receives."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from gptft.commands.common import add_base
from gptft.commands.parser import Parser, whole_number
from gptft.config import fields_by_heading, resolve
from gptft.errors import UserError
from gptft.files import atomic_write


def add_arguments(parser: Parser) -> None:
    """The data as for training, with all that decides what examples are made of it, and which of them are shown."""
    others = ("val_fraction", "val_data", "test_fraction", "test_data", "stream", "mix", "shard_tokens")
    reading = [name for name in fields_by_heading()["data"] if name not in others]
    parser.add_fields("data", *reading, required=("data",), data="files, as for training")
    parser.add_fields("the model", "init", init="the model whose tokenizer is used")
    add_base(parser)
    group = parser.group("what is shown")
    group.add_argument(
        "--row", type=whole_number(at_least=0), default=None, help="one example, by number from 0, with its ids"
    )
    group.add_argument(
        "--rows", type=whole_number(at_least=1), default=3, help="how many examples, collated as one batch [3]"
    )
    group.add_argument("--html", default="", help="write a page to this file instead")


def run(options: Namespace) -> None:
    """Print the chosen examples, or write them as a page."""
    config = resolve("", {**options.settings, "val_fraction": 0, "test_fraction": 0})
    from gptft.collate import collate
    from gptft.evaluation.tokens import row_tokens
    from gptft.finetuning import check_inputs, load_data, load_start
    from gptft.report import viewer
    from gptft.run.console import describe_ledger

    check_inputs(config)
    model, tokenizer = load_start(config, options.base)
    datasets, (examples, _, _) = load_data(config, model, tokenizer)
    chosen = range(min(options.rows, len(examples))) if options.row is None else [options.row]
    if options.row is not None and options.row >= len(examples):
        raise UserError(f"--row {options.row}: there are {len(examples)} examples, numbered from 0")
    batch = collate([examples[i] for i in chosen], tokenizer.eot, config.mask_prompt)
    shown = []
    for row, number in enumerate(chosen):
        file, line = batch.records[row]
        shown.append((f"example {number}: {file}, line {line}", row_tokens(batch, row, tokenizer)))
    if options.html:
        with atomic_write(options.html) as file:
            file.write(viewer.as_html(shown))
        print(options.html)
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(describe_ledger("data", datasets["data"].ledger))
    print(f"template {tokenizer.template.name}   {viewer.legend(colour)}\n")
    for title, tokens in shown:
        n_targets = sum(token.kind == "target" for token in tokens)
        print(f"--- {title}: {len(tokens)} tokens, {n_targets} targets")
        print(viewer.as_text(tokens, colour))
        if options.row is not None:
            print(viewer.as_table(tokens))
