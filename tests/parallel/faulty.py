"""train.py with a fault in it: a rank that kills itself, stops, raises or hangs where a test wants it to.

The environment's GPTFT_FAULTS is a JSON object: `folder`, for notes to the test; `faults`, a list of {rank, at, do} and
perhaps `call`, the how-many-th time at that place (1), and `restart`, in which start of the job by torchrun (0).
"""

import errno
import importlib
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

PLACES = {  # the phases of a run, by a function that each rank calls there, by the name that its caller has for it
    "reading": "gptft.finetuning.load_data",
    "rehearsal": "gptft.finetuning.rehearse",
    "answers": "gptft.generation.decode",
    "training": "gptft.training.backward",
    "evaluation": "gptft.training.evaluate_loss",
    "saving": "gptft.run.folder.save_together",
    "writing": "gptft.checkpoint.write_tensors",  # the first rank's
    "going on": "gptft.finetuning.load_run_state",
    "results": "gptft.finetuning.write_results",  # the first rank's, when the others may have ended
}


def raise_it(error):
    raise error


def out_of_memory():
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


DEEDS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "raise": lambda: raise_it(ValueError("a fault of the test's")),
    "no memory": lambda: raise_it(MemoryError()),
    "no memory of a GPU": out_of_memory,
    "disk full": lambda: raise_it(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "hang": lambda: time.sleep(3600),
    "warn": lambda: importlib.import_module("warnings").warn("only here", UserWarning, stacklevel=2),
}


def plant(fault, folder):
    """Let a function of gptft do something else first, once, when it is called for the `call`-th time."""
    module, _, name = PLACES[fault["at"]].rpartition(".")
    module, calls = importlib.import_module(module), []
    function = getattr(module, name)

    def faulty(*args, **options):
        calls.append(1)
        if len(calls) == fault.get("call", 1):
            note = {"pid": os.getpid(), "time": time.time(), **fault}
            (folder / f"fault-{os.getpid()}-{fault['at']}").write_text(json.dumps(note))
            DEEDS[fault["do"]]()
        return function(*args, **options)

    setattr(module, name, faulty)


def main():
    plan, rank = json.loads(os.environ["GPTFT_FAULTS"]), int(os.environ.get("RANK", "0"))
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    folder = Path(plan["folder"])
    (folder / f"pid-{os.getpid()}").write_text(str(rank))
    for fault in plan["faults"]:
        if fault["rank"] == rank and fault.get("restart", 0) == restart:
            plant(fault, folder)
    from gptft.commands import train
    from gptft.commands.common import run, run_command

    run(partial(run_command, train))


if __name__ == "__main__":
    sys.argv[0] = str(Path(__file__).resolve().parents[2] / "train.py")  # what the user would have called
    main()
