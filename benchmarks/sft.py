"""Fine-tuning GPT-2 124M on the first 935 records of instruction-data.json: gptft against TRL's SFTTrainer.

Batch 8, the loss on responses only, no dropout, AdamW, gradients clipped at 1.0, on the CPU, in fp32 and in bf16
autocast; gptft in the ways that a run chooses by itself, and with --fast off. All start from one
directory of random weights in a fresh process. A round draws a sample of the records, the same for all; each contender
makes its own batches of it. A first gate shows that they compute the same loss.

Timed is everything from the end of the last warm-up step to the end of the last step: batches, forward, backward,
clipping, optimizer, logging. Not timed are loading, tokenising and the warm-up, whose records are not measured.

--model and --data measure the same on a real pretrained model and on other records, of which the first 2,000 are used;
such a result is kept beside GPT-2's.
"""

from __future__ import annotations

import argparse
import functools
import random
from pathlib import Path

from benchmarks import common, real, results
from benchmarks.sft_contenders import BATCH, CONTENDERS, LEARNING_RATE, PLAIN, RECORDS, SAME_BATCHES, work
from gptft.errors import UserError

TARGET = 2.0  # times TRL's examples a second, at the same precision


def check_gate(outcome: dict) -> None:
    """Print what the gate found; raise UserError unless both sides compute the same."""
    (n, peer_n), (loss, peer_loss), (norm, peer_norm) = (outcome[key] for key in ("targets", "loss", "gradient_norm"))
    print(f"gate: {describe_gate(outcome)}", flush=True)
    same = not outcome["records_unequal"] and n == peer_n
    if not (same and abs(loss - peer_loss) <= 1e-4 and abs(norm - peer_norm) <= 1e-3 * peer_norm):
        raise UserError("the gate is shut: the contenders do not compute the same", 1)


def describe_gate(outcome: dict) -> str:
    """What the gate compared, in words."""
    (n, peer_n), (loss, peer_loss), (norm, peer_norm) = (outcome[key] for key in ("targets", "loss", "gradient_norm"))
    return (
        f"{outcome['records_unequal']} of {outcome['records']} records differ in ids or labels; on one batch gptft has "
        f"{n} targets, loss {loss:.6f}, gradient norm {norm:.5f}, transformers {peer_n}, {peer_loss:.6f}, "
        f"{peer_norm:.5f}"
    )


def draw(number: int, warm_steps: int, examples: int, records: int = RECORDS) -> tuple[list[int], list[int]]:
    """Of the first `records`, those of a round: those of the warm-up, and those measured, none in both."""
    order = random.Random(number).sample(range(records), warm_steps * BATCH + examples)
    return order[: warm_steps * BATCH], order[warm_steps * BATCH :]


def prepare(options: argparse.Namespace, folder: str) -> dict:
    """What every task is told: where the model will be and what it is made of, the file of the records and how many
    of them are used. Raises UserError where those are fewer than a round asks for."""
    model, data = real.model_path(options.model), real.data_path(options.data)
    own = common.instructions(options)
    base = {"model": f"{folder}/model", "data": str(own), "scratch": folder, "records": RECORDS}
    if model or data:
        most = RECORDS if data in (None, own) else real.MOST
        most = min(most, 64) if options.quick else most
        base |= {"source": model and str(model), "data": f"{folder}/records.json"}
        base["records"] = real.write_first(data or own, most, Path(base["data"]))
    if options.examples + options.warm_steps * BATCH > base["records"]:
        raise UserError(f"--examples and --warm-steps together ask for more than {base['records']} records")
    return base


def describe_given(name: str, options: argparse.Namespace, argv: list[str]) -> dict:
    """{"real": the model and the records}, where they are not the benchmark's own: GPT-2 and the instruction set."""
    model, data = real.model_path(options.model), real.data_path(options.data)
    if model and not data:
        data = common.instructions(options)
    given = real.describe(name, argv, model, data)
    return {"real": given} if given else {}


