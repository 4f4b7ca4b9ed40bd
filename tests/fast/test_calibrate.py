"""Which layout of a weight is fastest: what is measured, kept and chosen. No test looks at a clock."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gptft.fast import calibrate, products
from gptft.fast.calibrate import TRIES, Measured, calibrated, choose, measure_shape
from gptft.fast.products import FEWEST_WIDENED, LAYOUTS, MOST_PACKED, layouts_of, packed, pieces

FP32 = torch.float32
SHAPE = (64, 32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saying(seconds, asked=None, steady=True):
    """A measurement that finds {rows: {layout: seconds}}, and notes what it was asked."""

    def measure(shape, dtype, ends):
        if asked is not None:
            asked.append((shape, dtype))
        return Measured(seconds, steady)

    return measure


def both(**seconds):
    """The same for one row and for eight."""
    return {"1": seconds, "8": seconds}


def kept_file(cache) -> Path:
    (path,) = cache.glob("layouts-*.json")
    return path


def test_what_was_measured_is_measured_once_on_a_machine(monkeypatch):
    """A second before every answer would cost more than it saves; another number of threads is another machine."""
    asked = []
    measure = saying(both(rows=2.0, columns=1.0), asked)
    for _ in range(3):
        assert choose([SHAPE, (32, 32)], FP32, 1, measure) == {SHAPE: "columns", (32, 32): "columns"}
    assert asked == [(SHAPE, FP32), ((32, 32), FP32)]
    choose([SHAPE, (8, 8)], FP32, 1, measure)  # one is new
    assert asked[2:] == [((8, 8), FP32)]
    choose([SHAPE], torch.bfloat16, 1, measure)
    assert asked[3:] == [(SHAPE, torch.bfloat16)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    choose([SHAPE], FP32, 1, measure)
    assert asked[4:] == [(SHAPE, FP32)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: "",
        lambda found: '{"machine": ',
        lambda found: "[" * 100_000,
        lambda found: b"\xff\xfe",
        lambda found: [],
        lambda found: {**found, "machine": {**found["machine"], "torch": "2.9.0"}},
        lambda found: {**found, "seconds": [1]},
        lambda found: {**found, "seconds": {"float32 64x32": both(rows=2.0, columns=-1.0)}},
        lambda found: {**found, "seconds": {"float32 64x32": both(rows=2.0, columns=float("nan"))}},
        lambda found: {**found, "seconds": {"float32 64x32": both(rows=2.0, columns="fast")}},
        lambda found: {**found, "seconds": {"float32 64x32": both(rows=2.0, spirals=0.1)}},
        lambda found: {**found, "seconds": {"float32 64x32": both(columns=0.1)}},
        lambda found: {**found, "seconds": {"float32 64x32": {"1": {"rows": 2.0, "columns": 3.0}}}},
        lambda found: {**found, "seconds": {"float32 64x32": None}},
    ],
)
def test_a_kept_file_that_is_damaged_or_of_another_machine_is_made_anew(cache, damage):
    """A cache is not to be trusted: it may be cut off, copied from elsewhere, or of another edition."""
    measure = saying(both(rows=2.0, columns=1.0, blocks=3.0))
    choose([SHAPE], FP32, 1, measure)
    path = kept_file(cache)
    whole = path.read_bytes()
    text = damage(json.loads(whole))
    text = text if isinstance(text, str | bytes) else json.dumps(text)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert choose([SHAPE], FP32, 1, measure) == {SHAPE: "columns"}
    assert json.loads(path.read_text()) == json.loads(whole)
    assert [each.name for each in cache.iterdir()] == [path.name]  # nothing is left behind


def test_what_cannot_be_kept_is_measured_all_the_same(tmp_path, monkeypatch):
    """A home that cannot be written to ended generation in a traceback."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "file"))
    assert choose([SHAPE], FP32, 1, saying(both(rows=2.0, columns=1.0))) == {SHAPE: "columns"}


