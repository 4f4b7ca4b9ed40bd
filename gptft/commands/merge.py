"""Fold adapters into their base and write an ordinary checkpoint, in full precision."""

from __future__ import annotations

from argparse import Namespace

from gptft.commands.common import add_base
from gptft.commands.parser import Parser


def add_arguments(parser: Parser) -> None:
    """The adapters, and the folder to write."""
    parser.add_argument(
        "adapter", help="a checkpoint of a run with --lora_rank, the run's folder, or a directory of PEFT's"
    )
    parser.add_argument("out", help="the folder to write; it must not exist")
    add_base(parser)


def run(options: Namespace) -> None:
    """Write the checkpoint."""
    from gptft.loading import merge

    merge(options.adapter, options.out, options.base)
    print(options.out)
