"""What every test uses: a cache of its own, small models, and the real data where it is present."""

import json
import os
from pathlib import Path

import pytest
import torch

from gptft.run import machine

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
os.environ.setdefault("GOMP_SPINCOUNT", "300000")  # what commands say must not depend on what else this machine does
if SHARED.exists():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken-cache"))


@pytest.fixture(autouse=True, scope="session")
def _isolated(tmp_path_factory):
    """Tokenised data and compiled code go to folders of this session; one thread, since the models here are tiny."""
    os.environ["GPTFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    # a cache of compiled code that others write to may be damaged
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    torch.set_num_threads(1)
    machine.SECONDS = 0.0  # no figure of a test is of the machine


@pytest.fixture(scope="session")
def shared():
    """The real instruction set and GPT-2's vocabulary, where the project lies beside them."""
    if not SHARED.exists():
        pytest.skip("../shared/data is not here: the real instruction set and GPT-2's vocabulary")
    return SHARED


@pytest.fixture
def write_lines(tmp_path):
    """write_lines(records, name="data.jsonl") -> the path of a JSON lines file in the test's folder."""

    def write(records, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pairs():
    """pairs(n): n question/answer records of unequal length, no two prompts alike."""

    def make(n):
        return [
            {
                "question": f"What comes after {i}?" + " Think." * (i % 3),
                "answer": f"It is {i + 1}." + " Yes." * (i % 5),
            }
            for i in range(n)
        ]

    return make
