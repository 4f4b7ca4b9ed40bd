"""What a run says: figures that read well, and a reader who goes away does not end it."""

import subprocess
import sys

import pytest

from gptft.run.console import amount, clock


@pytest.mark.parametrize(
    "value, shown",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (3e9, "3 GB"), (5e18, "5e+03 PB")],
)
def test_amounts_have_three_digits_and_a_prefix(value, shown):
    assert amount(value, "B") == shown


@pytest.mark.parametrize(
    "seconds, shown", [(0, "0:00"), (0.2, "0:01"), (59.5, "1:00"), (61, "1:01"), (3599.5, "1:00:00"), (7325, "2:02:05")]
)
def test_times_are_rounded_up_and_never_show_60(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_reader_that_goes_away_does_not_end_the_run():
    """`python train.py | head` once ended the training with a BrokenPipeError."""
    code = (
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1)\n"
        "os.close(reader)\n"
        "from gptft.run.console import say\n"
        "say('into the void')\n"
        "say('and again')\n"
        "print('still here', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "still here\n")
