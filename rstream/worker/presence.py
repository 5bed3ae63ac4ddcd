"""What a worker says of itself with every beat of its lease. Read in the lease's thread, which writes nothing here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from rstream.store.scripts import Call
from rstream.store.workers import Presence, present
from rstream.worker.recycle import MB, resident
from rstream.worker.run import ConsumerRun
from rstream.worker.stall import Stall
from rstream.worker.tally import Counts, Tallies

log = logging.getLogger("rstream")


def in_flight(run: ConsumerRun) -> int:
    """Deliveries that are being handled."""
    return run.tally.batched if run.consumer.batch is not None else len(run.running)


def buffered(run: ConsumerRun) -> int:
    """Deliveries that were fetched and not begun."""
    waiting = len(run.lanes) + run.lanes.suspects + len(run.lanes.forming) + len(run.loads)
    return waiting if run.order is None else waiting + run.order.backlog


class Presenter:
    """process: the number of this one among those of a supervisor, 0 where it is the only one."""

    def __init__(
        self, worker: str, runs: Sequence[ConsumerRun], tallies: Tallies, stall: Stall, ending: Callable[[], bool],
        process: int,
    ) -> None:  # fmt: skip
        self._worker, self._runs, self._tallies = worker, runs, tallies
        self._stall, self._ending, self._process = stall, ending, process
        self._host, self._version = socket.gethostname(), version("rstream")
        self._started: float | None = None
        self._told = False

    def calls(self) -> list[Call]:
        """What tells Redis of it. Never raises: the leases go with it."""
        try:
            return present(self._runs[0].layout.namespace, self._said())
        except Exception as error:
            self.answered([error])
            return []

    def answered(self, replies: Sequence[Any]) -> None:
        """It is no reason not to work that nobody can see it; but it is told, once."""
        for reply in replies:
            if isinstance(reply, Exception) and not self._told:
                self._told = True
                log.warning("`rstream workers` will not show this worker as it is: %s", reply)

    def _said(self) -> Presence:
        runs, counts = self._runs, Counts.of(self._tallies.every)
        if self._started is None:
            self._started = runs[0].lease.redis_now()
        return Presence(
            id=self._worker,
            host=self._host,
            pid=os.getpid(),
            process=self._process,
            version=self._version,
            started=self._started,
            groups=tuple(run.name for run in runs),
            paused=tuple(run.name for run in runs if run.lanes.paused),
            concurrency=sum(run.handled_at_once for run in runs),
            in_flight=sum(map(in_flight, runs)),
            buffered=sum(map(buffered, runs)),
            handled=counts.handled,
            failed=counts.failed,
            ending=self._ending(),
            stalled=self._stall.now(),
            loop_stall=self._stall.longest(),
            rss=int(resident() * MB),
            lease=min(run.lease.seconds for run in runs),
        )
