"""Fine-tuning, the story on one page: tokenizer, data, model, optimizer, loop, evaluation, saving.

`finetune` is what `python train.py` and Python users call. Reading on from here: `training.train` is the loop,
`loss.Objective` the loss, `model.GPT` the model.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gptft import checkpoint, loading
from gptft.adapters.lora import (
    LoraConfig,
    adapters_of,
    add_lora,
    count_parameters,
    describe_lora,
    merge_lora,
    training_flops,
)
from gptft.architecture import PRESETS
from gptft.config import Config, check, check_names, resolve, shipped, to_toml
from gptft.data import sources
from gptft.data.examples import Dataset, Recipe, Split, load_dataset, split
from gptft.device import Precision, keep_freed_memory, pick_device
from gptft.errors import UserError
from gptft.evaluation.responses import answer, exact_match, prompt_and_expected
from gptft.files import atomic_write, json_line
from gptft.loss import Objective
from gptft.model import GPT
from gptft.optim import make_optimizer
from gptft.prompts import TEMPLATES, load_template
from gptft.report.plot import plot_losses
from gptft.run import console
from gptft.run.console import say
from gptft.run.folder import choose_out_dir, holds_run, numbered, run_loop
from gptft.run.resume import describe_inputs, find_checkpoint, go_on
from gptft.run.signals import Interruption, resumable
from gptft.tokenizer import Tokenizer, embedded
from gptft.training import Progress, TrainState, evaluate_loss, rehearse, total_steps


@dataclass
class Run:
    """A finished run: the best model and its tokenizer, what `summary.json` says, and the run's folder."""

    model: GPT
    tokenizer: Tokenizer
    summary: dict
    path: Path


