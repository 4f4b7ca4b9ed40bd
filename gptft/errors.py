"""The errors that users see, each one line that says what to put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. Commands print it as one line and exit with `status`."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class NonFinite(UserError):
    """A loss or gradient norm became NaN or infinite: training stopped, with weights and state as before the step."""


class SourceFailed(UserError):
    """A stream that is trained on cannot be read on; what was made of it before can be trained on."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the valid name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


# what other trainers call our fields: for hints only
ELSEWHERE = {
    "learning_rate": "lr",
    "output_dir": "out_dir",
    "model": "init",
    "model_name_or_path": "init",
    "dataset": "data",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "optim": "optimizer",
    "gradient_accumulation_steps": "grad_accum",
    "max_seq_length": "max_length",
    "max_grad_norm": "grad_clip",
    "lr_scheduler_type": "schedule",
    "save_total_limit": "keep",
    "gradient_checkpointing": "checkpoint_activations",
    "prompt_template": "template",
    "early_stopping_patience": "patience",
    "bf16": "precision",
    "fp16": "precision",
    "lora_r": "lora_rank",
    "r": "lora_rank",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "use_dora": "lora_dora",
    "target_modules": "lora_targets",
    "lora_target_modules": "lora_targets",
    "use_rslora": "lora_rslora",
    "load_in_8bit": "lora_base",
    "load_in_4bit": "lora_base",
    "quantization": "lora_base",
}


def hint(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` for the valid name nearest to an unknown one, other trainers' names for it included."""
    meant = {f"{prefix}{word}": f"{prefix}{word}" for word in valid}
    meant |= {f"{prefix}{word}": f"{prefix}{ours}" for word, ours in ELSEWHERE.items() if f"{prefix}{ours}" in meant}
    close = difflib.get_close_matches(f"{prefix}{name}", meant, n=1, cutoff=0.5)
    return f"; did you mean {meant[close[0]]!r}?" if close else ""


def need_extra(package: str, extra: str, what: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"{what} needs the package {package!r}: pip install 'gptft[{extra}]'")


class BadRecord(ValueError):
    """A record that cannot be used; the message names the key and what is wrong with it."""


class Unreadable(ValueError):
    """A line that is no JSON object, or a row that is no record; the message says why. `row`: its fields."""

    def __init__(self, message: str, row: list | None = None) -> None:
        super().__init__(message)
        self.row = row


class Interrupted(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM) while something long was under way."""
