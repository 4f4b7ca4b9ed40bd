"""Which of the faster ways of training a run takes, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptft.collate import Batch
from gptft.config import Config
from gptft.device import Precision, free_memory
from gptft.errors import UserError
from gptft.fast.copies import CopiedAdamW, CopiedObjective, Copies
from gptft.fast.head import chunked_head_losses
from gptft.fast.packing import pack
from gptft.fast.windows import in_windows
from gptft.loss import HeadLosses, Objective, head_losses
from gptft.model import GPT
from gptft.optim import hyperparameters, make_optimizer, parameter_groups
from gptft.parallel.ranks import here

SAVING = 0.1  # of the positions, what packing must save, for it has a cost of its own: up to 6% of a step was seen


@dataclass(frozen=True)
class Choice:
    """packing  None: never; else the share of a micro-batch's positions that it must save, 0 for always
    share    whether what examples begin with alike is computed once
    copies   whether linear layers and the head compute with copies of their weights in 16 bits
    chunks   whether the head and the loss are computed some rows at a time
    windows  whether sliding windows are computed block by block
    flex     whether attention in packed rows is one call of flex attention
    why      what is left out that would be there otherwise, and for what reason
    """

    packing: float | None
    share: bool
    copies: bool = False
    chunks: bool = False
    windows: bool = False
    flex: bool = False
    why: tuple[str, ...] = ()

    def batches(self, to_batch: Callable[[Sequence], Batch]) -> Callable[[Sequence], Batch]:
        """`to_batch`, with its batches as they are to be computed."""

        def made(examples: Sequence) -> Batch:
            batch = to_batch(examples)
            if self.packing is not None:
                batch = pack(batch, self.share, self.packing, self.windows)
            if self.flex:
                from gptft.fast.flex import in_blocks  # what it needs of torch takes a second to import

                return in_blocks(batch)
            return in_windows(batch) if self.windows else batch

        return to_batch if self.packing is None and not self.windows else made

    @property
    def head_losses(self) -> HeadLosses:
        """The head and the losses, as the objective is to compute them."""
        return chunked_head_losses if self.chunks else head_losses

    def prepare(self, model: GPT, config: Config, precision: Precision) -> tuple[torch.optim.Optimizer, Objective]:
        """The optimizer and the objective of a model that is whole."""
        if not self.copies:
            return make_optimizer(model, config), Objective(model, self.head_losses)
        copies = Copies(model, precision.dtype)
        if config.lora_rank:  # they are of frozen weights
            return make_optimizer(model, config), CopiedObjective(model, copies, self.head_losses)
        groups = parameter_groups(model, config.weight_decay)
        optimizer = CopiedAdamW(groups, copies, lr=config.lr, **hyperparameters(config))
        return optimizer, CopiedObjective(model, copies, self.head_losses)

    def describe(self, *also: str) -> str:
        """One line for the user. `also`: what else is faster, empty where it is not."""
        said = []
        if self.packing is not None:
            where = f" where that saves {self.packing:.0%} of them" if self.packing else ""
            said.append(f"micro-batches are packed{where}" + ", with flex attention" * self.flex)
        if self.share:
            said.append("what their examples begin with alike is computed once")
        if self.copies:
            said.append("weights have copies in 16 bits")
        if self.chunks:
            said.append("the head and the loss are computed some rows at a time")
        if self.windows:
            said.append("sliding windows are computed block by block")
        said += filter(None, also)
        return "fast: " + "; ".join([*(said or ["the plain path"]), *self.why])


def choose(config: Config, device: torch.device, window: int = 0, weights: int = 0) -> Choice:
    """What `config` asks for; where it leaves the choice, what is proven and pays on `device`. A function of these and
    of the number of processes, so that a run that is gone on with computes as before; memory decides only about copies
    of frozen weights, with which the bits are the same. `window`: the model's sliding one; `weights`: its bytes. Raises
    UserError for what cannot be had."""
    asked = {name: getattr(config, name) for name in ("packing", "share_prefix", "copies", "chunk_head")}
    if window:
        asked["windows"] = config.windows
    automatic = config.fast == "auto" and device.type == "cpu"  # nowhere else was a gain seen yet
    wanted, why = {}, []
    for name, value in asked.items():
        reason = "" if value == "off" else hindrance(name, config, device)
        if name == "copies" and value == "auto" and not reason:
            reason = scarcity(config, device, weights)
        if value in ("on", "flex") and reason:
            raise UserError(f"--{name}{' flex' * (value == 'flex')}: {reason}")
        wanted[name] = value in ("on", "flex") or (value == "auto" and automatic and not reason)
        if value == "auto" and automatic and reason and (name, reason) not in OBVIOUS:
            why.append(f"no {name}: {reason}")
    if wanted["share_prefix"] and config.packing == "off" and config.share_prefix == "auto":
        wanted["share_prefix"] = False  # it is a way of packing
    packs = wanted["packing"] or wanted["share_prefix"]
    least = 0.0 if config.packing in ("on", "flex") or config.share_prefix == "on" else SAVING
    return Choice(
        least if packs else None,
        wanted["share_prefix"],
        wanted["copies"],
        wanted["chunk_head"],
        wanted.get("windows", False),
        config.packing == "flex",
        tuple(why),
    )


IN_BF16 = "they are for --precision bf16"
WITH_RANKS = "with several processes they are not made; --lora_base bf16 needs none"
HEAD_ALONE = "with several processes they are not made; the frozen layers are held in fewer bits, and need none"
OBVIOUS = {("copies", IN_BF16), ("copies", HEAD_ALONE)}  # such runs ask for none


def scarcity(config: Config, device: torch.device, weights: int) -> str:
    """Whether copies of frozen weights, of so many bytes, would leave too little memory; empty where not."""
    copied = weights / 2 if config.lora_rank and config.lora_base == "fp32" else 0
    if not copied or copied <= free_memory(device) / 2:
        return ""
    return "they take half as much memory as the weights: --lora_base bf16 takes less"


def hindrance(name: str, config: Config, device: torch.device) -> str:
    """Why a way cannot be taken, in a few words; empty where it can."""
    if name == "copies":
        if Precision(config.precision, device).name != "bf16":
            return IN_BF16
        if config.compile:
            return "with --compile the blocks are compiled for the weights themselves"
        if config.lora_rank and here().size > 1:
            return WITH_RANKS if config.lora_base == "fp32" else HEAD_ALONE
        if config.lora_rank:
            return ""
        if config.optimizer != "adamw":
            return "they are made anew by AdamW's step"
        return "of several processes, each gradient is added up in fp32" if here().size > 1 else ""
    if name == "chunk_head":  # blocks alone are compiled, so --compile is no matter
        fp16 = Precision(config.precision, device).name == "fp16"
        return "in fp16 its gradients would be rounded before they are scaled" if fp16 else ""
    if name == "windows":
        return "with --compile every length of a row would be compiled anew" if config.compile else ""
    if config.compile:
        return "with --compile every packed micro-batch, which has a shape of its own, would be compiled anew"
    if name == "packing" and config.packing == "flex":
        if device.type != "cuda":
            return f"torch's flex attention has no gradient on {device.type}; on packs without it"
        return "flex attention has no dropout; on packs without it" if config.dropout else ""
    if name == "share_prefix" and (config.dropout or config.lora_dropout):
        return "with dropout each example drops other numbers of what they share"
    return ""
