"""The numbers of the processes of one supervisor, as one: over pipes of their own, on which they answer when asked.

A process also tells its numbers unasked, every `report.EVERY` seconds and when it ends: what it counted is not lost
with it, however it dies, but for that second. What the lives of a process have counted before this one is carried on,
so a counter never goes back, and no process that is started anew makes another's jump. Of one that does not answer, a
frozen one say, what it said last stands, and the probes tell.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import IO, Any, Literal, cast

import msgpack
from prometheus_client.metrics_core import Metric as Family

from rstream.metrics.server import Check
from rstream.metrics.table import Snapshot, families, grows, plus
from rstream.process import clock

Kind = Literal["m", "r"]
"""What is asked for: metrics, or readiness."""

PATIENCE, PROBE_PATIENCE = 1.0, 3.0
"""Seconds that processes have to answer, before what they said last has to do."""

SILENT = 10.0
"""Seconds after which a process that does not speak is not alive: it is frozen, or in C code that holds the GIL."""

LAST_WORDS = 0.5


class Ledger:
    """What one process has counted through all its lives. Pure."""

    def __init__(self) -> None:
        self._before: Snapshot = {}
        self._now: Snapshot = {}

    def told(self, snapshot: Snapshot) -> None:
        self._now = snapshot

    def ended(self) -> None:
        """The next life begins at 0; what is no counter ended with this one."""
        self._before, self._now = {series: each for series, each in self.total().items() if grows(series)}, {}

    def total(self) -> Snapshot:
        carried = {series: each for series, each in self._before.items() if series not in self._now}
        for series, value in self._now.items():
            before = self._before.get(series)
            carried[series] = value if before is None else plus(before, value)
        return carried


class _Life:
    """A process that runs, and the thread that reads what it says."""

    def __init__(self, number: int, ledger: Ledger, said: threading.Condition) -> None:
        self._socket, self.theirs = socket.socketpair()
        self._socket.setblocking(True)
        self._ledger, self._said = ledger, said
        self.heard: float | None = None
        self.over = False
        self.verdict: list[Check] = []
        self._asked: dict[Kind, int] = {"m": 0, "r": 0}
        self._answered: dict[Kind, int] = {"m": 0, "r": 0}
        self._thread = threading.Thread(target=self._read, name=f"rstream-metrics-{number}", daemon=True)
        self._thread.start()

    def ask(self, kind: Kind) -> None:
        with contextlib.suppress(OSError):  # it does not read them, or is gone
            if self._socket.send(kind.encode(), socket.MSG_DONTWAIT):
                self._asked[kind] += 1

    def has_answered(self, kind: Kind) -> bool:
        return self._answered[kind] >= self._asked[kind]

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as file:
            while (frame := _frame(file)) is not None:
                kind, number, body = msgpack.unpackb(frame)
                with self._said:
                    self.heard, self._answered[cast("Kind", kind)] = clock(), number
                    if kind == "m":
                        self._ledger.told({tuple(series): value for series, value in body})
                    else:
                        self.verdict = [Check(*each) for each in body]
                    self._said.notify_all()

    def end(self) -> None:
        """It has ended: hear what it said last. What it had started may hold its end of the pipe open."""
        self._thread.join(LAST_WORDS)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(LAST_WORDS)
        self._socket.close()


def _frame(file: IO[bytes]) -> bytes | None:
    """The next one; None at the end, wherever in it that comes."""
    size = int.from_bytes(file.read(4), "big")
    frame = file.read(size)
    return frame if size and len(frame) == size else None


class Processes:
    """Of a supervisor, by number, from 1. Its `begins` and `ended` are called by the supervisor, the others by the
    server's threads.
    """

    def __init__(self, count: int) -> None:
        self._numbers = range(1, count + 1)
        self._ledgers = {number: Ledger() for number in self._numbers}
        self._lives: dict[int, _Life] = {}
        self._said = threading.Condition()
        self._asking = threading.Lock()

    def begins(self, number: int) -> socket.socket:
        """A process is about to be started: what it has to inherit. Whoever starts it closes that here."""
        life = _Life(number, self._ledgers[number], self._said)
        with self._said:
            self._lives[number] = life
        return life.theirs

    def ended(self, number: int) -> None:
        life = self._lives.get(number)
        if life is not None:
            life.end()
            with self._said:
                life.over = True
                del self._lives[number]
                self._ledgers[number].ended()
                self._said.notify_all()

    def _ask(self, kind: Kind, patience: float) -> None:
        """Returns when all have answered, or the patience is over. One question at a time: the next is a newer one."""
        with self._asking, self._said:
            lives = [*self._lives.values()]
            for life in lives:
                life.ask(kind)
            asked = [life for life in lives if life.heard is not None]
            self._said.wait_for(lambda: all(life.over or life.has_answered(kind) for life in asked), patience)

    def collect(self) -> Iterable[Family]:
        self._ask("m", PATIENCE)
        with self._said:
            totals = {self._label(number): ledger.total() for number, ledger in self._ledgers.items()}
        return families(totals, version("rstream"))

    def _label(self, number: int) -> str | None:
        return str(number) if len(self._numbers) > 1 else None

    def healthy(self) -> list[Check]:
        """One that crashes is started again, and one that starts may take its time: nobody has to restart us for it."""
        return [Check("alive", True, "it answers"), *self._each(self._health)]

    def ready(self) -> list[Check]:
        self._ask("r", PROBE_PATIENCE)
        return [*self._each(self._readiness)]

    def _each(self, look: Any) -> Iterator[Check]:
        with self._said:
            for number in self._numbers:
                yield from look(f"process {number}", self._lives.get(number))

    def _health(self, name: str, life: _Life | None) -> Iterator[Check]:
        if life is None:
            yield Check(name, True, "is started again")
        elif life.heard is None:
            yield Check(name, True, "is starting")
        else:
            silent = clock() - life.heard
            well = silent < SILENT
            yield Check(name, well, "it answers" if well else f"silent for {silent:.0f} s: frozen?")

    def _readiness(self, name: str, life: _Life | None) -> Iterator[Check]:
        if life is None:
            yield Check(name, False, "does not run: it is started again")
        elif life.heard is None:
            yield Check(name, False, "is starting")
        elif not life.has_answered("r"):
            yield Check(name, False, f"does not answer, silent for {clock() - life.heard:.0f} s: frozen?")
        else:
            yield from (Check(f"{name}: {each.name}", each.well, each.why) for each in life.verdict)
