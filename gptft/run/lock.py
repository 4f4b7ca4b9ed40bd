"""One run a folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gptft.errors import UserError
from gptft.files import lock
from gptft.run.console import say

LOCK = ".lock"


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


def host() -> str:
    import socket

    return socket.gethostname()
