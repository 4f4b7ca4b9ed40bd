"""What one process of `python -m benchmarks ranks` does: `torchrun -m benchmarks.ranks_worker TASK`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from gptft.architecture import GPTConfig
from gptft.checkpoint import load_tensors
from gptft.collate import collate
from gptft.config import Config
from gptft.data.examples import Example, Split
from gptft.device import Precision
from gptft.loss import Objective
from gptft.model import GPT
from gptft.optim import make_optimizer
from gptft.parallel import ranks
from gptft.parallel.launch import together
from gptft.parallel.ranks import here, local
from gptft.parallel.saving import load_together, save_together
from gptft.parallel.sharded import Saver, load_parts
from gptft.parallel.wrap import OfRanks, Replicated, shard
from gptft.run.memory import peak_memory
from gptft.training import TrainState, train

CPU = torch.device("cpu")


class Made(Split):
    """Random examples in memory, all targets."""

    def __init__(self, n: int, length: int, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        object.__setattr__(self, "ids", rng.integers(1, vocab_size, (n, length + 1)).astype(np.uint16))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Example:
        return Example(self.ids[i], [(1, len(self.ids[i]))], ("made", i))

    @property
    def lengths(self) -> np.ndarray:
        return np.full(len(self), self.ids.shape[1])

    @property
    def target_counts(self) -> np.ndarray:
        return self.lengths - 1


def received() -> int:
    """Bytes that came in over the loopback since the machine was started: all that ranks on it send each other."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def work(task: dict) -> dict:
    """Train some steps as the task says, as one of several ranks or beside others alone."""
    torch.set_num_threads(1)
    config = Config(data=("made",), batch_size=task["batch_size"], max_steps=task["steps"], lr=1e-4, shard="auto")
    with together(config, CPU) as group:
        size = group.size if task["engine"] != "alone" else 1
        before = peak_memory(CPU)
        shape = GPTConfig(task["vocab_size"], task["length"], n_layer=task["n_layer"], n_head=6, n_embd=task["n_embd"])
        model, precision = GPT.create(shape, seed=0).train(), Precision("fp32", CPU)
        if task["engine"] == "fsdp":
            model = shard(model, precision)
        state = TrainState(model, make_optimizer(model, config), precision)
        objective = {"alone": Objective, "ddp": Replicated, "fsdp": OfRanks}[task["engine"]](model)
        config.grad_accum = size
        data = Made(task["steps"] * config.batch_size * size, task["length"], task["vocab_size"])
        to_batch = partial(collate, pad_id=0)
        seconds, bytes_in, losses, gradients = [], [], [], 0
        with alone_where(task["engine"] == "alone"):
            group.tell(None)
            moved = received()
            for event in train(state, objective, config, data, Split(data, np.zeros(0, int)), to_batch):
                now = received()
                seconds.append(event.iter_time)
                bytes_in.append(now - moved)
                losses.append(event.loss)
                moved = now
        group.gather(None)
        kept = [value for values in state.optimizer.state.values() for value in values.values()]
        tensors = {"weights": list(model.parameters()), "optimizer": [each for each in kept if each.dim()]}
        gradients = sum(local(parameter).nbytes for parameter in model.parameters() if parameter.requires_grad)
        outcome = {
            "seconds_a_step": median(seconds[2:]),
            "bytes_a_step": median(bytes_in[2:]),
            "losses": losses[-1],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "held_bytes": gradients + sum(local(each).nbytes for some in tensors.values() for each in some),
            "resident_bytes": peak_memory(CPU) - before,
        }
        if task["engine"] != "alone":
            outcome |= saving(state, task["engine"])
        return {"ranks": group.gather(outcome)}


@contextlib.contextmanager
def alone_where(alone: bool) -> Iterator[None]:
    """Make each process of several alone, within."""
    before = ranks._here[0]
    ranks._here[0] = ranks.ALONE if alone else before
    try:
        yield
    finally:
        ranks._here[0] = before


def saving(state: TrainState, engine: str) -> dict:
    """Seconds that training waits for a checkpoint with all that going on takes, until it is in its place, and until
    it is loaded again."""
    folder = Path(here().tell(tempfile.mkdtemp(prefix="gptft-bench-") if here().first else ""))
    path, resume = folder / "step-000001", {"state": state.state_dict(), "fingerprint": {}}
    saver = Saver() if engine == "fsdp" else None
    here().gather(None)
    began = time.perf_counter()
    if saver:
        saver.begin(path, state.model, state.optimizer, None, 1, resume)
        waited = time.perf_counter()
        saver.settle(wait=True)
    else:
        save_together(path, state.model, None, 1, resume)
        waited = time.perf_counter()
    here().gather(None)
    saved = time.perf_counter()
    if saver:
        load_parts(path, state.model, state.optimizer)
    else:
        load_together(state.model, path)
        state.load_state_dict(load_tensors(path / "resume.pt")["state"])
    here().gather(None)
    loaded = time.perf_counter()
    if here().first:
        shutil.rmtree(folder)
    return {"waits_seconds": waited - began, "save_seconds": saved - began, "load_seconds": loaded - saved}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = work(given)
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(given["out"]).write_text(json.dumps(found))
