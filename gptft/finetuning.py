"""Fine-tuning, the story on one page: tokenizer, data, model, optimizer, loop, evaluation, saving.

`finetune` is what `python train.py` and Python users call. Reading on from here: `training.train` is the loop,
`loss.Objective` the loss, `model.GPT` the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gptft import checkpoint, loading
from gptft.adapters.frozen import kind_for
from gptft.adapters.lora import LoraConfig, adapters_of, add_lora, merge_lora
from gptft.architecture import PRESETS
from gptft.collate import collate
from gptft.config import Config, check, check_names, resolve, to_toml
from gptft.curation.brief import describe_data
from gptft.data import ledger, sources
from gptft.data.corpus import Corpus, close_books, stream_of
from gptft.data.examples import Dataset, Recipe, Split, load_dataset, split, subset
from gptft.data.readings import choose_template
from gptft.data.streams import find_streams
from gptft.device import Precision, keep_freed_memory, pick_device
from gptft.errors import UserError
from gptft.fast.choice import choose
from gptft.files import atomic_write
from gptft.generation import prompt_ids
from gptft.loss import Objective
from gptft.model import GPT, weight_bytes
from gptft.parallel.launch import agree, check_enough, note_folder, rank_device, together
from gptft.parallel.ranks import Ranks, here
from gptft.parallel.saving import copy_weights, load_together, save_together
from gptft.parallel.streaming import identify
from gptft.parallel.window import as_asked, settle_window
from gptft.prompts import load_template
from gptft.report.page import last_report, refresh_report
from gptft.report.results import write_results
from gptft.run.comparison import Comparison, choose_questions, make_score
from gptft.run.console import print_data, say, say_of_others
from gptft.run.estimate import print_estimate, summarise
from gptft.run.folder import choose_out_dir, open_run, refuse_used
from gptft.run.lock import claim_first
from gptft.run.loggers import check_loggers
from gptft.run.rehearsal import rehearse
from gptft.run.resume import describe_inputs, earlier_window, find_checkpoint, load_run_state
from gptft.run.setup import keep_memory, set_up_cpu
from gptft.run.signals import resumable
from gptft.run.spread import read_divided, spread, start_again
from gptft.tokenizer import Tokenizer, embedded
from gptft.training import TrainState, evaluate_loss, total_steps, train


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
    with together(config) as ranks:  # one process, unless torchrun has started several
        return finetune_on(ranks, config, pick_device(rank_device(config.device)))


def finetune_on(ranks: Ranks, config: Config, device: torch.device) -> Run:
    """`finetune` on `device`, as one of `ranks`: all compute, and the first speaks and writes."""
    set_up_cpu(config, device)
    out_dir = ranks.tell(ranks.first and choose_out_dir(config))
    config = settle_window(config, ranks.size, earlier_window(config, out_dir))
    check_inputs(config, device)

    # 1. what we start from, and the data, as tokens
    ranks.note("reading model and data")
    with ranks.pausing():
        model, tokenizer = load_start(config, device=device)
    datasets, (train_set, val_set, test_set) = ranks.first_do(partial(load_data, config, model, tokenizer))
    check_enough(len(train_set), ranks)
    print_data(datasets, train_set, val_set, test_set)
    say(describe_data(datasets, config.fields, tokenizer.template))
    questions = choose_questions(config, model, tokenizer, test_set)
    score = make_score(config, model, tokenizer, val_set)

    # 2. the state of training; a rehearsal of what costs most finds now what would fail later
    ranks.note("the rehearsal")
    start = identify(model, tokenizer)
    model.set_dropout(config.dropout)
    model.checkpoint_activations = config.checkpoint_activations
    fast = choose(config, device, model.config.window, weight_bytes(model))
    to_batch = fast.batches(partial(collate, pad_id=tokenizer.eot, mask_prompt=config.mask_prompt))
    asked = [each.parts for each in questions + (score.questions if score else []) if not each.left_out]
    prompts = [prompt_ids(tokenizer, parts) for parts in asked]

    def rehearsal(state: TrainState, objective: Objective) -> None:
        rehearse(state, objective, config, train_set, val_set, to_batch, prompts, test_set)

    state, objective = spread(model, config, device, fast, rehearsal)
    print_estimate(state, config, train_set, val_set)
    say(fast.describe(kept := keep_memory(config, device)))

    # 3. from here on there is something to keep; the model is asked before it is trained, also by a resumed run
    fingerprint = describe_inputs(config, state, start, train_set, val_set)
    agree(fingerprint, ranks)
    with claim_first(out_dir, ranks), resumable(out_dir), last_report(out_dir):
        newest = ranks.tell(ranks.first and begin_run(out_dir, config, fingerprint))
        comparison = Comparison(config, out_dir, state, tokenizer, test_set, questions, to_batch, val_set)
        ranks.note("the answers before training")
        comparison.before(goes_on=newest is not None)
        torch.manual_seed(config.seed + ranks.rank)
        if newest:
            load_run_state(state, newest, out_dir, config)
        ranks.first_do(partial(train_set.part, state.progress.epoch))  # of a corpus whose cache is gone, made anew

        # 4. train: the loop says what happened, and here it is logged, shown and saved
        with open_run(out_dir, state, tokenizer, config, fingerprint, total_steps(len(train_set), config)) as run:
            events = train(state, objective, config, train_set, val_set, to_batch, run.should_stop, score)
            for event in refresh_report(out_dir, events):
                run.keep(event)
        if kept:
            keep_freed_memory(False)  # whoever called has a process to go on with

        # 5. the best weights, on data that was never seen
        measure = partial(
            evaluate_loss, objective, batch_size=config.eval_batch_size, to_batch=to_batch, precision=state.precision
        )
        restore_best(state, config, tokenizer, out_dir, lambda: (measure(val_set), score() if score else -math.inf))
        state.model.eval()
        ledgers = close_books(datasets, train_set, state.progress, config.mask_prompt)
        summary = summarise(state, tokenizer, out_dir, ledgers)
        ranks.note("the answers after training")
        evaluation = comparison.after(summary)
        say_of_others()
        if ranks.first:
            write_results(out_dir, comparison.rows, questions, summary, evaluation, datasets)
    return Run(state.model, tokenizer, summary, out_dir)


def begin_run(out_dir: Path, config: Config, fingerprint: dict) -> Path | None:
    """Note the settings in the run's folder -> the checkpoint to go on from, if there is one."""
    refuse_used(out_dir, config.resume)  # again: another run may have begun and ended since this one was started
    note_folder(out_dir)
    newest = find_checkpoint(out_dir, fingerprint) if config.resume else None
    if newest is None and (aside := checkpoint.set_aside(out_dir / "best")):
        say(f"note: {out_dir / 'best'} is of a run that cannot be gone on with: it is in {aside} now")
    with atomic_write(out_dir / "config.toml") as file:
        file.write(to_toml(as_asked(config)))
    return newest


