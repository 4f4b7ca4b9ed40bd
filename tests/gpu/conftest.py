"""The tests of the GPU: `python -m pytest -m gpu`, on a machine with one, from the repository's root.

Each skips, with a reason, where there is no GPU; GPTFT_GPU_TESTS_ON=cpu runs what is not CUDA's own on the CPU. At the
end stands a table of what was measured; GPTFT_GPU_RESULTS names a file for the same as JSON.
"""

import datetime
import json
import os
import platform
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
NAME = os.environ.get("GPTFT_GPU_TESTS_ON", "cuda")
MISSING = "this machine has no CUDA device (GPTFT_GPU_TESTS_ON=cpu tries the shared part of these tests on the CPU)"
ROWS = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
            if NAME == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture
def device():
    """Where these tests run. Products in fp32 are in fp32, and what a test leaves in memory is freed."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32
    yield torch.device(NAME)
    torch.set_float32_matmul_precision(previous)
    if NAME == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def cuda(device):
    """For what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("this needs CUDA itself")
    return device


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if HERE in item.path.parents and (report.when == "call" or (report.when == "setup" and not report.passed)):
        row = {"test": item.name, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.skipped and isinstance(report.longrepr, tuple):
            row["reason"] = report.longrepr[2]
        item.config.stash[ROWS].append(row | {"measured": dict(report.user_properties)})
    return report


def pytest_terminal_summary(terminalreporter, config):
    """The table, and a line of JSON a test between two marks; nothing where all were skipped."""
    rows = config.stash.get(ROWS, [])
    if all(row["outcome"] == "skipped" for row in rows):
        return
    device = torch.cuda.get_device_name() if NAME == "cuda" else platform.processor() or platform.machine()
    terminalreporter.section(f"on {device}, torch {torch.__version__}")
    for row in rows:
        measured = "  ".join(f"{name} {shown(value)}" for name, value in row["measured"].items())
        terminalreporter.line(f"{row['outcome']:<8}{row['seconds']:7.2f} s  {row['test']:<70}{measured}")
    result = {
        "name": "gpu tests",
        "date": datetime.date.today().isoformat(),
        "device": device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "tests": rows,
    }
    terminalreporter.section("as JSON")
    for row in rows:
        terminalreporter.line(json.dumps(row))
    if path := os.environ.get("GPTFT_GPU_RESULTS"):
        Path(path).write_text(json.dumps(result, indent=1) + "\n")


def shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)
