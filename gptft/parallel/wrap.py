"""A model on several ranks, by torch's own engines.

    ddp   every rank has the whole model; the gradients are added up, bucket by bucket, beside the backward pass
          (DistributedDataParallel, arXiv 2006.15704)
    fsdp  every rank holds a part of each tensor, of its gradient and of its optimizer state; the two halves of a block
          are gathered when they are computed, and let go again (fully_shard, after arXiv 1910.02054 and 2304.11277)

Either averages over the ranks, so the loss of a rank counts as many times as there are ranks: the gradient is that of
one process.
"""

from __future__ import annotations

import inspect
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel

from gptft.adapters.frozen import Int8Linear
from gptft.adapters.lora import adapters_of
from gptft.collate import Batch
from gptft.device import Precision
from gptft.loss import Objective
from gptft.model import GPT


class Replicated(DistributedDataParallel):
    """The objective under DDP, which is to be had as one process has it: `model`, and plain passes in evaluation."""

    def __init__(self, objective: Objective) -> None:
        known = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 has another name for it
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        super().__init__(objective, gradient_as_bucket_view=True, **{buffers: False})  # they never change

    @property
    def model(self) -> GPT:
        return self.module.model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return super().forward(batch) if torch.is_grad_enabled() else self.module(batch)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a part of the model."""
    return isinstance(model, FSDPModule)


def shard(model: GPT, precision: Precision) -> GPT:
    """Let each rank keep its part of every tensor; a model on the "meta" device stays there, and has no memory yet.

    What is gathered is in the precision of the products: the linear layers of all that is trained, in 16 bits where
    they are multiplied in 16. Norms and embeddings are gathered in 32, and so are adapters; frozen weights as they are
    held. Gradients are added up in 32 bits. Returns the model, of another class of the same name.
    """
    # what a half of a block returns may be a view, and nothing is written into it: the block adds it up anew
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(precision.device.type, (dist.get_world_size(),))
    keep_in_bits(model)
    lower = precision.name != "fp32" and not adapters_of(model)
    lowered = MixedPrecisionPolicy(precision.dtype, torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in model.blocks:
        for norm in (block.attn.q_norm, block.attn.k_norm) if lower else ():
            if norm is not None:
                fully_shard(norm, mesh=mesh, mp_policy=plain)
        for half in (block.attn, block.mlp):
            fully_shard(half, mesh=mesh, mp_policy=lowered if lower else plain)
    fully_shard(model, mesh=mesh, mp_policy=plain)
    register_fsdp_forward_method(model, "hidden")
    return model


def scaler_of_ranks(precision: Precision) -> torch.amp.GradScaler:
    """A scaler of fp16's gradients that hears of an overflow in the parts of other ranks."""
    return ShardedGradScaler(precision.device.type, enabled=precision.scaler.is_enabled())


def keep_in_bits(model: GPT) -> None:
    """Frozen weights in 8 bits are buffers, which would stay whole on each rank: as parameters they are shared."""
    for module in model.modules():
        if isinstance(module, Int8Linear):
            held = module.q
            del module.q
            module.q = nn.Parameter(held, requires_grad=False)
