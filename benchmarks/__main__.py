"""`python -m benchmarks NAME [options]`; without a name all of them, one after the other, which takes hours. Every
benchmark prints a table, writes `benchmarks/results/NAME.json`, all results as `benchmarks/RESULTS.md`, and the figures
in the documents."""

from __future__ import annotations

import importlib
import subprocess
import sys

from benchmarks import document, results
from gptft.commands.common import run
from gptft.errors import UserError, nearest


def listing() -> str:
    """Every name with what it measures, and how to see the options."""
    lines = ["usage: python -m benchmarks [NAME] [options]    (without NAME: all; NAME --help lists its options)", ""]
    lines += [f"  {name:<10}{what}" for name, what in results.NAMES.items()]
    return "\n".join([*lines, f"  {'document':<10}write RESULTS.md and the figures in the documents again"])


def main(argv: list[str]) -> None:
    """Run one benchmark, or all."""
    if argv and argv[0] in ("-h", "--help"):
        print(listing())
    elif not argv or argv[0].startswith("-"):
        run_all(argv)
    elif argv[0] == "document":
        results.render()
        document.render()
    elif argv[0] in results.NAMES:
        importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    else:
        raise UserError(f"there is no benchmark {argv[0]!r}{nearest(argv[0], [*results.NAMES, 'document'])}")


def run_all(words: list[str]) -> None:
    """Every benchmark with the same options, each in a process of its own. What cannot run here, for want of a GPU, a
    package or a second checkout, says so and is passed over; raises UserError at the end, with the names of these."""
    without = []
    for name in results.NAMES:
        print(f"== {name}: {results.NAMES[name]}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", "benchmarks", name, *words]).returncode:
            without.append(name)
    if without:
        raise UserError(f"without a result: {', '.join(without)}", 1)


if __name__ == "__main__":
    run(main)
