"""When one rank dies, raises or stalls, the others learn which and why within seconds, and no rank that does well is
accused. Real processes, a real store, real signals."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, TCPStore

from gptft.parallel import watch
from gptft.parallel.watch import Failure, Watch

PROCESSES = multiprocessing.get_context("forkserver")  # torch is imported once, and each rank is a process of its own
PROCESSES.set_forkserver_preload(["torch.distributed", "pytest"])
SOON = 15.0  # seconds: what the project promises
QUICK = {"ROUND": 0.1, "BEAT": 0.15, "GRACE": 0.2, "SILENT": 1.0, "LATE": 1.0, "PATIENCE": 0.5}
QUICK |= {"LOOK": 0.3, "HUNG": 3, "TELL": 1.0, "JOIN": 0.5}
STALL = 1.5 / 60  # minutes


def host_store(pipe):
    """A process that holds the store, as torchrun's own does."""
    store = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=30), wait_for_workers=False)
    pipe.send(store.port)
    pipe.recv()


def live(rank, size, port, stall, times, orders, heard):
    """A rank: its main thread does what it is told; what the watch calls out goes to `heard`."""
    for name, seconds in times.items():
        setattr(watch, name, seconds)
    store = TCPStore("127.0.0.1", port, None, False, timeout=timedelta(seconds=30))
    watched = Watch(PrefixStore("start0", store), rank, size, stall, "127.0.0.1", on_failure=heard.send)
    working, pause = False, contextlib.ExitStack()
    orders.send("watching")
    with contextlib.suppress(EOFError):  # the test is over
        while True:
            if orders.poll(0.02):
                name, *args = orders.recv()
                if name == "work":
                    working = True
                elif name == "pause":
                    pause.enter_context(watched.pausing())
                elif name == "go on":
                    pause.close()
                elif name == "fork":
                    if not (child := os.fork()):
                        time.sleep(60)
                        os._exit(0)
                    orders.send(child)
                elif name == "break the connection":
                    watched._hang_up(watched._peer)
                elif name == "connected":
                    orders.send(watched._peer is not None)
                else:
                    orders.send(getattr(watched, name)(*args))
            if working:
                watched.beat()


class Rank:
    def __init__(self, rank, size, port, stall=0.0, times=QUICK):
        self.orders, orders = PROCESSES.Pipe()
        self.heard, heard = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=live, args=(rank, size, port, stall, times, orders, heard), daemon=True)
        self.process.start()
        self.name = f"rank {rank} (process {self.process.pid} on "

    def wait(self):
        """Until it watches."""
        assert self.orders.poll(60) and self.orders.recv() == "watching"

    def order(self, *words):
        self.orders.send(words)

    def ask(self, *words):
        self.order(*words)
        assert self.orders.poll(60), words
        return self.orders.recv()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def told(self, seconds=SOON):
        """The failure that the watch called out, or None."""
        return self.heard.recv() if self.heard.poll(seconds) else None


@pytest.fixture
def started():
    """The processes that the test started; they end with it."""
    processes = []
    yield processes
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()


@pytest.fixture
def store(started):
    """The process that holds the store; `port`."""
    pipe, other = PROCESSES.Pipe()
    process = PROCESSES.Process(target=host_store, args=(other,), daemon=True)
    process.start()
    started.append(process)
    process.port, process.pipe = pipe.recv(), pipe
    return process


@pytest.fixture
def start(store, started):
    """start(size, **options) -> that many ranks, which all watch their neighbours."""

    def begin(size, only=None, **options):
        ranks = [Rank(rank, size, store.port, **options) for rank in only or range(size)]
        started.extend(rank.process for rank in ranks)
        for rank in ranks:
            rank.wait()
        return ranks

    return begin


def settle(ranks):
    """Until each is connected to its neighbour."""
    for rank in ranks:
        while not rank.ask("connected"):
            time.sleep(0.05)


def test_a_rank_that_is_killed_is_named_by_the_others_within_seconds(start):
    """With the times that users get: without the watch, they waited until the collective's own limit of minutes."""
    zero, one, two = start(3, times={})
    for rank in (zero, one, two):
        rank.ask("note", "saving step-000500")
    settle([zero, one, two])
    time.sleep(1.6)  # a beat, which carries the phase
    one.signal(signal.SIGKILL)
    for rank in (zero, two):
        failure = rank.told()
        assert failure.rank == 1 and failure.status == 1 and not failure.said
        assert failure.message.startswith(one.name)
        assert "died in saving step-000500: killed perhaps" in failure.message
        assert rank.ask("failure") == failure


def test_a_rank_that_raises_is_quoted_by_all_and_not_told_its_own_error(start):
    zero, one, two = start(3)
    mine = one.ask("fail", "--lr 0:\n  must be positive", 2, True)
    assert mine == Failure(1, "--lr 0: must be positive", 2, True)
    assert zero.told() == two.told() == mine
    assert one.told(0.3) is None and zero.told(0.1) is None  # once


