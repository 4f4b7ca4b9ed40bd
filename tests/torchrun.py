"""Real jobs of several processes, as users start them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "train.py")


def torchrun(ranks, *words, within=150, options=(), **env):
    """`torchrun --nproc_per_node RANKS WORDS` -> (status, all output). No process outlives it. Each has one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", *options, *map(str, words)]
    # a rank that dies in native code says where
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", **env}
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        said, _ = job.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        said, _ = job.communicate()
        raise AssertionError(f"no end within {within} s; so far:\n{said}") from None
    return job.returncode, said
