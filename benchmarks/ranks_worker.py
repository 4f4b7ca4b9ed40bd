"""What one process of `python -m benchmarks ranks` does: `torchrun -m benchmarks.ranks_worker TASK`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from gptft.architecture import GPTConfig
from gptft.collate import collate
from gptft.config import Config
from gptft.data.examples import Example, Split
from gptft.device import Precision
from gptft.loss import Objective
from gptft.model import GPT
from gptft.optim import make_optimizer
from gptft.parallel.launch import together
from gptft.parallel.ranks import here, local
from gptft.parallel.wrap import Replicated, shard
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
    with together(config, CPU) as ranks:
        size = ranks.size if task["engine"] != "alone" else 1
        before = peak_memory(CPU)
        shape = GPTConfig(task["vocab_size"], task["length"], n_layer=task["n_layer"], n_head=6, n_embd=task["n_embd"])
        model, precision = GPT.create(shape, seed=0).train(), Precision("fp32", CPU)
        if task["engine"] == "fsdp":
            model = shard(model, precision)
        objective = Objective(model)
        state = TrainState(model, make_optimizer(model, config), precision)
        if task["engine"] == "ddp":
            objective = Replicated(objective)
        config.grad_accum = size
        data = Made(task["steps"] * config.batch_size * size, task["length"], task["vocab_size"])
        to_batch = partial(collate, pad_id=0)
        seconds, bytes_in, losses, gradients = [], [], [], 0
        with alone_where(task["engine"] == "alone"):
            ranks.tell(None)
            moved = received()
            for event in train(state, objective, config, data, Split(data, np.zeros(0, int)), to_batch):
                now = received()
                seconds.append(event.iter_time)
                bytes_in.append(now - moved)
                losses.append(event.loss)
                moved = now
        ranks.gather(None)
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
            outcome |= saving(state, task, config)
        return {"ranks": [*ranks.gather(outcome)]}


def alone_where(alone: bool):
    """Make each process of several alone, within."""
    import contextlib

    from gptft.parallel import ranks

    @contextlib.contextmanager
    def apart():
        before, ranks._here[0] = ranks._here[0], ranks.ALONE
        try:
            yield
        finally:
            ranks._here[0] = before

    return apart() if alone else contextlib.nullcontext()


def saving(state: TrainState, task: dict, config: Config) -> dict:
    """Seconds to save with all that going on takes, and to load it again."""
    from gptft.parallel.saving import load_together, save_together

    folder = here().tell(tempfile.mkdtemp(prefix="gptft-bench-") if here().first else None)
    began = time.perf_counter()
    save_together(Path(folder) / "last", state.model, None, 1, {"state": state.state_dict(), "fingerprint": {}})
    here().gather(None)
    saved = time.perf_counter()
    load_together(state.model, Path(folder) / "last")
    here().gather(None)
    loaded = time.perf_counter()
    if here().first:
        import shutil

        shutil.rmtree(folder)
    return {"save_seconds": saved - began, "load_seconds": loaded - saved}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = work(given)
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(given["out"]).write_text(json.dumps(found))
