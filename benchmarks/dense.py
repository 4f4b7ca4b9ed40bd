"""Full rows without a mask: training GPT-2 124M where every token is a target and none is padding, so that nothing can
be left out. gptft against the classical loop of the books and transformers' Trainer.

Rows of 256 tokens in batches of 8 and of 1,024 in batches of 2, from one text, all that instruction-data.json says.
The classical loop is that of many tutorials, on transformers' GPT2LMHeadModel: forward, cross-entropy over all logits,
backward, clipping, torch.optim.AdamW. All start from one directory of random weights in a fresh process and take the
same batches in the same order; AdamW, learning rate 5e-5, no decay, gradients clipped at 1.0. gptft trains in the ways
that a run chooses by itself.

Timed are whole steps, from the end of the last warm-up step to the end of the last; loading, tokenising and the warm-up
are not. In fp32 the losses of the first steps must agree.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks import common, gpt2, real, results
from benchmarks.sft import pop_ceilings, summarise_ceilings, tell_ceilings
from benchmarks.sft_contenders import CEILING, LEARNING_RATE, trainer_settings
from gptft.errors import UserError

ROWS = {256: 8, 1024: 2}  # tokens a row: rows a batch
QUICK_ROWS = {16: 2}
STEPS, WARM_STEPS = 1, 3  # a step takes seconds; the first three settle what memory is kept
FIRST = 2  # steps whose losses are compared
NEAR = 1e-4  # nats a target
SEED = 123  # of gptft's order, which all take
CONTENDERS = ("gptft fp32", "gptft bf16", "book fp32", "Trainer fp32", "Trainer bf16")
CEILINGS = tuple(CEILING + name for name in CONTENDERS[:2])
TARGETS = {  # times the other's tokens a second
    ("gptft fp32", "book fp32"): 1.0,
    ("gptft fp32", "Trainer fp32"): 1.0,
    ("gptft bf16", "Trainer bf16"): 1.0,
    ("gptft bf16", "book fp32"): 2.0,
}


# the other side: each of these runs in a fresh process


def work(task: dict) -> dict:
    """In a fresh process: make the weights, or train as one contender. `losses`: of all steps, the warm-up's first."""
    if task["do"] == "make":
        return make(task)
    if task["do"].startswith(CEILING):
        return find_ceiling(task)
    train = {"gptft": train_gptft, "book": train_book, "Trainer": train_trainer}[task["do"].split()[0]]
    losses, seconds = train(task)
    tokens = task["steps"] * task["batch"] * task["length"]
    return {
        "tokens_per_second": tokens / seconds,
        "seconds_per_step": seconds / task["steps"],
        "losses": losses,
        "peak_bytes": common.peak_memory(),
    }


def make(task: dict) -> dict:
    """The weights, and how many full rows the text has of each length."""
    parameters = gpt2.make(Path(task["model"]), task["quick"])
    return {"parameters": parameters, "full": {length: len(load(task, length)[1]) for length in task["lengths"]}}


def load(task: dict, length: int):
    """The dataset of the text in rows of `length` tokens, of which neighbours share one, and the numbers of the rows
    that are full."""
    import numpy as np

    from gptft.data.examples import Recipe, load_dataset
    from gptft.prompts import TEMPLATES
    from gptft.tokenizer import gpt2 as vocabulary

    dataset = load_dataset([Path(task["data"])], vocabulary(), Recipe(TEMPLATES["plain"], length))
    return dataset, np.flatnonzero(np.diff(dataset.offsets) == length)


def splits(task: dict):
    """The rows of the warm-up and those measured, as gptft's loop takes them."""
    import numpy as np

    from gptft.data.examples import Split

    dataset, full = load(task, task["length"])
    warm = task["warm_steps"] * task["batch"]
    chosen = full[np.array(task["rows"])]
    return Split(dataset, chosen[:warm]), Split(dataset, chosen[warm:])


def batches_in_order(task: dict) -> list:
    """The ids of every step (rows, length), first the warm-up's, in the order in which gptft's loop takes them."""
    import numpy as np
    import torch

    from gptft.collate import plan

    found = []
    for part in splits(task):
        for (chosen,) in plan(part.lengths, task["batch"], 1, SEED, 0):
            found.append(torch.from_numpy(np.stack([part[i].ids for i in chosen]).astype(np.int64)))
    return found


