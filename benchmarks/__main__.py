"""`python -m benchmarks NAME [options]`; alone it lists the names. Every benchmark prints a table, writes
`benchmarks/results/NAME.json`, all results as `benchmarks/RESULTS.md`, and the figures in the documents."""

from __future__ import annotations

import importlib

from benchmarks import document, results
from gptft.commands.common import run
from gptft.errors import UserError, nearest


def listing() -> str:
    """Every name with what it measures, and how to see the options."""
    lines = ["usage: python -m benchmarks NAME [options]    (NAME --help lists its options)", ""]
    lines += [f"  {name:<10}{what}" for name, what in results.NAMES.items()]
    return "\n".join([*lines, f"  {'document':<10}write RESULTS.md and the figures in the documents again"])


def main(argv: list[str]) -> None:
    """Run one benchmark."""
    if not argv or argv[0] in ("-h", "--help"):
        print(listing())
    elif argv[0] == "document":
        results.render()
        document.render()
    elif argv[0] in results.NAMES:
        importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    else:
        raise UserError(f"there is no benchmark {argv[0]!r}{nearest(argv[0], [*results.NAMES, 'document'])}")


if __name__ == "__main__":
    run(main)
