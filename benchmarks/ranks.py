"""Several processes on these cores: what DDP and FSDP2 cost beside processes that do not talk, the bytes that they move
and the memory that they hold against the theory, and the time to save and to load.

Each process has one thread and the same work, however many there are. "apart" is the yardstick: as many processes at
once, each training by itself, so that what they cost each other in cores and in memory bandwidth is not called
communication. Four processes on two cores take turns. All ranks are on one machine: what a network costs is not here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import common, results
from gptft.errors import UserError

RANKS = (1, 2, 4)
ENGINES = ("alone", "ddp", "fsdp")
CONTENDERS = [f"{engine} {n}" for n in RANKS for engine in ENGINES if n > 1 or engine == "alone"]
MODEL = {"n_layer": 6, "n_embd": 384, "vocab_size": 8192, "length": 128, "batch_size": 4, "steps": 10}
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
        measured = common.interleave(CONTENDERS, rounds, lambda name, _: measure(name, task, folder), "seconds_a_step")
    result["rounds"] = measured
    check(measured)
    result["summary"] = summarise(measured, task)
    results.save(result, common.results_folder(options))


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
            for key in ("bytes_a_step", "held_bytes", "resident_bytes", "save_seconds", "load_seconds"):
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
                    f"{row['save_seconds']['median']:.2f}, {row['load_seconds']['median']:.2f}",
                ]
            rows.append(cells + [""] * (7 - len(cells)))
    heads = ["processes", "", "seconds a step", "over apart, by round", "MB moved a step (theory)"]
    return results.markdown([*heads, "MB held a rank (theory)", "seconds to save, to load"], rows)


def against(found: float, due: float) -> str:
    return f"{found / 1e6:.1f} ({due / 1e6:.1f})"
