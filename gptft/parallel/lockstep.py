"""Passes that every rank has to take part in, though only one has something to do.

Where each rank holds a part of the model, a forward pass on one needs the parts of all. Ranks that answer prompts of
their own make a different number of passes, so whoever is done goes on with empty ones until all are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from gptft.model import GPT
from gptft.parallel.ranks import here
from gptft.parallel.wrap import is_sharded


@contextlib.contextmanager
def lockstep(model: GPT) -> Iterator[None]:
    """Within, each call of `model.hidden` on a rank is one on all ranks. Nothing where the model is whole."""
    if not is_sharded(model):
        yield
        return
    ranks, hidden = here(), model.hidden

    def together(*args, **options):
        ranks.any(True)  # whoever is done hears that there is one more
        return hidden(*args, **options)

    model.hidden = together
    try:
        yield
    finally:
        model.hidden = hidden
    blank = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        while ranks.any(False):
            hidden(blank)
