"""The machine's measured ceiling."""

import time

import torch

from gptft.device import Precision
from gptft.run import machine
from gptft.run.machine import describe_versions, measure_ceiling


def test_the_ceiling_is_what_a_product_takes_and_is_measured_in_under_a_second(monkeypatch):
    monkeypatch.setattr(machine, "SIDES", {"cpu": 512})
    began = time.perf_counter()
    ceiling = measure_ceiling(Precision("fp32", torch.device("cpu")))
    assert time.perf_counter() - began < 1
    a, seconds = torch.randn(512, 512), []
    for _ in range(20):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    assert 0.2 < ceiling * min(seconds) / (2 * 512**3) < 5  # other work on the machine makes both slower


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