def main(argv: list[str]) -> None:
    parser = common.parser("sft", __doc__, rounds=5)
    parser.add_argument("--examples", type=int, default=240, help="records measured a round [240]")
    parser.add_argument("--warm-steps", type=int, default=12, help="steps before the clock starts [12]")
    parser.add_argument("--same-batches", action="store_true", help="also TRL on gptft's length-sorted batches")
    real.add_options(parser, precisions=True)
    options = parser.parse_args(argv)
    common.need("torch", "transformers", "trl", "datasets", "accelerate", "safetensors")
    if options.quick:
        options.examples, options.warm_steps, options.rounds = 32, 2, min(options.rounds, 2)
    if options.quick and options.model:  # a step takes seconds
        options.examples, options.warm_steps, options.rounds = BATCH, 1, 1
    if min(options.examples, options.warm_steps, options.rounds) < 1 or options.examples % BATCH:
        raise UserError(f"--warm-steps and --rounds must be at least 1, --examples a multiple of {BATCH}")
    precisions = real.precisions(options)
    settings = {
        "records": RECORDS,
        "batch": BATCH,
        "examples": options.examples,
        "warm_steps": options.warm_steps,
        "rounds": options.rounds,
        "lr": LEARNING_RATE,
        "quick": options.quick,
    }
    result = common.header("sft", options, settings, ["torch", "transformers", "trl", "accelerate"])
    result |= describe_given("sft", options, argv)
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache", "HF_HOME": f"{folder}/hf"}
        base = prepare(options, folder) | {"precisions": precisions}
        made = common.call("sft", {**base, "do": "make", "quick": options.quick}, env)
        base["model"] = made["model"]
        settings |= {"records": base["records"], "parameters": made["parameters"]}

        def measure(name: str, number: int) -> dict:
            warm, measured = draw(number, options.warm_steps, options.examples, base["records"])
            return common.call("sft", {**base, "do": name, "warm": warm, "measured": measured}, env)

        result["gate"] = measure("gate", 0)
        check_gate(result["gate"])
        who = [*CONTENDERS, *PLAIN, *(SAME_BATCHES if options.same_batches else ())]
        who = [*real.of_precisions(who, precisions), "ceiling"]
        result["rounds"] = common.interleave(who, options.rounds, measure, "examples_per_second")
    result["ceilings"] = [once.pop("ceiling") for once in result["rounds"]]
    result["summary"] = summarise(result)
    results.save(result, common.results_folder(options))


def summarise(result: dict) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""
    rounds, ceilings = result["rounds"], result["ceilings"]
    spreads = functools.partial(common.spreads, rounds)
    ours = [name for name in CONTENDERS[:2] if name in rounds[0]]
    peers = [name for name in rounds[0] if name not in ours]
    return {
        "examples_per_second": spreads("examples_per_second"),
        "real_share": spreads("real_share"),
        "loss": spreads("loss"),
        "peak_bytes": spreads("peak_bytes"),
        "ratios": {
            peer: common.ratios(rounds, f"gptft {peer.split()[1].strip(',')}", peer, "examples_per_second")
            for peer in peers
        },
        "gflops": {name: common.spread([r[name]["flops"] / 1e9 for r in rounds]) for name in ours},
        "ceilings": {name: common.spread([values[name] for values in ceilings]) for name in ceilings[0]},
    }


def table(result: dict) -> str:
    summary, settings = result["summary"], result["settings"]

    def cells(name: str, speed: dict) -> list[str]:
        share, loss, peak = (summary[key][name]["median"] for key in ("real_share", "loss", "peak_bytes"))
        return [name, results.shown(speed), f"{share:.0%}", f"{loss:.3f}", f"{peak / 1e9:.2f}"]

    head = ["contender", "examples/s", "tokens that are no padding", "mean loss of the steps", "peak memory, GB"]
    speeds = results.markdown(head, [cells(name, speed) for name, speed in summary["examples_per_second"].items()])
    rows = []
    for peer, ratio in summary["ratios"].items():
        target = results.verdict(ratio["median"], TARGET, "x", at_least=True) if peer in CONTENDERS else ""
        rows.append([f"gptft / {peer}", results.shown(ratio), target])
    ratios = results.markdown(["ratio of examples/s", "by round", "target"], rows)
    rows = []
    for name, flops in summary["gflops"].items():
        precision = name.split()[1]
        ceilings = [summary["ceilings"][f"{precision} {kind}"]["median"] for kind in ("step", "square")]
        rows.append([name, *(f"{value:.0f}" for value in (flops["median"], *ceilings))])
    head = ["GFLOP/s", "on real tokens", "ceiling: a product of a step", "ceiling: a large square"]
    floor = results.markdown(head, rows)
    notes = (
        f"{settings['parameters'] / 1e6:.0f} million parameters, batch {settings['batch']}, loss on responses only; "
        f"{settings['examples']} of the {settings['records']} records a round, after {settings['warm_steps']} warm-up "
        f"steps on others. Gate: {describe_gate(result['gate'])}."
    )
    return "\n\n".join([notes, speeds, ratios, floor])


if __name__ == "__main__":
    common.answer(work)
