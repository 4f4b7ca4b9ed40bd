"""Stands in for autocast's casts of weights and gradients: the linear layers of the blocks have copies in 16 bits, made
anew by the optimizer's step as it writes the weights, and gradients stay in 16 bits until that step reads them.

                    autocast, bytes a weight and step         copies
    forward         read 4, write 2: the cast                 none
    backward        read 2, write 4: the gradient's cast      none
    clipping        read 4; read 4, write 4                   read 2
    AdamW           read 16, write 12                         read 14, write 12, write 2: the copy

The weights, and AdamW's moments, stay in fp32, and a gradient is in 16 bits under autocast, too, before it is cast: the
same numbers meet. Where a window has several micro-batches, their gradients are added up in fp32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gptft.collate import Batch
from gptft.loss import HeadLosses, Objective, head_losses
from gptft.model import GPT

CHUNK = 1 << 20  # numbers that are updated at a time: what is written of them is read again from the cache


class Copies:
    """Copies of the weights and biases of a model's linear layers, `dtype`: those of the blocks that are trained."""

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self.model, self.places = model, []
        self.copies: list[Tensor] = []
        for module in model.blocks.modules():
            if type(module) is nn.Linear and module.weight.requires_grad:
                for name, parameter in module.named_parameters(recurse=False):
                    self.places.append((module, name, parameter))
                    self.copies.append(parameter.detach().to(dtype).requires_grad_())
        self.parameters = [parameter for _, _, parameter in self.places]
        self.versions = [parameter._version for parameter in self.parameters]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the layers compute with the copies, made anew where something else wrote into the weights."""
        if self.versions != [parameter._version for parameter in self.parameters]:
            self.refresh()
        for (module, name, _), copy in zip(self.places, self.copies, strict=True):
            module._parameters[name] = copy
        try:
            yield
        finally:
            for module, name, parameter in self.places:
                module._parameters[name] = parameter

    @torch.no_grad()
    def refresh(self) -> None:
        torch._foreach_copy_(self.copies, self.parameters)
        self.note_versions()

    def note_versions(self) -> None:
        self.versions = [parameter._version for parameter in self.parameters]

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


class CopiedAdamW(torch.optim.AdamW):
    """AdamW that takes gradients from the copies and writes these anew. Its state is that of torch's.

    `found_inf`, a scalar on the device that is not 0 where the step is to be left out, as torch's fused optimizers
    take it. `clip` must have been called before each step.
    """

    def __init__(self, groups, copies: Copies, **settings) -> None:
        super().__init__(groups, **settings, fused=True)
        self.copies = copies
        self.scale: Tensor | None = None  # what gradients are divided by

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Have the step scale the gradients down to a norm of `limit` (0: leave them) -> the norm before."""
        if any(parameter.grad is not None for parameter in self.copies.parameters):
            self.copies.add_up()
        owners = [p for group in self.param_groups for p in group["params"]] + self.copies.copies
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in owners if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms))
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
        found_inf = getattr(self, "found_inf", None)
        copied = dict(zip(self.copies.parameters, self.copies.copies, strict=True))
        written = all(copy.grad is not None for copy in self.copies.copies)
        for group in self.param_groups if written else ():
            for parameter in group["params"]:
                if parameter in copied:
                    self.update(parameter, copied[parameter], group, found_inf)
        self.copies.note_versions() if written else self.copies.refresh()
        self.scale = None

    def update(self, parameter: Tensor, copy: Tensor, group: dict, found_inf: Tensor | None) -> None:
        """One weight's step and its new copy, a chunk at a time."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        flat = [x.view(-1) for x in (parameter, copy.grad, state["exp_avg"], state["exp_avg_sq"], copy.detach())]
        beta1, beta2 = group["betas"]
        for start in range(0, parameter.numel(), CHUNK):
            weights, grads, first, second, new = (x[start : start + CHUNK] for x in flat)
            torch._fused_adamw_(
                [weights],
                [grads.to(weights.dtype)],
                [first],
                [second],
                [],
                [state["step"]],
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
            new.copy_(weights)
        if found_inf is not None:
            state["step"] -= found_inf

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for copy in self.copies.copies:
            copy.grad = None
