"""The machine of a run: how fast it multiplies matrices, and what is installed."""

from __future__ import annotations

import platform
import time
from importlib import metadata

import torch

from gptft import __version__
from gptft.device import Precision, is_out_of_memory, processor_name

PACKAGES = ("torch", "tiktoken", "numpy")
SIDES = {"cpu": 1024}  # of the square that is multiplied; of a GPU, which is not busy with less, 4096
SECONDS = 0.15  # for which it is done, after a first time that is not counted


def measure_ceiling(precision: Precision) -> float | None:
    """FLOP/s of a large square matrix product on the run's device and in its precision, the fastest of several: what no
    training can exceed, and none reaches. None where the device has no memory left for it."""
    device, n = precision.device, SIDES.get(precision.device.type, 4096)

    def multiply() -> float:
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # which waits for the device
        return time.perf_counter() - began

    try:
        a, b = torch.randn(2, n, n, generator=torch.Generator().manual_seed(0)).to(device, precision.dtype)
        multiply()
        seconds, ends = [multiply()], time.perf_counter() + SECONDS
        while time.perf_counter() < ends:
            seconds.append(multiply())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return 2 * n**3 / min(seconds)


def describe_versions(device: torch.device) -> dict:
    """What the run's figures depend on besides its settings."""
    return {
        "gptft": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "system": platform.platform(),
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
    }
