"""Several processes on these cores: what DDP and FSDP2 cost beside processes that do not talk, the bytes that they move
and the memory that they hold against the theory, and the time to save and to load.

Each process has one thread and the same work, however many there are. "apart" is the yardstick: as many processes at
once, each training by itself, so that what they cost each other in cores and in memory bandwidth is not called
communication. Four processes on two cores take turns. All ranks are on one machine: what a network costs is not here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common, results
from gptft.errors import UserError

RANKS = (1, 2, 4)
CHECKPOINT = ("waits_seconds", "save_seconds", "load_seconds")
ENGINES = ("alone", "ddp", "fsdp")
CONTENDERS = [f"{engine} {n}" for n in RANKS for engine in ENGINES if n > 1 or engine == "alone"]
MODEL = {"n_layer": 6, "n_embd": 384, "vocab_size": 8192, "length": 128, "batch_size": 4, "steps": 5}
QUICK = {"n_layer": 2, "n_embd": 96, "vocab_size": 1000, "length": 64, "batch_size": 2, "steps": 5}


def measure(contender: str, task: dict, folder: str) -> dict:
    """Start so many processes, and let them train."""
    engine, n = contender.split()
    out = Path(folder, "found.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", n, "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", "-m", "benchmarks.ranks_worker"]
    command.append(json.dumps(task | {"engine": engine, "out": str(out)}))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=common.REPOSITORY, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{contender} failed:\n{done.stderr[-3000:]}", 1)
    found = json.loads(out.read_text())["ranks"]
    slowest = {key: max(each[key] for each in found) for key in found[0]}
    return slowest | {"bytes_a_step": max(each["bytes_a_step"] for each in found), "losses": found[0]["losses"]}


def main(argv: list[str]) -> None:
    options = common.parser("ranks", __doc__, rounds=5).parse_args(argv)
    rounds, task = (1, QUICK) if options.quick else (options.rounds, MODEL)
    options.threads = 1
    result = common.header("ranks", options, {"rounds": rounds, **task}, ["torch"])
    with common.temporary() as folder:
        result["said"], result["died"] = jobs(Path(folder))
        measured = common.interleave(CONTENDERS, rounds, lambda name, _: measure(name, task, folder), "seconds_a_step")
    result["rounds"] = measured
    check(measured)
    result["summary"] = summarise(measured, task)
    results.save(result, common.results_folder(options))


JOB = ["--init", "tiny", "--batch_size", "4", "--global_batch_size", "24", "--lr", "1e-3", "--test_samples", "6"]
SHOWN = ("ranks:", "training:", "  step ", "test loss", "gptft:")


def jobs(folder: Path) -> tuple[list[str], list[str]]:
    """What three processes say of a run, and of one in which the system kills one of them."""
    records = (
        {"question": f"What comes after {n}?", "answer": f"It is {n + 1}." + " Yes." * (n % 9)} for n in range(240)
    )
    (folder / "faq.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", str(common.REPOSITORY / "train.py"), "--data", "faq.jsonl", *JOB]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(common.REPOSITORY)}
    given = {"cwd": folder, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    said = subprocess.run([*command, "--epochs", "3"], **given).stdout
    job = subprocess.Popen([*command, "--epochs", "900"], **given)
    for line in job.stdout:
        if line.startswith("  step      0"):
            time.sleep(1.0)
            ranks = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(ranks[-1]), signal.SIGKILL)
            break
    died, _ = job.communicate()
    return [[line for line in text.splitlines() if line.startswith(SHOWN)] for text in (said, died)]


def console(lines: list[str]) -> str:
    return "\n".join(["```", *lines, "```"])


def said() -> str:
    """What the processes of a run said, for the document."""
    return console(results.read("ranks")["said"])


def died() -> str:
    return console([line for line in results.read("ranks")["died"] if line.startswith("gptft:")])


def check(rounds: list[dict]) -> None:
    """No figure of runs that compute something else: DDP and FSDP2 have one loss."""
    for outcome in rounds:
        for n in RANKS[1:]:
            a, b = (outcome[f"{engine} {n}"]["losses"] for engine in ("ddp", "fsdp"))
            if abs(a - b) > 1e-5 * abs(a):
                raise UserError(f"with {n} processes DDP's last loss is {a}, FSDP2's {b}", 1)


def theory(engine: str, n: int, task: dict) -> dict:
    """Bytes that n ranks receive in a step, all together, and bytes of weights, gradients and AdamW's moments that one
    holds; 4 bytes a number.

    An all-reduce of G bytes brings each rank 2 (n-1)/n G, an all-gather or a reduce-scatter (n-1)/n G (the ring
    algorithm; Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009). FSDP2 gathers a block for the forward pass
    and again for the backward one, the embeddings once, and scatters the gradients; gloo scatters by an all-reduce.
    """
    C, V, T = task["n_embd"], task["vocab_size"], task["length"]
    blocks = task["n_layer"] * (12 * C * C + 9 * C)  # linear layers with their biases
    rest = V * C + T * C + task["n_layer"] * 4 * C + 2 * C  # embeddings and norms
    whole = 4 * (blocks + rest)
    if engine == "ddp":
        return {"bytes_a_step": 2 * (n - 1) * whole, "held_bytes": 4 * whole}
    gloo, nccl = 4 * (blocks * 4 + rest * 3), 4 * (blocks * 3 + rest * 2)
    return {"bytes_a_step": (n - 1) * gloo, "bytes_a_step_nccl": (n - 1) * nccl, "held_bytes": 4 * whole / n}


def summarise(rounds: list[dict], task: dict) -> dict:
    summary: dict = {"seconds_a_step": common.spreads(rounds, "seconds_a_step"), "of_several": {}}
    for n in RANKS[1:]:
        for engine in ENGINES[1:]:
            name, due = f"{engine} {n}", theory(engine, n, task)
            row = {"over_apart": common.ratios(rounds, name, f"alone {n}", "seconds_a_step"), "theory": due}
            for key in (
                "bytes_a_step",
                "held_bytes",
                "resident_bytes",
                "waits_seconds",
                "save_seconds",
                "load_seconds",
            ):
                row[key] = common.spread([outcome[name][key] for outcome in rounds])
            summary["of_several"][name] = row
    summary["parameters"] = rounds[0]["alone 1"]["parameters"]
    return summary


def table(result: dict) -> str:
    summary = result["summary"]
    rows = []
    for n in RANKS:
        for engine in ENGINES:
            name = f"{engine} {n}"
            if name not in summary["seconds_a_step"]:
                continue
            row = summary["of_several"].get(name)
            cells = [str(n), {"alone": "apart"}.get(engine, engine), results.shown(summary["seconds_a_step"][name], 2)]
            if row:
                due = row["theory"]
                cells += [
                    results.shown(row["over_apart"], 2) + " times",
                    against(row["bytes_a_step"]["median"], due["bytes_a_step"]),
                    against(row["held_bytes"]["median"], due["held_bytes"]),
                    ", ".join(f"{row[key]['median']:.2f}" for key in CHECKPOINT),
                ]
            rows.append(cells + [""] * (7 - len(cells)))
    heads = ["processes", "", "seconds a step", "over apart, by round", "MB moved a step (theory)"]
    return results.markdown([*heads, "MB held a rank (theory)", "seconds waited, until saved, to load"], rows)


def against(found: float, due: float) -> str:
    return f"{found / 1e6:.1f} ({due / 1e6:.1f})"
