"""The ranks of one torchrun job watch one another: when one dies, raises or stalls, all stop, and say which and why.

A rank that waits for a dead one in a collective waits for minutes, and its error then names itself, or no one. Here
every rank has two threads that no collective can hold up. They know of the others in three ways:

- a ring of TCP connections, each rank to the next: when a process ends, however it ends, the system closes its sockets;
- beats, which each rank writes into the rendezvous store: its thread's ticks, and how far its main thread is;
- the key `failed` in the store: the first failure that is reported there is the one that all stop for.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

ROUND = 0.5  # seconds between two looks at `failed`
BEAT = 1.0  # seconds between two beats
GRACE = 0.5  # seconds that a rank whose connection ended has to tell its own reason
SILENT = 5.0  # seconds without a beat after which a rank that was never reached, and refuses to be, is dead
LATE = 5.0  # seconds between two rounds after which this process itself was stopped, and its clocks say nothing
PATIENCE = 3.0  # seconds for which the store may raise
LOOK = 1.0  # seconds for which the second thread listens at a time
HUNG = 15  # of its looks for which the store may give no answer while the neighbour is gone as well
TELL = 5.0  # seconds within which a rank's own failure should be in the store
JOIN = 2.0  # seconds for which a thread is waited for at the end
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPALIVE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}  # a lost machine: a minute


@dataclass(frozen=True)
class Failure:
    """Why all ranks stop. `rank`: whose failure; `message`: one line for the user; `status`: the exit status of all;
    `said`: whether the message is a UserError's, to be told as it is, or needs a word before it."""

    rank: int
    message: str
    status: int
    said: bool


def one_line(text: str) -> str:
    return " ".join(str(text).split())


def span(seconds: float) -> str:
    number, unit = (seconds / 60, "minute") if seconds >= 60 else (seconds, "second")
    return f"{round(number, 1):g} {unit}{'s' * (round(number, 1) != 1)}"


