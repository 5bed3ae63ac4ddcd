"""Drives an `Outbox`: gathers concurrent publishes into flushes, one write in flight, exact through broken lines.

A lone publish goes out at once; gathering waits for the reply before it or the next loop tick, never for a timer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading

from rstream.errors import PublishUncertain
from rstream.event import EntryId
from rstream.store.keys import Shard
from rstream.store.link import Link, SyncLink
from rstream.store.log import Outbox, Parcel, Record


class Producer:
    """The publisher of one stream in one event loop."""

    def __init__(self, link: Link, timeout: float) -> None:
        self._link, self._timeout = link, timeout
        self._renew()

    def _renew(self) -> None:
        self._outbox = Outbox()
        self._flusher: asyncio.Task[None] | None = None
        self._pid = os.getpid()

    async def send(self, shards: dict[Shard, list[Record]]) -> list[tuple[Parcel, EntryId | BaseException]]:
        """Publish records to their shards; each parcel with the id of its first record, or its error."""
        if self._pid != os.getpid():
            self._renew()  # see SyncProducer
        make = asyncio.get_running_loop().create_future
        parcels = [parcel for shard, records in shards.items() for parcel in Parcel.pack(shard, records, make)]
        self._outbox.add(parcels)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        if len(parcels) == 1:  # spares a lone publish the price of gather
            promise: asyncio.Future[EntryId] = parcels[0].promise  # type: ignore[assignment]
            return [(parcels[0], await promise)]
        results = await asyncio.gather(*(p.promise for p in parcels), return_exceptions=True)  # type: ignore[call-overload]
        return list(zip(parcels, results, strict=True))

    async def _flush(self) -> None:
        try:
            while op := self._outbox.take():
                try:
                    await self._link.run(op, within=self._timeout)
                except Exception as error:
                    self._outbox.fail(error)
                except BaseException as error:  # the loop is ending
                    self._outbox.fail(PublishUncertain(f"publish was interrupted: {type(error).__name__}"))
                    raise
        finally:
            self._flusher = None


class SyncProducer:
    """The publisher of one stream for all threads of a process: whoever gets the lock flushes for everybody."""

    def __init__(self, link: SyncLink, timeout: float) -> None:
        self._link, self._timeout = link, timeout
        self._renew()

    def _renew(self) -> None:
        self._outbox = Outbox()
        self._adding, self._flushing = threading.Lock(), threading.Lock()
        self._pid = os.getpid()

    def send(self, shards: dict[Shard, list[Record]]) -> list[tuple[Parcel, EntryId | BaseException]]:
        """As `Producer.send`."""
        if self._pid != os.getpid():
            # A forked child that went on with the parent's producer id and numbers would have its
            # events taken for resends.
            self._renew()
        promises: list[concurrent.futures.Future[EntryId]] = []

        def make() -> concurrent.futures.Future[EntryId]:
            promises.append(concurrent.futures.Future())
            return promises[-1]

        parcels = [parcel for shard, records in shards.items() for parcel in Parcel.pack(shard, records, make)]
        with self._adding:
            self._outbox.add(parcels)
        while not all(promise.done() for promise in promises):
            with self._flushing:
                if not all(promise.done() for promise in promises):
                    self._flush_once()
        return [(parcel, p.exception() or p.result()) for parcel, p in zip(parcels, promises, strict=True)]

    def _flush_once(self) -> None:
        with self._adding:
            op = self._outbox.take()
        if op is None:
            return
        try:
            self._link.run(op, within=self._timeout)
        except BaseException as error:
            uncertain = PublishUncertain(f"publish was interrupted: {type(error).__name__}")
            with self._adding:
                self._outbox.fail(error if isinstance(error, Exception) else uncertain)
            if not isinstance(error, Exception):
                raise
