"""Becoming one of several: what torchrun says, the groups, what all must agree on; and how one that fails ends all.

torchrun starts the same command several times and tells each in its environment which one it is (RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); SLURM's `srun` can set the same.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import signal
import socket
import sys
import threading
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
from gptft.device import is_out_of_memory, pick_device
from gptft.errors import UserError
from gptft.parallel.ranks import ALONE, Ranks, _here, here
from gptft.parallel.watch import Failure, Watch

NEVER = timedelta(days=30)  # what hangs is found by the watch, and named; a group that gives up names nobody
GRACE = 4.0  # seconds that a rank has to end by itself, once another has failed
ENDS = (signal.SIGTERM, signal.SIGINT)
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
def together(config: Config, device: torch.device | None = None) -> Iterator[Ranks]:
    """The ranks of this job; one process is alone. In it an error of any rank ends all of them, within seconds, and is
    said once; a finished rank goes on to whatever comes next, as one of them. `device`: None for the config's.

    Raises UserError where the ranks differ in what they run.
    """
    if ranks_started() == 1:
        if config.shard == "fsdp":
            raise UserError(
                "--shard fsdp divides a model among processes, and there is one: torchrun --nproc_per_node N"
            )
        yield ALONE
        return
    if here().size > 1:  # a part of a larger whole
        agree(described(config), here())
        yield here()
        return
    ranks = meet(config.stall_timeout)
    try:
        with ended_by_signals():
            ranks.store.set(f"hears/{ranks.rank}", "")  # of others, and is not ended without a word
            ranks = _joined[0] = join(ranks, device or pick_device(rank_device(config.device)))
            _here[0] = ranks
            agree(versions() | described(config), ranks)
            yield ranks
    except BaseException as error:
        end_together(ranks, error)
    finally:
        _here[0] = ALONE  # beyond this, whoever is asked for something is alone again


def meet(stall_timeout: float) -> Ranks:
    """This rank among others, once a process: each can tell of a failure, and hear of one, from here on."""
    if _joined:
        return _joined[0]
    env = os.environ
    store = dist.PrefixStore(f"{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", job_store())
    rank, size = int(env["RANK"]), ranks_started()
    watch = Watch(store, rank, size, stall_timeout, own_address(env["MASTER_ADDR"]))
    local, local_size = int(env.get("LOCAL_RANK", "0")), int(env.get("LOCAL_WORLD_SIZE", "1"))
    ranks = Ranks(rank, size, local, local_size, None, watch, store)
    watch.on_failure = lambda failure: threading.Thread(target=stop_soon, args=(ranks, failure), daemon=True).start()
    atexit.register(watch.close)
    _joined.append(ranks)
    return ranks


def job_store(answers_within: timedelta = timedelta(seconds=60)) -> dist.Store:
    """Where the ranks of this job leave word for one another; torchrun keeps it from one start of them to the next."""
    env = os.environ
    hosts = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # there is one otherwise
    address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = dist.TCPStore(address, port, None, hosts, NEVER, wait_for_workers=False, multi_tenant=True)
    store.set_timeout(answers_within)
    return dist.PrefixStore(f"gptft/{env.get('TORCHELASTIC_RUN_ID', '')}", store)


def note_folder(out_dir: Path) -> None:
    """Let this job, should torchrun start it anew, go on in `out_dir`: the first rank, which has begun a run there."""
    if ranks_started() > 1:
        job_store().compare_set("folder", "", str(out_dir))


def folder_begun() -> str:
    """Where an earlier start of this job has begun a run; empty where none has."""
    store = job_store()
    return store.get("folder").decode() if store.check(["folder"]) else ""


def join(ranks: Ranks, device: torch.device) -> Ranks:
    """Make the groups in which ranks that have met compute together, once a process."""
    if ranks.control is not None:
        return ranks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"groups/{restart}", job_store(NEVER))
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=NEVER)
            atexit.register(leave, ranks.watch)
        ranks = dataclasses.replace(ranks, control=dist.new_group(backend="gloo", timeout=NEVER))
    keep_warnings(ranks)
    return ranks


def leave(watch: Watch) -> None:
    """The end of the process, in order."""
    if watch.failure() is None:
        dist.destroy_process_group()  # else NCCL complains


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Where nothing else answers SIGTERM and Ctrl-C, they end this rank in order: what torchrun sends to the ranks that
    outlive another comes before they know of it, and would end them without a word. Not in a thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame) -> None:
        raise Ended(number)

    earlier = {number: signal.signal(number, end) for number in ENDS}
    yield
    for number, before in earlier.items():  # not after an error: a rank that ends need not be told to
        signal.signal(number, before)


class Ended(UserError):
    """A signal ended this rank at once."""

    at_once = True

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}", 128 + number)


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


def check_enough(examples: int, ranks: Ranks) -> None:
    """Raise UserError where a rank would have nothing to train on."""
    if examples < ranks.size:
        raise UserError(
            f"there are {examples} examples to train on, for {ranks.size} processes: --nproc_per_node {examples}"
        )


def described(config: Config) -> dict:
    """What of the settings must be the same on all ranks: all of them."""
    return {f"--{name}": getattr(config, name) for name in FIELDS}


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
    seldom this rank's, and a signal is often torchrun's, which ends those that outlive another. One rank says it; the
    others end with the same status, and silently. What is a fault of the program's has a traceback besides.
    """
    watch = ranks.watch
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:  # it is ending
            signal.signal(number, signal.SIG_IGN)
    doubtful = isinstance(error, RuntimeError | KeyboardInterrupt) and not is_out_of_memory(error)
    failure = watch.failure(wait=GRACE) if doubtful or getattr(error, "at_once", False) else None
    if failure is None:
        failure = watch.fail(describe(error), status_of(error), said=True)
    if failure.rank == ranks.rank and not is_plain(error):
        traceback.print_exception(error)
    speaks = speaker(ranks, failure)
    listens = failure.rank != ranks.rank or not hears(ranks, speaks)
    if ranks.rank == speaks:
        if may_say(ranks, failure):
            if not ranks.first:
                say(failure)
            elif isinstance(error, UserError) and describe(error) == failure.message:
                raise error
            else:
                raise UserError(words(failure), failure.status) from None
    elif listens and not is_told(ranks, GRACE) and may_say(ranks, failure):
        say(failure)
    raise SystemExit(failure.status) from None


