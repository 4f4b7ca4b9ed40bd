"""How long a thread spins at a barrier before it sleeps. No torch: what is set here is read when torch is loaded.

A step of a small model passes hundreds of barriers between threads. By default one that waits there spins for
milliseconds; where any other process has a core, all of them wait for whoever has none, and a small model becomes many
times slower. Sleeping sooner helps there, and costs something where the cores are free (`python -m benchmarks
threads`), so it depends on what else is running.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SPIN = {"GOMP_SPINCOUNT": "1000"}  # rounds, in the OpenMP library that comes with torch on Linux
SETTING = " ".join(f"{name}={value}" for name, value in SPIN.items())
LOOKS, BETWEEN = 5, 0.004  # seconds
_chosen: list[bool] = []  # that it was set here


def is_set() -> bool:
    """Whether somebody has chosen, the user or a command."""
    return bool(os.environ.keys() & {"OMP_WAIT_POLICY", *SPIN})


def set_spin() -> None:
    """What every command does first: short waits where another process needs a core. The user's own choice stands."""
    if not is_set() and is_crowded(threads_expected()):
        os.environ.update(SPIN)
        _chosen.append(True)


def is_crowded(threads: int) -> bool:
    """Whether `threads` of this process and all else that runs now need more cores than there are."""
    return threads > 1 and others_running() + threads > (os.cpu_count() or 1)


def others_running() -> int:
    """Threads that are running, or would if they had a core, besides this one: those that are at it in several looks,
    a fiftieth of a second in all. 0 where the system does not tell."""
    counts = []
    try:
        for _ in range(LOOKS):
            time.sleep(BETWEEN)
            counts.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1)
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, min(counts))


def threads_expected() -> int:
    """How many threads torch will use by itself: one for each core that this process may have, not counting what
    cores have twice."""
    try:
        return int(os.environ["OMP_NUM_THREADS"])
    except (KeyError, ValueError):
        pass
    try:
        twice = Path("/sys/devices/system/cpu/smt/active").read_text().strip() == "1"
        return max(1, len(os.sched_getaffinity(0)) // (2 if twice else 1))
    except (OSError, AttributeError):  # not Linux: nothing is set there
        return 1


def describe_spin(threads: int) -> str:
    """What a run says of it; empty where there is nothing to say."""
    if _chosen:
        return f"note: threads wait shortly for each other ({SETTING}), since other processes are busy"
    if is_set() or not is_crowded(threads):
        return ""
    return f"note: other processes are busy: small models train faster beside them with {SETTING} set beforehand"
