"""The bar that long work shows on a terminal; where standard error is none, nothing is written. Of several processes
that work together the first shows one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable | None = None, unit: str = "it", quiet: bool = False, **how) -> tqdm:
    """As tqdm, and gone when the work is done. `unit`: what is counted, in the plural. `quiet`: no bar at all."""
    quiet = quiet or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
    return tqdm(items, unit=f" {unit}", disable=quiet, leave=False, **how)
