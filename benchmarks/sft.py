"""Fine-tuning GPT-2 124M on the first 935 records of instruction-data.json: gptft against TRL's SFTTrainer.

Batch 8, the loss on responses only, no dropout, AdamW, gradients clipped at 1.0, on the CPU, in fp32 and in bf16
autocast. All start from one directory of random weights in a fresh process. A round draws a sample of the records,
the same for all; each contender makes its own batches of it. A first gate shows that they compute the same loss.

Timed is everything from the end of the last warm-up step to the end of the last step: batches, forward, backward,
clipping, optimizer, logging. Not timed are loading, tokenising and the warm-up, whose records are not measured.
"""

from __future__ import annotations

import functools
import json
import math
import random
import time
from pathlib import Path

from benchmarks import common, gpt2, results
from gptft.errors import UserError

RECORDS = 935  # of instruction-data.json; the other 165 are left for validation and test
BATCH = 8
LEARNING_RATE = 5e-5
SEED = 123  # of gptft's batches
TARGET = 2.0  # times TRL's examples a second, at the same precision
CONTENDERS = ("gptft fp32", "gptft bf16", "TRL fp32", "TRL bf16")
KEEP_MEMORY = ("gptft fp32, keep_memory", "gptft bf16, keep_memory")
SAME_BATCHES = ("TRL fp32, gptft's batches", "TRL bf16, gptft's batches")


# the other side: each of these runs in a fresh process


def work(task: dict) -> dict:
    """Do one task: make the weights, the gate, a ceiling, or one contender's training."""
    if task["do"] == "make":
        return {"parameters": gpt2.make(Path(task["model"]), task["quick"])}
    if task["do"] == "gate":
        return gate(task)
    if task["do"] == "ceiling":
        return ceiling()
    return train_trl(task) if task["do"].startswith("TRL") else train_gptft(task)


def load_gptft(task: dict):
    """gptft's model, tokenizer and the dataset, with the alpaca template."""
    import gptft
    from gptft.data.examples import Recipe, load_dataset
    from gptft.prompts import TEMPLATES

    model, tokenizer = gptft.load(task["model"])
    tokenizer.template = TEMPLATES["alpaca"]
    dataset = load_dataset([Path(task["data"])], tokenizer, Recipe(tokenizer.template, 1024))
    if dataset.ledger["records_read"] != len(dataset):
        raise UserError("records were dropped: the contenders would not see the same", 1)
    return model, tokenizer, dataset


def train_gptft(task: dict) -> dict:
    """Train with gptft's own loop, logging as a run does."""
    import numpy as np
    import torch

    from gptft.collate import collate, plan
    from gptft.config import resolve
    from gptft.data.examples import Split
    from gptft.device import Precision, keep_freed_memory
    from gptft.loss import Objective
    from gptft.optim import make_optimizer
    from gptft.run.metrics_file import Metrics
    from gptft.training import Progress, TrainState, train

    model, tokenizer, dataset = load_gptft(task)
    warm, measured, nothing = (Split(dataset, np.array(part, int)) for part in (task["warm"], task["measured"], []))
    precision = task["do"].split()[1].strip(",")
    if task["do"] in KEEP_MEMORY:
        keep_freed_memory()  # as gptft.finetune does with --keep_memory
    plain = {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "grad_clip": 1.0, "epochs": 1}
    config = resolve("", {"precision": precision, "batch_size": BATCH, "lr": LEARNING_RATE, "seed": SEED, **plain})
    state = TrainState(model, make_optimizer(model, config), Precision(config.precision, torch.device("cpu")))
    objective, to_batch = Objective(model), functools.partial(collate, pad_id=tokenizer.eot)
    for _ in train(state, objective, config, warm, nothing, to_batch):
        pass

    state.progress = Progress()
    metrics = Metrics(Path(task["scratch"], "metrics.jsonl"), state.progress, config.log_every)
    losses = []
    began = time.perf_counter()
    for event in train(state, objective, config, measured, nothing, to_batch):
        metrics.write(event)
        losses.append(event.loss)
    seconds = time.perf_counter() - began
    metrics.close()

    windows = plan(measured.lengths, BATCH, 1, SEED, 0)
    outcome = books(seconds, [[int(measured.lengths[i]) for i in chosen] for (chosen,) in windows])
    return outcome | {"loss": sum(losses) / len(losses), "flops": state.progress.flops / seconds}


