"""What a worker of this process says when it is asked: its numbers, and whether it can work. Runs in a thread of the
server, beside the event loop: it reads numbers that the loop writes, and writes none itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from prometheus_client.metrics_core import Metric as Family

from rstream.errors import StoreError
from rstream.metrics.server import Check
from rstream.metrics.table import Snapshot, families
from rstream.process import clock
from rstream.store.keys import ARCHIVE
from rstream.store.link import SyncLink, together
from rstream.worker.presence import buffered, in_flight
from rstream.worker.run import ConsumerRun
from rstream.worker.tally import Tally
from rstream.worker.worker import Worker

STALLED = 5.0
"""Seconds for which the event loop may be blocked before the worker is not ready."""

PATIENCE = 1.0
"""Seconds that Redis has to answer a probe: whoever asks waits only a few."""

FRESH = 0.5
"""Seconds for which Redis's answer stands: however often a worker is asked, Redis is not."""


def snapshot(worker: Worker) -> Snapshot:
    """All that it has counted since its start, and what it has in hand now."""
    found: Snapshot = {("rstream_loop_stall_seconds",): worker.stall.longest()}
    found["rstream_reconnects_total",] = sum(endpoint.reconnects for endpoint in worker.endpoints)
    for tally in worker.tallies.every:
        if tally.group != ARCHIVE:
            found |= _counted(tally)
        found |= _stored(tally)
    for run in [*worker.runs]:
        labels = (run.layout.name, run.ops.group)
        found["rstream_lease_lost_total", *labels] = run.lease.lost + run.tally.unheld
        found["rstream_in_flight", *labels] = in_flight(run)
        found["rstream_buffered", *labels] = buffered(run)
        if run.order is not None:
            found["rstream_shards_owned", *labels] = len(run.lease.owned)
    return found


def _counted(tally: Tally) -> Snapshot:
    labels = (tally.stream, tally.group)
    found: Snapshot = {
        ("rstream_attempts_total", *labels): tally.attempts,
        ("rstream_fenced_settles_total", *labels): tally.fenced,
        ("rstream_redelivered_total", *labels): tally.recovered,
        ("rstream_group_resets_total", *labels): tally.resets,
        ("rstream_handler_seconds", *labels): [*tally.handler],
        ("rstream_queue_delay_seconds", *labels): [*tally.delay],
    }
    found |= {("rstream_settled_total", *labels, outcome): count for outcome, count in {**tally.settled}.items()}
    return found | {("rstream_dead_letters_total", *labels, why): count for why, count in {**tally.dead}.items()}


def _stored(tally: Tally) -> Snapshot:
    """Of the blob store and the archive: only what it was asked for, for most groups never ask for any."""
    labels, found = (tally.stream, tally.group), Snapshot()
    for operation, (seconds, size) in tally.blobs.items():
        if any(seconds):
            found["rstream_blob_operation_seconds", *labels, operation] = [*seconds]
            if operation in ("get", "put"):
                found["rstream_blob_bytes_total", *labels, operation] = size[0]
    if tally.group == ARCHIVE:
        found["rstream_archive_segment_seconds", *labels] = [*tally.segments]
        found["rstream_archive_bytes_total", *labels] = tally.segment_bytes
    return found


def collect(worker: Worker) -> Iterable[Family]:
    """Of a process that is the only one."""
    return families({None: snapshot(worker)}, version("rstream"))


class Readiness:
    """Whether a worker can work: connected, its groups there, its leases held, its event loop turning.

    Cost: a round trip and a call for each group, O(shards), at most every `FRESH` seconds, on a connection of its own.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker, self._link = worker, SyncLink(worker.app.endpoint, timeout=PATIENCE)
        self._lock = threading.Lock()
        self._answer: list[Check] = []
        self._until = float("-inf")

    def __call__(self) -> list[Check]:
        worker, runs = self._worker, [*self._worker.runs]
        if worker.phase != "is at work":
            return [Check("worker", False, f"{worker.id} {worker.phase}")]
        stalled = worker.stall.now()
        return [
            Check("worker", True, f"{worker.id} is at work"),
            Check("loop", stalled < STALLED, f"blocked for {stalled:.1f} s" if stalled > 0.2 else "it turns"),
            _leases(runs),
            *self._asked(runs),
        ]

    def _asked(self, runs: list[ConsumerRun]) -> list[Check]:
        """What Redis says, or said a moment ago."""
        with self._lock:
            if clock() >= self._until:
                self._answer = self._ask(runs)
                self._until = clock() + FRESH
            return self._answer

    def _ask(self, runs: list[ConsumerRun]) -> list[Check]:
        try:
            looks: list[Any] = self._link.run(together([run.owners.look(run.layout.current) for run in runs]))
        except StoreError as error:
            return [Check("redis", False, str(error))]
        gone = [run.name for run, look in zip(runs, looks, strict=True) if not all(at.position for at in look.values())]
        why = f"gone from Redis: {', '.join(gone)}" if gone else ", ".join(run.name for run in runs)
        return [Check("redis", True, "it answers"), Check("groups", not gone, why)]


def _leases(runs: list[ConsumerRun]) -> Check:
    lost = [run.name for run in runs if not run.lease.holds()]
    return Check("leases", not lost, f"run out: {', '.join(lost)}" if lost else "held")