def test_a_layout_is_taken_where_it_saves_more_than_noise():
    """A copy of all weights for nothing; and the choice for one row is not that for eight."""
    for columns, expected in ((0.96, "rows"), (0.94, "columns"), (1.5, "rows")):
        shape = (64, round(100 * columns))
        assert choose([shape], FP32, 1, saying(both(rows=1.0, columns=columns))) == {shape: expected}
    seconds = {"1": {"rows": 3.0, "columns": 1.0, "blocks": 2.0}, "8": {"rows": 3.0, "columns": 9.0, "blocks": 2.0}}
    for rows, expected in (
        (0, "columns"),
        (1, "columns"),
        (2, "columns"),
        (3, "blocks"),
        (8, "blocks"),
        (64, "blocks"),
    ):
        assert choose([SHAPE], FP32, rows, saying(seconds)) == {SHAPE: expected}
    never = saying(None, asked := [])
    assert choose([SHAPE], torch.float64, 1, never) == {SHAPE: "rows"} and not asked  # it has one layout alone


class Clock:
    """A clock that stands still but for what the products take."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_measurement_outlives_a_busy_moment_and_a_layout_that_is_not_there(monkeypatch):
    """One slow product in the middle turned the choice about; a layout that this torch lacks, or that gives other
    numbers, must not be taken for the fastest."""
    clock, made, calls = Clock(), [], []

    def layout(name, seconds, factor=1.0, fails=False):
        def store(weight):
            if fails == "store":
                raise RuntimeError("no such kernel")
            made.append(name)
            number = made.count(name)

            def product(x):
                if fails == "multiply":
                    raise NotImplementedError
                calls.append((name, number))
                # all copies are slow in all tries but one: a process beside this one
                busy = name == "fast" and calls.count((name, number)) != TRIES
                clock.now += 1000.0 if busy else seconds
                return factor * (x @ weight.T)

            return product

        return store

    layouts = {
        "rows": layout("rows", 3.0),
        "fast": layout("fast", 2.0),
        "absent": layout("absent", 1.0, fails="store"),
        "broken": layout("broken", 1.0, fails="multiply"),
        "wrong": layout("wrong", 1.0, factor=1.001),
    }
    monkeypatch.setitem(LAYOUTS, FP32, layouts)
    monkeypatch.setattr(calibrate, "cache_bytes", lambda: 10 * 64 * 32 * 4)
    found, steady = measure_shape(SHAPE, FP32, clock=clock)
    assert found["1"] == {"rows": 3.0, "fast": 2.0} and not steady
    assert made.count("rows") == 15  # half as much again as the cache holds, or the weights would be read from there
    order = [name for name, _ in calls if name in ("rows", "fast")][3:]  # behind the products that are compared
    assert order[:30] == ["rows"] * 15 + ["fast"] * 15  # turn by turn, so that a busy moment meets all


def test_a_large_weight_is_measured_by_its_first_rows(monkeypatch):
    """Copies of a whole head of 128,000 x 4,096 would not fit beside the model."""
    sizes = []
    monkeypatch.setattr(calibrate, "LARGEST", 1000)
    monkeypatch.setattr(calibrate, "cache_bytes", lambda: 1)
    monkeypatch.setitem(LAYOUTS, FP32, {"rows": lambda weight: sizes.append(weight.shape) or (lambda x: x @ weight.T)})
    measure_shape((10_000, 32), FP32)
    assert sizes == [(31, 32)]


def test_the_kernel_for_8_bits_is_not_given_rows_that_it_would_read_beyond(monkeypatch):
    """torch's kernel reads 16 numbers at a time: of rows of 40 it reads what lies behind, or crashes."""
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *_: pytest.fail("the kernel was called"))
    weight, scale = torch.randint(-127, 128, (8, 40), dtype=torch.int8), torch.ones(8)
    x = torch.randn(2, 40)
    assert torch.equal(packed(weight, scale)(x), pieces(weight, scale)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (33, 100), (64, 96), (100, 320)], ids=str)
def test_every_layout_that_this_machine_has_gives_the_plain_product(dtype, shape):
    """With and without a bias, from one row to more than the kernel for few is asked for, and for a strided x."""
    n_out, n_in = shape
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(n_out, n_in, generator=generator), torch.randn(n_out, generator=generator)
    if dtype == torch.int8:
        parts = (30 * weight).clamp(-127, 127).round().to(dtype), torch.rand(n_out, generator=generator) + 0.1
        exact = parts[0].double() * parts[1][:, None].double()
    else:
        parts = (weight.to(dtype),)
        exact = parts[0].double()
    limit = 2e-6 if dtype == torch.float32 else 8e-3  # of bf16: 2^-8 of what is given, and of x in int8
    for name, layout in layouts_of(dtype).items():
        if not calibrate.copies(layout, parts, 1):
            assert name == "blocks"  # oneDNN is not in every torch
            continue
        for with_bias in (None, bias):
            own = None if with_bias is None else bias.to(torch.float32 if dtype == torch.int8 else dtype)
            product = layout(*parts, own)
            for n in (1, 2, 8, MOST_PACKED + 1):
                x = torch.randn(n, 2 * n_in, generator=generator)[:, :n_in]
                x = x if dtype == torch.int8 else x.to(dtype)
                expected = x.double() @ exact.T + (0 if own is None else own.double())
                assert ((product(x).double() - expected).norm() / expected.norm()).item() < limit, (name, n)


