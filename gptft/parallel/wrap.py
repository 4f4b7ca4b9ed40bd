"""A model on several ranks, by torch's own engines.

    ddp   every rank has the whole model; the gradients are added up, bucket by bucket, beside the backward pass
          (DistributedDataParallel, arXiv 2006.15704)
    fsdp  every rank holds a part of each tensor, of its gradient and of its optimizer state; the two halves of a block
          are gathered when they are computed, and let go again (fully_shard, after arXiv 1910.02054 and 2304.11277)

The gradient is that of one process on the whole window, however many targets each rank has of it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from gptft.adapters.frozen import Int8Linear
from gptft.adapters.lora import adapters_of
from gptft.collate import Batch, collate
from gptft.device import Precision, random_state, set_random_state
from gptft.loss import HeadLosses, Objective, head_losses
from gptft.model import GPT
from gptft.parallel.ranks import here, local


class OfRanks(Objective):
    """The objective of one rank, whose gradient the engine takes the mean of with those of the others: each counts as
    many times as there are ranks, so that the mean is their sum."""

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, each = super().forward(batch)
        return loss * dist.get_world_size(), each


class Replicated(DistributedDataParallel):
    """`OfRanks` under DDP, which is to be had as one process has it: `model`, and plain passes in evaluation."""

    def __init__(self, model: GPT, head_losses: HeadLosses = head_losses) -> None:
        known = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 has another name for it
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        objective = OfRanks(model, head_losses)
        super().__init__(objective, gradient_as_bucket_view=True, **{buffers: False})  # they never change
        self.settle_buckets()

    def settle_buckets(self) -> None:
        """Take an empty pass. After its first backward pass DDP divides the gradients anew, in the order in which they
        came, and sums over three ranks or more are rounded by where a number stands: a run that goes on would take its
        first step otherwise than one that was never broken off."""
        device = self.model.device
        before = random_state(device)
        loss, _ = self(collate([], 0).to(device))
        loss.backward()
        self.zero_grad(set_to_none=True)
        set_random_state(before, device)

    @property
    def model(self) -> GPT:
        return self.module.model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return super().forward(batch) if torch.is_grad_enabled() else self.module(batch)


def synced_behind_last(objective: nn.Module, batches: Sequence[Batch]) -> Iterator[Batch]:
    """The batches one by one; DDP adds up the gradients of the ranks behind the last of them, and not behind each."""
    for batch in batches:
        if isinstance(objective, Replicated):
            objective.require_backward_grad_sync = batch is batches[-1]
        here().beat()  # who has not come here is the one that the others wait for
        yield batch


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
    if shards_whole_numbers(mesh):
        keep_in_bits(model)
    elif any(isinstance(module, Int8Linear) for module in model.modules()):
        warnings.warn("this torch cannot share out weights in 8 bits: they are whole on each rank", stacklevel=2)
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


class ScalerOfParts(torch.amp.GradScaler):
    """A scaler of fp16's gradients of which each rank holds a part: an overflow in any part counts for all.

    torch's own ShardedGradScaler does the same, but its flag has a shape that fused optimizers do not take, and may be
    more than the 1 that they look for.
    """

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16) -> dict[torch.device, Tensor]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, inv_scale)
        dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)
        return {found_inf.device: found_inf}


def shards_whole_numbers(mesh: DeviceMesh) -> bool:
    """Whether this torch shares out parameters that are no floating-point numbers; 2.9 does not."""
    probe = nn.Module()
    probe.q = nn.Parameter(torch.zeros(mesh.size(), dtype=torch.int8), requires_grad=False)
    try:
        fully_shard(probe, mesh=mesh)
    except RuntimeError:
        return False
    return True


def keep_in_bits(model: GPT) -> None:
    """Frozen weights in 8 bits are buffers, which would stay whole on each rank: as parameters they are shared."""
    for module in model.modules():
        if isinstance(module, Int8Linear):
            held = module.q
            del module.q
            module.q = nn.Parameter(held, requires_grad=False)
