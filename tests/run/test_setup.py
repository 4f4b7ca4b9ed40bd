"""What a run does to its process: here, to the memory that it frees."""

import subprocess
import sys

import pytest
import torch

from gptft.config import Config
from gptft.run import setup
from gptft.run.memory import peak_memory

CPU = torch.device("cpu")
TAKES_AND_FREES = """
import torch
from gptft.device import keep_freed_memory

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10

assert keep_freed_memory()
x = torch.ones(200 << 18)
before = resident()
del x
assert before - resident() < 20, "given back"
assert keep_freed_memory(False)
assert before - resident() > 180, "kept"
x = torch.ones(200 << 18)
del x
assert before - resident() > 180, "kept anew"
"""


@pytest.mark.parametrize(
    "settings, times, kept",
    [
        ({}, 1.0, True),
        ({}, 0.4, False),
        ({"fast": "off"}, 1.0, False),
        ({"keep_memory": "off"}, 1.0, False),
        ({"fast": "off", "keep_memory": "on"}, 0.4, True),
    ],
)
def test_freed_memory_is_kept_where_there_is_plenty(monkeypatch, settings, times, kept):
    """It was a flag that nobody knew, and a tenth to a fifth of a step. `times`: the memory that is free, over that
    which the process has taken."""
    told = []
    monkeypatch.setattr(setup, "keep_freed_memory", lambda: not told.append(True))
    monkeypatch.setattr(setup, "free_memory", lambda *_: times * peak_memory(CPU))
    assert bool(setup.keep_memory(Config(**settings), CPU)) == bool(told) == kept


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_kept_is_given_back_when_a_run_has_ended():
    """A notebook that had trained kept what its training had taken."""
    subprocess.run([sys.executable, "-c", TAKES_AND_FREES], check=True)


def test_what_a_processor_has_to_emulate_is_said(monkeypatch):
    """A run in bf16 on a laptop took eight times as long as in fp32, without a word."""
    said = []
    monkeypatch.setattr(setup, "say", said.append)
    monkeypatch.setattr(setup, "describe_spin", lambda _: "")
    for has, precision, device in (
        (True, "bf16", "cpu"),
        (False, "fp32", "cpu"),
        (False, "auto", "cpu"),
        (False, "bf16", "cuda"),
    ):
        monkeypatch.setattr(setup, "cpu_has_bf16", lambda has=has: has)
        setup.set_up_cpu(Config(precision=precision), torch.device(device))
    assert not said
    setup.set_up_cpu(Config(precision="bf16"), CPU)
    assert said == ["note: this processor has no bf16 and emulates it: --precision fp32 is many times as fast"]