def ready_gptft(task: dict):
    """gptft's loop in the ways that a run would choose, and the rows of the warm-up and those measured."""
    import gptft
    from benchmarks.training import ready

    model, tokenizer = gptft.load(task["model"])
    settings = {"mask_prompt": False, "seed": SEED, "lr": LEARNING_RATE, "weight_decay": 0.0}
    settings |= {"precision": real.precision_of(task["do"]), "batch_size": task["batch"]}
    return ready(model, tokenizer, settings), *splits(task)


def train_gptft(task: dict) -> tuple[list[float], float]:
    """gptft's own loop -> the losses, and the seconds of the steps measured."""
    loop, warm, measured = ready_gptft(task)
    losses = [event.loss for event in loop.steps(warm)]
    began = time.perf_counter()
    losses += [event.loss for event in loop.steps(measured)]
    return losses, time.perf_counter() - began


def train_book(task: dict) -> tuple[list[float], float]:
    """The classical loop on the same batches."""
    from benchmarks import book

    batches = ((ids[:, :-1], ids[:, 1:]) for ids in batches_in_order(task))
    return book.train(task["model"], batches, LEARNING_RATE, task["warm_steps"])


def find_ceiling(task: dict) -> dict:
    """What the machine would allow a contender of gptft, on a step: all have the same shapes."""
    from benchmarks.ceiling import of_training
    from gptft.model import count_parameters

    loop, *_ = ready_gptft(task)
    one = splits({**task, "warm_steps": 0, "rows": task["rows"][: task["batch"]]})[1]
    found = of_training(loop.steps(one), count_parameters(loop.state.model)[0])
    return found | {"tokens_per_second": task["batch"] * task["length"] / found["seconds"]}


