"""Threads that spin at barriers make a small model many times slower beside any other busy process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptft.run import threads
from gptft.run.threads import SPIN, describe_spin, is_crowded, others_running, set_spin

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import os, sys
from gptft.commands.common import run
from gptft.run import threads
threads.others_running = lambda: int(sys.argv[1])
run(lambda argv: print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")))
"""


def look(others=0, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in (*SPIN, "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(others)],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_command_sets_how_long_threads_spin_before_torch_is_loaded():
    """Once torch is loaded the setting does nothing. Where the cores are free it costs speed, and is left alone."""
    assert look(others=os.cpu_count()) == ["False", SPIN["GOMP_SPINCOUNT"], "None"]
    assert look(others=os.cpu_count(), OMP_NUM_THREADS="1") == ["False", "None", "None"]
    if os.cpu_count() > 1:
        assert look(others=0) == look(others=os.cpu_count() - 2) == ["False", "None", "None"]


def test_the_users_own_choice_stands():
    assert look(os.cpu_count(), GOMP_SPINCOUNT="7") == ["False", "7", "None"]
    assert look(os.cpu_count(), OMP_WAIT_POLICY="ACTIVE") == ["False", "None", "ACTIVE"]


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="the system does not tell what runs")
def test_a_busy_process_is_seen():
    """With one for each core there is none left, whatever else this machine does."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        assert any(others_running() >= len(busy) and is_crowded(2) for _ in range(50))
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("text", ["", "0.1 0.2 0.3", "a b c d/e f"])
def test_where_the_system_does_not_tell_nothing_is_set(text, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    assert others_running() == 0


def test_a_run_says_what_was_set_and_what_could_be(monkeypatch):
    """A mere import sets nothing: it may be too late for it, and the process is not ours."""
    for name in (*SPIN, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_chosen", [])
    monkeypatch.setattr(threads, "others_running", lambda: 0)
    assert not describe_spin(threads=1) and (os.cpu_count() == 1 or not describe_spin(threads=2))
    monkeypatch.setattr(threads, "others_running", os.cpu_count)
    assert not describe_spin(threads=1) and "with GOMP_SPINCOUNT=1000 set beforehand" in describe_spin(threads=2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    set_spin()
    assert os.environ["GOMP_SPINCOUNT"] == "1000" and "since other processes are busy" in describe_spin(threads=2)
    monkeypatch.setattr(threads, "_chosen", [])  # it is the user's own, or was set by the command that started this one
    assert not describe_spin(threads=2)
