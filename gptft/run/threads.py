"""How long a thread spins at a barrier before it sleeps. No torch: what is set here is read when torch is loaded.

A step of a small model passes hundreds of barriers between threads. By default one that waits there spins for
milliseconds; where any other process has a core, all of them wait for whoever has none, and a small model becomes many
times slower (`python -m benchmarks threads`).
"""

from __future__ import annotations

import os

SPIN = {"GOMP_SPINCOUNT": "2000"}  # rounds, in the OpenMP library that comes with torch on Linux


def is_set() -> bool:
    """Whether somebody has chosen, the user or a command."""
    return bool(os.environ.keys() & {"OMP_WAIT_POLICY", *SPIN})


def set_spin() -> None:
    """What every command does first; the user's own choice stands."""
    if not is_set():
        os.environ.update(SPIN)


def describe_spin(threads: int) -> str:
    """What whoever imported torch before may want to know; empty where there is nothing to say."""
    if threads == 1 or is_set() or not hasattr(os, "sched_getaffinity"):  # Linux
        return ""
    setting = " ".join(f"{name}={value}" for name, value in SPIN.items())
    return f"note: beside other busy processes small models train faster with {setting} set before Python starts"
