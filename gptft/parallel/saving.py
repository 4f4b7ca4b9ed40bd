"""Ordinary checkpoints of several ranks, and going on from them.

Such a checkpoint is one folder, as one process writes it: the first rank writes it, of weights that each rank has, or
that are gathered for it, tensor by tensor, in its host's memory. Whatever number of ranks goes on from it takes its own
part. What ranks write without gathering is in sharded.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gptft import checkpoint
from gptft.device import put_rows, random_state, set_random_state
from gptft.errors import UserError
from gptft.model import GPT
from gptft.parallel.ranks import here, whole
from gptft.parallel.wrap import is_sharded
from gptft.tokenizer import Tokenizer


def save_together(path: Path, model: GPT, tokenizer: Tokenizer | None, step: int, resume: dict | None = None) -> None:
    """As `checkpoint.save`, of a model that may be in parts. All ranks call it; an error is raised on all."""
    ranks = here()
    if ranks.size == 1:
        checkpoint.save(path, model, tokenizer, step, resume)
        return
    if resume is not None:
        resume = gathered({**resume, "random_of_ranks": ranks.gather(random_state(model.device))})
    _, weights = checkpoint.weights_of(model)
    weights, failed = gathered(weights), None
    with ranks.pausing():  # the others wait
        if ranks.first:
            try:
                checkpoint.save(path, model, tokenizer, step, resume, weights)
            except UserError as error:
                failed = error
        failed = ranks.tell(failed)
    if failed:
        raise failed


def identify_together(model: GPT, tokenizer: Tokenizer | None) -> str:
    """As `checkpoint.model_id`, of a model that may be in parts. All ranks call it."""
    if not is_sharded(model):
        return checkpoint.model_id(model, tokenizer)
    with here().pausing():
        return here().tell(checkpoint.model_id(model, tokenizer, state=Gathered(model)))


class Gathered(Mapping):
    """The weights that a checkpoint keeps of a model in parts, by name. Each is gathered when it is asked for, which
    all ranks do alike, and no rank keeps it; on all but the first it has no rows."""

    def __init__(self, model: GPT) -> None:
        self.parts = checkpoint.weights_of(model)[1]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __getitem__(self, name: str) -> Tensor:
        tensor = whole(self.parts[name].detach())
        return tensor.cpu() if here().first else tensor.new_empty(0, device="cpu")


def load_together(model: GPT, path: Path) -> None:
    """As `checkpoint.load_weights`: each rank takes what it holds of the model."""
    if is_sharded(model):
        model.reshard()  # what is gathered would be taken for the weights as they are
    checkpoint.load_weights(model, path)


@torch.no_grad()
def copy_weights(model: GPT, weights: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a model of which this rank may hold a part."""
    if is_sharded(model):
        model.reshard()
    for name, tensor in model.state_dict().items():
        put_rows(tensor, 0, len(tensor), weights[name])


def gathered(values):
    """The same, nested as it is, with whole tensors on the CPU: on the first rank, where they are written."""
    if isinstance(values, Tensor):
        full = whole(values.detach())
        return full.cpu() if here().first else full.new_empty(0)
    if isinstance(values, dict):
        return {name: gathered(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(gathered(value) for value in values)
    return values


def restore_random_state(saved: dict, seed: int, step: int, device: torch.device) -> bool:
    """Give this rank its random state back, out of what `save_together` kept -> whether it is the one that it had. Of
    another number of ranks each begins a stream of its own."""
    ranks, kept = here(), saved.get("random_of_ranks") or [saved["state"]["random"]]
    if len(kept) == ranks.size:
        set_random_state(kept[ranks.rank], device)
        return True
    torch.manual_seed(hash((seed, step, ranks.rank, ranks.size)) % 2**63)
    return False
