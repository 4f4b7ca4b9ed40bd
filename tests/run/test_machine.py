"""The machine's measured ceiling."""

from types import SimpleNamespace

import pytest
import torch

from gptft.device import Precision
from gptft.run import machine
from gptft.run.machine import describe_versions, measure_ceiling


def test_the_ceiling_is_that_of_the_fastest_product(monkeypatch):
    """Timed beside a busy process, what one product took and what another did were five times apart, so the clock here
    is the test's own: the first product, for which threads and memory are made, does not count, and after the time that
    is given none is begun."""
    now, lasting, multiply = [0.0], iter([3.0, 0.05, 0.04, 0.02, 0.06, 0.01]), torch.Tensor.__matmul__

    def slow(a, b):
        now[0] += next(lasting)
        return multiply(a, b)

    monkeypatch.setattr(machine, "SIDES", {"cpu": 16})
    monkeypatch.setattr(machine, "SECONDS", 0.1)
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(torch.Tensor, "__matmul__", slow)
    ceiling = measure_ceiling(Precision("fp32", torch.device("cpu")))
    assert ceiling == pytest.approx(2 * 16**3 / 0.02)
    assert list(lasting) == [0.01]


def test_no_random_number_of_the_run_is_drawn():
    before = torch.get_rng_state()
    measure_ceiling(Precision("fp32", torch.device("cpu")))
    assert torch.equal(before, torch.get_rng_state())


def test_a_device_without_memory_for_it_has_no_ceiling(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "randn", full)
    assert measure_ceiling(Precision("fp32", torch.device("cpu"))) is None


def test_versions_name_what_figures_depend_on():
    versions = describe_versions(torch.device("cpu"))
    assert versions["torch"] == str(torch.__version__).partition("+")[0] or versions["torch"] == str(torch.__version__)
    assert {"gptft", "python", "system", "processor", "threads"} <= versions.keys()
