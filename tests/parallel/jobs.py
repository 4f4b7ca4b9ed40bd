"""Jobs of several ranks under torchrun, with faults in them, and without the seconds in which each rank would import
torch: a server imports everything once, and torchrun's own code runs in a fork of it, whose ranks are forks again."""

import atexit
import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

FAULTY = Path(__file__).with_name("faulty.py")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.distributed.run", "gptft.finetuning", "gptft.commands.default", "pytest"])
STARTS = 60.0  # seconds that a test may wait until all ranks of a job are where it wants them
SOON = 15.0  # seconds: what the project promises


class Forked:
    """What torchrun sees of a process that it started, of subprocess.Popen."""

    def __init__(self, args, env, stdout=None, stderr=None, start_new_session=True):
        sys.stdout.flush(), sys.stderr.flush()
        self.args, self.returncode = args, None
        self.pid = os.fork()
        if not self.pid:
            be_a_process(args, env)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        ends = time.monotonic() + (timeout or 3600)
        while self.poll() is None:
            if time.monotonic() > ends:
                raise __import__("subprocess").TimeoutExpired(self.args, timeout)
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
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def be_torchrun(words, env, folder, output):
    """In a fork of the server: torchrun, with its ranks forked."""
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(env)
    os.chdir(folder)
    subprocess_handler.Popen = Forked
    torch.distributed.run.main(words)


class Job:
    """A job of `ranks` under torchrun; use it in a `with`, whose end is the end of all its processes."""

    def __init__(self, folder, *words, ranks=3, faults=(), options=(), **env):
        self.folder, self.ranks = Path(folder), ranks
        self.notes = self.folder / "notes"
        self.notes.mkdir(parents=True, exist_ok=True)
        self.log = self.notes / f"output-{time.time_ns()}"
        plan = json.dumps({"folder": str(self.notes), "faults": list(faults)})
        env = {"GPTFT_FAULTS": plan, "OMP_NUM_THREADS": "1", **env}
        rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
        torchrun = ["--nproc_per_node", str(ranks), *rendezvous, *options, str(FAULTY), *map(str, words)]
        self.process = SERVER.Process(target=be_torchrun, args=(torchrun, env, str(self.folder), str(self.log)))
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in [self.process.pid, *self.pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join()

    @property
    def output(self):
        return self.log.read_text() if self.log.exists() else ""

    def pids(self):
        """{pid: rank} of all ranks that were ever started."""
        return {int(path.name.removeprefix("pid-")): int(path.read_text()) for path in self.notes.glob("pid-*")}

    def alive(self):
        return {pid: rank for pid, rank in self.pids().items() if is_alive(pid)}

    def faults(self):
        """What was done so far, with `pid` and `time`."""
        return [json.loads(path.read_text()) for path in self.notes.glob("fault-*")]

    def wait_for_fault(self):
        wait(self.faults, STARTS, self)
        return self.faults()[0]

    def end(self, within=120.0):
        """The exit status of torchrun."""
        self.process.join(within)
        assert self.process.exitcode is not None, f"no end within {within} s; so far:\n{self.output}"
        return self.process.exitcode


def wait(condition, seconds, job):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s; so far:\n{job.output}"
        time.sleep(0.05)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