def test_of_two_failures_all_ranks_know_the_same_first_one(start):
    ranks = start(3)
    for rank in (0, 1):
        ranks[rank].order("fail", f"error {rank}", 2, True)
    answers = [rank.orders.recv() for rank in ranks[:2]]
    assert answers[0] == answers[1] == ranks[2].told()
    assert ranks[1 - answers[0].rank].told() == answers[0]  # the one that came second hears of the first
    assert ranks[2].ask("fail", "a late error", 1, False) == answers[0]


def test_a_failure_before_a_rank_began_is_heard_by_it(start):
    (early,) = start(2, only=[0])
    failure = early.ask("fail", "no such file", 2, True)
    (late,) = start(2, only=[1])
    assert late.told() == failure


def test_ranks_that_end_in_order_are_no_deaths_and_the_rest_stay_watched(start):
    """Rank 0 watched rank 1, which left; nobody would have seen the death of rank 2."""
    zero, one, two, three = start(4, times=QUICK | {"BEAT": 1.0})  # the connection ends before a beat is read
    settle([zero, one, two, three])
    for rank in (one, three):
        rank.ask("close")
        rank.ask("close")  # a second time does nothing
        rank.signal(signal.SIGKILL)
    assert zero.told(1.0) is None and two.told(0.1) is None
    two.signal(signal.SIGKILL)
    assert zero.told().message.startswith(f"{two.name}")


def test_a_rank_that_dies_right_after_its_watcher_left_is_found(start):
    """The one that takes over was never connected to it: that it cannot be now has to tell."""
    zero, one, two = start(3)
    settle([zero, one, two])
    zero.signal(signal.SIGSTOP)
    one.ask("close")
    two.signal(signal.SIGKILL)
    two.process.join()
    zero.signal(signal.SIGCONT)
    assert zero.told().message.startswith(two.name)


def test_all_ranks_may_end_in_order_at_once(start):
    ranks = start(3)
    for rank in ranks:
        rank.order("close")
    for rank in ranks:
        assert rank.orders.recv() is None
        assert rank.told(0.1) is None and rank.ask("failure", 1.0) is None


def test_two_neighbours_that_are_killed_at_once_are_not_missed(start):
    """Rank 1 watched rank 2: with both dead, rank 0 must see the one and rank 3 must hear of it."""
    zero, one, two, three = start(4)
    settle([zero, one, two, three])
    one.signal(signal.SIGKILL)
    two.signal(signal.SIGKILL)
    failure = zero.told()
    assert failure == three.told()
    assert failure.message.startswith((one.name, two.name)) and "died" in failure.message


def test_a_child_of_a_killed_rank_does_not_hide_its_death(start):
    """A worker that reads data inherits all sockets, and outlives a rank that is killed."""
    zero, one = start(2)
    settle([zero, one])
    child = one.ask("fork")
    one.signal(signal.SIGKILL)
    try:
        assert zero.told().message.startswith(one.name)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_rank_on_another_machine_whose_address_leads_elsewhere_is_no_death(store, start):
    """Debian's 127.0.1.1 is every machine's own name for itself; nothing listens there, and the beats go on."""
    (one,) = start(2, only=[1])
    client = TCPStore("127.0.0.1", store.port, None, False, timeout=timedelta(seconds=30))
    place = json.loads(client.get("start0/place/1"))
    client.set("start0/place/1", json.dumps(place | {"port": 1, "host": "another"}))
    (zero,) = start(2, only=[0])
    assert zero.told(2.0) is None and one.told(0.1) is None
    one.signal(signal.SIGKILL)
    assert zero.told().message.startswith(one.name)  # by its beats


@pytest.mark.slow
def test_a_connection_that_breaks_is_no_death(start):
    zero, one = start(2)
    settle([zero, one])
    zero.order("break the connection")
    assert zero.told(1.0) is None and one.told(0.1) is None
    one.signal(signal.SIGKILL)
    assert zero.told().message.startswith(one.name)  # and the new connection serves as well


def test_a_store_that_is_gone_stops_all_and_the_one_that_watched_rank_0_says_that_it_died(store, start):
    """Rank 0's machine went: the others waited for a store that was no more."""
    zero, one, two = start(3, times=QUICK | {"PATIENCE": 1.5})
    settle([zero, one, two])
    store.kill()
    zero.signal(signal.SIGKILL)
    near, far = two.told(), one.told()
    assert far == Failure(0, "the rendezvous on rank 0's machine cannot be reached any more", 1, False)
    assert near.rank == 0 and near.message.startswith(zero.name) and "died" in near.message
    assert one.ask("fail", "connection reset by peer", 1, False) == far
    one.ask("close")


@pytest.mark.slow
def test_a_store_that_answers_nothing_is_given_up_once_the_neighbour_is_gone(store, start):
    """A machine without power raises no error in a call that waits for it."""
    zero, one = start(2)
    settle([zero, one])
    os.kill(store.pid, signal.SIGSTOP)
    assert zero.told(1.6) is None  # torchrun itself was stopped by Ctrl-Z, say
    one.signal(signal.SIGKILL)
    assert "rendezvous on rank 0's machine" in zero.told().message