def is_plain(error: BaseException) -> bool:
    """Whether one line says all of it: no fault of the program's."""
    return isinstance(error, UserError | OSError | KeyboardInterrupt | SystemExit) or is_out_of_memory(error)


def describe(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, UserError | KeyboardInterrupt):
        said = str(error) or "interrupted"
    elif isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return " ".join(said.split())


def status_of(error: BaseException) -> int:
    """The exit status that an error means."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "status", 1)


def words(failure: Failure) -> str:
    """What is said of the failure of another rank; of one that could not tell, the watch's words name it already."""
    return f"rank {failure.rank}: {failure.message}" if failure.said else failure.message


def say(failure: Failure) -> None:
    print(f"gptft: {words(failure)}", file=sys.stderr, flush=True)


def speaker(ranks: Ranks, failure: Failure) -> int:
    """Who says it: the first rank that is there, neither dead nor done."""
    for rank in range(ranks.size - 1):
        with contextlib.suppress(RuntimeError):  # the store is gone, with the rank that held it
            left = ranks.store.check([f"beat/{rank}"]) and json.loads(ranks.store.get(f"beat/{rank}"))["left"]
            if not left and (rank != failure.rank or failure.said):
                return rank
    return ranks.size - 1


def hears(ranks: Ranks, rank: int) -> bool:
    """Whether a rank has begun; before, torchrun would end it before it had said anything."""
    with contextlib.suppress(RuntimeError):
        return ranks.store.check([f"hears/{rank}"])
    return False


def may_say(ranks: Ranks, failure: Failure) -> bool:
    """Whether nobody has told the user yet; whoever asks first is to tell. Where the store is gone, the first rank's
    machine has ended, and has told of a failure that was neither its own nor this rank's."""
    with contextlib.suppress(RuntimeError):
        return ranks.store.compare_set("told", "", str(ranks.rank)).decode() == str(ranks.rank)
    return ranks.first or failure.rank in (0, ranks.rank)


def is_told(ranks: Ranks, wait: float) -> bool:
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
    """In a thread: another rank has failed. The main thread may end in order, in a collective that breaks off or by an
    error of its own; where it hangs, the process ends."""

    def speak() -> None:
        if (ranks.rank == speaker(ranks, failure) or not is_told(ranks, 1.0)) and may_say(ranks, failure):
            say(failure)

    time.sleep(2 * GRACE)
    speaking = threading.Thread(target=speak, daemon=True)  # a store on a machine that hangs gives no answer
    speaking.start()
    speaking.join(GRACE)
    sys.stdout.flush()
    os._exit(failure.status)
