"""Which layout of a weight (`products`) this machine reads fastest: measured once, in about a second, and kept.

Stands in for the choice that nobody makes: `F.linear` takes a weight as it lies, (out, in), whatever the processor and
the library below torch make of it. Which layout is best depends on both, on the shape and on the rows of x.

What is measured is kept in the cache folder, under the processor's name, the number of threads and torch's version; a
file that is damaged or of another machine is made anew. What was measured beside busy processes, and came out now so
and now so, serves this process alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gptft.adapters.frozen import in_int8
from gptft.data.cache import cache_directory, key_of
from gptft.device import cpu_has_bf16, processor_name
from gptft.fast.products import LAYOUTS, Product, layouts_of
from gptft.files import atomic_write

Shape = tuple[int, int]  # (out, in) of a weight
Seconds = dict[str, dict[str, float]]  # {rows of x: {layout: seconds for a product}}; JSON has texts for keys

EDITION = 2  # of the measurement: another one makes the kept files anew
ROWS = (1, 8)  # of x, for which is measured: an answer alone, and several at once
TRIES = 3
STEADY = 1.25  # the best try is believed where the next takes no longer than so many times as long
BUDGET = 3.0  # seconds for the shapes of a model; beside a busy process a product may take a thousand times as long
GAIN = 0.05  # a layout that saves less of the time than this is not worth a copy
DEFAULT_CACHE, LARGEST_CACHE = 32 << 20, 128 << 20  # bytes of a processor's last cache: untold, and at most
LARGEST = 16 << 20  # numbers: a weight that has more is measured by its first rows
DRAWN = 61  # rows of random numbers, over and over: to draw all would take longer than to measure
WRONG = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.int8: 2e-2}  # beyond this a layout's product is not the same


class Measured(NamedTuple):
    """Of one shape: the seconds, as far as there was time for them, and whether they can be believed another day."""

    seconds: Seconds
    steady: bool


Measure = Callable[[Shape, torch.dtype, float], Measured]
_unsteady: dict[tuple[Path, str], Seconds] = {}  # by the file that they would be in, and by name


def choose(
    shapes: Collection[Shape], dtype: torch.dtype, rows: int, measure: Measure | None = None
) -> dict[Shape, str]:
    """The fastest layout of each shape, for products of weights in `dtype` with so many rows."""
    plain, *others = layouts_of(dtype)
    if not others:
        return dict.fromkeys(shapes, plain)
    near = str(min(ROWS, key=lambda n: abs(math.log(n / max(rows, 1)))))
    found = calibrated(shapes, dtype, measure or measure_shape)
    return {shape: fastest(found[shape].get(near, {}), plain) for shape in shapes}


def fastest(seconds: dict[str, float], plain: str) -> str:
    """The layout that takes the least time; the plain one where that saves next to nothing, or nothing is known."""
    best = min(seconds, key=seconds.__getitem__, default=plain)
    return best if best == plain or seconds[best] < (1 - GAIN) * seconds[plain] else plain


def calibrated(shapes: Collection[Shape], dtype: torch.dtype, measure: Measure) -> dict[Shape, Seconds]:
    """What a product takes in each layout; what is not known already is measured, and kept."""
    machine = describe_machine()
    path = cache_directory() / f"layouts-{key_of(machine)}.json"
    kept = read_kept(path, machine)
    names = {shape: f"{str(dtype).removeprefix('torch.')} {shape[0]}x{shape[1]}" for shape in shapes}
    found = {shape: kept[name] for shape, name in names.items() if is_whole(kept.get(name), dtype)}
    ends, fresh = time.perf_counter() + BUDGET, {}
    for shape, name in sorted(names.items(), key=lambda item: -math.prod(item[0])):  # the largest matter most
        if shape not in found and (path, name) not in _unsteady:
            seconds, steady = measure(shape, dtype, ends)
            if steady:
                found[shape] = fresh[name] = seconds
            else:
                _unsteady[path, name] = seconds
        if shape not in found:
            found[shape] = _unsteady[path, name]
    if fresh:
        with contextlib.suppress(OSError), atomic_write(path) as file:  # a cache that cannot be written is none
            json.dump({"machine": machine, "seconds": kept | fresh}, file, indent=1)
    return found


def describe_machine() -> dict:
    """All that decides which layout is fastest. A virtual machine may name its processor by the family alone."""
    return {
        "processor": processor_name(torch.device("cpu")),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": cpu_has_bf16(),
        "cache": cache_bytes(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "edition": EDITION,
    }


def read_kept(path: Path, machine: dict) -> dict[str, Seconds]:
    """What a file of this machine holds; nothing, where it is another's or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("machine") != machine or not isinstance(found.get("seconds"), dict):
        return {}
    return found["seconds"]


