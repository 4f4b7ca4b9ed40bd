"""The estimate before the first step, and the summary after the last."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from gptft.adapters.lora import adapters_of, describe_lora
from gptft.config import Config
from gptft.data.examples import Split
from gptft.model import count_parameters, training_flops
from gptft.optim import unused_settings
from gptft.parallel.saving import identify_together
from gptft.run import console
from gptft.run.console import say
from gptft.run.machine import describe_versions, measure_ceiling
from gptft.run.memory import peak_memory
from gptft.tokenizer import Tokenizer
from gptft.training import TrainState, total_steps


def print_estimate(state: TrainState, config: Config, train_set: Split, val_set: Split) -> None:
    """Say what is about to happen, and which settings will do nothing."""
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
        f"in {state.precision.name} on {state.model.device}"
    )
    if config.patience and not len(val_set):
        say(f"note: --patience {config.patience} does nothing: there is no validation data to stop by")
    for name in unused_settings(state.optimizer, config):
        say(f"note: {config.optimizer} has no {name}: --{name} does nothing")


def summarise(state: TrainState, tokenizer: Tokenizer, out_dir: Path, ledgers: dict[str, dict]) -> dict:
    """What `summary.json` says of the training and its data; of the test, None where it is not measured. Losses in nats
    a target, times in seconds."""
    progress = state.progress
    seconds = max(progress.seconds, 1e-9)
    trained, parameters = count_parameters(state.model)
    lora = {"lora": describe_lora(state.model)} if adapters_of(state.model) else {}
    return {
        "model_id": identify_together(state.model, tokenizer),
        "steps": progress.step,
        "best_step": progress.best_step if (out_dir / "best").exists() else progress.step,
        "train_runtime": progress.seconds,
        "train_samples_per_second": progress.examples / seconds,
        "train_steps_per_second": progress.step / seconds,
        "train_examples": ledgers["data"]["splits"]["data"]["examples"],
        "train_tokens": progress.tokens,
        "total_flos": progress.flops,
        "data_share": progress.data_seconds / seconds,
        "train_loss": progress.loss_sum / max(progress.targets, 1),
        "eval_loss": progress.best_loss if progress.evaluated >= 0 else None,
        **({"best_score": progress.best_score} if progress.best_score > -math.inf else {}),  # where --best_by asks
        "test_loss": None,
        "test_exact_match": None,
        "parameters": parameters,
        "trainable_parameters": trained,
        **lora,
        "peak_memory_bytes": peak_memory(state.model.device),
        "precision": state.precision.name,
        "device": str(state.model.device),
        "machine_flops": measure_ceiling(state.precision),
        "versions": describe_versions(state.model.device),
        "ledger": ledgers,
    }
