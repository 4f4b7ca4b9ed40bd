"""One run a folder, and a crash gives the folder back."""

import signal
import subprocess
import sys

import pytest

from gptft.errors import UserError
from gptft.run import lock
from gptft.run.lock import claim

HOLD = """
import sys
from pathlib import Path
from gptft.run.lock import claim
with claim(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "run" until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_two_runs_never_share_a_folder(tmp_path, holder):
    """Two runs that were started at once wrote their checkpoints over each other's."""
    with pytest.raises(UserError, match=rf"process {holder.pid} on .* is training in it"), claim(tmp_path / "run"):
        pass


def test_a_killed_run_gives_its_folder_back(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "run"):
        pass
    with claim(tmp_path / "run"):  # and so does one that has ended
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "lock", refuse)
    with claim(tmp_path / "run"):
        pass
    assert "cannot be locked (Operation not supported)" in capsys.readouterr().out
