"""How long until gptft is there: imports and `train.py --help`, each in a fresh process, interleaved."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks import common, results
from gptft.errors import UserError

COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import gptft": ["-c", "import gptft"],
    "import torch, gptft": ["-c", "import torch, gptft"],
    "import torch, gptft.finetuning": ["-c", "import torch, gptft.finetuning"],
    "python train.py --help": ["train.py", "--help"],
}
HELP_AND_LOOK = """
import runpy, sys
sys.argv = ["train.py", "--help"]
runpy.run_path("train.py", run_name="__main__")
print("torch" in sys.modules)
"""


def start(arguments: list[str]) -> tuple[float, str]:
    """(seconds that a fresh interpreter took, its standard output)."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=common.REPOSITORY, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"python {' '.join(arguments)} failed:\n{done.stderr[-3000:]}", 1)
    return seconds, done.stdout


def main(argv: list[str]) -> None:
    options = common.parser("startup", __doc__, rounds=7).parse_args(argv)
    rounds = 2 if options.quick else options.rounds
    result = common.header("startup", options, {"rounds": rounds}, ["torch"])
    for arguments in COMMANDS.values():  # files into the page cache
        start(arguments)
    measured = common.interleave(COMMANDS, rounds, lambda name, _: {"seconds": start(COMMANDS[name])[0]}, "seconds")
    _, text = start(["-c", HELP_AND_LOOK])
    seconds = common.spreads(measured, "seconds")
    beyond = common.spread(
        [outcome["import torch, gptft"]["seconds"] - outcome["import torch"]["seconds"] for outcome in measured]
    )
    result["rounds"] = measured
    result["summary"] = {
        "seconds": seconds,
        "gptft_beyond_torch": beyond,
        "help_imports_torch": text.splitlines()[-1] == "True",
    }
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    summary = result["summary"]
    rows = [[f"`{name}`", results.shown(values, 3), ""] for name, values in summary["seconds"].items()]
    for row in rows:
        if "--help" in row[0]:
            row[2] = results.verdict(summary["seconds"]["python train.py --help"]["median"], 1, " s")
    beyond = summary["gptft_beyond_torch"]
    rows.append(["gptft beyond torch", results.shown(beyond, 3), results.verdict(beyond["median"], 0.3, " s")])
    note = "`train.py --help` " + ("imports torch." if summary["help_imports_torch"] else "does not import torch.")
    return results.markdown(["what", "seconds", "target"], rows) + "\n\n" + note