def train_trainer(task: dict) -> tuple[list[float], float]:
    """transformers' Trainer on the same rows, input_ids and labels, in the same order."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    clock = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            clock.append(time.perf_counter())

    rows = [row.tolist() for ids in batches_in_order(task) for row in ids]
    config = TrainingArguments(**trainer_settings(task, task["batch"], task["warm_steps"] + task["steps"]))
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32),
        args=config,
        # the first token of a row is predicted by nothing: told so, it is not counted in the mean either
        train_dataset=[{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows],
        data_collator=default_data_collator,
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, clock[-1] - clock[task["warm_steps"] - 1]


# this side


def write_text(data: Path, out: Path) -> None:
    """One text of all records, a paragraph for each thing that they say."""
    said = (record.get(key) for record in real.read_records(data) for key in ("instruction", "input", "output"))
    out.write_text("\n\n".join(filter(None, said)), encoding="utf-8")


def main(argv: list[str]) -> None:
    parser = common.parser("dense", __doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"measured a contender and round [{STEPS}]")
    parser.add_argument("--lengths", help="tokens a row, of those measured [256,1024]")
    options = parser.parse_args(argv)
    data = common.instructions(options)
    common.need("torch", "transformers", "accelerate", "safetensors")
    rows = QUICK_ROWS if options.quick else ROWS
    steps, rounds = (2, min(options.rounds, 1)) if options.quick else (options.steps, options.rounds)
    lengths = [int(word) for word in options.lengths.split(",")] if options.lengths else list(rows)
    if steps < 1 or rounds < 1 or not {*lengths} <= rows.keys():
        raise UserError(f"--steps and --rounds must be at least 1, --lengths of {','.join(map(str, rows))}")
    settings = {"rows": {str(length): rows[length] for length in lengths}, "steps": steps, "warm_steps": WARM_STEPS}
    settings |= {"rounds": rounds, "lr": LEARNING_RATE, "data": data.name, "quick": options.quick}
    result = common.header("dense", options, settings, ["torch", "transformers", "accelerate"])
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache", "HF_HOME": f"{folder}/hf"}
        write_text(data, Path(folder, "text.txt"))
        base = {"model": f"{folder}/model", "data": f"{folder}/text.txt", "scratch": f"{folder}/scratch"}
        base |= {"steps": steps, "warm_steps": WARM_STEPS}
        made = common.call("dense", {**base, "do": "make", "quick": options.quick, "lengths": lengths}, env)
        settings["parameters"] = made["parameters"]

        def measure(name: str, number: int) -> dict:
            who, _, length = name.partition(", ")
            batch = rows[int(length)]
            needed, full = (WARM_STEPS + steps) * batch, made["full"][length]
            if needed > full:
                raise UserError(f"--data: {data.name} fills {full} rows of {length} tokens, {needed} are needed", 1)
            chosen = random.Random(number).sample(range(full), needed)
            task = {**base, "do": who, "length": int(length), "batch": batch, "rows": chosen}
            return common.call("dense", task, env)

        who = [f"{name}, {n}" for n in lengths for name in common.in_what_it_has((*CONTENDERS, *CEILINGS))]
        result["rounds"] = common.interleave(who, rounds, measure, "tokens_per_second")
    result["ceilings"] = pop_ceilings(result["rounds"])
    result["gate"] = {"largest_difference": check_losses(result["rounds"], lengths), "steps": FIRST}
    result["summary"] = summarise(result["rounds"], lengths) | {
        "ceiling": summarise_ceilings(result["rounds"], result["ceilings"], "tokens_per_second")
    }
    results.save(result, common.results_folder(options))


def check_losses(rounds: list[dict], lengths: list[int]) -> float:
    """Raise UserError unless the losses of the first steps in fp32 agree; -> the largest difference, nats a target."""
    largest = 0.0
    for once in rounds:
        for length in lengths:
            losses = {name: once[f"{name}, {length}"]["losses"] for name in CONTENDERS if "fp32" in name}
            for name, found in losses.items():
                for loss, expected in zip(found[:FIRST], losses["book fp32"][:FIRST], strict=True):
                    if not abs(loss - expected) <= NEAR:  # nor is one that is not a number
                        raise UserError(f"{name}, rows of {length}: a loss is {loss}, the loop's {expected}", 1)
                    largest = max(largest, abs(loss - expected))
    return largest


def summarise(rounds: list[dict], lengths: list[int]) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""
    keys = ("tokens_per_second", "seconds_per_step", "peak_bytes")
    return {key: common.spreads(rounds, key) for key in keys} | {
        "last_loss": {name: outcome["losses"][-1] for name, outcome in rounds[0].items()},
        "ratios": [
            [length, of, to, common.ratios(rounds, f"{of}, {length}", f"{to}, {length}", "tokens_per_second")]
            for length in lengths
            for of, to in TARGETS
            if {f"{of}, {length}", f"{to}, {length}"} <= rounds[0].keys()
        ],
    }


def table(result: dict) -> str:
    """A row a contender and length, then the ratios with their targets."""
    summary, settings = result["summary"], result["settings"]
    named = {"book": "classical loop", "Trainer": "transformers' Trainer"}
    rows = []
    for name, speed in summary["tokens_per_second"].items():
        who, precision, length = name.replace(",", "").split()
        peak = f"{summary['peak_bytes'][name]['median'] / 1e9:.2f}"
        step = results.shown(summary["seconds_per_step"][name])
        shape = f"{settings['rows'][length]} x {length}"
        rows.append([shape, named.get(who, who), precision, results.shown(speed, 0), step, peak])
        rows[-1].append(f"{summary['last_loss'][name]:.4f}")
    head = ["batch", "who", "precision", "tokens/s", "seconds a step", "peak memory, GB", "last loss"]
    return "\n\n".join(
        [
            results.markdown(head, rows),
            ratios_table(result),
            tell_ceilings(summary, missed_of(summary)),
            f"{settings['parameters'] / 1e6:.0f} million parameters, all tokens targets, {settings['steps']} steps a "
            f"round after {settings['warm_steps']} to warm up. The losses of the first {result['gate']['steps']} steps "
            f"in fp32 agree to {result['gate']['largest_difference']:.0e}.",
        ]
    )


def missed_of(summary: dict) -> list[str]:
    """Who missed a target."""
    return [f"{of}, {n}" for n, of, to, ratio in summary["ratios"] if ratio["median"] < TARGETS[of, to]]


def ratios_table(result: dict) -> str:
    """The ratios with their targets."""
    rows = []
    for length, of, to, ratio in result["summary"]["ratios"]:
        target = results.verdict(ratio["median"], TARGETS[of, to], "x", at_least=True)
        peer = to.replace("book", "classical loop").replace("Trainer", "transformers' Trainer")
        rows.append([f"rows of {length}", f"{of} / {peer}", f"{results.shown(ratio)}x", target])
    return results.markdown(["rows", "ratio of tokens/s", "by round", "target"], rows)


if __name__ == "__main__":
    common.answer(work)
