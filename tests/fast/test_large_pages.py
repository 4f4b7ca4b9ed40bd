"""Memory in large pages, which torch asks Linux for where it is told so before its first tensor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEASURE = """
import resource, torch, gptft
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(50_000_000)  # 48,828 pages of 4 KB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment):
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | environment
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(
    not OFFERED.exists() or "[never]" in OFFERED.read_text(), reason="this system offers no transparent large pages"
)
def test_much_memory_comes_in_large_pages():
    """In pages of 4 KB a step of GPT-2 waits for hundreds of thousands of them. The user's own choice stands."""
    large, small = page_faults(), page_faults(THP_MEM_ALLOC_ENABLE="0")
    if "[madvise]" in OFFERED.read_text():
        assert small > 40_000
    assert large < 20_000  # a few hundred; more where memory lies in pieces
