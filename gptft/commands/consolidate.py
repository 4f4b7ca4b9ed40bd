"""Make an ordinary checkpoint of a sharded one, which a run with --shard fsdp has written."""

from __future__ import annotations

from argparse import Namespace

from gptft.commands.parser import Parser


def add_arguments(parser: Parser) -> None:
    """The checkpoint, and the folder to write."""
    parser.add_argument(
        "checkpoint", help="a sharded checkpoint, or the folder of its run, of which it is the newest one"
    )
    parser.add_argument("out", help="the folder to write; it must not exist, or be empty")


def run(options: Namespace) -> None:
    """Write the checkpoint."""
    from gptft.parallel.sharded import consolidate

    consolidate(options.checkpoint, options.out)
    print(options.out)
