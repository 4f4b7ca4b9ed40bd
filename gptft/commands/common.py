"""What the commands share: running one, the flags that several have, and loading the model that one of them asks.

A command is a module with a docstring, which --help shows, `add_arguments(parser)` and `run(options)`. None imports
torch before `run`, so that --help and a misspelt flag are answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import ModuleType

from gptft.commands.parser import Parser, number, whole_number
from gptft.errors import BadRecord, UserError
from gptft.run import threads

PATIENCE = 10.0  # seconds that a process gives the machine's first to say what it finds, too
MODEL = (
    "a checkpoint, a run's folder, a Hugging Face directory, PEFT's adapters, a GGUF file, a hub id, or the preset tiny"
)


def run(command: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run a command; what the user can put right becomes one line on standard error and an exit status. Of several
    processes that torchrun started, and that have not found each other yet, the machine's first says it."""
    for stream in (sys.stdin, sys.stdout):  # an odd character must not end a run that is nearly done
        with contextlib.suppress(AttributeError, OSError):  # a stream that is no text file has no such method
            stream.reconfigure(errors="replace")
    threads.set_spin()  # before anything imports torch
    try:
        command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        end(str(error), error.status)
    except BadRecord as error:  # a prompt for which the checkpoint's template has no place
        end(str(error), 2)
    except KeyboardInterrupt:
        end("interrupted", 130, wait=0.0)
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        sys.stdout = open(os.devnull, "w")
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        end(f"{where}{error.strerror or error}", 1)


def end(line: str, status: int, wait: float = PATIENCE) -> None:
    """Say why, and exit. Of several processes that torchrun has started the machine's first says it, which finds what
    the others find: they give it time, for as soon as one has ended torchrun ends all, and the first may be slower to
    begin. Whoever is ended while it waits exits with the same status."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        if not wait:  # it is for the first alone to say
            sys.exit(status)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(status))
        time.sleep(wait)
    print(f"gptft: {line}", file=sys.stderr)
    sys.exit(status)


def make_parser(command: ModuleType) -> Parser:
    """The parser of one command."""
    name = command.__name__.rpartition(".")[2].replace("_", "-")
    parser = Parser(prog=f"python -m gptft {name}", description=command.__doc__)
    command.add_arguments(parser)
    return parser


def run_command(command: ModuleType, argv: list[str]) -> None:
    """Parse the arguments of one command and run it."""
    command.run(make_parser(command).parse_args(argv))


def add_decoding(parser: Parser) -> None:
    """How responses are decoded."""
    group = parser.group("decoding")
    group.add_argument(
        "--max_new_tokens", type=whole_number(at_least=1), default=100, help="longest response, tokens [100]"
    )
    group.add_argument(
        "--max_input_tokens",
        type=whole_number(at_least=0),
        default=0,
        help="cut the start of longer prompts, tokens; 0: refuse those beyond block_size",
    )
    group.add_argument("--temperature", type=number, default=0.0, help="0: greedy [0]")
    group.add_argument(
        "--top_k", type=whole_number(at_least=0), default=0, help="draw among the k likeliest tokens; 0: all"
    )
    group.add_argument("--top_p", type=number, default=1.0, help="draw among the fewest tokens that reach p [1]")
    group.add_argument("--seed", type=whole_number(at_least=0), default=0, help="seed of the draws [0]")
    add_decode(parser, "decoding")


def add_decode(parser: Parser, heading: str) -> None:
    """What decoding computes in."""
    parser.group(heading).add_argument(
        "--decode",
        choices=("auto", "plain", "fp32", "bf16", "int8", "graph"),
        default="auto",
        help="how weights are held and multiplied: fp32; bf16 and int8, faster and not exact; plain: as in training; "
        "graph: on CUDA, as in training, each pass recorded once and replayed; "
        "auto: in the precision that they have, as this processor reads them fastest [auto]",
    )


def add_model(parser: Parser) -> None:
    """Which model is asked, and where it runs."""
    parser.add_argument("model", help=MODEL)
    group = parser.group("the model")
    group.add_argument("--template", default="", help="prompt template; empty: the checkpoint's own")
    add_base(parser)
    parser.add_fields("the machine", "device")


def add_base(parser: Parser) -> None:
    """Where the base of adapters is."""
    parser.group("the model").add_argument(
        "--base", default="", help="of adapters: the model they were trained on; empty: where it was"
    )


def load_model(options: Namespace, device: str, parts: Iterable[str] = ()):
    """Model and tokenizer for a command that asks one. `parts`: those named with --fields, besides the usual."""
    from gptft.device import pick_device
    from gptft.loading import load
    from gptft.prompts import load_template

    template = load_template(options.template, parts) if options.template else None
    model, tokenizer = load(options.model, pick_device(device), base=options.base)
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer")
    trained_with = tokenizer.template
    if template and trained_with and trained_with.unwraps:  # what prompts held in training, they may hold now
        same = trained_with.name == template.name
        template = trained_with if same else dataclasses.replace(template, unwraps=trained_with.unwraps)
    if template:
        tokenizer.template = template
    return model, tokenizer


def new_folder(word: str, unfinished: Collection[str] = ()) -> Path | None:
    """The folder that --out names; None where it names none. `unfinished`: the files that the command has written where
    it did not come to its end; a folder of these alone is gone on with.

    Raises UserError, before any work is done, for one that holds something, or that cannot be made."""
    if not word:
        return None
    out = Path(word)
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= set(unfinished)):
        raise UserError(f"--out {out} exists already: name another folder")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out} cannot be made in {above}")
    return out
