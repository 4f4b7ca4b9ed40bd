"""Stands in for `model.GPT` in decoding on a GPU: a pass over one token of each row is recorded once, as a CUDA graph,
and replayed from then on as one launch (`--decode graph`).

Such a pass starts some dozen kernels a layer, and the GPU is done with most of them before the host has started the
next. What is replayed finds everything where it was when it was recorded:

    ids, positions   in tensors of the pass, into which they are copied
    keys             those of each row up to a multiple of BLOCK tokens; what lies behind a row's own is hidden by a
                     mask, which the pass makes from the positions
    the KV cache     in the caller's memory: a pass is good for the rows and the keys that it was recorded with

All else, prompts first of all, the model computes as ever. A hidden key weighs 0, so that the numbers are those of the
model up to the order of summation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from gptft.attention import CacheLayout, KVCache, Layout
from gptft.model import GPT

BLOCK = 256  # tokens by which a pass sees more keys than the one before it
AGAIN = 4  # passes of one kind before it is recorded, for that costs as much as some passes
MOST = 64  # recorded passes; of more, the oldest goes

Run = Callable[[], Tensor]


def record_graph(run: Run) -> Run:
    """`run` as a CUDA graph. It holds nothing of what `run` does: who calls it sees that the memory is still there."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()  # libraries make their workspaces in a first run, which may not be recorded
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


class Pass:
    """One token of each row: its ids and positions (B, 1), and the run that reads them."""

    def __init__(self, idx: Tensor, pos: Tensor, run: Run) -> None:
        self.idx, self.pos, self.run = idx, pos, run

    def __call__(self, idx: Tensor, pos: Tensor) -> Tensor:
        self.idx.copy_(idx)
        self.pos.copy_(pos)
        return self.run()


class GraphedModel:
    """A GPT with what decoding asks of one. It is good for as long as the weights stay where they are. What `hidden`
    gives is overwritten by its next call."""

    def __init__(self, model: GPT, record: Callable[[Run], Run] = record_graph) -> None:
        self.model, self.record = model, record
        self.passes: dict[tuple, Pass] = {}
        self.seen: Counter[tuple] = Counter()

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    @torch.no_grad()
    def hidden(
        self, idx: Tensor, layout: Layout | None = None, cache: KVCache | None = None, scored: Tensor | None = None
    ) -> Tensor:
        """As `GPT.hidden`: token ids (B, T) -> (B, T, C), or (n, C) of the `scored`."""
        if cache is None or idx.size(1) > 1 or scored is not None:
            return self.model.hidden(idx, layout, cache, scored)
        k, v = cache.k, cache.v
        end = min(-(-layout.end // BLOCK) * BLOCK, k.size(3))
        key = (end, k.data_ptr(), v.data_ptr(), k.shape, k.stride())
        if key not in self.passes:
            self.seen[key] += 1
            if self.seen[key] <= AGAIN:
                return self.model.hidden(idx, layout, cache)
            if len(self.passes) >= MOST:
                del self.passes[next(iter(self.passes))]
            self.passes[key] = self.recorded(idx, layout, cache, end)
            del self.seen[key]
        return self.passes[key](idx, layout.pos)

    def recorded(self, idx: Tensor, layout: CacheLayout, cache: KVCache, end: int) -> Pass:
        """A pass over what is given. To record it writes to the cache what its first replay will write."""
        with torch.inference_mode(False):  # in it they could not be filled but in it
            ids = torch.empty_like(idx).copy_(idx)
            pos = torch.empty_like(idx).copy_(layout.pos)

        def run() -> Tensor:
            return self.model.hidden(ids, CacheLayout(pos, end=end), cache)

        return Pass(ids, pos, self.record(run))
