"""What a consumer, or an archiver, of this process did, counted since its start. Plain numbers: the event loop adds to
them, and whoever is asked for metrics reads them, in a thread of its own. Nothing is done an entry that costs more than
an addition and a bisection. No clock, no I/O.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import get_args

from rstream.blobs.meter import Operation, Spent
from rstream.store.deliveries import Fetched, Outcome

BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0),
)
"""Seconds: of every histogram, from a handler that does nothing to a group that is a day behind."""

SHORTEST = BOUNDS[0]

Histogram = list[float]
"""How many were up to each bound, and beyond them; at last the sum of all."""

OUTCOMES = ("ack", "retry", "dead", "expired", "skipped", "release")
REASONS = (
    *("failed", "rejected", "undecodable", "outdated", "invalid", "crashed", "undecryptable", "plaintext"),
    *("blob missing", "blob altered"),
)
"""Of dead letters."""


def histogram() -> Histogram:
    return [0] * (len(BOUNDS) + 1) + [0.0]


def note(into: Histogram, seconds: float) -> None:
    into[bisect_left(BOUNDS, seconds)] += 1
    into[-1] += seconds


class Tally:
    """handled: deliveries whose handler returned · failed: whose handler raised · attempts: handler calls that began,
    in events · settled, dead: as Redis accepted them · expired: found too old to be started · fenced: outcomes that
    Redis refused · astray: deliveries that were somebody else's before they were started · recovered: taken over from
    dead workers · unheld: let go while the lease was gone · lost: trimmed before they were processed · resets: the
    group was gone, and made anew · handler, delay: seconds that handlers ran, and from publish to the first start ·
    batched: events in running batches · blobs, segments: what was asked of the blob store, and archived.
    """

    __slots__ = (
        "_at", "_bucket", "_from", "_lock", "_time", "_until",
        "astray", "attempts", "batched", "blobs", "dead", "delay", "expired", "failed", "fenced", "group", "handled",
        "handler", "lost", "recovered", "resets", "segment_bytes", "segments", "settled", "stream", "unheld",
    )  # fmt: skip

    def __init__(self, stream: str, group: str) -> None:
        self.stream, self.group = stream, group
        self.handled = self.failed = self.attempts = self.expired = self.fenced = self.astray = 0
        self.recovered = self.unheld = self.lost = self.resets = self.batched = 0
        self.settled: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.dead: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.handler, self.delay = histogram(), histogram()
        self.blobs: dict[Operation, tuple[Histogram, list[int]]] = {
            name: (histogram(), [0]) for name in get_args(Operation)
        }
        self.segments, self.segment_bytes = histogram(), 0
        self._time, self._bucket = b"", 0
        self._at = self._from = self._until = 0.0
        self._lock = threading.Lock()

    def begins(self, entry: Fetched, attempt: int, now: float) -> None:
        """The handler is called with it. now: by Redis's clock."""
        self.attempts += 1
        if attempt > 1 or entry[4] == "~again":
            return
        # Where there is much to do, many have the same time, and wait in the same bucket.
        id = entry[1]
        if not (id.startswith(self._time) and self._from <= now < self._until):
            self._look(id, now)
        delay = self.delay
        delay[self._bucket] += 1
        delay[-1] += now - self._at

    def _look(self, id: bytes, now: float) -> None:
        """In which bucket entries of that time are, and from when until when."""
        time, dash, _ = id.partition(b"-")
        self._time, at = time + dash, int(time) / 1000
        self._at = at if at < now else now  # the clocks were compared a round trip ago
        self._bucket = bucket = bisect_left(BOUNDS, now - self._at)
        self._from = now if now > at else inf
        self._until = at + BOUNDS[bucket] if bucket < len(BOUNDS) else inf

    def took(self, seconds: float) -> None:
        """A call of the handler."""
        handler = self.handler
        handler[0 if seconds <= SHORTEST else bisect_left(BOUNDS, seconds)] += 1
        handler[-1] += seconds

    def ends(self, outcome: Outcome, started: bool) -> None:
        """Redis accepted an outcome that is no bare ack (these are counted by the batch)."""
        kind: str = outcome.kind
        if kind == "dead":
            reason = str(outcome.a)
            self.dead[reason] = self.dead.get(reason, 0) + 1
        elif kind == "retry" and outcome.a == 0 and not started:
            kind = "release"
        if (
            kind in self.settled
        ):  # else it was put aside until its key's turn, or lost, which is counted where it is met
            self.settled[kind] += 1

    # As a meter of blob stores, from their threads.

    def blob(self, operation: Operation, seconds: float, size: int) -> None:
        times, sizes = self.blobs[operation]
        with self._lock:
            note(times, seconds)
            sizes[0] += size

    def spent(self, elsewhere: Spent) -> None:
        for operation, seconds, size in elsewhere:
            self.blob(operation, seconds, size)

    def segment(self, seconds: float, size: int) -> None:
        with self._lock:
            note(self.segments, seconds)
            self.segment_bytes += size


class Tallies:
    """Of a worker: one for each stream and group that it works for."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Tally] = {}

    def of(self, stream: str, group: str) -> Tally:
        return self._found.setdefault((stream, group), Tally(stream, group))

    @property
    def every(self) -> list[Tally]:
        return [*self._found.values()]

    def handled(self) -> int:
        """Deliveries, well or not."""
        return sum(each.handled + each.failed for each in self.every)


@dataclass(slots=True)
class Counts:
    """What a worker says of itself when it ends. refused: outcomes and starts that the fence refused (`LeaseLost`)."""

    handled: int = 0
    failed: int = 0
    dead: int = 0
    expired: int = 0
    skipped: int = 0
    refused: int = 0
    recovered: int = 0
    lost: int = 0
    resets: int = 0

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> Counts:
        total = cls()
        for each in tallies:
            total.handled += each.handled
            total.failed += each.failed
            total.dead += each.settled["dead"]
            total.expired += each.settled["expired"]
            total.skipped += each.settled["skipped"]
            total.refused += each.fenced + each.astray
            total.recovered += each.recovered
            total.lost += each.lost
            total.resets += each.resets
        return total

    def __str__(self) -> str:
        told: Mapping[str, int] = asdict(self)
        return ", ".join(f"{name} {number:,}" for name, number in told.items())