def test_calibrating_here_keeps_what_it_found(cache, monkeypatch):
    """The whole way on this machine, with a small cache: what is written is what is read again."""
    monkeypatch.setattr(calibrate, "cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(calibrate, "STEADY", 1e9)  # whatever else this machine does
    monkeypatch.setattr(calibrate, "BUDGET", 1e9)
    first = calibrated([SHAPE], torch.int8, measure_shape)
    assert json.loads(kept_file(cache).read_text())["seconds"] == {"int8 64x32": first[SHAPE]}
    assert calibrated([SHAPE], torch.int8, lambda *_: pytest.fail("measured again")) == first


def test_what_is_unsteady_serves_this_process_alone(cache):
    """Measured while a process beside this one was busy, the choice was kept for good; not kept, it was measured again
    at every call."""
    asked = []
    first, second = saying(both(rows=2.0, columns=1.0), asked, steady=False), saying(both(rows=1.0), asked)
    for measure in (first, second):
        assert choose([SHAPE], FP32, 1, measure) == {SHAPE: "columns"}
    assert len(asked) == 1 and not list(cache.glob("*"))
    assert choose([(8, 8)], FP32, 1, saying({}, steady=False)) == {(8, 8): "rows"}  # there was no time for it


def test_measuring_ends_when_its_time_is_up(monkeypatch):
    """Two threads beside a busy process took 40 seconds for what takes one."""
    clock = Clock()

    def slow(weight):
        def product(x):
            clock.now += 1.0
            return x @ weight.T

        return product

    monkeypatch.setitem(LAYOUTS, FP32, {"rows": slow, "columns": slow})
    monkeypatch.setattr(calibrate, "cache_bytes", lambda: 1)
    each = 3 + 2 * TRIES  # seconds for one number of rows: three products are compared
    assert measure_shape(SHAPE, FP32, 2 * each, clock) == Measured(both(rows=1.0, columns=1.0), True)
    clock.now = 0.0
    found, steady = measure_shape(SHAPE, FP32, 2 * each - 1, clock)
    assert list(found) == ["1"] and not steady and clock.now <= 2 * each
    assert measure_shape(SHAPE, FP32, clock.now, clock) == Measured({}, False)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_processor_without_bf16_multiplies_many_rows_in_fp32(monkeypatch, with_bias):
    """Emulated, eight prompts in bf16 took twice as long as in fp32, and a prompt of a hundred tokens six times."""
    monkeypatch.setattr(products, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(products, "PIECE", 5 * 96)  # some pieces, and one that is not full
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 96), (64,)))
    product = products.rows(weight, bias if with_bias else None)
    linear, asked = F.linear, []
    monkeypatch.setattr(F, "linear", lambda x, *rest: asked.append(x.dtype) or linear(x, *rest))
    for n, dtype in ((1, torch.bfloat16), (FEWEST_WIDENED, torch.float32), (100, torch.float32)):
        x, asked[:] = torch.randn(n, 96, generator=generator).bfloat16(), []
        expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
        found = product(x)
        assert found.dtype == torch.bfloat16 and {*asked} == {dtype}
        assert ((found.double() - expected).norm() / expected.norm()).item() < 4e-3  # it is rounded once


def test_only_layouts_that_there_are_are_available(monkeypatch):
    """The ceiling of decoding in bf16 ended with an error on a processor for which oneDNN has no blocks of bf16."""

    def missing(*_):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert")

    monkeypatch.setitem(LAYOUTS, torch.bfloat16, {"rows": products.rows, "blocks": missing})
    assert calibrate.available(torch.bfloat16) == ["rows"]
    assert calibrate.available(torch.int8) == ["pieces", "packed"] and calibrate.available(torch.float64) == ["rows"]
