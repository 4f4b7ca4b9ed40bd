"""Going on with a run: what must be the same, what may change and is said, and the checkpoint to go on from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from gptft import checkpoint
from gptft.adapters.lora import adapters_of
from gptft.config import Config, resolve
from gptft.data.examples import Split
from gptft.device import processor_name
from gptft.errors import UserError
from gptft.parallel.ranks import here
from gptft.parallel.saving import restore_random_state
from gptft.parallel.sharded import is_in_parts, load_parts
from gptft.run.console import say
from gptft.training import TrainState

# What fixes the order of the data and the meaning of the optimizer's state: another value is another run.
# `grad_accum` counts a window's micro-batches, on however many ranks.
FIXED = ("seed", "batch_size", "grad_accum", "batching", "mask_prompt", "optimizer")
# What may be changed on the way, from the next step on.
FREE = ("epochs", "max_steps", "lr", "min_lr", "warmup_steps", "schedule", "grad_clip", "dropout", "precision")
FREE += ("eval_every", "patience", "fast", "packing", "share_prefix", "copies", "chunk_head", "windows")


def describe_inputs(config: Config, state: TrainState, start: str, train_set: Split, val_set: Split) -> dict:
    """What must be the same for a run to go on, its other settings, and where it ran: bit for bit is promised for the
    same machine only. `start`: the id of the model that training starts from."""
    model = state.model
    lora = adapters_of(model)
    return {
        "model it starts from": start,
        "adapters (--lora_...)": [dataclasses.asdict(lora.config), lora.frozen_as] if lora else None,
        "training data": train_set.digest(),
        "validation data": val_set.digest(),
        **{name: getattr(config, name) for name in FIXED},
        **({} if config.best_by == "loss" else best_by(config)),  # a run of an earlier version has none
        "settings": {name: getattr(config, name) for name in FREE}
        | {"precision": state.precision.name}  # what "auto" came to
        | optimizer_settings(state.optimizer.param_groups),
        "machine": {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": model.device.type,
            "processor": processor_name(model.device),
        },
    }


def best_by(config: Config) -> dict:
    """What a score of the validation answers is of: with others it would not be the best of the same."""
    return {name: getattr(config, name) for name in ("best_by", "test_samples", "max_new_tokens")}


def optimizer_settings(groups: list[dict]) -> dict:
    """Decay, betas and epsilon, of an optimizer or as one was saved."""
    return {name: groups[0][name] for name in ("weight_decay", "betas", "eps") if name in groups[0]}


def find_checkpoint(out_dir: Path, fingerprint: dict) -> Path | None:
    """The newest valid checkpoint to go on from; with none, say so: the run starts at step 0.

    Raises UserError, naming what differs, when data or model have changed; settings that may change are said.
    """
    with here().pausing():  # hashing takes a while, and other ranks may be waiting for it
        path, problems = checkpoint.newest(out_dir) if out_dir.is_dir() else (None, [])
    for problem in problems:
        say(f"passed over: {problem}")
    if path is None:
        say(f"{out_dir} has no valid checkpoint to go on from: starting at step 0")
        return None
    saved = checkpoint.load_tensors(path / "resume.pt")
    was = saved["fingerprint"]
    for name in {**fingerprint, **was}:
        if name not in ("machine", "settings") and was.get(name) != fingerprint.get(name):
            raise UserError(f"--resume: the {name} changed since {path} was saved; start anew in another --out_dir")
    # a run of an earlier version kept the optimizer's settings alone
    settings = was.get("settings") or optimizer_settings(saved["state"]["optimizer"]["param_groups"])
    for name, value in settings.items():
        now = fingerprint["settings"].get(name)
        if plain(now) != plain(value):
            say(f"note: --{name} was {plain(value)}, now {plain(now)}: it holds from here on")
    if "settings" not in was and fingerprint["settings"]["schedule"] != "constant":
        say("note: the run was begun by an earlier version, whose learning rate fell one step sooner than it does now")
    for name, value in fingerprint["machine"].items():
        if was["machine"].get(name, value) != value:  # an earlier version noted less
            say(f"note: {name} was {was['machine'][name]}, now {value}: results will be close, not the same bits")
    return path


def plain(value):
    """A setting as it is compared and shown: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value


def earlier_window(config: Config, out_dir: Path) -> int:
    """The examples a step of a run that is to be gone on with, where several processes did or do the steps; else 0."""
    path = out_dir / "config.toml"
    if not config.resume or not path.exists():
        return 0
    was = resolve(str(path))
    return was.global_batch_size or (was.batch_size * was.grad_accum if here().size > 1 else 0)


def load_run_state(state: TrainState, path: Path, out_dir: Path, config: Config) -> None:
    """Bring weights, optimizer, progress and random state back from a checkpoint.

    A `best` that was saved after this checkpoint belongs to steps that are taken anew, perhaps otherwise: it is set
    aside, and the best is looked for again from here on.
    """
    saved = checkpoint.load_tensors(path / "resume.pt")
    state.load_state_dict(saved["state"])
    if is_in_parts(path):
        load_parts(path, state.model, state.optimizer)
    else:
        checkpoint.load_weights(state.model, path, verified=True)  # by `find_checkpoint`
    say(f"going on from {path}, step {state.progress.step}")
    same = restore_random_state(saved, config.seed, state.progress.step, state.model.device)
    if not same and (config.dropout or config.lora_dropout):
        say("note: the number of processes is another: dropout draws other numbers from here on")
    progress, best_step = state.progress, here().tell(here().first and checkpoint.step_of(out_dir / "best"))
    if best_step != progress.best_step:
        if here().first and (aside := checkpoint.set_aside(out_dir / "best")):
            why = "is damaged" if best_step is None else f"was of step {best_step}, which is taken anew"
            say(f"note: {out_dir / 'best'} {why}: it is in {aside} now")
        if progress.best_step:  # those that stood before are overwritten; the start's can be had again
            progress.best_loss, progress.best_score, progress.best_step = math.inf, -math.inf, 0