def is_whole(seconds, dtype: torch.dtype) -> bool:
    """Whether an entry has for each number of rows the plain layout, and of none but those that there are a time."""
    plain, names = next(iter(LAYOUTS[dtype])), LAYOUTS[dtype].keys()
    return isinstance(seconds, dict) and all(
        isinstance(times := seconds.get(str(n)), dict)
        and {plain} <= times.keys() <= names
        and all(type(value) is float and 0 < value < math.inf for value in times.values())
        for n in ROWS
    )


def cache_bytes() -> int:
    """The processor's last cache, as far as the system tells."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    try:
        sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
        return min(max(int(size.removesuffix("K")) << 10 for size in sizes), LARGEST_CACHE)
    except (OSError, ValueError):  # none was found, too: `max` has nothing to choose from
        return DEFAULT_CACHE


@torch.no_grad()
def measure_shape(
    shape: Shape, dtype: torch.dtype, ends: float = math.inf, clock: Callable[[], float] = time.perf_counter
) -> Measured:
    """Seconds that a product takes in each layout, as it is while the machine does nothing else. `ends`: when to stop.

    Copies of the weight are taken one after the other, more of them than the cache holds, as the layers of a model are,
    and their median counts; of several tries, in which each layout has its turn, the best does.
    """
    if clock() >= ends:
        return Measured({}, False)
    n_out, n_in = shape
    n_out = max(1, min(n_out, LARGEST // n_in))
    drawn = torch.randn(min(DRAWN, n_out), n_in, generator=torch.Generator().manual_seed(0)) / math.sqrt(n_in)
    weight = drawn.repeat(-(-n_out // DRAWN), 1)[:n_out]
    parts = in_int8(weight) if dtype == torch.int8 else (weight.to(dtype),)
    count = max(1, math.ceil(1.5 * cache_bytes() / parts[0].nbytes))
    stored = {name: products for name, layout in LAYOUTS[dtype].items() if (products := copies(layout, parts, count))}
    plain, seconds, steady = next(iter(stored)), {}, True
    for n in ROWS:
        x = torch.randn(n, n_in, generator=torch.Generator().manual_seed(1))
        x = x if dtype == torch.int8 else x.to(dtype)
        right = stored[plain][0](x)
        ready = {name: each for name, each in stored.items() if is_same(each[0], x, right, WRONG[dtype])}
        tries: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(TRIES):
            for name, each in ready.items():
                if clock() >= ends:
                    return Measured(seconds, False)
                tries[name].append(median_time(each, x, clock))
        seconds[str(n)] = {name: min(each) for name, each in tries.items()}
        steady = steady and all(sorted(each)[1] <= STEADY * min(each) for each in tries.values())
    return Measured(seconds, steady)


def median_time(products: list[Product], x: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one product, the median of all."""
    times = [clock()]
    for product in products:
        product(x)
        times.append(clock())
    return statistics.median(after - before for before, after in pairwise(times))


def available(dtype: torch.dtype) -> list[str]:
    """The layouts of weights of this dtype that this torch, on this processor, has."""
    weight = torch.zeros(2, 64, dtype=dtype)
    parts = (weight, torch.ones(2)) if dtype == torch.int8 else (weight,)
    return [name for name, layout in layouts_of(dtype).items() if copies(layout, parts, 1)]


def copies(layout: Callable[..., Product], parts: tuple[Tensor, ...], count: int) -> list[Product]:
    """Products with copies of a weight; none where this torch, or this processor, does not have the layout."""
    try:
        return [layout(*(part.clone() for part in parts)) for _ in range(count)]
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return []


def is_same(product: Product, x: Tensor, right: Tensor, wrong: float) -> bool:
    """Whether a layout's product is the plain one's."""
    try:
        found = product(x)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return found.shape == right.shape and bool((found - right).norm() <= wrong * right.norm())