def finetune(config: Config | None = None, **settings) -> Run:
    """Fine-tune as `config` or `settings` say (the names of `python train.py --help`) and return the Run.

    Raises UserError for whatever the user can put right: before training, with nothing written, wherever the fault
    can be seen before; Interruption after Ctrl-C or SIGTERM, once a checkpoint to go on from is saved.
    """
    config = (
        check(dataclasses.replace(config, **check_names(settings, "settings"))) if config else resolve("", settings)
    )
    if not config.data:
        raise UserError("--data is missing: name the files to train on")
    device = pick_device(config.device)
    set_up_cpu(config, device)
    out_dir = choose_out_dir(config)
    check_inputs(config)

    # 1. what we start from, and the data, as tokens
    model, tokenizer = load_start(config)
    if config.lora_rank:
        add_adapters(config, model, tokenizer)
    datasets, (train_set, val_set, test_set) = load_data(config, model, tokenizer)
    describe_data(datasets, train_set, val_set, test_set)

    # 2. the state of training; a rehearsal of the largest batches finds now what would fail later
    model = model.to(device)
    model.set_dropout(config.dropout)
    model.checkpoint_activations = config.checkpoint_activations
    state = TrainState(model, make_optimizer(model, config), Precision(config.precision, device))
    objective = Objective(model)
    if config.compile:
        # kinds of layers, masks and lengths make more variants of a block than torch compiles by default
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for block in model.blocks:
            block.compile()
    pad_id = tokenizer.eot
    rehearse(state, objective, config, train_set, val_set, pad_id)
    describe(state, config, train_set, device)

    # 3. from here on there is something to keep; the model is asked before it is trained, also by a resumed run
    fingerprint = describe_inputs(config, model, tokenizer, train_set, val_set)
    found = find_checkpoint(out_dir, fingerprint) if config.resume else None
    if found is None:  # what a run that cannot be gone on with called its best is not this one's
        shutil.rmtree(out_dir / "best", ignore_errors=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    with resumable(out_dir):
        with atomic_write(out_dir / "config.toml") as file:
            file.write(to_toml(config))
        rows, prompts = ask_before(config, out_dir, model, tokenizer, test_set)
        torch.manual_seed(config.seed)
        if found:
            go_on(state, found)

        # 4. train; the loop says what happened, and there it is logged, shown and saved
        run_loop(state, objective, config, (train_set, val_set), pad_id, out_dir, tokenizer, fingerprint)

        # 5. the best weights, on data that was never seen
        checkpoint.recover(out_dir / "best")
        if (out_dir / "best").exists():
            checkpoint.load_weights(model, out_dir / "best")
        model.eval()
        summary = summarise(state, objective, config, test_set, pad_id, out_dir, tokenizer)
        summary["ledger"] = {name: dataset.ledger for name, dataset in datasets.items()}
        ask_after(config, model, tokenizer, rows, prompts, summary)
        write_results(config, out_dir, rows, prompts, summary, datasets)
    return Run(model, tokenizer, summary, out_dir)


def set_up_cpu(config: Config, device: torch.device) -> None:
    """Threads, and what the allocator does with freed memory."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()


def check_inputs(config: Config) -> None:
    """Refuse a missing file or a faulty template at once, before a model is loaded, downloaded perhaps."""
    for name in ("data", "val_data", "test_data"):
        sources.find(getattr(config, name), name)
    if config.template != "auto":
        load_template(config.template, config.fields)


def load_start(config: Config, base: str = "") -> tuple[GPT, Tokenizer]:
    """The model and tokenizer that training starts from. `base`: of adapters whose base was moved."""
    if config.init in PRESETS:
        model, tokenizer = loading.preset(config.init, config.seed), embedded()
    else:
        model, tokenizer = loading.load(config.init, base=base or None)
    if adapters_of(model):
        if config.lora_rank:  # new adapters would belong to a base that is on no disk
            raise UserError(
                f"--init {config.init} holds adapters, and others cannot be put upon them: make one model "
                f"of it first, by python -m gptft merge {config.init} OUT, and start from OUT"
            )
        merge_lora(model)
        say(f"the adapters of {config.init} are merged into their base")
    if tokenizer is None:
        raise UserError(f"--init {config.init} has no tokenizer")
    if config.max_length > model.config.block_size:
        raise UserError(f"--max_length {config.max_length} is above the model's block_size {model.config.block_size}")
    return model, tokenizer


def add_adapters(config: Config, model: GPT, tokenizer: Tokenizer) -> None:
    """Freeze the model and put adapters on it, which are then all that is trained and saved."""
    settings = LoraConfig(
        config.lora_rank,
        config.lora_alpha,
        config.lora_targets,
        config.lora_rslora,
        config.lora_dropout,
        config.lora_dora,
    )
    base = loading.base_of(model, tokenizer, config.init, config.seed)  # before its weights are rounded
    add_lora(model, settings, config.seed, base, config.lora_base)


def load_data(
    config: Config, model: GPT, tokenizer: Tokenizer
) -> tuple[dict[str, Dataset], tuple[Split, Split, Split]]:
    """The datasets by name, and the three splits. Sets the tokenizer's template."""
    files = {"data": sources.find(config.data)}
    for name in ("val_data", "test_data"):
        if getattr(config, name):
            files[name] = sources.find(getattr(config, name), name)
    set_template(config, tokenizer, [sources.first_record([path]) for path in files["data"]])
    max_length = config.max_length or min(model.config.block_size, 1024)
    recipe = Recipe(tokenizer.template, max_length, config.truncation, config.bad_records, config.fields)
    datasets = {name: load_dataset(paths, tokenizer, recipe) for name, paths in files.items()}
    if not config.mask_prompt:
        for dataset in datasets.values():
            dataset.score_prompts()
    val_fraction = 0.0 if config.val_data else config.val_fraction
    test_fraction = 0.0 if config.test_data else config.test_fraction
    splits = dict(
        zip(
            ("data", "val_data", "test_data"),
            split(datasets["data"], val_fraction, test_fraction, config.seed),
            strict=True,
        )
    )
    for name in ("val_data", "test_data"):
        if name in datasets:
            splits[name] = Split(datasets[name], np.arange(len(datasets[name])))
    if not len(splits["data"]):
        raise UserError("the splits leave nothing to train on: lower --val_fraction and --test_fraction")
    return datasets, tuple(splits.values())


def set_template(config: Config, tokenizer: Tokenizer, first: list[dict]) -> None:
    """`auto`: the checkpoint's own template, else by the keys of the files' first records.

    `plain` is what training on text alone leaves in a checkpoint, so it gives way to what records ask for.
    """
    if config.template != "auto":
        tokenizer.template = load_template(config.template, config.fields)
    elif tokenizer.template is None or tokenizer.template.name == "plain":
        keys = next((record.keys() for record in first if "text" not in record), {"text": ""}.keys())
        names = {"messages": "chatml", "text": "plain", "question": "qa"}
        tokenizer.template = TEMPLATES[next((name for key, name in names.items() if key in keys), "alpaca")]
    tokenizer.template.check_fields(config.fields)


def describe_data(datasets: dict[str, Dataset], train_set: Split, val_set: Split, test_set: Split) -> None:
    """Say what became of the records, and what an empty split means."""
    for name, dataset in datasets.items():
        say(console.describe_ledger(name, dataset.ledger))
    say(f"split: {len(train_set):,} to train on, {len(val_set):,} for validation, {len(test_set):,} for the test")
    if not len(val_set):
        say("  the validation split is empty: its loss is not measured, and the last weights are kept, not the best")
    if not len(test_set):
        say("  the test split is empty: test loss and exact match are not measured")


def describe(state: TrainState, config: Config, train_set: Split, device: torch.device) -> None:
    """Say what is about to happen."""
    optimizer_bytes = sum(
        tensor.numel() * tensor.element_size()
        for values in state.optimizer.state.values()
        for tensor in values.values()
        if isinstance(tensor, torch.Tensor)
    )
    total, examples = total_steps(len(train_set), config), config.batch_size * config.grad_accum
    ledger = train_set.dataset.ledger
    lengths, targets = [float(train_set.lengths.mean())] * examples, examples * ledger["targets"] / ledger["examples"]
    flops = training_flops(state.model, lengths, targets)
    say(console.describe_model(state.model, optimizer_bytes))
    say(
        f"training: {total:,} steps of {examples} examples, about {console.amount(flops, 'FLOP')} a step, "
        f"in {state.precision.name} on {device}"
    )


def ask_before(
    config: Config, out_dir: Path, model: GPT, tokenizer: Tokenizer, test_set: Split
) -> tuple[list[dict], list[dict]]:
    """The rows of responses.jsonl with the responses before training, and the prompts to ask again afterwards.

    A resumed run reads them back: its weights are no longer those from before.
    """
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test_set))[: config.test_samples])
    rows, prompts = [], []
    for record in test_set.records(chosen):
        pair = prompt_and_expected(record, config.fields)
        if pair is not None:
            prompts.append(pair[0])
            rows.append({"record": record, "expected": pair[1], "before": "", "after": ""})
    path = out_dir / "responses.jsonl"
    if config.resume and path.exists():
        # not splitlines: a text may hold other line separators, which JSON does not escape
        earlier = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if [row["record"] for row in earlier] == [row["record"] for row in rows]:
            return earlier, prompts
    if rows:
        say(f"answering {len(rows)} test prompts before training ...")
        before = answer(
            model, tokenizer, prompts, config.max_new_tokens, model.config.block_size, config.eval_batch_size
        )
        for row, text in zip(rows, before, strict=True):
            row["before"] = text
        write_rows(path, rows)
    return rows, prompts


