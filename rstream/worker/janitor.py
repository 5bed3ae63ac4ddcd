"""Looks after retention: trims what is processed and beyond a limit, brings the limits of shards up to date, removes
old generations that are empty then, and now and then has the blob store swept. And it has the history kept.

Every worker has this loop, and of a stream one looks at a time. Cost: every `INTERVAL`, or thrice that while nothing is
trimmed or handled, one small read for all streams of the app; for each with a retention one more, and where this worker
is the one that looks, another with a call for each shard. (Producers that meet a limit trim by themselves, at once.)
For the history what history.py says; while nothing is handled here only every `QUIET`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

from rstream.app import RStream
from rstream.blobs.gc import collect
from rstream.errors import RStreamError, StoreError, StoreRefused
from rstream.logs import about
from rstream.retention import Retention, text_of
from rstream.store import layout as layouts
from rstream.store.history import EVERY_MS, glance
from rstream.store.layout import Layout
from rstream.store.link import both
from rstream.store.reshard import retire
from rstream.store.steps import drive
from rstream.store.trim import Alarm, Standing, tidy
from rstream.store.weigh import office, sweep
from rstream.stream import Stream
from rstream.worker.run import ConsumerRun
from rstream.worker.sampler import Sampler

log = logging.getLogger("rstream")

INTERVAL, IDLE = 5.0, 3
"""Seconds between two looks, about; and so many times that while there is nothing to do."""

QUIET = 60.0
"""Seconds between two samples for the history while this worker handles nothing."""


class Janitor:
    """alarms: those that were told, by stream and group."""

    def __init__(
        self, app: RStream, worker: str, runs: Sequence[ConsumerRun] = (), sampler: Sampler | None = None
    ) -> None:
        self._app, self._worker, self._runs, self._taken = app, worker, runs, 0
        self._sampler = sampler or Sampler(app)
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._sweeping: threading.Thread | None = None
        self._left: set[str] = set()

    async def look(self) -> bool:
        """At all streams of the app, one after the other: whether something was trimmed, or is being handled. Raises
        the last `StoreError`, at the end.
        """
        streams, busy = list(self._app.streams.values()), self._at_work()
        every = EVERY_MS if busy else int(QUIET * 1000)
        glanced = glance(self._app.settings.namespace, [stream.name for stream in streams], every)
        failed: StoreError | None = None
        trimmed = False
        found = await self._app.link.run(glanced)
        for stream, (retention, seen) in zip(streams, found, strict=True):
            await self._sampler.take(stream.name, seen)
            try:
                if isinstance(retention, StoreError):
                    raise retention
                if retention is not None:
                    trimmed = await self._look_at(stream, retention) or trimmed
            except StoreError as error:
                if isinstance(error, StoreRefused) and error.denied:
                    self._leave_to_others(stream, error)
                else:  # the others may be on another server of the cluster
                    failed = error
        if failed is not None:
            raise failed
        return trimmed or busy

    def _at_work(self) -> bool:
        """Whether anything came in since the last look, or is in hand."""
        before, self._taken = self._taken, sum(run.taken for run in self._runs)
        return self._taken != before or any(run.in_hand for run in self._runs)

    def _leave_to_others(self, stream: Stream[Any], error: StoreRefused) -> None:
        """An app may declare streams that its workers only emit to."""
        if stream.name not in self._left:
            self._left.add(stream.name)
            text = "stream %r: workers with other rights have to look after its retention: %s"
            log.warning(text, stream.name, error, extra=about({"stream": stream.name}))

    async def _look_at(self, stream: Stream[Any], retention: Retention) -> bool:
        namespace = self._app.settings.namespace
        asked = office(namespace, stream.name, self._worker, int(3 * IDLE * INTERVAL * 1000))
        stored = layouts.load(namespace, stream.name)
        ours, layout = await self._app.link.run(both(asked, stored))
        return ours and layout is not None and await self._tidy(stream, layout, retention)

    async def _tidy(self, stream: Stream[Any], layout: Layout, retention: Retention) -> bool:
        link, wait = self._app.link, self._app.settings.publish_timeout
        done = await drive(link, tidy(layout, retention), wait)
        for standing in done.groups:
            self._tell(stream.name, standing, retention)
        if layout.older:
            await drive(link, retire(layout.namespace, layout.name), wait)
        sweeping = self._sweeping is not None and self._sweeping.is_alive()
        if stream.claims.source is not None and not sweeping and await link.run(sweep(layout)):
            # Not a thread of the event loop's: nobody has to wait for it at the end.
            self._sweeping = threading.Thread(target=_sweep, args=(stream,), name="rstream-sweep", daemon=True)
            self._sweeping.start()
        return bool(done.trims)

    def _tell(self, stream: str, group: Standing, retention: Retention) -> None:
        before = self._alarms.get((stream, group.name), "")
        self._alarms[stream, group.name] = group.alarm
        if group.alarm == before:
            return
        idle, ttl = text_of(group.idle), text_of(retention.ttl_seconds)
        extra = about({"stream": stream, "group": group.name})
        if group.alarm == "soon":
            text = "%s/%s: no worker for %s: after %s (group_ttl) it loses what retention trims. Start one, or reset it"
            log.warning(text, stream, group.name, idle, ttl, extra=extra)
        elif group.alarm == "ignored":
            text = "%s/%s: no worker for %s, longer than group_ttl (%s): what it has not processed is trimmed now"
            log.error(text, stream, group.name, idle, ttl, extra=extra)


def _sweep(stream: Stream[Any]) -> None:
    try:
        done = collect(stream)
    except RStreamError as error:
        log.warning("stream %r: the blob store was not swept: %s", stream.name, error)
    else:
        log.info("stream %r: deleted %d blobs to which nothing refers", stream.name, done.deleted)


async def janitor_loop(app: RStream, worker: str, runs: Sequence[ConsumerRun], sampler: Sampler) -> None:
    """Runs until cancelled."""
    janitor = Janitor(app, worker, runs, sampler)
    while True:
        busy = True
        try:
            busy = await janitor.look()
        except StoreError as error:
            log.warning("retention was not looked after: %s", error)
        await asyncio.sleep(INTERVAL * random.uniform(1.0, 1.2) * (1 if busy else IDLE))