def check_inputs(config: Config, device: torch.device | None = None) -> None:
    """Refuse a missing file or package, a faulty template, or a way of training that cannot be had on `device`, at
    once, before a model is loaded, downloaded perhaps."""
    if device is not None:
        choose(config, device)
    check_loggers(config)
    for name in ("data", "val_data", "test_data"):
        if name == "data" and config.stream:
            find_streams(config.data)
        else:
            sources.find(getattr(config, name), name)
    if config.template != "auto":
        load_template(config.template, config.fields)


def load_start(config: Config, base: str = "", device: torch.device | None = None) -> tuple[GPT, Tokenizer]:
    """The model and tokenizer that training starts from. `base`: of adapters whose base was moved. `device`: that of
    several processes, each of which may hold a part of the model."""
    opened = loading.open_model(config.init) if device and here().size > 1 else None
    if opened:
        check_start(config, opened.model, opened.tokenizer)
        if model := read_divided(opened, config, device):
            return model, opened.tokenizer
    if config.init in PRESETS:
        model, tokenizer = loading.preset(config.init, config.seed), embedded()
    else:
        # a GGUF file that is frozen in fewer bits is so as it is read: it need not fit into memory at full width
        freeze = frozen_kind(config) if config.lora_rank else "fp32"
        model, tokenizer = loading.load(config.init, base=base or None, freeze=freeze, opened=opened)
    if adapters_of(model):
        if config.lora_rank:  # new adapters would belong to a base that is on no disk
            raise UserError(
                f"--init {config.init} holds adapters, and others cannot be put upon them: make one model "
                f"of it first, by python -m gptft merge {config.init} OUT, and start from OUT"
            )
        merge_lora(model)
        say(f"the adapters of {config.init} are merged into their base")
    check_start(config, model, tokenizer)
    if config.lora_rank:
        add_adapters(config, model, tokenizer)
    return model, tokenizer