def listen(address: str) -> socket.socket:
    """A socket that others can connect to. Nothing is accepted: the system makes the connection, and ends it with the
    process, whether or not anyone took it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family, backlog=128)
    except OSError:  # others reach this machine by an address that it does not know itself
        return socket.create_server(("", 0), family=family, backlog=128)


def connect(place: dict) -> socket.socket:
    """A connection to another rank. Its system, not the process, answers for its machine now and then."""
    peer = socket.create_connection((place["address"], place["port"]), timeout=2.0)
    peer.settimeout(LOOK)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        with contextlib.suppress(OSError, AttributeError):  # no system has all of them
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


class Watch:
    """Watches the other ranks for this one, from its making until `close`.

    `store`: torch's, under a prefix of this start's own, since what failed before stays in it. `stall_minutes`: 0 for
    never. `address`: where other ranks reach this process. `on_failure(failure)` is called once, in a thread of the
    watch, unless it was this rank that reported the failure.

    The main thread only leaves notes; all calls of the store are the watch's, so that a store that hangs holds up no
    one else.
    """

    def __init__(
        self, store, rank: int, size: int, stall_minutes: float, address: str, on_failure: Callable | None = None
    ) -> None:
        self.rank, self.size, self.stall = rank, size, 60 * stall_minutes
        self.on_failure: Callable[[Failure], None] = on_failure or (lambda failure: None)
        # the main thread's notes
        self._phase, self._progress, self._pauses = "starting", 0, 0
        self._report: Failure | None = None
        self._ending = ""  # "in order" or "dropped"
        # what the threads know
        self._failure: Failure | None = None
        self._lock, self._known = threading.Lock(), threading.Event()
        self._wake, self._over = threading.Event(), threading.Event()
        self._peer: socket.socket | None = None  # the connection to the neighbour
        self._threads: list[threading.Thread] = []
        if size > 1:
            self._start(store, address)

    # -- the main thread's side

    def note(self, phase: str) -> None:
        """Say what the main thread does now, as in "training, step 12". Counts as progress, so note on all ranks alike:
        the one that counted least is taken for the one that the others wait for."""
        self._phase = one_line(phase)
        self._progress += 1

    def beat(self) -> None:
        """Say that the main thread got on; on all ranks alike."""
        self._progress += 1

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """While any rank is in here, no main thread need get on: the others may be waiting for it."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def fail(self, message: str, status: int, said: bool) -> Failure:
        """Report that this rank failed; returns the first failure of any rank, for which all stop.

        What a collective raises is often another rank's death: ask `failure(wait=3)` before.
        """
        self._report = Failure(self.rank, one_line(message), status, said)
        self._wake.set()
        if not self._running() or not self._known.wait(TELL):
            self._found(self._report, tell=False)
        return self._failure

    def failure(self, wait: float = 0.0) -> Failure | None:
        """The first failure of any rank, as far as known; waits up to `wait` seconds for one."""
        self._known.wait(wait if self._running() else 0.0)
        return self._failure

    def close(self) -> None:
        """This rank ends in order: to the others it has left, and its end is no death."""
        self._end("in order")

    def _running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _end(self, how: str) -> None:
        if not self._threads or os.getpid() != self._pid:  # a forked child ends nothing of its parent's
            return
        self._ending = self._ending or how
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN)
            self._hang_up(self._peer)  # wakes the second
        if not self._running():
            self._listener.close()
            if self._peer is not None:
                self._peer.close()
        atexit.unregister(self._end)

    # -- the threads

    def _start(self, store, address: str) -> None:
        self._pid, now = os.getpid(), time.monotonic()
        self._store = store.clone() if hasattr(store, "clone") else store  # others' blocking calls hold up theirs only
        self._listener = listen(address)
        if hasattr(os, "register_at_fork"):  # a child, such as a worker that reads data, would keep it open
            os.register_at_fork(after_in_child=self._listener.close)
        host = socket.gethostname()
        self._place = {"address": address, "port": self._listener.getsockname()[1], "host": host}
        self._place["who"] = f"process {self._pid} on {host}"
        self._rounds, self._last = 0, now
        self._ticks, self._beaten, self._counted, self._moved = 0, now - BEAT, 0, now  # for this rank's beats
        self._neighbour: int | None = (self.rank + 1) % self.size  # None: all others have left
        self._seen, self._since = {}, now  # the neighbour's last beat, and when it changed
        self._lost, self._lost_at, self._next_try = None, 0.0, 0.0  # a connection that ended; when; when to connect
        self._places: dict[int, dict] = {}
        for target in (self._watch, self._listen):
            self._threads.append(threading.Thread(target=target, name=f"Watch.{target.__name__}", daemon=True))
            self._threads[-1].start()
        # a thread that is in the store while the interpreter is taken down would end the process with SIGABRT
        atexit.register(self._end, "dropped")

    def _watch(self) -> None:
        """The first thread: a round each half second, until a failure is known or this rank ends."""
        trouble = None  # since when the store raises
        try:
            while not self._known.is_set() and not self._over.is_set():
                now = time.monotonic()
                if now - self._last > LATE:
                    self._since = self._moved = now
                self._last = now
                try:
                    self._round(now)
                    trouble = None
                except (RuntimeError, OSError):  # torch's DistError is a RuntimeError
                    trouble = now if trouble is None else trouble
                    if now - trouble > PATIENCE:
                        self._found(self._no_store())
                    if self._ending:
                        break
                self._rounds += 1
                self._wake.wait(ROUND if trouble is None else PATIENCE + 0.1)  # each time torch prints a stack
                self._wake.clear()
        except Exception as error:  # better said than a job that nobody watches
            traceback.print_exc()
            self._found(Failure(self.rank, f"the watch over the ranks failed: {one_line(repr(error))}", 1, False))
        finally:
            self._over.set()

    def _listen(self) -> None:
        """The second thread: waits for the neighbour's end, and for a round that does not end, since a store on a
        machine without power raises nothing. It counts its own looks, which a stopped process does not make."""
        rounds, stuck, last = -1, 0, None
        while not self._known.is_set() and not self._over.is_set():
            peer = self._peer
            if last is not None and last is not peer:
                last.close()  # here only: elsewhere its number might go to another file while this thread reads
            last, ended = peer, peer is not None and peer is self._lost
            if peer is None or ended:
                self._over.wait(LOOK)
            else:
                try:
                    ended = not peer.recv(1)
                except OSError as error:
                    ended = error.errno is not None  # without a number: the look is over
                if ended:
                    self._lost, self._lost_at = peer, time.monotonic()
                    self._wake.set()
            stuck, rounds = stuck + 1 if self._rounds == rounds else 0, self._rounds
            if stuck > HUNG and (ended or stuck * LOOK > self.stall > 0):
                self._found(self._no_store())

    def _round(self, now: float) -> None:
        """Hear what the others said, say what is to be said, look after the neighbour."""
        if self._ending:
            if self._ending == "in order":
                self._write_beat(now, left=True)
            self._over.set()
        elif self._store.check(["failed"]):
            self._found(Failure(**json.loads(self._store.get("failed"))))
        elif self._report is not None:
            self._publish(self._report, tell=False)
        else:
            if now - self._beaten >= BEAT:
                self._write_beat(now)
                self._look(now)
            self._hold(now)

    def _found(self, failure: Failure, tell: bool = True) -> None:
        """Keep the first failure, and tell of it once."""
        with self._lock:
            if self._known.is_set():
                return
            self._failure = failure
            self._known.set()
        if tell:
            try:
                self.on_failure(failure)
            except Exception:
                traceback.print_exc()

    def _publish(self, failure: Failure, tell: bool = True) -> None:
        """Report a failure, and learn which was the first."""
        mine = json.dumps(asdict(failure))
        first = self._store.compare_set("failed", "", mine).decode()
        self._found(Failure(**json.loads(first)), tell or first != mine)

    # -- beats

    def _write_beat(self, now: float, left: bool = False) -> None:
        """`still`: for how many seconds the main thread has not got on, by this process's own clock."""
        if self._progress != self._counted or self._pauses:
            self._counted, self._moved = self._progress, now
        self._ticks, self._beaten = self._ticks + 1, now
        beat = {"tick": self._ticks, "progress": self._counted, "still": now - self._moved, "phase": self._phase}
        self._store.set(f"beat/{self.rank}", json.dumps(beat | {"left": left}))
        if self._ticks == 1:
            self._store.set(f"place/{self.rank}", json.dumps(self._place))
        if left:
            self._store.check(["failed"])  # `set` waits for no answer; this one's says that both have arrived

    def _read(self, key: str) -> dict:
        return json.loads(self._store.get(key)) if self._store.check([key]) else {}

    def _look(self, now: float) -> None:
        """Read the neighbour's beat. One that left hands over to the next; one that stalls is reported."""
        while self._neighbour is not None:
            beat = self._read(f"beat/{self._neighbour}")
            if beat.get("tick") != self._seen.get("tick"):
                self._since = now
            self._seen = beat
            if not beat.get("left"):
                break
            following = (self._neighbour + 1) % self.size
            self._neighbour = None if following == self.rank else following
            self._hang_up(self._peer)
            self._peer, self._seen, self._since, self._next_try = None, {}, now, 0.0
        if self._neighbour is None or not self.stall:
            return
        if now - self._since > self.stall:
            why = f", in {self._phase_seen()}: it is stopped, or its machine hangs" if self._seen else ""
            self._accuse(self._neighbour, f"has given no sign of life for {span(self.stall)}{why}")
        elif self._seen.get("still", 0.0) > self.stall:
            self._find_slowest()

    def _find_slowest(self) -> None:
        """Where no rank gets on, all wait for the one that has done least. Where one still does, or is pausing, they
        wait for that one."""
        keys = [f"beat/{rank}" for rank in range(self.size)]
        if not self._store.check(keys):
            return
        beats = [json.loads(text) | {"rank": rank} for rank, text in enumerate(self._store.multi_get(keys))]
        beats = [beat for beat in beats if not beat["left"]]
        if min(beat["still"] for beat in beats) < self.stall:
            return
        slowest = min(beats, key=lambda beat: beat["progress"])
        where = f"progress for {span(self.stall)}, in {slowest['phase']}"
        if len({beat["progress"] for beat in beats}) == 1:
            self._publish(Failure(slowest["rank"], f"no rank has made any {where}", 1, False))
        else:
            self._accuse(slowest["rank"], f"has made no {where}")

    # -- the ring

    def _hold(self, now: float) -> None:
        """Have a connection to the neighbour. One that ended and cannot be made again is a death."""
        lost = self._peer is not None and self._peer is self._lost
        if lost and now >= self._lost_at + GRACE:
            self._look(now)  # it may have left
            lost = self._peer is not None
        elif self._peer is not None:
            return
        if self._neighbour is None or now < self._next_try or self._known.is_set():
            return
        place = self._where(self._neighbour)
        try:
            self._peer = connect(place) if place else None
        except ConnectionRefusedError:  # nothing listens there any more; or the address is wrong, and beats go on
            self._next_try = now + 1.0
            near, asked = place["host"] == self._place["host"], self._neighbour  # no address leads elsewhere
            if near and not lost:
                self._look(now)  # it may have left
            if self._neighbour == asked and (lost or near or now - self._since > SILENT):
                self._accuse(self._neighbour, self._died())
        except OSError:  # a lost machine; or a firewall, and the beats are all there is
            self._next_try = now + 10.0
            if lost:
                self._accuse(self._neighbour, f"cannot be reached any more, in {self._phase_seen()}")

    @staticmethod
    def _hang_up(peer: socket.socket | None) -> None:
        if peer is not None:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def _where(self, rank: int) -> dict:
        if not self._places.get(rank):
            self._places[rank] = self._read(f"place/{rank}")
        return self._places[rank]

    def _accuse(self, rank: int, what: str) -> None:
        who = self._where(rank).get("who", "which never began")
        self._publish(Failure(rank, f"rank {rank} ({who}) {what}", 1, False))

    def _phase_seen(self) -> str:
        return self._seen.get("phase", "starting")

    def _died(self) -> str:
        return f"died in {self._phase_seen()}: killed perhaps, by the system for want of memory or by hand"

    def _no_store(self) -> Failure:
        """Rank 0 may take the store along; then only the one that watches it can tell."""
        if self._neighbour == 0 and self._peer is not None and self._peer is self._lost and self._places.get(0):
            return Failure(0, f"rank 0 ({self._places[0]['who']}) {self._died()}", 1, False)
        return Failure(0, "the rendezvous on rank 0's machine cannot be reached any more", 1, False)