def ask_after(
    config: Config, model: GPT, tokenizer: Tokenizer, rows: list[dict], prompts: list[dict], summary: dict
) -> None:
    """Ask the same prompts again, and count the exact matches."""
    if not rows:
        return
    say(f"answering {len(rows)} test prompts again ...")
    after = answer(model, tokenizer, prompts, config.max_new_tokens, model.config.block_size, config.eval_batch_size)
    for row, text in zip(rows, after, strict=True):
        row["after"] = text
    summary["exact_match"] = exact_match(rows)
    summary["test_exact_match"] = summary["exact_match"]["all"]["after"]


def summarise(
    state: TrainState,
    objective: Objective,
    config: Config,
    test_set: Split,
    pad_id: int,
    out_dir: Path,
    tokenizer: Tokenizer,
) -> dict:
    """What `summary.json` says. Losses in nats a target, times in seconds."""
    progress: Progress = state.progress
    test_loss = None
    if len(test_set):
        test_loss = evaluate_loss(
            objective, test_set, config.eval_batch_size, pad_id, state.precision, config.mask_prompt
        )
    seconds = max(progress.seconds, 1e-9)
    trained, parameters = count_parameters(state.model)
    lora = {"lora": describe_lora(state.model)} if adapters_of(state.model) else {}
    return {
        "model_id": checkpoint.model_id(state.model, tokenizer),
        "steps": progress.step,
        "best_step": progress.best_step if (out_dir / "best").exists() else progress.step,
        "train_runtime": progress.seconds,
        "train_samples_per_second": progress.examples / seconds,
        "train_steps_per_second": progress.step / seconds,
        "train_tokens": progress.tokens,
        "total_flos": progress.flops,
        "train_loss": progress.loss_sum / max(progress.targets, 1),
        "eval_loss": progress.best_loss if progress.evaluated >= 0 else None,
        "test_loss": test_loss,
        "test_exact_match": None,
        "parameters": parameters,
        "trainable_parameters": trained,
        **lora,
        "peak_memory_bytes": peak_memory(state.model.device),
        "precision": state.precision.name,
        "device": str(state.model.device),
    }


