"""What the commands share: running them, their options, and loading the model that one of them asks."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable

from gptft.errors import BadRecord, UserError, nearest

MODEL = "a checkpoint, a run's folder, a Hugging Face directory, PEFT's adapters, a hub id, or the preset tiny"


def run(command: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run a command; what the user can put right becomes one line on standard error and an exit status."""
    for stream in (sys.stdin, sys.stdout):  # an odd character must not end a run that is nearly done
        with contextlib.suppress(AttributeError, OSError):  # a stream that is no text file has no such method
            stream.reconfigure(errors="replace")
    try:
        command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"gptft: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BadRecord as error:  # a prompt for which the checkpoint's template has no place
        print(f"gptft: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gptft: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        sys.stdout = open(os.devnull, "w")
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"gptft: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


class Parser(argparse.ArgumentParser):
    """argparse with our errors: one line, the nearest valid name, exit status 2."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> None:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0]
            message = f"unknown argument {word}{nearest(word, self._option_string_actions)}"
        raise UserError(message)


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def convert(word: str) -> int:
        if not word.lstrip("-").isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {word!r}")
        return int(word)

    return convert


def add_sampling(parser: Parser) -> None:
    parser.add_argument("--max_new_tokens", type=whole(1), default=100, help="longest response, tokens [100]")
    parser.add_argument(
        "--max_input_tokens",
        type=whole(0),
        default=0,
        help="cut the start of longer prompts; 0: refuse those beyond block_size",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy [0]")
    parser.add_argument("--top_k", type=whole(0), default=0, help="draw among the k likeliest tokens; 0: all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw among the fewest tokens that reach p [1]")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the draws [0]")
    add_device(parser)


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    parser.add_argument("--template", default="", help="prompt template; empty: the checkpoint's own")
    add_base(parser)


def add_base(parser: Parser) -> None:
    parser.add_argument("--base", default="", help="of adapters: the model they were trained on; empty: where it was")


def add_reading(parser: Parser) -> None:
    parser.add_argument("--fields", nargs="+", default=[], help="which key plays which part, as for training")
    parser.add_argument("--bad_records", default="stop", help="stop, or drop: as for training [stop]")


def load_model(options, parts: Iterable[str] = ()):
    """Model and tokenizer for a command that asks one. `parts`: those named with --fields, besides the usual."""
    from gptft.device import pick_device
    from gptft.loading import load
    from gptft.prompts import load_template

    template = load_template(options.template, parts) if options.template else None
    model, tokenizer = load(options.model, pick_device(options.device), base=options.base)
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer")
    if template:
        tokenizer.template = template
    return model, tokenizer
