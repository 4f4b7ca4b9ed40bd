"""This process among others. A **rank** is one process of several that train together, and the number it goes by.

What ranks tell each other goes through two groups of torch.distributed: tensors of the device through the one that
gradients take, too (NCCL on CUDA, gloo on the CPU), and what the hosts have to say through one of gloo, so that no
device has to be waited for. One process alone is the ordinary case: it hears itself, at no cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptft.errors import UserError
from gptft.parallel.watch import Watch


@dataclass(frozen=True)
class Ranks:
    """`rank` of `size`; `local` of `local_size` on its machine; `control`: the group of the hosts."""

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    control: Any = None
    watch: Watch | None = None
    store: Any = None  # of the rendezvous, for what is said when collectives can no longer be
    notes: list[str] = field(default_factory=list)  # what this rank would have said, were it the first

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks, and writes what all have done."""
        return self.rank == 0

    def gather(self, value: Any) -> list:
        """What each rank has to say, by rank."""
        if self.size == 1:
            return [value]
        self.beat()
        values: list = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def gather_lists(self, values: Sequence) -> list:
        """The lists of all ranks, one after the other."""
        return [value for each in self.gather(list(values)) for value in each]

    def tell(self, value: Any) -> Any:
        """What the first rank says, on all of them."""
        if self.size == 1:
            return value
        self.beat()
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.control)
        return told[0]

    def total(self, *numbers: float) -> list[float]:
        """Each number, added up over the ranks. Whole numbers up to 2^53 are exact."""
        if self.size == 1:
            return list(numbers)
        self.beat()
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self.control)
        return [type(number)(value) for number, value in zip(numbers, sums.tolist(), strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank: so they stop together."""
        return bool(self.total(int(flag))[0])

    def add_up(self, value: Tensor) -> Tensor:
        """A tensor of the device, added up over the ranks, in its place. The device need not be waited for."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share(self, items: Sequence, *blank: Any) -> list:
        """This rank's items of many: every size-th. With a `blank` one, each rank has as many as any other, for passes
        in which all have to take part."""
        mine = list(items[self.rank :: self.size])
        return mine + [*blank] * (-(-len(items) // self.size) - len(mine))

    def first_do(self, work: Callable, *alone: Any) -> Any:
        """Let the first rank of each machine do something, and then the others, who find in a cache what it has made.
        An error of a first rank is raised on all. `alone`: arguments for one process, which the ranks, of whom not all
        are at it, cannot ask together."""
        if self.size == 1:
            return work(*alone)
        made, error = None, None
        with self.pausing():
            for turn in (True, False):
                if (self.local == 0) == turn and error is None:
                    try:
                        made = work()
                    except UserError as caught:
                        error = caught
                errors = [each for each in self.gather(error) if each is not None]
                if errors:
                    raise errors[0] from None
        return made

    def beat(self) -> None:
        """Show the others that this rank gets on."""
        if self.watch:
            self.watch.beat()

    def note(self, phase: str) -> None:
        """Say what this rank is at, for whoever has to name it."""
        if self.watch:
            self.watch.note(phase)

    def pausing(self) -> contextlib.AbstractContextManager:
        """Around work of one rank that takes as long as it takes, while the others wait."""
        return self.watch.pausing() if self.watch else contextlib.nullcontext()


ALONE = Ranks()
_here = [ALONE]


def here() -> Ranks:
    """The ranks that this process is one of: those that `launch.together` made, or itself alone."""
    return _here[0]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, or its part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank may hold a part, as one. All ranks must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
