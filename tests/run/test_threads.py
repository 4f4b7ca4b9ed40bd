"""Threads that spin at barriers make a small model many times slower beside any other busy process."""

import os
import subprocess
import sys
from pathlib import Path

from gptft.run.threads import SPIN, describe_spin

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import os, sys
from gptft.commands.common import run
run(lambda argv: print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")))
"""


def look(**environment):
    clean = {key: value for key, value in os.environ.items() if key not in (*SPIN, "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_command_sets_how_long_threads_spin_before_torch_is_loaded():
    """Once torch is loaded the setting does nothing."""
    assert look() == ["False", SPIN["GOMP_SPINCOUNT"], "None"]


def test_the_users_own_choice_stands():
    assert look(GOMP_SPINCOUNT="7") == ["False", "7", "None"]
    assert look(OMP_WAIT_POLICY="ACTIVE") == ["False", "None", "ACTIVE"]


def test_whoever_imported_torch_before_is_told(monkeypatch):
    """A mere import sets nothing: it may be too late for it, and the process is not ours."""
    for name in (*SPIN, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert not describe_spin(threads=1)
    if hasattr(os, "sched_getaffinity"):
        assert "GOMP_SPINCOUNT=2000 set before Python starts" in describe_spin(threads=2)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert not describe_spin(threads=2)
