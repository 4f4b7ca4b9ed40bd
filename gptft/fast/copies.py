"""Stands in for autocast's casts of weights and gradients: the linear layers and the head have copies in 16 bits, made
anew by the optimizer's step as it writes the weights, and gradients stay in 16 bits until that step reads them.

                    autocast, bytes a weight and step         copies
    forward         read 4, write 2: the cast                 none
    backward        read 2, write 4: the gradient's cast      none
    clipping        read 4; read 4, write 4                   read 2
    AdamW           read 16, write 12                         read 14, write 12, write 2: the copy

The weights, and AdamW's moments, stay in fp32, and a gradient is in 16 bits under autocast, too, before it is cast: the
same numbers meet. Where a window has several micro-batches, their gradients are added up in fp32.

Where the head is the token embedding, its gradient is the sum of two: that of the head, and that of the few rows which
the tokens of the batch looked up. These stay apart, in fp32, until the step adds them up: a tensor of the size of the
vocabulary, zeros nearly all of it, is neither made nor added.

Beside adapters the weights are frozen: their copies are made once, and a step has nothing to do with them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptft.adapters.lora import LoraLinear
from gptft.collate import Batch
from gptft.fast.weights import head_of
from gptft.loss import HeadLosses, Objective, head_losses
from gptft.model import GPT

CHUNK = 1 << 20  # numbers that are updated at a time: what is written of them is read again from the cache


class LookUp(torch.autograd.Function):
    """Rows of a weight (V, C) by their ids (...) -> (..., C). What they have of a gradient is put into `found`, as
    (ids (n,), gradients (n, C)), and the weight is told of none."""

    @staticmethod
    def forward(ctx, weight: Tensor, idx: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.idx, ctx.found = idx, found
        return F.embedding(idx, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, None, None]:
        ctx.found.append((ctx.idx.flatten(), grad.flatten(0, -2)))
        return None, None, None


class Copies:
    """Copies of the weights and biases of a model's linear layers, `dtype`. They have a gradient where those have.

    `tied`: the token embedding's weight where it is the head's too, else None; `rows`: what tokens that were looked up
    in it have of a gradient, by micro-batch. Layers that are held in 16 bits have none, nor those that DoRA measures.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self.model, self.places = model, []
        self.copies: list[Tensor] = []
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.tied = model.tok.weight if model.lm_head is None else None
        measured = {
            id(layer.base) for layer in model.modules() if isinstance(layer, LoraLinear) and layer.m is not None
        }
        for module in [*model.blocks.modules(), head_of(model)]:
            if type(module) in (nn.Linear, nn.Embedding) and id(module) not in measured:
                for name, parameter in module.named_parameters(recurse=False):
                    self.places.append((module, name, parameter))
                    self.copies.append(parameter.detach().to(dtype).requires_grad_(parameter.requires_grad))
        self.parameters = [parameter for _, _, parameter in self.places]
        self.versions = [parameter._version for parameter in self.parameters]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the layers compute with the copies, made anew where something else wrote into the weights."""
        if self.versions != [parameter._version for parameter in self.parameters]:
            self.refresh()
        for (module, name, _), copy in zip(self.places, self.copies, strict=True):
            module._parameters[name] = copy
        if self.tied is not None:  # in fp32: only products are in 16 bits
            self.model.tok.forward = lambda idx: LookUp.apply(self.tied, idx, self.rows)
        try:
            yield
        finally:
            vars(self.model.tok).pop("forward", None)
            for module, name, parameter in self.places:
                module._parameters[name] = parameter

    @torch.no_grad()
    def refresh(self) -> None:
        torch._foreach_copy_(self.copies, self.parameters)
        self.note_versions()

    def note_versions(self) -> None:
        self.versions = [parameter._version for parameter in self.parameters]

    def of(self, parameter: Tensor) -> Tensor:
        """Its copy."""
        return next(copy for copy, own in zip(self.copies, self.parameters, strict=True) if own is parameter)

    @torch.no_grad()
    def add_up(self) -> None:
        """Add what the copies have of a gradient to the weights' own, in fp32."""
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            if copy.grad is not None:
                if parameter.grad is None:
                    parameter.grad = copy.grad.to(parameter.dtype)
                else:
                    parameter.grad += copy.grad
                copy.grad = None
        for ids, grads in self.rows:
            self.tied.grad.index_add_(0, ids, grads)
        self.rows.clear()

    @torch.no_grad()
    def gather_rows(self) -> tuple[Tensor, Tensor] | None:
        """Ids of the rows that were looked up, each once and in order, and the sum of what each has of a gradient."""
        if not self.rows:
            return None
        ids, whose = torch.cat([ids for ids, _ in self.rows]).unique(return_inverse=True)
        sums = self.tied.new_zeros(len(ids), self.tied.size(1))
        sums.index_add_(0, whose, torch.cat([grads for _, grads in self.rows]))
        self.rows.clear()
        return ids, sums


