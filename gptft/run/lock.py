"""One run a folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gptft.errors import UserError
from gptft.files import lock
from gptft.parallel.ranks import Ranks
from gptft.run.console import say

LOCK = ".lock"
TOKEN = ".ranks"  # by which other ranks tell that they see the folder
SHARED_WITHIN = 10.0  # seconds


@contextlib.contextmanager
def claim(out_dir: Path, name: str = LOCK) -> Iterator[None]:
    """Hold `out_dir` for this process, or raise UserError where another holds it; `name`: of the file that is locked.

    The lock is the operating system's (flock), so a crash or a kill releases it; NFS passes it on to its server. On a
    file system that knows no locks this is said, and the run goes on. The file stays: deleting it would let a third
    process lock another file of the same name.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / name, "a+") as file:
        try:
            lock(file.fileno())
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"--out_dir {out_dir}: {owner} is training in it; choose another") from None
        except OSError as error:
            say(f"note: {out_dir} cannot be locked ({error.strerror}): see to it that no other run writes there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {host()}")
        file.flush()
        yield


@contextlib.contextmanager
def claim_first(out_dir: Path, ranks: Ranks, name: str = LOCK) -> Iterator[None]:
    """`claim`, by the first of several ranks, for all of them. Raises UserError where another does not see the folder
    that the first sees."""
    made = [path for path in (out_dir, *out_dir.parents) if not path.exists()]
    with claim(out_dir, name) if ranks.first else contextlib.nullcontext():
        if ranks.size > 1:
            token = ranks.tell(f"{host()} {os.getpid()} {time.time()}")
            if ranks.first:
                (out_dir / TOKEN).write_text(token)
            ranks.tell(None)
            blind = ranks.gather(None if sees(out_dir / TOKEN, token) else host())
            if ranks.first:
                (out_dir / TOKEN).unlink()
            if any(blind):
                if ranks.first and made:
                    (out_dir / name).unlink()
                    for path in made:
                        path.rmdir()
                named = ", ".join(f"rank {rank} ({machine})" for rank, machine in enumerate(blind) if machine)
                raise UserError(
                    f"--out_dir {out_dir}: {named} cannot see what rank 0 writes there: it must be on a file system "
                    "that all machines share"
                )
        yield


def sees(path: Path, content: str) -> bool:
    """Whether a file is there that another machine has just written: a shared file system may take a moment."""
    ends = time.monotonic() + SHARED_WITHIN
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == content:
                return True
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)


def host() -> str:
    import socket

    return socket.gethostname()
