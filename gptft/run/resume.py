"""Going on with a run: what must be the same, and the checkpoint to go on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from gptft import checkpoint
from gptft.adapters.lora import adapters_of
from gptft.config import Config
from gptft.data.examples import Split
from gptft.errors import UserError
from gptft.model import GPT
from gptft.run.console import say
from gptft.tokenizer import Tokenizer
from gptft.training import TrainState


def describe_inputs(config: Config, model: GPT, tokenizer: Tokenizer, train_set: Split, val_set: Split) -> dict:
    """What must be the same for a run to go on, and where it ran: bit for bit is promised for the same machine only."""
    settings = ("seed", "batch_size", "grad_accum", "batching", "mask_prompt", "optimizer")
    lora = adapters_of(model)
    return {
        "model it starts from": lora.base.id if lora else checkpoint.model_id(model, tokenizer),
        "adapters (--lora_...)": [dataclasses.asdict(lora.config), lora.held] if lora else None,
        "training data": train_set.digest(),
        "validation data": val_set.digest(),
        **{name: getattr(config, name) for name in settings},
        "machine": {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": model.device.type},
    }


def find_checkpoint(out_dir: Path, fingerprint: dict) -> Path | None:
    """The newest valid checkpoint to go on from; with none, say so: the run starts at step 0.

    Raises UserError, naming what differs, when data or model have changed.
    """
    path, problems = checkpoint.newest(out_dir) if out_dir.is_dir() else (None, [])
    for problem in problems:
        say(f"passed over: {problem}")
    if path is None:
        say(f"{out_dir} has no valid checkpoint to go on from: starting at step 0")
        return None
    was = checkpoint.load_tensors(path / "resume.pt")["fingerprint"]
    for name, value in fingerprint.items():
        if name != "machine" and was.get(name) != value:
            raise UserError(f"--resume: the {name} changed since {path} was saved; start anew in another --out_dir")
    for name, value in fingerprint["machine"].items():
        if was["machine"][name] != value:
            say(f"note: {name} was {was['machine'][name]}, now {value}: results will be close, not the same bits")
    return path


def go_on(state: TrainState, path: Path) -> None:
    """Bring weights, optimizer, progress and random state back from a checkpoint."""
    checkpoint.load_weights(state.model, path)
    state.load_state_dict(checkpoint.load_tensors(path / "resume.pt")["state"])
    say(f"going on from {path}, step {state.progress.step}")
