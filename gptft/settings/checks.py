"""What the settings may be, each by itself and together."""

from __future__ import annotations

import dataclasses

from gptft.errors import UserError, nearest

# {field: the least that it may be}, and {field: what it must stay below}
AT_LEAST = {
    "epochs": 0,
    "max_steps": 0,
    "batch_size": 1,
    "grad_accum": 1,
    "global_batch_size": 0,
    "stall_timeout": 0,
    "max_length": 0,
    "shard_tokens": 1,
    "lr": 0,
    "min_lr": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "eps": 0,
    "grad_clip": 0,
    "eval_every": 0,
    "eval_batch_size": 1,
    "patience": 0,
    "test_samples": 0,
    "max_new_tokens": 1,
    "save_every": 0,
    "keep": 1,
    "log_every": 1,
    "threads": 0,
    "seed": 0,
    "dropout": 0,
    "val_fraction": 0,
    "test_fraction": 0,
    "lora_rank": 0,
    "lora_dropout": 0,
}
BELOW = {"dropout": 1, "lora_dropout": 1, "val_fraction": 1, "test_fraction": 1, "seed": 2**63}


def check(config):
    """Refuse impossible values of a `Config`, which this file does not know, naming the field and what it may be."""
    for item in dataclasses.fields(config):
        name, choices = item.name, item.metadata["choices"]
        value = getattr(config, name)
        for word in value if isinstance(value, tuple) else (value,):
            if choices and word not in choices:
                close = nearest(str(word), choices)
                raise UserError(f"--{name} must be one of {', '.join(choices)}, not {word!r}{close}")
        if name in AT_LEAST and value < AT_LEAST[name]:
            raise UserError(f"--{name} must be at least {AT_LEAST[name]}, not {value}")
        if name in BELOW and value >= BELOW[name]:
            raise UserError(f"--{name} must be below {BELOW[name]}, not {value}")
    if not 0 < config.data_fraction <= 1:
        raise UserError(f"--data_fraction must be above 0 and at most 1, not {config.data_fraction}")
    if config.epochs == 0 and config.max_steps == 0:
        raise UserError("--epochs is 0 and so is --max_steps: nothing would be trained")
    if config.max_length == 1:
        raise UserError("--max_length must be at least 2: one token to read and one to predict")
    if len(config.betas) not in (0, 2):
        raise UserError(f"--betas must be 2 numbers, not {len(config.betas)}")
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError(f"--betas must lie between 0 and 1, not {config.betas}")
    if config.min_lr > config.lr:
        raise UserError(f"--min_lr {config.min_lr} is above --lr {config.lr}")
    held_out = (0 if config.val_data else config.val_fraction) + (0 if config.test_data else config.test_fraction)
    if held_out >= 1:
        raise UserError("--val_fraction and --test_fraction together leave nothing to train on")
    check_stream(config)
    check_lora(config)
    word = config.device.partition(":")[0]
    if word not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {config.device!r}")
    return config


def check_stream(config) -> None:
    """Refuse what a stream cannot have: its length is not known, so nothing can be a share of it."""
    if config.mix and not config.stream:
        raise UserError("--mix is given, but not --stream: files that are read whole are all trained on")
    if not config.stream:
        return
    if not config.max_steps:
        raise UserError("--stream needs --max_steps: how long a stream is, is not known")
    if config.data_fraction < 1:
        raise UserError("--data_fraction is given, and --stream: a stream is as long as --max_steps makes it")
    if config.mix and (len(config.mix) != len(config.data) or min(config.mix) <= 0):
        raise UserError(f"--mix must be a share above 0 for each of the {len(config.data)} words of --data")


def check_lora(config) -> None:
    """Refuse adapters that cannot be, and settings of adapters where there are none: they would do nothing."""
    if not config.lora_targets:
        raise UserError("--lora_targets names no layer")
    if config.lora_alpha <= 0:
        raise UserError(f"--lora_alpha must be above 0, not {config.lora_alpha}")
    for item in dataclasses.fields(config):
        name = item.name
        if name.startswith("lora_") and not config.lora_rank and getattr(config, name) != item.default:
            raise UserError(f"--{name} is given, but --lora_rank is 0: there are no adapters; --lora_rank 8 makes some")
