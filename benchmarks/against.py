"""This checkout against another of the same project, in one run: what a change costs or gains in speed.

`--other DIR` is a second checkout, at an earlier commit perhaps. Each contender of the benchmarks sft, lora and decode
named below runs from both, interleaved, in fresh processes, on one set of random weights of GPT-2 124M.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import common, decode, lora, results, sft
from gptft.errors import UserError

CONTENDERS = {
    "sft, gptft fp32": "examples_per_second",
    "sft, gptft bf16": "examples_per_second",
    "lora, gptft LoRA fp32": "examples_per_second",
    "lora, gptft LoRA bf16": "examples_per_second",
    "decode, gptft, 1": "tokens_per_second",
    "decode, gptft, 8": "tokens_per_second",
}
HERE, OTHER = "this", "other"


def commit_of(checkout: Path) -> str:
    """The commit that a checkout is at, in short; empty where that cannot be told."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main(argv: list[str]) -> None:
    parser = common.parser("against", __doc__, rounds=5)
    parser.add_argument("--other", required=True, help="the other checkout's folder")
    parser.add_argument("--examples", type=int, default=120, help="records measured a round [120]")
    options = parser.parse_args(argv)
    checkouts = {HERE: common.REPOSITORY, OTHER: Path(options.other).resolve()}
    if not (checkouts[OTHER] / "benchmarks" / "sft.py").exists():
        raise UserError(f"--other {options.other}: there is no checkout of gptft there")
    common.need("torch", "transformers", "safetensors")
    from gptft.device import cpu_has_bf16

    native = cpu_has_bf16()  # where it is emulated nobody trains in it
    data, rounds = common.instructions(options), 2 if options.quick else options.rounds
    examples, warm_steps = (32, 2) if options.quick else (options.examples, 6)
    commits = {name: commit_of(path) for name, path in checkouts.items()}
    settings = {"rounds": rounds, "examples": examples, "warm_steps": warm_steps, "commits": commits}
    result = common.header("against", options, settings, ["torch"])
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache", "HF_HOME": f"{folder}/hf"}
        base = {"model": f"{folder}/model", "data": str(data), "scratch": folder, "quick": options.quick}
        common.call("sft", {**base, "do": "make"}, env)
        sizes = {"prompt": decode.PROMPT, "new": 64, "new_plain": 8}

        def measure(name: str, number: int) -> dict:
            contender, _, which = name.rpartition(", ")
            module, _, does = contender.partition(", ")
            warm, measured = sft.draw(number, warm_steps, examples)
            task = {**base, **sizes, "do": does, "warm": warm, "measured": measured}
            task["settings"] = lora.CONTENDERS.get(does)
            cache = {"GPTFT_CACHE": f"{folder}/cache-{which}", "PYTHONPATH": str(checkouts[which])}
            outcome = common.call(module, task, env | cache, checkouts[which])
            return {CONTENDERS[contender]: outcome[CONTENDERS[contender]], "rate": outcome[CONTENDERS[contender]]}

        contenders = [name for name in CONTENDERS if native or "bf16" not in name]
        who = [f"{contender}, {which}" for contender in contenders for which in checkouts]
        measured = common.interleave(who, rounds, measure, "rate")
    result["rounds"] = measured
    result["summary"] = {
        "rate": common.spreads(measured, "rate"),
        "ratios": {
            contender: common.ratios(measured, f"{contender}, {HERE}", f"{contender}, {OTHER}", "rate")
            for contender in contenders
        },
    }
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    rate, commits = result["summary"]["rate"], result["settings"]["commits"]
    rows = [
        [
            contender,
            CONTENDERS[contender].replace("_per_", "/"),
            results.shown(rate[f"{contender}, {HERE}"]),
            results.shown(rate[f"{contender}, {OTHER}"]),
            results.shown(ratio),
        ]
        for contender, ratio in result["summary"]["ratios"].items()
    ]
    head = ["contender", "unit", f"this checkout ({commits[HERE]})", f"the other ({commits[OTHER]})", "ratio, by round"]
    return results.markdown(head, rows)
