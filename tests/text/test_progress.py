"""The bar of long work: for people at a terminal alone, and gone when the work is done."""

import io
import sys

import pytest

from gptft.evaluation.judge import Asked
from gptft.evaluation.judge_check import check, plant
from gptft.text.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """To be called in the test itself: between a fixture and its test pytest sets the standard error anew."""

    def put():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return put


def test_a_terminal_is_shown_what_is_done_and_how_much_there_is(open_terminal):
    terminal = open_terminal()
    with progress(total=3, unit="records", desc="reading") as bar:
        bar.update(2)
        bar.refresh()
        shown = terminal.getvalue()
    assert "reading" in shown and "2/3" in shown and "records/s" in shown
    assert terminal.getvalue().endswith("\r")  # it is wiped out


def test_a_log_file_gets_no_bar(capsys):
    """A bar that is written to a file is a line of a megabyte."""
    assert list(progress(range(3), "records")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_no_bar_where_none_was_wanted(open_terminal):
    terminal = open_terminal()
    assert list(progress(range(3), quiet=True)) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_checking_a_judge_shows_how_far_it_is(open_terminal):
    """Two dozen questions to a slow judge were minutes of silence."""

    class Slow:
        def __init__(self):
            self.counts = {}

        def compare(self, asked, good, bad):
            return 1.0

    asked = [Asked(f"Where is {n}?", f"It is in the box {n}, near the door.") for n in range(9)]
    terminal = open_terminal()
    assert check(Slow(), plant(asked, 9), "pair")["right"] == 9
    assert "checking the judge" in terminal.getvalue()
