"""gptft's own loop, as the benchmarks let it train: in the ways that a run would choose by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from gptft.collate import Batch, collate
from gptft.config import Config, resolve
from gptft.device import Precision
from gptft.fast.choice import choose
from gptft.finetuning import add_adapters
from gptft.loss import Objective
from gptft.run.setup import keep_memory
from gptft.training import Progress, Step, TrainState, train

PLAIN = {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "grad_clip": 1.0, "epochs": 1}


class Ready(NamedTuple):
    """All that the loop takes but the rows; `chose`: the line that a run would say of its ways."""

    state: TrainState
    objective: Objective
    config: Config
    to_batch: Callable[[Sequence], Batch]
    chose: str

    def steps(self, rows) -> Iterator[Step]:
        """Train on `rows` once, without an evaluation, and from the beginning of a schedule."""
        self.state.progress = Progress()
        return train(self.state, self.objective, self.config, rows, [], self.to_batch)


def ready(model, tokenizer, settings: dict) -> Ready:
    """A model, with adapters where `settings` ask for them, that is to be trained on the CPU."""
    config = resolve("", {**PLAIN, **settings})
    if config.lora_rank:
        add_adapters(config, model, tokenizer)
    cpu = torch.device("cpu")
    fast, precision = choose(config, cpu, model.config.window), Precision(config.precision, cpu)
    optimizer, objective = fast.prepare(model, config, precision)
    to_batch = fast.batches(functools.partial(collate, pad_id=tokenizer.eot, mask_prompt=config.mask_prompt))
    kept = keep_memory(config, cpu)
    return Ready(TrainState(model, optimizer, precision), objective, config, to_batch, fast.describe(kept))
