"""`python -m benchmarks NAME [options]`; alone it lists the names. Every benchmark prints a table, writes
`benchmarks/results/NAME.json` and renders all results into `benchmarks/RESULTS.md`."""

from __future__ import annotations

import importlib

from benchmarks import results
from gptft.commands.common import run
from gptft.errors import UserError, nearest


def listing() -> str:
    """Every name with what it measures, and how to see the options."""
    lines = ["usage: python -m benchmarks NAME [options]    (NAME --help lists its options)", ""]
    lines += [f"  {name:<10}{what}" for name, what in results.NAMES.items()]
    return "\n".join([*lines, f"  {'render':<10}write RESULTS.md again from the results that are there"])


def main(argv: list[str]) -> None:
    """Run one benchmark."""
    if not argv or argv[0] in ("-h", "--help"):
        print(listing())
    elif argv[0] == "render":
        results.render()
    elif argv[0] in results.NAMES:
        importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    else:
        raise UserError(f"there is no benchmark {argv[0]!r}{nearest(argv[0], [*results.NAMES, 'render'])}")


if __name__ == "__main__":
    run(main)
