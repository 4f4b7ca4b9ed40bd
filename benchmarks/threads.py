"""What a busy neighbour costs a small model, by how long threads spin at a barrier before they sleep.

A step of a small model passes hundreds of barriers a second between threads. A thread that waits there spins, in case
the others come at once; where another process has its core, all spin until the system lets the last one run. Each
contender trains the embedded default's model on random tokens in a fresh process, alone and beside one busy process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks import common, results
from gptft.errors import UserError

SETTINGS = {
    "torch's default": {},
    "GOMP_SPINCOUNT=5000": {"GOMP_SPINCOUNT": "5000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as the commands choose": {"CHOOSE": "1"},
}
WHERE = ("alone", "beside a busy process")
CONTENDERS = [f"{name}, {where}" for name in SETTINGS for where in WHERE]
TRAIN = """
import json, os, sys, time
if os.environ.pop("CHOOSE", ""):
    from gptft.run.threads import set_spin
    set_spin()
import torch
from gptft.loading import preset
model = preset("tiny", 0).train()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
idx = torch.randint(0, 1281, (16, 128), generator=torch.Generator().manual_seed(0))
def step():
    logits = model(idx[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()
for _ in range(5):
    step()
began, n = time.perf_counter(), int(sys.argv[1])
for _ in range(n):
    step()
print(json.dumps({"steps_per_second": n / (time.perf_counter() - began)}))
"""


def train(contender: str, steps: int) -> dict:
    """Train in a fresh process, with a busy one beside it where the contender says so."""
    name, _, where = contender.rpartition(", ")
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if where == WHERE[1] else []
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, str(steps)],
            cwd=common.REPOSITORY,
            env=clean | SETTINGS[name],
            capture_output=True,
            text=True,
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    if done.returncode:
        raise UserError(f"{contender} failed:\n{done.stderr[-3000:]}", 1)
    return json.loads(done.stdout)


def main(argv: list[str]) -> None:
    options = common.parser("threads", __doc__, rounds=5).parse_args(argv)
    rounds, steps = (2, 10) if options.quick else (options.rounds, 25)
    result = common.header("threads", options, {"rounds": rounds, "steps": steps}, ["torch"])
    measured = common.interleave(CONTENDERS, rounds, lambda name, _: train(name, steps), "steps_per_second")
    result["rounds"] = measured
    result["summary"] = summarise(measured)
    results.save(result, common.results_folder(options))


def summarise(rounds: list[dict]) -> dict:
    """Medians and spreads, and by how many times each setting is slower beside a busy process, formed in each round."""
    return {
        "steps_per_second": common.spreads(rounds, "steps_per_second"),
        "times_slower_beside": {
            name: common.ratios(rounds, f"{name}, {WHERE[0]}", f"{name}, {WHERE[1]}", "steps_per_second")
            for name in SETTINGS
        },
    }


def table(result: dict) -> str:
    summary = result["summary"]
    rows = [
        [
            f"`{name}`" if "=" in name else name,
            results.shown(summary["steps_per_second"][f"{name}, {WHERE[0]}"], 1),
            results.shown(summary["steps_per_second"][f"{name}, {WHERE[1]}"], 1),
            results.shown(summary["times_slower_beside"][name], 2) + " times",
        ]
        for name in summary["times_slower_beside"]
    ]
    return results.markdown(["setting", "steps a second, alone", WHERE[1], "slower by"], rows)