def load_trl(task: dict, order: list[int], steps: int, callbacks=(), peft_config=None):
    """TRL's trainer over the records in this order, as prompt and completion; with PEFT's adapters, where given."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from gptft.data.shapes import recognise
    from gptft.prompts import TEMPLATES, hydrate

    records = json.loads(Path(task["data"]).read_text(encoding="utf-8"))
    texts = [hydrate(TEMPLATES["alpaca"], recognise(records[i])) for i in order]
    config = SFTConfig(
        output_dir=task["scratch"],
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=1024,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16="bf16" in task["do"],
        use_cpu=True,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        logging_steps=1,
        report_to="none",
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task["model"]),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text["input"], "completion": text["output"]} for text in texts]),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        callbacks=list(callbacks),
        peft_config=peft_config,
    )


def train_trl(task: dict, peft_config=None, look=lambda trainer: None) -> dict:
    """Train with TRL. Its order is drawn by us, as random as its own, so that warm-up and measurement are apart.
    `look` is shown the trainer before it starts."""
    from transformers import TrainerCallback

    clock = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            clock.append(time.perf_counter())

    warm_steps, steps = len(task["warm"]) // BATCH, math.ceil(len(task["measured"]) / BATCH)
    order = planned(task) if task["do"] in SAME_BATCHES else [*task["warm"], *task["measured"]]
    trainer = load_trl(task, order, warm_steps + steps, [Clock()], peft_config)
    look(trainer)
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]][len(task["warm"]) :]
    trainer.train()
    batches = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row][warm_steps:]
    return books(clock[-1] - clock[warm_steps - 1], batches) | {"loss": sum(losses) / len(losses)}


def planned(task: dict) -> list[int]:
    """The records of the warm-up, then those measured, in the order in which gptft takes them."""
    import numpy as np

    from gptft.collate import plan

    _, _, dataset = load_gptft(task)
    order = []
    for part in (task["warm"], task["measured"]):
        lengths = np.array([len(dataset[i].ids) for i in part])
        order += [part[number] for (chosen,) in plan(lengths, BATCH, 1, SEED, 0) for number in chosen]
    return order


def books(seconds: float, batches: list[list[int]]) -> dict:
    """What is said of a run; `batches` holds the length of every example, in tokens."""
    examples, real = sum(map(len, batches)), sum(map(sum, batches))
    return {
        "examples_per_second": examples / seconds,
        "seconds": seconds,
        "examples": examples,
        "steps": len(batches),
        "real_share": real / sum(len(lengths) * max(lengths) for lengths in batches),  # the rest is padding
        "peak_bytes": common.peak_memory(),
    }


def gate(task: dict) -> dict:
    """Both sides on the same records: ids and labels of every record, and loss and gradient norm of one batch."""
    import torch

    from gptft.collate import collate
    from gptft.loss import Objective

    model, tokenizer, dataset = load_gptft(task)
    trainer = load_trl(task, list(range(RECORDS)), 1)
    rows = trainer.train_dataset
    unequal = 0
    for i, row in enumerate(rows):
        example = dataset[i]
        labels = [-100] * len(example.ids)
        for start, end in example.spans:
            labels[start:end] = example.ids[start:end].tolist()
        unequal += row["input_ids"] != example.ids.tolist() or row["labels"] != labels

    chosen = task["measured"][:BATCH]
    batch = collate([dataset[i] for i in chosen], tokenizer.eot)
    model.train()
    total, _ = Objective(model)(batch)
    loss = total / batch.n_targets
    loss.backward()

    theirs = trainer.data_collator([rows[i] for i in chosen])
    peer = trainer.model.train()
    # with labels, transformers' own forward gives the mean over those that are not -100
    peer_loss = type(peer).forward(peer, **theirs).loss
    peer_loss.backward()
    return {
        "records": len(rows),
        "records_unequal": unequal,
        "targets": [batch.n_targets, int((theirs["labels"][:, 1:] != -100).sum())],
        "loss": [loss.item(), peer_loss.item()],
        "gradient_norm": [torch.nn.utils.get_total_norm(p.grad for p in m.parameters()).item() for m in (model, peer)],
    }


def ceiling() -> dict:
    """GFLOP/s of a large square matrix product, and of one as it occurs in a step: (460, 768) x (768, 3072)."""
    import torch

    def measure(m: int, k: int, n: int, dtype: torch.dtype) -> float:
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        seconds = []
        while len(seconds) < 5 or sum(seconds) < 1:
            began = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - began)
        return 2 * m * k * n / sorted(seconds)[len(seconds) // 2] / 1e9

    outcome = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        outcome[f"{name} square"] = measure(2048, 2048, 2048, dtype)
        outcome[f"{name} step"] = measure(460, 768, 3072, dtype)
    return outcome


# this side


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


def draw(number: int, warm_steps: int, examples: int) -> tuple[list[int], list[int]]:
    """The records of a round: those of the warm-up, and those measured, none in both."""
    order = random.Random(number).sample(range(RECORDS), warm_steps * BATCH + examples)
    return order[: warm_steps * BATCH], order[warm_steps * BATCH :]


def main(argv: list[str]) -> None:
    parser = common.parser("sft", __doc__, rounds=5)
    parser.add_argument("--examples", type=int, default=240, help="records measured a round [240]")
    parser.add_argument("--warm-steps", type=int, default=12, help="steps before the clock starts [12]")
    parser.add_argument("--same-batches", action="store_true", help="also TRL on gptft's length-sorted batches")
    options = parser.parse_args(argv)
    common.need("torch", "transformers", "trl", "datasets", "accelerate", "safetensors")
    if options.quick:
        options.examples, options.warm_steps, options.rounds = 32, 2, min(options.rounds, 2)
    if options.examples + options.warm_steps * BATCH > RECORDS:
        raise UserError(f"--examples and --warm-steps together ask for more than {RECORDS} records")
    if min(options.examples, options.warm_steps, options.rounds) < 1 or options.examples % BATCH:
        raise UserError(f"--warm-steps and --rounds must be at least 1, --examples a multiple of {BATCH}")
    data = common.instructions(options)
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
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache", "HF_HOME": f"{folder}/hf"}
        base = {"model": f"{folder}/model", "data": str(data), "scratch": folder}
        settings |= common.call("sft", {**base, "do": "make", "quick": options.quick}, env)

        warm, measured = draw(0, options.warm_steps, options.examples)
        result["gate"] = common.call("sft", {**base, "do": "gate", "warm": warm, "measured": measured}, env)
        check_gate(result["gate"])

        def measure(name: str, number: int) -> dict:
            warm, measured = draw(number, options.warm_steps, options.examples)
            return common.call("sft", {**base, "do": name, "warm": warm, "measured": measured}, env)

        who = [*CONTENDERS, *KEEP_MEMORY, *(SAME_BATCHES if options.same_batches else ()), "ceiling"]
        result["rounds"] = common.interleave(who, options.rounds, measure, "examples_per_second")
    result["ceilings"] = [once.pop("ceiling") for once in result["rounds"]]
    result["summary"] = summarise(result)
    results.save(result, common.results_folder(options))


def summarise(result: dict) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""
    rounds, ceilings = result["rounds"], result["ceilings"]
    spreads = functools.partial(common.spreads, rounds)
    peers = [name for name in rounds[0] if name not in CONTENDERS[:2]]
    return {
        "examples_per_second": spreads("examples_per_second"),
        "real_share": spreads("real_share"),
        "loss": spreads("loss"),
        "peak_bytes": spreads("peak_bytes"),
        "ratios": {
            peer: common.ratios(rounds, f"gptft {peer.split()[1].strip(',')}", peer, "examples_per_second")
            for peer in peers
        },
        "gflops": {name: common.spread([r[name]["flops"] / 1e9 for r in rounds]) for name in CONTENDERS[:2]},
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
