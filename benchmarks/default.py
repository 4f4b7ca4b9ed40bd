"""The embedded default, `python train.py`, in fresh processes and empty folders: by its own seed, then by others.

Kept are the scores of each run, and of the first run what it printed, its loss.png and what its model answers to a
question: the README shows these.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common, results
from gptft.errors import UserError

RUN = "checkpoints/default"
QUESTION = [RUN, "Write the plural.", "--input", "one new wolf"]
QUICK = ["--max_steps", "3", "--test_samples", "5", "--max_new_tokens", "5"]
ROWS = 5  # of the table of answers, in the excerpt
SHOWN = re.compile(r"1\. |2\. |model: |training: |  metric |  exact match +\d|test loss")


def main(argv: list[str]) -> None:
    options = common.parser("default", __doc__, rounds=3).parse_args(argv)
    settings = {"rounds": options.rounds, "quick": options.quick}
    result = common.header("default", options, settings, ["torch"])
    result["rounds"] = []
    for seed in range(options.rounds):
        with common.temporary() as folder:
            result["rounds"].append(train(options, seed, Path(folder)))
            if seed == 0:
                result["question"] = " ".join(f'"{word}"' if " " in word else word for word in QUESTION)
                result["answer"] = python(options, Path(folder), "-m", "gptft", "generate", *QUESTION).strip()
                plot = Path(folder, RUN, "loss.png")
                if common.results_folder(options) == results.FOLDER and plot.exists():
                    shutil.copy(plot, results.DOCS / "loss.png")
    consoles = [once.pop("console") for once in result["rounds"]]
    result["console"] = consoles[0]
    results.save(result, common.results_folder(options))


def train(options, number: int, folder: Path) -> dict:
    """One run of the command, the first by the seed of the shipped configs; what it printed and came to."""
    words = [*(QUICK if options.quick else []), *(["--seed", str(number)] if number else [])]
    began = time.perf_counter()
    console = python(options, folder, str(common.REPOSITORY / "train.py"), *words)
    console = console.replace(f"{common.REPOSITORY}/", "")  # where the project lies is nobody's concern
    seconds = time.perf_counter() - began
    summary = json.loads(Path(folder, RUN, "summary.json").read_text(encoding="utf-8"))
    print(f"run {number + 1}: exact match {summary['test_exact_match']:.2%}, {seconds:.0f} s", file=sys.stderr)
    return {
        "seed": str(number) if number else "the default's",
        "seconds": seconds,
        "console": console.splitlines(),
        **{key: summary[key] for key in ("eval_loss", "test_loss", "test_exact_match", "parameters")},
        "exact_match_before": summary["exact_match"]["all"]["before"],
    }


def python(options, folder: Path, *words: str) -> str:
    """The standard output of Python with these arguments in `folder`. Raises UserError with its errors if it fails."""
    search = os.pathsep.join(filter(None, [str(common.REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "GPTFT_CACHE": str(folder / "cache"),
        "PYTHONPATH": search,
    }
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"python {' '.join(words)} failed:\n{done.stderr[-3000:]}", 1)
    return done.stdout


def excerpt(lines: list[str]) -> list[str]:
    """What a reader wants of the lines that a run prints: some of each kind, `...` where others stood."""
    kept, rows = [], 0
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if line.startswith("  step "):  # the first and the last evaluation of each stage
            wanted = not before.startswith("  step ") or not after.startswith("  step ")
        elif " | " in line:  # the head of the table of answers, and its first rows
            wanted, rows = rows <= ROWS, rows + 1
        else:
            wanted = bool(SHOWN.match(line))
        if wanted:
            kept.append(line.rstrip())
        elif line.strip() and kept and kept[-1] != "...":
            kept.append("...")
    return kept


def table(result: dict) -> str:
    head = ["seed", "exact match before", "after", "validation loss", "test loss", "seconds"]
    rows = []
    for once in result["rounds"]:
        before, after = f"{once['exact_match_before']:.1%}", f"{once['test_exact_match']:.1%}"
        losses = f"{once['eval_loss']:.4f}", f"{once['test_loss']:.4f}"
        rows.append([once["seed"], before, after, *losses, f"{once['seconds']:.0f}"])
    load = result["machine"]["load_before"]
    return f"{results.markdown(head, rows)}\n\nThe machine's load before the first run: {load}."
