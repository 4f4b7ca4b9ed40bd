"""Devices, numerical precision, random state and memory."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

from gptft.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto`: cuda, else mps, else cpu. A device that is not there: UserError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(word for word in ("cuda", "mps", "cpu") if available[word])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: there is no device {name!r}") from None
    if not available.get(device.type) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has no such device")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else pinned memory and the generator would take up memory of device 0
    return device


def processor_name(device: torch.device) -> str:
    """What computes, by the maker's name as far as it can be told: another one rounds otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):  # Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in [*lines, "model name:"] if line.startswith("model name"))
    return platform.processor()


def keep_freed_memory(keep: bool = True) -> bool:
    """Tell glibc's allocator to keep what is freed, or to give it back as by default. True where it could be told.

    A step frees and takes again hundreds of megabytes. By default every large block goes back to the system and comes
    anew, page by page. Nothing is computed otherwise; peak memory grows; it holds for the whole process.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h; there are the defaults, too
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, Windows, musl
        return False
    most, threshold = (0, 2**31 - 1) if keep else (65536, 128 * 1024)
    told = sys.platform == "linux" and bool(mallopt(M_MMAP_MAX, most) and mallopt(M_TRIM_THRESHOLD, threshold))
    if told and not keep:
        return_freed_memory()
    return told


def return_freed_memory() -> None:
    """Have glibc's allocator give back to the system what is free between blocks that are in use."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: macOS, Windows, musl
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device: torch.device, shared_by: int = 1) -> float:
    """Bytes that one of so many processes may take; infinitely many where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(free) * 1024 / shared_by
    except (OSError, StopIteration):  # not Linux
        return float("inf")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively; emulated, it would be slower than fp32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def random_state(device: torch.device) -> dict:
    """torch's random state on the CPU and on the device that trains, if that is another."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def rows_here(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that this process holds, and the number of the first: all, or those of its part, of n rows
    on N ranks n / N rounded up each, in order."""
    if not hasattr(tensor, "to_local"):
        return tensor, 0
    mesh = tensor.device_mesh
    return tensor.to_local(), min(tensor.size(0), -(-tensor.size(0) // mesh.size()) * mesh.get_local_rank())


def put_rows(target: Tensor, start: int, stop: int, rows: Tensor) -> None:
    """Copy rows into a tensor, from `start` to `stop`; of one that this process holds a part of, those in that part."""
    mine, first = rows_here(target)
    begin, end = max(start, first), min(stop, first + mine.size(0))
    if begin < end:
        mine[begin - first : end - first].copy_(rows[begin - start : end - start])


# What torch and the libraries under it say when memory runs out, beside raising OutOfMemoryError.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the CPU or on the device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


class Precision:
    """In what the arithmetic is done. Weights and optimizer state stay in fp32; autocast lowers the matrix products.

    fp16 has a range so small that gradients need a scale: `scaler` multiplies the loss by it, and its steps are
    taken on gradients divided by it again.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            if device.type == "cuda":
                name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            else:
                name = "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
        self.name, self.device = name, device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
