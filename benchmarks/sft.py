"""Fine-tuning GPT-2 124M on the first 935 records of instruction-data.json: gptft against TRL's SFTTrainer.

Batch 8, the loss on responses only, no dropout, AdamW, gradients clipped at 1.0, on the CPU, in fp32 and in bf16
autocast; gptft in the ways that a run chooses by itself, and with --fast off. All start from one
directory of random weights in a fresh process. A round draws a sample of the records, the same for all; each contender
makes its own batches of it. A first gate shows that they compute the same loss.

Timed is everything from the end of the last warm-up step to the end of the last step: batches, forward, backward,
clipping, optimizer, logging. Not timed are loading, tokenising and the warm-up, whose records are not measured. The
classical loop of the books has padded batches in a random order and all logits; `benchmarks/ceiling.py` says what the
ceilings are.

--model and --data measure the same on a real pretrained model and on other records, of which the first 2,000 are used;
such a result is kept beside GPT-2's.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Collection
from pathlib import Path

from benchmarks import common, real, results
from benchmarks.sft_contenders import (
    BATCH,
    BOOK,
    CEILING,
    CONTENDERS,
    LEARNING_RATE,
    PLAIN,
    RECORDS,
    SAME_BATCHES,
    work,
)
from gptft.errors import UserError

# times TRL's examples a second at the same precision, with what the examples begin with alike computed once
TARGETS, REAL_TARGETS = {"fp32": 3.2, "bf16": 5.5}, {"bf16": 4.5}
SHARES = {"fp32": 0.9, "bf16": 0.7}  # of the ceiling, where that forbids the target


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
    parser.add_argument("--examples", type=int, default=160, help="records measured a round [160]")
    parser.add_argument("--warm-steps", type=int, default=8, help="steps before the clock starts [8]")
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
        who = [*CONTENDERS, *PLAIN, BOOK, *(SAME_BATCHES if options.same_batches else ())]
        who = real.of_precisions([*who, *(CEILING + name for name in CONTENDERS[:2])], precisions)
        result["rounds"] = common.interleave(who, options.rounds, measure, "examples_per_second")
    result["ceilings"] = pop_ceilings(result["rounds"])
    result["summary"] = summarise(result)
    results.save(result, common.results_folder(options))


def pop_ceilings(rounds: list[dict]) -> list[dict]:
    """Take the ceilings out of the rounds, for they are no contenders -> by round, and by whose they are."""
    return [
        {name.removeprefix(CEILING): once.pop(name) for name in [*once] if name.startswith(CEILING)} for once in rounds
    ]


def summarise_ceilings(rounds: list[dict], ceilings: list[dict], key: str) -> dict:
    """Per contender its ceiling in `key`, a rate, seconds a step of the products and of the optimizer, GFLOP/s of the
    products, and what share of the ceiling was reached, by round."""
    found = {}
    for name in ceilings[0]:
        each = [once[name] for once in ceilings]
        pairs = list(zip(rounds, each, strict=True))
        found[name] = {
            key: common.spread([one[key] for one in each]),
            "share": common.spread([once[name][key] / one[key] for once, one in pairs]),
            "gflops": common.spread([one["flops"] / one["products_seconds"] / 1e9 for one in each]),
        }
        for part in ("products_seconds", "optimizer_seconds"):
            found[name][part] = common.spread([one[part] / one["steps"] for one in each])
    return found


def tell_ceilings(summary: dict, missed: Collection[str] = ()) -> str:
    """A table of them; of an older result, which has none, a sentence. `missed`: who missed a target, so that the share
    of the ceiling counts."""
    rows = []
    if "ceiling" not in summary:
        return "No ceiling was measured beside these."
    for name, found in summary["ceiling"].items():
        rate = next(value for key, value in found.items() if key.endswith("_per_second"))
        share = results.verdict(found["share"]["median"], SHARES[real.precision_of(name)], "", at_least=True)
        share = share if name in missed else ""
        cells = [results.shown(found[key], 3) for key in ("products_seconds", "optimizer_seconds")]
        rows.append([name, results.shown(rate), *cells, f"{found['gflops']['median']:.0f}"])
        rows[-1] += [results.shown(found["share"]), share]
    head = ["ceiling of", "a second", "s a step: its products", "the optimizer's bytes", "GFLOP/s of the products"]
    return results.markdown([*head, "share reached, by round", "target"], rows)


def summarise(result: dict) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""
    rounds = result["rounds"]
    spreads = functools.partial(common.spreads, rounds)
    ours = [name for name in CONTENDERS[:2] if name in rounds[0]]
    peers = [name for name in rounds[0] if name not in ours]
    return {
        "examples_per_second": spreads("examples_per_second"),
        "real_share": spreads("real_share"),
        "loss": spreads("loss"),
        "peak_bytes": spreads("peak_bytes"),
        "ratios": {
            peer: common.ratios(rounds, f"gptft {real.precision_of(peer)}", peer, "examples_per_second")
            for peer in peers
        },
        "gflops": {name: common.spread([r[name]["flops"] / 1e9 for r in rounds]) for name in ours},
        "ceiling": summarise_ceilings(rounds, result["ceilings"], "examples_per_second"),
    }


def targets_of(result: dict) -> dict[str, float]:
    """By precision, times TRL's examples a second."""
    return REAL_TARGETS if result.get("real", {}).get("model") else TARGETS


def missed_of(result: dict) -> list[str]:
    """Who missed a target."""
    ratios, targets = result["summary"]["ratios"], targets_of(result)
    found = [kind for kind, goal in targets.items() if ratios.get(f"TRL {kind}", {"median": goal})["median"] < goal]
    return [f"gptft {kind}" for kind in found]


def table(result: dict) -> str:
    summary, settings = result["summary"], result["settings"]

    def cells(name: str, speed: dict) -> list[str]:
        share, loss, peak = (summary[key][name]["median"] for key in ("real_share", "loss", "peak_bytes"))
        return [name, results.shown(speed), f"{share:.0%}", f"{loss:.3f}", f"{peak / 1e9:.2f}"]

    head = ["contender", "examples/s", "tokens that are no padding", "mean loss of the steps", "peak memory, GB"]
    speeds = results.markdown(head, [cells(name, speed) for name, speed in summary["examples_per_second"].items()])
    targets = targets_of(result)
    rows = []
    for peer, ratio in summary["ratios"].items():
        goal = targets.get(real.precision_of(peer)) if peer in CONTENDERS else None
        target = results.verdict(ratio["median"], goal, "x", at_least=True) if goal else ""
        rows.append([f"gptft / {peer}", results.shown(ratio), target])
    ratios = results.markdown(["ratio of examples/s", "by round", "target"], rows)
    rates = ", ".join(f"{name} {flops['median']:.0f}" for name, flops in summary["gflops"].items())
    notes = (
        f"{settings['parameters'] / 1e6:.0f} million parameters, batch {settings['batch']}, loss on responses only; "
        f"{settings['examples']} of the {settings['records']} records a round, after {settings['warm_steps']} warm-up "
        f"steps on others. Gate: {describe_gate(result['gate'])}. GFLOP/s on tokens that are no padding: {rates}."
    )
    return "\n\n".join([notes, speeds, ratios, tell_ceilings(summary, missed_of(result))])


if __name__ == "__main__":
    common.answer(work)
