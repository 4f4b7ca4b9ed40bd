"""Which of the faster ways of training a run takes, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptft.collate import Batch
from gptft.config import Config
from gptft.errors import UserError
from gptft.fast.packing import pack

SAVING = 0.1  # of the positions, what packing must save, for it has a cost of its own: up to 6% of a step was seen


@dataclass(frozen=True)
class Choice:
    """packing  None: never; else the share of a micro-batch's positions that it must save, 0 for always
    share    whether what examples begin with alike is computed once
    why      what is left out that would be there otherwise, and for what reason
    """

    packing: float | None
    share: bool
    why: tuple[str, ...] = ()

    def batches(self, to_batch: Callable[[Sequence], Batch]) -> Callable[[Sequence], Batch]:
        """`to_batch`, with its batches as they are to be computed."""
        if self.packing is None:
            return to_batch
        return lambda examples: pack(to_batch(examples), self.share, self.packing)

    def describe(self) -> str:
        """One line for the user."""
        if self.packing is None:
            return "fast: the plain path" + "".join(f"; {reason}" for reason in self.why)
        said = "micro-batches are packed" + (f" where that saves {self.packing:.0%} of them" if self.packing else "")
        shared = ", and what their examples begin with alike is computed once" if self.share else ""
        return f"fast: {said}{shared}" + "".join(f"; {reason}" for reason in self.why)


def choose(config: Config, device: torch.device) -> Choice:
    """What `config` asks for; where it leaves the choice, what is proven and pays on `device`. A function of these two
    alone, so that a run that is gone on with computes as before. Raises UserError for what cannot be had."""
    asked = {"packing": config.packing, "share_prefix": config.share_prefix}
    hindered = {name: hindrance(name, config) for name in asked}
    why = []
    for name, value in asked.items():
        if value == "on" and hindered[name]:
            raise UserError(f"--{name}: {hindered[name]}")
        if value == "auto" and config.fast == "auto" and hindered[name]:
            why.append(f"no {name}: {hindered[name]}")
    automatic = config.fast == "auto" and device.type == "cpu"  # nowhere else was a gain seen yet
    wanted = {
        name: value == "on" or (value == "auto" and automatic and not hindered[name]) for name, value in asked.items()
    }
    if not any(wanted.values()) or (config.packing == "off" and config.share_prefix != "on"):
        return Choice(None, False, tuple(why))
    return Choice(0.0 if "on" in asked.values() else SAVING, wanted["share_prefix"], tuple(why))


def hindrance(name: str, config: Config) -> str:
    """Why a way cannot be taken, in a few words; empty where it can."""
    if config.compile:
        return "with --compile every packed micro-batch, which has a shape of its own, would be compiled anew"
    if name == "share_prefix" and (config.dropout or config.lora_dropout):
        return "with dropout each example drops other numbers of what they share"
    return ""
