"""What summary.json says of the memory."""

import sys

import pytest
import torch

from gptft.run.memory import peak_memory


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_is_in_bytes():
    """Linux counts in KiB, macOS in bytes: a figure 1,024 times too small or too large would look plausible."""
    assert 2**26 < peak_memory(torch.device("cpu")) < 2**36  # a process with torch in it takes some 200 MB
