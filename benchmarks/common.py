"""Shared by the benchmarks: their options, fresh processes, interleaving, and what the machine is."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import gptft
from benchmarks.results import FOLDER
from gptft.commands.common import Parser
from gptft.errors import UserError, need_extra

REPOSITORY = Path(__file__).resolve().parent.parent


def parser(name: str, what: str, rounds: int) -> Parser:
    """The options that every benchmark has."""
    options = Parser(
        prog=f"python -m benchmarks {name}", description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=rounds, help=f"how often everything is measured [{rounds}]")
    options.add_argument("--threads", type=int, default=2, help="CPU threads of torch [2]")
    options.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; nothing is written")
    options.add_argument("--results", type=Path, help="folder for the JSON file [benchmarks/results]")
    options.add_argument(
        "--shared",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data",
        help="folder with instruction-data.json and tiktoken-cache [../shared/data]",
    )
    return options


def results_folder(options: argparse.Namespace) -> Path | None:
    """Where the result goes; a quick run writes nothing unless a folder is named."""
    return options.results or (None if options.quick else FOLDER)


def instructions(options: argparse.Namespace) -> Path:
    """The instruction set. Raises UserError where it is absent."""
    path = options.shared / "instruction-data.json"
    if not path.exists() or not (options.shared / "tiktoken-cache").is_dir():
        raise UserError(f"--shared {options.shared}: instruction-data.json and tiktoken-cache must be there")
    return path.resolve()


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables for the processes: threads, GPT-2's vocabulary, no hub and no progress bars."""
    return {
        "OMP_NUM_THREADS": str(options.threads),
        "TIKTOKEN_CACHE_DIR": str((options.shared / "tiktoken-cache").resolve()),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


def need(*packages: str) -> None:
    """Raise UserError, naming the extra, for a peer that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise need_extra(package, "dev,bench", "this benchmark")


def temporary() -> tempfile.TemporaryDirectory:
    """A folder for everything that is generated; it is gone when the benchmark ends."""
    return tempfile.TemporaryDirectory(prefix="gptft-bench-")


def call(module: str, task: dict, env: dict[str, str], checkout: Path = REPOSITORY) -> dict:
    """Do `task` in a fresh process, with `benchmarks.<module>`'s `work` in `checkout`, and return what it says.

    Raises UserError with the end of its standard error when it fails.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", json.dumps(task)]
    done = subprocess.run(command, cwd=checkout, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"benchmarks.{module} failed at {task.get('do', 'its task')!r}:\n{done.stderr[-3000:]}", 1)
    return json.loads(done.stdout.splitlines()[-1])


def answer(work: Callable[[dict], dict]) -> None:
    """The other end of `call`: do the task on the command line, print the outcome as the last line."""
    print("\n" + json.dumps(work(json.loads(sys.argv[1]))))


def run_tests(words: Sequence[str], options: argparse.Namespace) -> list[dict]:
    """Run some tests with GPTFT_DIFFERENCES set; -> the rows that they recorded. Raises UserError where one fails."""
    with temporary() as folder:
        found = Path(folder, "differences.jsonl")
        env = {**os.environ, **environment(options), "GPTFT_DIFFERENCES": str(found)}
        command = [sys.executable, "-m", "pytest", "-q", *words]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
        if done.returncode or not found.exists():
            raise UserError(f"the tests {' '.join(words)} failed, or were left out:\n{done.stdout[-3000:]}", 1)
        return [json.loads(line) for line in found.read_text().splitlines()]


def interleave(who: Sequence[str], rounds: int, measure: Callable[[str, int], dict], unit: str) -> list[dict]:
    """A-B-C, A-B-C, ...: per round what `measure(contender, round)` says; `unit` is the key shown as it runs."""
    measured = []
    for number in range(rounds):
        measured.append({})
        for name in who:
            measured[-1][name] = outcome = measure(name, number)
            said = f"{outcome[unit]:.3f} {unit}" if unit in outcome else "done"
            print(f"round {number + 1} of {rounds}  {name:<31}{said}", file=sys.stderr, flush=True)
    return measured


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spreads(rounds: Sequence[dict], key: str) -> dict[str, dict]:
    """For each contender the spread of one key over the rounds."""
    return {name: spread([outcome[name][key] for outcome in rounds]) for name in rounds[0]}


def ratios(rounds: Sequence[dict], of: str, to: str, key: str) -> dict[str, float]:
    """The spread of one contender's figure over another's, formed round by round."""
    return spread([outcome[of][key] / outcome[to][key] for outcome in rounds])


def has_bf16() -> bool:
    """Whether the processor multiplies bf16. Where it does not, torch makes the products number by number, ten times
    slower than in fp32, and contenders in bf16 are left out."""
    from gptft.device import cpu_has_bf16

    return cpu_has_bf16()


def in_what_it_has(names: Sequence[str]) -> list[str]:
    """The contenders that this processor has the arithmetic for; says so, where some are left out."""
    if has_bf16() or not any("bf16" in name for name in names):
        return list(names)
    print("this processor does not multiply bf16: contenders in bf16 are left out", file=sys.stderr, flush=True)
    return [name for name in names if "bf16" not in name]


def machine(threads: int) -> dict:
    """The processor, whether it multiplies bf16, and its load before the run; nothing that names the host."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found.group(1).strip() if found else cpu
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"cpu": cpu, "bf16": has_bf16(), "cores": os.cpu_count(), "threads": threads, "load_before": load}


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, of this project and of the packages."""
    found = {"python": platform.python_version(), "gptft": gptft.__version__}
    return found | {name: importlib.metadata.version(name) for name in packages}


def header(name: str, options: argparse.Namespace, settings: dict, packages: Sequence[str]) -> dict:
    """The part of a result that is alike in all benchmarks. To be called before anything is measured."""
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "machine": machine(options.threads),
        "versions": versions(*packages),
        "settings": settings,
    }


def peak_memory() -> int:
    """The most that this process ever had resident, bytes."""
    return _status("VmHWM")


def resident_memory() -> int:
    """What this process has resident now, bytes."""
    return _status("VmRSS")


def _status(field: str) -> int:
    # not getrusage: its peak may be that of the process from which this one was forked
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024


def write_records(source: Path, path: Path, count: int) -> None:
    """JSON lines: the records of `source` over and over, a number in each instruction so that no two are equal."""
    records = json.loads(source.read_text(encoding="utf-8"))
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            record = records[number % len(records)]
            numbered = {**record, "instruction": f"{record['instruction']} ({number})"}
            file.write(json.dumps(numbered, ensure_ascii=False) + "\n")
