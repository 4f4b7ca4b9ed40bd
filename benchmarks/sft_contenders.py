"""Those that fine-tune in `sft` and `lora`: gptft's own loop and TRL's SFTTrainer, and the gate between the two.

Each runs in a fresh process and is given a task: the model's directory, the file of the records, which of them warm up
and which are measured.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from benchmarks import common, real
from gptft.errors import UserError

RECORDS = 935  # of instruction-data.json; the other 165 are left for validation and test
BATCH = 8
LEARNING_RATE = 5e-5
SEED = 123  # of gptft's batches
CONTENDERS = ("gptft fp32", "gptft bf16", "TRL fp32", "TRL bf16")
PLAIN = ("gptft fp32, fast off", "gptft bf16, fast off")
BOOK = "classical loop fp32"
CEILING = "ceiling of "  # before a contender of gptft
SAME_BATCHES = ("TRL fp32, gptft's batches", "TRL bf16, gptft's batches")


def work(task: dict) -> dict:
    """Do one task: make the weights, the gate, a ceiling, or one contender's training."""
    if task["do"] == "make":
        return real.make(task)
    if task["do"] == "gate":
        return gate(task)
    if task["do"].startswith(CEILING):
        return ceiling(task)
    if task["do"] == BOOK:
        return train_book(task)
    return train_trl(task) if task["do"].startswith("TRL") else train_gptft(task)


def load_gptft(task: dict):
    """gptft's model, tokenizer and the dataset, with the template that the records ask for."""
    import gptft
    from gptft.data.examples import Recipe, load_dataset

    model, tokenizer = gptft.load(task["model"])
    tokenizer.template = real.template_of(Path(task["data"]))
    dataset = load_dataset([Path(task["data"])], tokenizer, Recipe(tokenizer.template, 1024))
    if dataset.ledger["records_read"] != len(dataset):
        raise UserError("records were dropped: the contenders would not see the same", 1)
    return model, tokenizer, dataset


def ready_gptft(task: dict):
    """gptft's loop in the ways that a run would choose, with adapters where the task's settings ask for them, and the
    rows of the warm-up and those measured."""
    import numpy as np

    from benchmarks.training import ready
    from gptft.data.examples import Split

    model, tokenizer, dataset = load_gptft(task)
    warm, measured = (Split(dataset, np.array(task[part], int)) for part in ("warm", "measured"))
    settings = {"init": task["model"], "batch_size": BATCH, "lr": LEARNING_RATE, "weight_decay": 0.0, "seed": SEED}
    settings["precision"] = real.precision_of(task["do"])
    settings["fast"] = "off" if task["do"] in PLAIN else "auto"
    return ready(model, tokenizer, {**settings, **(task.get("settings") or {})}), warm, measured


def train_gptft(task: dict) -> dict:
    """Train with gptft's own loop, logging as a run does."""
    from gptft.collate import plan
    from gptft.model import count_parameters
    from gptft.run.metrics_file import Metrics

    loop, warm, measured = ready_gptft(task)
    for _ in loop.steps(warm):
        pass
    steps = loop.steps(measured)
    metrics = Metrics(Path(task["scratch"], "metrics.jsonl"), loop.state.progress, loop.config.log_every)
    losses = []
    began = time.perf_counter()
    for event in steps:
        metrics.write(event, {})
        losses.append(event.loss)
    seconds = time.perf_counter() - began
    metrics.close()

    windows = plan(measured.lengths, BATCH, 1, SEED, 0)
    outcome = books(seconds, [[int(measured.lengths[i]) for i in chosen] for (chosen,) in windows])
    outcome |= {"loss": sum(losses) / len(losses), "flops": loop.state.progress.flops / seconds}
    return outcome | {"chose": loop.chose, "trained": count_parameters(loop.state.model)[0]}


def ceiling(task: dict) -> dict:
    """What the machine would allow a contender of gptft."""
    from benchmarks.ceiling import of_training
    from gptft.model import count_parameters

    loop, _, measured = ready_gptft({**task, "do": task["do"].removeprefix(CEILING)})
    found = of_training(loop.steps(measured), count_parameters(loop.state.model)[0])
    return found | {"examples_per_second": len(task["measured"]) / found["seconds"]}


def trainer_settings(task: dict, batch: int, steps: int) -> dict:
    """What TRL's trainer and transformers' own are told alike: to optimise as gptft does, in order, and quietly."""
    return {
        "output_dir": task["scratch"],
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": "bf16" in task["do"],
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": "none",
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def load_trl(task: dict, order: list[int], steps: int, callbacks=(), peft_config=None):
    """TRL's trainer over the records in this order, as prompt and completion; with PEFT's adapters, where given."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from gptft.data.shapes import recognise
    from gptft.prompts import hydrate

    records, template = real.read_records(Path(task["data"])), real.template_of(Path(task["data"]))
    texts = [hydrate(template, recognise(records[i])) for i in order]
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    config = SFTConfig(
        **trainer_settings(task, BATCH, steps),
        max_length=1024,
        completion_only_loss=True,
        # TRL ends each completion with the tokenizer's end-of-text; a chat model's is the end of a turn (SmolLM2's
        # <|im_end|>), where gptft writes the template's own stop if the vocabulary has it
        eos_token=template.stop if template.stop in tokenizer.get_vocab() else None,
        gradient_checkpointing=False,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text["input"], "completion": text["output"]} for text in texts]),
        processing_class=tokenizer,
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


def train_book(task: dict) -> dict:
    """The classical loop on padded batches in the order of the task."""
    from benchmarks import book
    from gptft.collate import collate

    _, tokenizer, dataset = load_gptft(task)
    order = [*task["warm"], *task["measured"]]
    chosen = [[dataset[i] for i in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    batches = (collate(examples, tokenizer.eot) for examples in chosen)  # each when its step begins
    warm_steps = len(task["warm"]) // BATCH
    losses, seconds = book.train(task["model"], ((b.idx, b.targets) for b in batches), LEARNING_RATE, warm_steps)
    measured = [[len(example.ids) for example in examples] for examples in chosen[warm_steps:]]
    return books(seconds, measured) | {"loss": sum(losses[warm_steps:]) / len(measured)}


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
    trainer = load_trl(task, list(range(task.get("records", RECORDS))), 1)
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
