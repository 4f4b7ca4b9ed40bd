"""How much memory a run has taken."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> int | None:
    """The most memory in use so far, bytes: the GPU's on CUDA, else the process's; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
