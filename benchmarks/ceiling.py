"""What the machine would allow.

Training: the matrix products of steps, noted as these run and then run again back to back, and the optimizer's bytes at
the rate of a pass over memory that reads and writes each number in its place, as the optimizer does. Each product has
matrices of its own, of the same sizes, strides and numbers of bits, and a place for what it gives, so that weights are
read from memory as in a step and nothing is allocated. Attention, norms, activations, the loss, casts, clipping,
batches and Python are not in it. The optimizer reads a weight, its gradient and two moments, and writes all but the
gradient: 28 bytes in fp32.

Decoding: one pass over all weights, each product in the fastest of the layouts that there are. Norms, attention, the
cache, rotary angles, what is done with logits, and Python between the products are not in it. Every layout of every
weight is held at once, some times the model's own memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TRIES = 3
PASSES = 20  # of decoding
OPTIMIZER = 28  # bytes a trained weight, read and written
PASSED = 64 << 20  # numbers in fp32 that are gone over to learn the rate of memory: far more than a cache holds


class Matrix(NamedTuple):
    """One side of a product."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def like(cls, x: Tensor) -> Matrix:
        return cls(tuple(x.shape), tuple(x.stride()), x.dtype)

    def made(self) -> Tensor:
        reach = 1 + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))
        return torch.full((max(reach, 0),), 0.5, dtype=self.dtype).as_strided(self.sizes, self.strides)


class Product(NamedTuple):
    left: Matrix
    right: Matrix

    @property
    def flops(self) -> int:
        *batch, rows, inner = self.left.sizes
        return 2 * math.prod(batch) * rows * inner * self.right.sizes[-1]


class Notes(TorchDispatchMode):
    """Notes every matrix product that is computed within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.removesuffix("_")  # adapters add up in place
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = args[1:3] if "add" in name else args[:2]
            self.found.append(Product(Matrix.like(left), Matrix.like(right)))
        return function(*args, **(kwargs or {}))


def of_training(steps: Iterator, trained: int) -> dict:
    """The ceiling of some steps, which an iterator takes: seconds of their products and of their optimizer, which has
    `trained` weights, and how many there were."""
    products, notes = [], Notes()
    with notes:
        for _ in steps:
            products.append(notes.found)
            notes.found = []
    if not all(products):
        raise RuntimeError("a step had no products: they were not seen")
    replayed = sum(map(replay, products))
    optimizer = len(products) * OPTIMIZER * trained / memory_rate()
    return {
        "seconds": replayed + optimizer,
        "products_seconds": replayed,
        "optimizer_seconds": optimizer,
        "flops": sum(product.flops for step in products for product in step),
        "steps": len(products),
    }


@torch.no_grad()
def of_decoding(model, kind: str, rows: int) -> dict:
    """The ceiling of passes over `rows` tokens, with weights in `kind`: seconds a pass, how often each layout was the
    fastest, and bytes of weights a second. Layers that read the same x are one product."""
    from gptft.fast.calibrate import available
    from gptft.fast.weights import Arranged, dtype_of, groups_of, part_of

    products, xs, nbytes = [], [], 0
    for layers in groups_of(model):
        dtype = dtype_of(layers[0], kind, torch.float32)
        parts = [part_of(layer, dtype) for layer in layers]
        products.append({name: Arranged(parts, name, kind, torch.float32) for name in available(dtype)})
        xs.append(torch.full((rows, parts[0].weight.size(1)), 0.5))
        nbytes += sum(part.weight.nbytes for part in parts)
    seconds: list[dict[str, list[float]]] = [{name: [] for name in each} for each in products]
    for _ in range(PASSES):
        for name in products[0]:  # a pass over all weights in one layout, so that none is in the cache
            for each, x, times in zip(products, xs, seconds, strict=True):
                began = time.perf_counter()
                each[name](x)
                times[name].append(time.perf_counter() - began)
    names = [min(times, key=lambda name, times=times: statistics.median(times[name])) for times in seconds]
    best = [(each[name], x) for each, x, name in zip(products, xs, names, strict=True)]
    passes = []
    for _ in range(PASSES):
        began = time.perf_counter()
        for product, x in best:
            product(x)
        passes.append(time.perf_counter() - began)
    median = statistics.median(passes)
    layouts = {name: names.count(name) for name in sorted(set(names))}
    return {"seconds": median, "layouts": layouts, "bytes_per_second": nbytes / median}


@torch.no_grad()
def replay(products: list[Product]) -> float:
    """Seconds of some products one after the other: the median of some tries."""
    ready = []
    for left, right in products:
        a, b = left.made(), right.made()
        ready.append((a, b, torch.empty(*a.shape[:-1], b.shape[-1], dtype=a.dtype)))
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        for a, b, out in ready:
            torch.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def memory_rate() -> float:
    """Bytes a second, read and written, of a pass that writes each number where it was read: the best of some. (A copy
    has less, for memory gives it the lines too that it is about to write.)"""
    x = torch.ones(PASSED)
    seconds = []
    for _ in range(2 * TRIES):
        began = time.perf_counter()
        x.mul_(1.0)
        seconds.append(time.perf_counter() - began)
    return 2 * x.nbytes / min(seconds)