def peak_memory(device: torch.device) -> int | None:
    """The most memory in use so far, bytes: the GPU's on CUDA, else the process's; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_rows(path: Path, rows: list[dict]) -> None:
    with atomic_write(path) as file:
        file.writelines(map(json_line, rows))


def write_results(
    config: Config, out_dir: Path, rows: list[dict], prompts: list[dict], summary: dict, datasets: dict[str, Dataset]
) -> None:
    """Write the run's files, and print what they hold and where they are."""
    lost = [{"split": name, **entry} for name, dataset in datasets.items() for entry in dataset.lost()]
    if lost:
        write_rows(out_dir / "lost.jsonl", lost)
    if rows:
        write_rows(out_dir / "responses.jsonl", rows)
        say("\n" + console.response_table(rows, [shown_prompt(prompt) for prompt in prompts]))
        say("\n" + console.match_table(summary["exact_match"]))
    with atomic_write(out_dir / "summary.json") as file:
        json.dump(summary, file, indent=1)
    if not plot_losses(console.read_metrics(out_dir / "metrics.jsonl"), out_dir / "loss.png"):
        say("no loss.png: drawing it needs matplotlib (pip install 'gptft[plot]')")
    for name in ("eval_loss", "test_loss"):
        if summary[name] is not None:
            say(f"{name.replace('_', ' ')} {summary[name]:.4f}" + (" (best)" if name == "eval_loss" else ""))
    say(
        f"{summary['steps']:,} steps in {console.clock(summary['train_runtime'])} (m:ss), "
        f"{summary['train_samples_per_second']:.1f} examples a second"
    )
    for path in sorted(out_dir.iterdir()):
        if not path.name.startswith("."):
            inside = f"/{{{', '.join(sorted(entry.name for entry in path.iterdir()))}}}" if path.is_dir() else ""
            say(f"  {path}{inside}")


def shown_prompt(parts: dict) -> str:
    """A prompt on one line, without the template around it."""
    if "messages" in parts:
        return parts["messages"][-1]["content"]
    return " / ".join(text for name in ("instruction", "input") if (text := parts.get(name)))


def embedded_default(given: dict) -> Run:
    """The course's story in miniature: pretrain on plain text, then tune on instructions. Two ordinary runs.

    With `resume` in `given`, whatever was finished is kept and the rest is gone on with.
    """
    out_dir = Path(given.pop("out_dir", "") or numbered(Path("checkpoints/default")))
    first, going_on = out_dir / "pretrain", given.get("resume", False)
    if (holds_run(out_dir) or holds_run(first)) and not going_on:
        raise UserError(f"--out_dir {out_dir} already holds a run: choose another, or go on with it by --resume")
    # both stages' settings are fixed at the start, so that whatever goes on later goes on with them
    own = first / "config.toml", out_dir / "instruct.toml"
    sources = [
        str(path) if going_on and path.exists() else shipped(name)
        for path, name in zip(own, ("pretrain.toml", "instruct.toml"), strict=True)
    ]
    whole = {name: value for name, value in given.items() if not name.startswith("lora_")}  # adapters need a model
    pretraining = resolve(sources[0], {**whole, "out_dir": str(first)})
    tuning = resolve(sources[1], {**given, "init": str(first / "best"), "out_dir": str(out_dir)})
    with atomic_write(own[1]) as file:
        file.write(to_toml(tuning))
    say(f"1. pretraining from scratch on plain text, in {first}\n")
    try:
        if (first / "summary.json").exists():
            say("already done")
        else:
            finetune(pretraining)
        say(f"\n2. tuning on instructions, in {out_dir}\n")
        return finetune(tuning)
    except Interruption as stopped:  # both stages go on by one command
        raise Interruption(stopped.what, stopped.number, out_dir) from None
