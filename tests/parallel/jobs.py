"""Jobs of several ranks under torchrun, with faults in them, and without the seconds in which each rank would import
torch: a server imports it once, torchrun's own code runs in a fork of the server, and the ranks are forks of that."""

import atexit
import contextlib
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

FAULTY = Path(__file__).with_name("faulty.py")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.distributed.run", "gptft.finetuning", "gptft.commands.default", "pytest"])
BEGINS = 90.0  # seconds that a test waits until a job is where it wants it
SOON = 15.0  # seconds: what the project promises
STANDALONE = ("--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")
ONLY_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")

# three steps, with all phases, on 40 examples
SHORT = ["--init", "tiny", "--max_steps", "3", "--batch_size", "2", "--lr", "1e-3", "--precision", "fp32"]
SHORT += ["--eval_batch_size", "1", "--eval_every", "2", "--save_every", "2", "--max_new_tokens", "4"]


class Forked:
    """A process that torchrun started, as it knows them from subprocess.Popen."""

    def __init__(self, args, env, stdout=None, stderr=None, start_new_session=True):
        sys.stdout.flush(), sys.stderr.flush()
        self.args, self.returncode, self.notes = args, None, Path(json.loads(env["GPTFT_FAULTS"])["folder"])
        self.pid = os.fork()
        if not self.pid:
            be_a_process(args, env)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                (self.notes / f"exit-{self.pid}_{self.returncode}").touch()
        return self.returncode

    def wait(self, timeout=None):
        ends = time.monotonic() + (timeout or 3600)
        while self.poll() is None:
            if time.monotonic() > ends:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode


def be_a_process(args, env):
    """In a fork: as if `args`, python and its words, had been started anew."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        atexit._clear()  # those of torchrun
        multiprocessing.set_start_method("fork", force=True)  # this process's own
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [word for word in args if word != "-u"][1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def be_torchrun(words, env, folder, output):
    """In a fork of the server: torchrun, with its ranks forked."""
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(env)
    os.chdir(folder)
    subprocess_handler.Popen = Forked
    try:
        torch.distributed.run.main(words)
    except ChildFailedError:  # in a long summary of its own
        os._exit(1)


class Job:
    """A job of `ranks` under torchrun; use it in a `with`, whose end is the end of all its processes."""

    def __init__(self, folder, *words, ranks=3, faults=(), options=(), rendezvous=STANDALONE, log="notes", **env):
        self.folder, self.ranks = Path(folder), ranks
        self.notes = self.folder / log
        self.notes.mkdir(parents=True)
        self.log = self.notes / "output"
        plan = json.dumps({"folder": str(self.notes), "faults": list(faults)})
        env = {**os.environ, "GPTFT_FAULTS": plan, "OMP_NUM_THREADS": "1", **env}
        torchrun = ["--nproc_per_node", str(ranks), *rendezvous, *options, str(FAULTY), *map(str, words)]
        self.process = SERVER.Process(target=be_torchrun, args=(torchrun, env, str(self.folder), str(self.log)))
        self.process.start()
        self.ended, self.left = None, set()  # when the last rank did, and which stopped ones were there still
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        """Note when no rank is left, but for those that were stopped."""
        while self.process.exitcode is None and not self.ended:
            time.sleep(0.1)
            stopped = {fault["pid"] for fault in self.faults() if fault["do"] == "SIGSTOP"}
            alive = self.alive().keys()
            if (len(self.pids()) >= self.ranks or self.faults()) and not alive - stopped:
                self.left, self.ended = set(alive), time.time()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.exitcode is None:
            self.process.kill()
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join()

    @property
    def output(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def said(self):
        """The lines that gptft says of an error."""
        return [line for line in self.output.splitlines() if line.startswith("gptft: ")]

    def pids(self):
        """{pid: rank} of all ranks that were ever started."""
        return {pid: rank for pid, rank, _ in self._started()}

    def alive(self):
        return {pid: rank for pid, rank, began in self._started() if is_alive(pid, began)}

    def _started(self):
        return [tuple(map(int, path.name.split("-")[1:])) for path in self.notes.glob("pid-*")]

    def statuses(self):
        """{rank: exit status}, as torchrun saw it."""
        ranks, exits = self.pids(), [path.name[5:].split("_") for path in self.notes.glob("exit-*")]
        return {ranks[int(pid)]: int(status) for pid, status in exits if int(pid) in ranks}

    def faults(self):
        """What was done so far, with `pid` and `time`."""
        return [json.loads(path.read_text()) for path in self.notes.glob("fault-*") if not path.suffix]

    def wait_for_fault(self):
        self.wait(self.faults, BEGINS)
        return self.faults()[0]

    def wait(self, condition, seconds):
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, f"not within {seconds} s; so far:\n{self.output}"
            time.sleep(0.05)

    def end(self, within=150.0):
        """The exit status of torchrun."""
        self.process.join(within)
        assert self.process.exitcode is not None, f"no end within {within} s; so far:\n{self.output}"
        return self.process.exitcode


def without_torchrun(output):
    """What was said before torchrun's own account, which has tracebacks of its own: W1231 23:59:59 ..."""
    return re.split(r"^[WE]\d{4} ", output, maxsplit=1, flags=re.MULTILINE)[0]


def is_alive(pid, began):
    """Whether the process runs that began at that tick of the system's: its number may be another's by now."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return state[0] != "Z" and int(state[19]) == began
    except (FileNotFoundError, ProcessLookupError):
        return False
