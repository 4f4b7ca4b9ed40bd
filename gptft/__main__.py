"""`python -m gptft COMMAND ...`: picks the command; each is a file of `gptft/commands/`."""

from __future__ import annotations

from gptft.commands import (
    chat,
    consolidate,
    evaluate,
    export,
    generate,
    inspect,
    lint,
    make_data,
    merge,
    prepare,
    rank,
    report,
    scaling,
    train,
)
from gptft.commands.common import run, run_command
from gptft.errors import UserError, nearest

COMMANDS = {
    "train": train,
    "generate": generate,
    "chat": chat,
    "evaluate": evaluate,
    "rank": rank,
    "inspect": inspect,
    "lint": lint,
    "make-data": make_data,
    "prepare": prepare,
    "report": report,
    "scaling": scaling,
    "merge": merge,
    "consolidate": consolidate,
    "export": export,
}


def listing() -> str:
    """Every command with a line on what it does."""
    lines = ["usage: python -m gptft COMMAND ...    (COMMAND --help lists its arguments)", ""]
    return "\n".join([*lines, *(f"  {name:<13}{module.__doc__.splitlines()[0]}" for name, module in COMMANDS.items())])


def main(argv: list[str]) -> None:
    """Run the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        print(listing())
    elif argv[0] in COMMANDS:
        run_command(COMMANDS[argv[0]], argv[1:])
    else:
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}")


def entry() -> None:
    """The console script `gptft`."""
    run(main)


if __name__ == "__main__":
    entry()
