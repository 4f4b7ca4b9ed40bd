"""Ctrl-C, SIGTERM and SIGUSR1: a run ends in order, and says how to go on.

SLURM sends SIGTERM before it takes a job's machines away, and whatever `--signal` names (SIGUSR1, as a rule) earlier.
torchrun hands on SIGTERM and Ctrl-C only, so that under it `--signal=TERM@120` is the one to ask for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from gptft.errors import UserError
from gptft.parallel.ranks import here

ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows: two


def how_to_resume(out_dir: Path) -> str:
    """The command that goes on with a run, as this one was started."""
    starter = "python" if here().size == 1 else f"torchrun --nproc_per_node {here().local_size}"
    command = "train.py" if Path(sys.argv[0]).name == "train.py" else "-m gptft train"
    return f"Go on with: {starter} {command} --resume --out_dir {out_dir}"


class Interruption(UserError):
    """A run was stopped by a signal (`number`) and can be resumed in `out_dir`. `at_once`: wherever this rank was, and
    others may have ended otherwise."""

    def __init__(self, what: str, number: int, out_dir: Path, at_once: bool = False) -> None:
        self.what, self.number, self.at_once = what, number, at_once
        super().__init__(f"{what}. {how_to_resume(out_dir)}", 128 + number)


@contextlib.contextmanager
def handle_signals(handler) -> Iterator[None]:
    """Let `handler(number, frame)` answer these signals; only the main thread may set this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, handler) for number in ENDS}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


@contextlib.contextmanager
def resumable(out_dir: Path) -> Iterator[None]:
    """Before and after the loop: a signal ends the run at once, and the user is told how to go on."""

    def stop(number: int, frame) -> None:
        raise Interruption("stopped; what was saved is kept", number, out_dir, at_once=True)

    with handle_signals(stop):
        yield


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """In the loop: collect signals in a list, so that a step can be ended in order; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def note(number: int, frame) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        if here().size > 1:  # the others have to be asked first; one may have died, for which torchrun stops the rest
            return
        # os.write, since a handler may interrupt a print and must not enter another; whoever read along may be gone
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping: saving the last completed step ... (again Ctrl-C: at once)\n")

    with handle_signals(note):
        yield caught
