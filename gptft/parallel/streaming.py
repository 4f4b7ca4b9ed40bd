"""A model that is whole on no rank: built on the "meta" device, divided there, and read into the parts.

Each rank reads the rows that it holds, piece by piece, whatever holds them: fp32, or the 16 or 8 bits of a frozen base
with adapters beside it (adapters/rows.py). Where a Hugging Face file has q, k and v in one tensor, or has matrices
transposed, each rank reads all of such a tensor, and keeps its part. Beside that part, a piece is in memory at a time;
on the first rank a whole tensor, when the model's id is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptft.adapters.frozen import Int8Linear, held_by, linear_layers
from gptft.adapters.lora import LoraLinear, adapters_of, start_adapters
from gptft.device import Precision, rows_here
from gptft.formats.tensors import Weights
from gptft.loading import Opened, base_of
from gptft.model import GPT
from gptft.parallel.ranks import here
from gptft.parallel.saving import identify_together
from gptft.parallel.wrap import shard
from gptft.tokenizer import Tokenizer


def read_in_parts(opened: Opened, precision: Precision, name: str, seed: int) -> GPT:
    """A model on the "meta" device, with its adapters if it is to have some -> the same in parts, its weights read.
    `name`: what it was opened by; `seed`: of the adapters. All ranks call it."""
    model = shard(opened.model, precision)
    model.to_empty(device=precision.device)
    read_again(model, opened.weights, seed)
    if lora := adapters_of(model):
        with here().pausing():  # reading them once more takes as long as it takes
            mine = here().first and base_of(model, opened.tokenizer, name, state=opened.weights)
            lora.base = here().tell(mine)
    return model.eval()


def read_again(model: GPT, weights: Weights, seed: int) -> None:
    """Give a model in parts these weights, and adapters as they start. All ranks call it."""
    with here().pausing():
        weights.fill(model)
        layers = [layer for *_, layer in linear_layers(model)]
        bases = [getattr(layer, "base", layer) for layer in layers]
        share([(base.scale, base.q) for base in bases if isinstance(base, Int8Linear)])
        start_adapters(model, seed)
        dora = [layer for layer in layers if isinstance(layer, LoraLinear) and layer.m is not None]
        share([(layer.squares, held_by(layer.base)) for layer in dora])


@torch.no_grad()
def share(vectors: list[tuple[Tensor, Tensor]]) -> None:
    """Make each vector whole on all ranks. With it comes a tensor, the numbers of whose rows it has: of one in parts,
    those of the rows that are here."""
    vectors = [(vector, tensor) for vector, tensor in vectors if hasattr(tensor, "to_local")]
    if not vectors:
        return
    for vector, tensor in vectors:
        mine, first = rows_here(tensor)
        vector[:first] = 0
        vector[first + len(mine) :] = 0
    summed = here().add_up(torch.cat([vector for vector, _ in vectors]))  # of each row one is not zero
    for (vector, _), numbers in zip(vectors, summed.split([len(vector) for vector, _ in vectors]), strict=True):
        vector.copy_(numbers)


def identify(model: GPT, tokenizer: Tokenizer | None) -> str:
    """The id of what training starts from, which may be in parts; of adapters, their base's. All ranks call it."""
    lora = adapters_of(model)
    if lora and lora.base:
        return lora.base.id
    return identify_together(model, tokenizer)