class CopiedObjective(Objective):
    """The objective with copies."""

    def __init__(self, model: GPT, copies: Copies, head_losses: HeadLosses = head_losses) -> None:
        super().__init__(model, head_losses)
        self.copies = copies

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            self.copies.add_up()  # of the micro-batch before
        with self.copies.in_place():
            return super().forward(batch)


class Piece(NamedTuple):
    """Some rows of a weight (n,), flat: of its moments and its copy; `start`, where they begin, and `copy`, the whole,
    whose gradient is theirs; `step`, how many it has behind it; `width` of a row; whether the rows `are_looked_up`, and
    whether they are the weight's `last`."""

    weights: Tensor
    first: Tensor
    second: Tensor
    copies: Tensor
    start: int
    copy: Tensor
    step: Tensor
    width: int
    are_looked_up: bool
    last: bool

    @property
    def grads(self) -> Tensor:
        return self.copy.grad.view(-1)[self.start : self.start + len(self.weights)]


class CopiedAdamW(torch.optim.AdamW):
    """AdamW that takes gradients from the copies and writes these anew. Its state is that of torch's.

    `found_inf`, a scalar on the device that is not 0 where the step is to be left out, as torch's fused optimizers
    take it. `clip` must have been called before each step.
    """

    def __init__(self, groups, copies: Copies, **settings) -> None:
        super().__init__(groups, **settings, fused=True)
        self.copies = copies
        self.scale: Tensor | None = None  # what gradients are divided by
        self.rows: tuple[Tensor, Tensor] | None = None  # the tied weight's gradient beside its copy's
        self.pieces: list[list[list[Piece]]] = []  # by group, those that are updated together
        self.places: list[int] = []  # in memory, of all that the pieces are of
        self.scratch = torch.empty(0)

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Have the step scale the gradients down to a norm of `limit` (0: leave them) -> the norm before."""
        if any(parameter.grad is not None for parameter in self.copies.parameters):
            self.copies.add_up()
        self.rows = self.copies.gather_rows()
        owners = [p for group in self.param_groups for p in group["params"]] + self.copies.copies
        squares = [part for p in owners if p.grad is not None for part in self.squares_of(p.grad)]
        if self.rows is not None:
            ids, sums = self.rows
            head = self.copies.of(self.copies.tied).grad[ids].float()  # is there without what is added to it
            squares.append((sums * (sums + 2 * head)).sum())
        norm = torch.stack(squares).sum().clamp(min=0).sqrt()
        # as torch.nn.utils.clip_grads_with_norm_ has it
        self.scale = ((norm + 1e-6) / limit).clamp(min=1.0) if limit and math.isfinite(limit) else None
        return norm

    @torch.no_grad()
    def step(self, closure=None) -> None:
        self.grad_scale = self.scale
        try:
            super().step(closure)  # of all that have gradients of their own
        finally:
            del self.grad_scale
        written = all(copy.grad is not None for copy in self.copies.copies if copy.requires_grad)
        if written:
            self.find_pieces()
            for group, pieces in zip(self.param_groups, self.pieces, strict=True):
                for together in pieces:
                    self.update(together, group)
        self.copies.note_versions() if written else self.copies.refresh()
        self.scale = self.rows = None

    def find_pieces(self) -> None:
        """Cut all weights into pieces that are updated together: large ones into some rows, small ones side by side.
        What was found stays for as long as everything lies where it did."""
        copied = dict(zip(self.copies.parameters, self.copies.copies, strict=True))
        groups = [[p for p in group["params"] if p in copied] for group in self.param_groups]
        trained = [parameter for group in groups for parameter in group]
        for parameter in trained:
            if not (state := self.state[parameter]):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        moments = [self.state[p][name] for p in trained for name in ("step", "exp_avg", "exp_avg_sq")]
        places = [tensor.data_ptr() for tensor in (*trained, *self.copies.copies, *moments)]
        if places == self.places:
            return
        self.places, self.pieces = places, []
        for group in groups:
            found: list[list[Piece]] = [[]]
            for parameter in group:
                for piece in self.pieces_of(parameter, copied[parameter]):
                    if sum(len(each.weights) for each in found[-1]) + len(piece.weights) > CHUNK and found[-1]:
                        found.append([])
                    found[-1].append(piece)
            self.pieces.append(found if found[-1] else [])

    def pieces_of(self, parameter: Tensor, copy: Tensor) -> Iterator[Piece]:
        """A weight with all that its step reads and writes, in pieces of whole rows."""
        state = self.state[parameter]
        flat = [x.view(-1) for x in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"], copy.detach())]
        C = parameter.size(-1)
        chunk, size = max(1, CHUNK // C) * C, parameter.numel()
        for start in range(0, size, chunk):
            parts = (x[start : start + chunk] for x in flat)
            yield Piece(*parts, start, copy, state["step"], C, parameter is self.copies.tied, start + chunk >= size)

    def update(self, pieces: list[Piece], group: dict) -> None:
        """One step of some pieces, and their new copies."""
        found_inf = getattr(self, "found_inf", None)
        weights, steps = [each.weights for each in pieces], [each.step + 1 for each in pieces]
        grads = self.widened([each.grads for each in pieces], weights[0].dtype)
        for each, grad in zip(pieces, grads, strict=True):
            if each.are_looked_up and self.rows is not None:
                add_rows(grad.view(-1, each.width), each.start // each.width, *self.rows)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            weights,
            grads,
            [each.first for each in pieces],
            [each.second for each in pieces],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=self.scale,
            found_inf=found_inf,
        )
        torch._foreach_copy_([each.copies for each in pieces], weights)
        for each in pieces:
            if each.last:
                each.step.add_(1 if found_inf is None else 1 - found_inf)

    def widened(self, parts: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Some tensors (n,) in `dtype`, side by side in one place, the same every time: it stays in the cache."""
        sizes = [len(part) for part in parts]
        like = {"dtype": dtype, "device": parts[0].device}
        if len(self.scratch) < sum(sizes) or (self.scratch.dtype, self.scratch.device) != (dtype, like["device"]):
            self.scratch = torch.empty(max(CHUNK, sum(sizes)), **like)
        found = list(self.scratch[: sum(sizes)].split(sizes))
        torch._foreach_copy_(found, parts)
        return found

    def squares_of(self, grad: Tensor) -> Iterator[Tensor]:
        """Sums of squares, in fp32: a chunk at a time, for a norm of numbers in 16 bits would make a copy of all of
        them in 32, which took longer than the step itself."""
        for part in grad.reshape(-1).split(CHUNK):
            (wide,) = self.widened([part], torch.float32)
            yield wide.dot(wide)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.copies.rows.clear()
        for copy in self.copies.copies:
            copy.grad = None


def add_rows(grads: Tensor, start: int, ids: Tensor, sums: Tensor) -> None:
    """Add to `grads` (n, C), those of the rows from `start`, what is of these among `sums`, by ids in order."""
    ends = torch.tensor((start, start + len(grads)), device=ids.device)
    low, high = torch.searchsorted(ids, ends).tolist()
    grads[ids[low:high] - start] += sums[low:high]
