"""Becoming one of several: what torchrun says, the groups, what all must agree on; and how one that fails ends all.

torchrun starts the same command several times and tells each in its environment which one it is (RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); SLURM's `srun` can set the same.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from gptft.config import FIELDS, Config
from gptft.errors import UserError
from gptft.parallel.ranks import ALONE, Ranks, _here, here
from gptft.parallel.watch import Failure, Watch

NEVER = timedelta(days=30)  # what hangs is found by the watch, and named; a group that gives up names nobody
GRACE = 4.0  # seconds that a rank has to end by itself, once another has failed

_joined: list[Ranks] = []


def ranks_started() -> int:
    """How many processes were started together, as the environment has it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def restarted() -> bool:
    """Whether torchrun has started this job anew, after one of its processes had failed (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank_device(name: str) -> str:
    """The device of this rank, where several were started: each has a GPU of its machine to itself. Raises UserError
    where they would have to share one."""
    if ranks_started() == 1:
        return name
    local, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if torch.cuda.is_available() and local_size > (found := torch.cuda.device_count()):
            raise UserError(
                f"--device cuda: {local_size} processes were started on a machine with {found} of it: "
                f"--nproc_per_node {found}"
            )
        return f"cuda:{local}"
    if name != "cpu":
        raise UserError(f"--device {name}: {local_size} processes were started, which would share it; cuda or cpu")
    return name


@contextlib.contextmanager
def together(config: Config, device: torch.device) -> Iterator[Ranks]:
    """The ranks of this job; one process is alone. In it an error of any rank ends all of them, within seconds, and is
    said once; a finished rank goes on to whatever comes next, as one of them.

    Raises UserError where the ranks differ in what they run.
    """
    ranks = join(config, device)
    if ranks.size == 1:
        yield ranks
        return
    before, _here[0] = here(), ranks  # beyond this, whoever is asked for something is alone again
    try:
        agree({**versions(), **{f"--{name}": getattr(config, name) for name in FIELDS}}, ranks)
        yield ranks
    except BaseException as error:
        end_together(ranks, error)
    finally:
        _here[0] = before


def join(config: Config, device: torch.device) -> Ranks:
    """Find the other ranks, once a process."""
    if ranks_started() == 1:
        return ALONE
    if _joined:
        return _joined[0]
    env = os.environ
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=NEVER)
        control = dist.new_group(backend="gloo", timeout=NEVER)
    master, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = dist.TCPStore(master, port, is_master=False, timeout=timedelta(seconds=60))
    store = dist.PrefixStore(f"gptft/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    rank, size = dist.get_rank(), dist.get_world_size()
    watch = Watch(store, rank, size, config.stall_timeout, own_address(master))
    local, local_size = int(env.get("LOCAL_RANK", "0")), int(env.get("LOCAL_WORLD_SIZE", "1"))
    ranks = Ranks(rank, size, local, local_size, control, watch, store)
    watch.on_failure = lambda failure: stop_soon(ranks, failure)
    atexit.register(leave, ranks)
    _joined.append(ranks)
    keep_warnings(ranks)
    return ranks


def leave(ranks: Ranks) -> None:
    """The end of the process, in order."""
    ranks.watch.close()


def own_address(master: str) -> str:
    """The address by which other machines reach this one: that from which it reaches the first."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # nothing is sent
        return probe.getsockname()[0]
    return "127.0.0.1"


def versions() -> dict[str, str]:
    """What must be the same on all machines for all ranks to compute the same."""
    package = Path(__file__).resolve().parent.parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return {
        "the code of gptft": code.hexdigest()[:12],
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy", "tiktoken")},
    }


def agree(values: Mapping, ranks: Ranks) -> None:
    """Raise UserError, the same on all, where a rank has another value than the first, and say of which."""
    values = {name: value for name, value in values.items() if name != "machine"}  # results are close on another
    found = ranks.gather((dict(values), socket.gethostname()))
    first = found[0][0]
    for rank, (theirs, machine) in enumerate(found):
        differing = [name for name in {**first, **theirs} if theirs.get(name) != first.get(name)]
        if differing:
            said = "; ".join(f"{name} is {theirs.get(name)!r}, not {first.get(name)!r}" for name in differing[:3])
            raise UserError(f"rank {rank} ({machine}) differs from rank 0: {said}")


def keep_warnings(ranks: Ranks) -> None:
    """Warnings of ranks that do not speak are kept, to be said by the first; its own go their way, and are kept for
    comparison."""
    show = warnings.showwarning

    def keep(message, category, filename, lineno, file=None, line=None) -> None:
        ranks.notes.append(f"{category.__name__}: {' '.join(str(message).split())}")
        if ranks.first:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = keep


def end_together(ranks: Ranks, error: BaseException) -> None:
    """Tell the others of an error, or hear from them of what is behind it: in a collective that broke off the fault is
    seldom this rank's. One rank says it; the others end with the same status, and silently.
    """
    watch = ranks.watch
    mine = isinstance(error, UserError | SystemExit | KeyboardInterrupt)
    failure = None if mine else watch.failure(wait=GRACE)
    if failure is None:
        failure = watch.fail(describe(error), getattr(error, "status", 1), isinstance(error, UserError))
    if isinstance(error, KeyboardInterrupt) or (failure.rank == ranks.rank and not failure.said):
        if not ranks.first and not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error)
        raise error
    speaks = ranks.rank == speaker(failure)
    if speaks:
        tell(ranks)
        if failure.rank == ranks.rank or describe(error) == failure.message:
            raise error
        raise UserError(describe_failure(failure), failure.status) from None
    if not is_told(ranks, GRACE):
        print(f"gptft: {describe_failure(failure)}", file=sys.stderr, flush=True)
    raise SystemExit(failure.status) from None


def describe(error: BaseException) -> str:
    """An error in one line."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())


def describe_failure(failure: Failure) -> str:
    """What a rank says of the failure of another."""
    return failure.message if not failure.said else f"rank {failure.rank}: {failure.message}"


def speaker(failure: Failure) -> int:
    """Who says it: the first rank, unless it is the one that died."""
    return 1 if failure.rank == 0 and not failure.said else 0


def tell(ranks: Ranks) -> None:
    """Let the others know that the user is told."""
    with contextlib.suppress(RuntimeError):  # the store is gone, with the rank that held it
        ranks.store.set("told", "1")


def is_told(ranks: Ranks, wait: float = 0.0) -> bool:
    """Whether the user is told, within so many seconds."""
    ends = time.monotonic() + wait
    with contextlib.suppress(RuntimeError):
        while not ranks.store.check(["told"]):
            if time.monotonic() >= ends:
                return False
            time.sleep(0.1)
        return True
    return False


def stop_soon(ranks: Ranks, failure: Failure) -> None:
    """In the watch's thread: another rank has failed. The main thread may end in order, in a collective that breaks off
    or by an error of its own; where it hangs, the process ends."""
    time.sleep(2 * GRACE)
    if ranks.rank == speaker(failure) and not is_told(ranks):
        tell(ranks)
        print(f"gptft: {describe_failure(failure)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(failure.status)