def check_start(config: Config, model: GPT, tokenizer: Tokenizer | None) -> None:
    """Refuse a model that cannot be trained as it is asked for."""
    if tokenizer is None:
        raise UserError(f"--init {config.init} has no tokenizer")
    if config.max_length > model.config.block_size:
        raise UserError(f"--max_length {config.max_length} is above the model's block_size {model.config.block_size}")


def add_adapters(config: Config, model: GPT, tokenizer: Tokenizer) -> None:
    """Freeze the model and put adapters on it, which are then all that is trained and saved."""
    base = loading.base_of(model, tokenizer, config.init, config.seed)  # before its weights are rounded
    add_lora(model, LoraConfig.asked(config), config.seed, base, frozen_kind(config))


def frozen_kind(config: Config) -> str:
    """How the base of adapters is held."""
    return kind_for(config.lora_base, Precision(config.precision, pick_device(config.device)).name)


def restore_best(
    state: TrainState, config: Config, tokenizer: Tokenizer, out_dir: Path, measure: Callable[[], tuple[float, float]]
) -> None:
    """Give the model its best weights: those in `best`, verified; where no step was better than the start, the start's;
    where they are lost, the last, whose validation loss and score are then measured. What was not in `best` is kept
    there. Without a validation loss the last weights stay."""
    progress, best = state.progress, out_dir / "best"
    if here().tell(here().first and checkpoint.is_there(best)):
        load_together(state.model, best)
    elif progress.evaluated >= 0 and progress.best_step == 0 and math.isfinite(progress.best_loss):
        what = "lowered the validation loss" if config.best_by == "loss" else f"raised the answers' {config.best_by}"
        say(f"note: no step {what}: the best model is the one that training started from")
        if not start_again(state.model, config):
            start, _ = load_start(config)
            copy_weights(state.model, start.state_dict())
        save_together(best, state.model, tokenizer, 0)
    elif progress.evaluated >= 0:
        say("note: the best weights of this run are lost: the last are taken for them")
        (progress.best_loss, progress.best_score), progress.best_step = measure(), progress.step
        save_together(best, state.model, tokenizer, progress.step)


def load_data(
    config: Config, model: GPT, tokenizer: Tokenizer
) -> tuple[dict[str, Dataset], tuple[Split, Split, Split]]:
    """The datasets by name, and the three splits. Sets the tokenizer's template."""
    corpus = Corpus(config.data, config.mix, config.shard_tokens, makes=here().local == 0) if config.stream else None
    files = {"data": corpus.heads if corpus else sources.find(config.data)}
    for name in ("val_data", "test_data"):
        if getattr(config, name):
            files[name] = sources.find(getattr(config, name), name)
    choice = set_template(config, tokenizer, [path for paths in files.values() for path in paths])
    max_length = config.max_length or min(model.config.block_size, 1024)
    tokenizer.template = tokenizer.template.for_training(config.thinking)
    recipe = Recipe(tokenizer.template, max_length, config.truncation, config.bad_records, config.fields)
    datasets = {"data": corpus.begin(recipe, tokenizer)} if corpus else {}
    datasets |= {name: load_dataset(files[name], tokenizer, recipe) for name in files if name not in datasets}
    datasets["data"].ledger["template"] = choice
    if not config.mask_prompt:
        for dataset in datasets.values():
            dataset.score_prompts()
    val_fraction = 0.0 if config.val_data else config.val_fraction
    test_fraction = 0.0 if config.test_data or corpus else config.test_fraction
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
    whole = splits["data"] if config.data_fraction < 1 else None
    if whole:
        splits["data"] = subset(whole, config.data_fraction, config.seed)
    ledger.complete(datasets, splits, whole, config.mask_prompt)
    if corpus:
        splits["data"] = stream_of(corpus, *splits.values())
    return datasets, tuple(splits.values())


def set_template(config: Config, tokenizer: Tokenizer, paths: list[Path]) -> dict:
    """Give the tokenizer the template that config, model and records ask for; -> how it was chosen."""
    tokenizer.template, choice = choose_template(config.template, config.fields, tokenizer.template, paths)
    return choice