@pytest.mark.slow
def test_a_store_that_answers_nothing_holds_up_no_failure_and_no_end(store, start):
    zero, one = start(2)
    settle([zero, one])
    os.kill(store.pid, signal.SIGSTOP)
    assert zero.ask("fail", "a loss is NaN", 3, True) == Failure(0, "a loss is NaN", 3, True)
    one.ask("close")


def test_a_stopped_rank_is_no_death_and_named_after_the_time_for_stalls(start):
    """SIGSTOP keeps every connection open."""
    zero, one, two = start(3, stall=STALL)
    for rank in (zero, one, two):
        rank.order("work")
    one.ask("note", "evaluation")
    settle([zero, one, two])
    time.sleep(0.5)
    one.signal(signal.SIGSTOP)
    assert zero.told(0.5) is None
    failure = zero.told()
    assert failure == two.told() and failure.rank == 1
    assert failure.message.startswith(one.name)
    assert "has given no sign of life for 1.5 seconds, in evaluation: it is stopped" in failure.message


def test_a_rank_whose_main_thread_is_stuck_is_named_though_its_watch_lives(start):
    """All wait for it and stand still alike: it is the one that did least, not the first that is seen still."""
    ranks = start(3, stall=STALL)
    for rank in ranks:
        rank.ask("note", "training, step 12")
    for rank in (ranks[0], ranks[2]):
        rank.ask("beat")
    failures = [rank.told() for rank in ranks]  # the stuck one hears it too, or it would hang on
    assert failures[0] == failures[1] == failures[2] and failures[0].rank == 1
    assert failures[0].message.startswith(ranks[1].name)
    assert failures[0].message.endswith("has made no progress for 1.5 seconds, in training, step 12")


def test_where_all_ranks_hang_alike_none_is_accused(start):
    ranks = start(2, stall=STALL)
    for rank in ranks:
        rank.ask("note", "training, step 12")
    message = "no rank has made any progress for 1.5 seconds, in training, step 12"
    assert [rank.told().message for rank in ranks] == [message, message]


@pytest.mark.slow
def test_who_waits_for_a_rank_that_works_on_is_not_stalled(start):
    """Uneven parts of an evaluation: two are done, and stand still for as long as the third needs."""
    ranks = start(3, stall=STALL)
    for rank in ranks[:2]:
        rank.ask("note", "evaluation")
    ranks[2].order("work")
    assert ranks[0].told(2.0) is None and ranks[2].told(0.1) is None


def test_a_pause_is_no_stall_and_its_end_starts_the_clock_anew(start):
    """Rank 0 tokenises for an hour, and the others wait for it; the moment it is done nobody has stalled yet."""
    ranks = start(2, stall=STALL)
    ranks[0].order("pause")
    assert ranks[0].told(1.9) is None
    ranks[0].order("go on")
    assert ranks[0].told(0.6) is None and ranks[1].told(0.1) is None
    assert "no rank has made any progress" in ranks[1].told().message


@pytest.mark.slow
def test_a_machine_that_slept_accuses_nobody_when_it_wakes(start):
    """The rank that was continued first saw that the other had been silent for hours."""
    zero, one = start(2, stall=STALL)
    for rank in (zero, one):
        rank.order("work")
    settle([zero, one])
    for rank in (zero, one):
        rank.signal(signal.SIGSTOP)
    time.sleep(1.8)
    zero.signal(signal.SIGCONT)
    assert zero.told(0.5) is None
    one.signal(signal.SIGCONT)
    assert one.told(0.5) is None and zero.told(0.1) is None


FORGETFUL = """
import sys, time
from datetime import timedelta
from torch.distributed import TCPStore
from gptft.parallel import watch
watch.ROUND = 0.0
store = TCPStore("127.0.0.1", int(sys.argv[1]), None, False, timeout=timedelta(seconds=30))
watched = watch.Watch(store, 0, 2, 0.0, "127.0.0.1")
time.sleep(0.2)
sys.exit(3)
"""


@pytest.mark.slow
def test_a_process_that_ends_without_closing_its_watch_keeps_its_exit_status(store):
    """A thread that came back from the store while the interpreter was taken down ended the process with SIGABRT."""
    ended = subprocess.run([sys.executable, "-c", FORGETFUL, str(store.port)], capture_output=True, text=True)
    assert ended.returncode == 3, ended.stderr


def test_a_job_of_one_rank_needs_no_store():
    watched = Watch(None, 0, 1, 10.0, "127.0.0.1")
    watched.note("training")
    watched.beat()
    with watched.pausing():
        assert watched.failure(60.0) is None  # and waits for nobody
    assert watched.fail("a loss is NaN", 3, True) == watched.failure() == Failure(0, "a loss is NaN", 3, True)
    watched.close()
