"""train.py with a fault in it: a rank that kills itself, stops, raises, hangs or differs where a test wants it to.

The environment's GPTFT_FAULTS is a JSON object: `folder`, for notes to the test; `faults`, a list of {rank, at, do} and
perhaps `what`, of the deed; `call`, the how-many-th time at that place (1); `restart`, the start by torchrun (0).
"""

import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

PLACES = {  # the phases of a run, each by a function that is called there, under the name that its caller has for it
    "reading": "gptft.finetuning:load_data",
    "rehearsal": "gptft.finetuning:rehearse",
    "answers": "gptft.generation:decode_continuously",
    "going on": "gptft.finetuning:load_run_state",
    "training": "gptft.training:backward",
    "evaluation": "gptft.training:evaluate_loss",
    "saving": "gptft.run.folder:Keeper.save",
    "writing": "gptft.checkpoint:write_tensors",  # the first rank's
    "part": "gptft.parallel.sharded:Writer.write_data",  # each rank's, beside the training, of a model in parts
    "completing": "gptft.parallel.sharded:Saver._complete",
    "results": "gptft.finetuning:write_results",  # the first rank's, when the others may have ended
}


def out_of_memory():
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


ERRORS = {
    "raise": lambda: ValueError("a fault of the test's"),
    "no memory": MemoryError,
    "no memory of a GPU": out_of_memory,
    "disk full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}


def do(deed, what):
    if deed.startswith("SIG"):
        time.sleep(what or 0)
        os.kill(os.getpid(), signal.Signals[deed])
    elif deed in ERRORS:
        raise ERRORS[deed]()
    elif deed == "hang":
        time.sleep(3600)
    elif deed == "warn":
        warnings.warn(what, UserWarning, stacklevel=1)
    elif deed == "flags":
        sys.argv += what
    elif deed == "sleep":
        time.sleep(what)
    elif deed == "chdir":
        os.chdir(what)
    elif deed == "set":  # [name, value]: a constant of gptft's
        module, _, name = what[0].partition(":")
        setattr(importlib.import_module(module), name, what[1])
    elif deed == "GPUs":
        import torch

        torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: what)
    else:
        raise AssertionError(deed)


def commit(fault, folder):
    """Do it, and leave a note."""
    note = folder / f"fault-{os.getpid()}-{len(list(folder.glob('fault-*')))}"
    note.with_suffix(".new").write_text(json.dumps({"pid": os.getpid(), "time": time.time(), **fault}))
    note.with_suffix(".new").rename(note)  # whole at once
    do(fault["do"], fault.get("what"))


def plant(fault, folder):
    """Let a function of gptft do something else first, once, when it is called for the `call`-th time."""
    module, _, names = PLACES[fault["at"]].partition(":")
    owner, calls = importlib.import_module(module), []
    *owners, name = names.split(".")
    for each in owners:
        owner = getattr(owner, each)
    function = getattr(owner, name)

    def faulty(*args, **options):
        calls.append(1)
        if len(calls) == fault.get("call", 1):
            commit(fault, folder)
        return function(*args, **options)

    setattr(owner, name, faulty)


def main():
    plan, rank = json.loads(os.environ["GPTFT_FAULTS"]), int(os.environ.get("RANK", "0"))
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    folder = Path(plan["folder"])
    began = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]  # a number is given again to another
    (folder / f"pid-{os.getpid()}-{rank}-{began}").touch()
    for fault in plan["faults"]:
        if fault["rank"] in (rank, "all") and fault.get("restart", 0) == restart:
            if fault["at"] in PLACES:
                plant(fault, folder)
            elif fault["at"] == "start":
                do(fault["do"], fault["what"])
            else:  # whenever that is
                threading.Timer(fault["at"], commit, (fault, folder)).start()
    from gptft.commands import train
    from gptft.commands.common import run, run_command

    run(partial(run_command, train))


if __name__ == "__main__":
    sys.argv[0] = str(Path(__file__).resolve().parents[2] / "train.py")  # what the user would have called
    main()
