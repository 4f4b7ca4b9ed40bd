"""What each of several ranks adds to the metrics of a step: its memory, and how much of the time it has waited."""

from __future__ import annotations

import time

import torch

from gptft.parallel.ranks import here
from gptft.run.memory import peak_memory


class OfRanks:
    """Measures from `begin` to `measure`."""

    def __init__(self, device: torch.device, log_every: int) -> None:
        self.device, self.log_every = device, log_every
        self.begin()

    def begin(self) -> None:
        """What is measured begins here: saving and evaluating are no part of a step."""
        self.wall, self.busy = time.perf_counter(), time.thread_time()

    def measure(self, step: int) -> dict:
        """By rank, `rank_memory_bytes`, the most so far, and on the CPU `rank_waiting`, the share of the step in which
        its thread did not compute: it waits for the others then, for its data, or for a core. A GPU computes beside the
        thread, whose time says nothing. {} for one process alone, and where the step is not logged."""
        if here().size == 1 or step % self.log_every:
            return {}
        wall, busy = time.perf_counter() - self.wall, time.thread_time() - self.busy
        waiting = max(0.0, 1 - busy / max(wall, 1e-9)) if self.device.type == "cpu" else None
        found = here().gather((peak_memory(self.device), waiting))
        memory = {"rank_memory_bytes": [memory for memory, _ in found]}
        return memory if waiting is None else memory | {"rank_waiting": [share for _, share in found]}
