"""Drives an `Outbox`: gathers concurrent publishes into flushes, one write in flight, exact through broken lines and
through reshardings. Where a shard is full it makes room, or waits for it as long as the callers do; where one is
nearly full of what is not processed, it sends less often there.

A lone publish goes out at once; gathering waits for the reply before it or the next loop tick, never for a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from rstream.errors import PublishUncertain, StoreError
from rstream.event import EntryId
from rstream.process import clock
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Link, Op
from rstream.store.log import Record, weight_of
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel
from rstream.store.steps import drive

Sent = list[tuple[Parcel, Sequence[EntryId] | BaseException]]
"""Each parcel with the ids of its records, or its error."""


class Target(Protocol):
    """A stream, as far as its producers know it."""

    def declaration(self) -> Op[Layout]: ...
    def adopt(self, layout: Layout) -> None: ...


class Producer:
    """The publisher of one stream in one event loop. full_wait: seconds to wait for room."""

    def __init__(
        self, target: Target, layout: Layout, link: Link, timeout: float, replicas: int = 0, full_wait: float = 0.0
    ) -> None:
        self._target, self._link, self._timeout, self._replicas = target, link, timeout, replicas
        self._full_wait = full_wait
        self._renew(layout)

    def _renew(self, layout: Layout) -> None:
        self._outbox = Outbox(layout)
        self._flushing = self._crowded = False
        self._flusher: asyncio.Task[None] | None = None
        self._adding, self._queue = asyncio.Lock(), 0
        self._added = asyncio.Event()
        self._pid = os.getpid()

    async def send(self, groups: Iterable[Mapping[Shard, Sequence[Record]]]) -> Sent:
        """Publish records to their shards, or to those that followed them; a group after the other, each made while the
        server works on those before it. Once one fails, no further one is sent.
        """
        loop = self._begin()
        until = clock() + self._full_wait
        parcels: list[Parcel] = []
        promises: list[asyncio.Future[Sequence[EntryId]]] = []
        failed: list[BaseException] = []

        def look(promise: asyncio.Future[Sequence[EntryId]]) -> None:
            if not promise.cancelled() and (error := promise.exception()):
                failed.append(error)

        def make() -> asyncio.Future[Sequence[EntryId]]:
            promise: asyncio.Future[Sequence[EntryId]] = loop.create_future()
            promise.add_done_callback(look)
            promises.append(promise)
            return promise

        async with self._turn():
            try:
                for shards in groups:
                    if parcels:
                        await asyncio.sleep(0)  # what is answered meanwhile is heard
                    if failed:
                        break
                    new = [p for shard, batch in shards.items() for p in Parcel.pack(shard, batch, make, until)]
                    parcels += new
                    self._add(new, loop)
            except BaseException:
                for promise in promises:
                    promise.cancel()
                raise
        results = await asyncio.gather(*promises, return_exceptions=True)
        return list(zip(parcels, results, strict=True))

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Who comes first adds all of its records first."""
        self._queue += 1
        try:
            async with self._adding:
                yield
        finally:
            self._queue -= 1

    async def send_one(self, shard: Shard, record: Record) -> EntryId:
        """As `send`, for one: its id."""
        loop = self._begin()
        promise: asyncio.Future[Sequence[EntryId]] = loop.create_future()
        parcel = Parcel(shard, (record,), promise, weight_of(record), clock() + self._full_wait)
        if self._queue:
            async with self._turn():
                self._add((parcel,), loop)
        elif self._flushing or self._crowded or (op := self._outbox.take_alone(parcel, self._replicas)) is None:
            self._add((parcel,), loop)
        else:
            self._flushing = True
            self._post(op)
        return (await promise)[0]

    def _begin(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            self._renew(self._outbox.layout)  # see SyncProducer
        return asyncio.get_running_loop()

    def _add(self, parcels: Sequence[Parcel], loop: asyncio.AbstractEventLoop) -> None:
        self._outbox.add(parcels)
        if not self._flushing:
            self._flushing = True
            if self._crowded:  # with what others add in this turn
                loop.call_soon(self._post)
            else:
                self._post()
        elif self._flusher is not None:
            self._added.set()

    # Flushes follow each other without a task as long as nothing is in their way: one that has to be waited for, or
    # that somebody has to do something about, is taken over by a task.

    def _post(self, op: Op[None] | None = None) -> None:
        """Send this, or what is there, if that is possible at once."""
        try:
            if op is None:
                op = self._outbox.take(self._replicas)
                self._crowded = self._outbox.taken > 1
            if op is not None and self._link.post(op, partial(self._came, op, clock())):
                return
        except Exception as error:
            self._outbox.fail(error)
            op = None
        self._take_over(op)

    def _came(self, op: Op[None], begun: float, replies: list[Any] | Coroutine[Any, Any, list[Any]]) -> None:
        if not isinstance(replies, list):
            self._take_over(op, replies, clock() - begun)
            return
        try:
            op.parse(replies)
        except Exception as error:
            self._outbox.fail(error)
        if self._outbox.troubled:
            self._take_over()
        elif self._outbox.pause() is None:
            self._flushing = False
        else:
            self._post()

    def _take_over(
        self, op: Op[None] | None = None, begun: Coroutine[Any, Any, list[Any]] | None = None, passed: float = 0.0
    ) -> None:
        # In nobody's context: it writes for all, and what it logs is not about the delivery of whoever came first.
        nobody, work = contextvars.Context(), self._flush(op, begun, passed)
        self._flusher = asyncio.get_running_loop().create_task(work, context=nobody)
        self._flusher.add_done_callback(self._ended)

    def _ended(self, flusher: asyncio.Task[None]) -> None:
        """One that is cancelled before it has begun, with all other tasks of the loop, did not even tell anybody."""
        if flusher.cancelled() and self._flusher is flusher:
            self._outbox.fail(PublishUncertain("publish was interrupted: CancelledError"))
            self._flushing, self._flusher = False, None

    async def _flush(self, op: Op[None] | None, begun: Coroutine[Any, Any, list[Any]] | None, passed: float) -> None:
        """Send this, then what there is, until nothing is left. begun, passed: `op` was sent already, that many seconds
        ago.
        """
        outbox = self._outbox
        try:
            while True:
                try:
                    if op is not None:
                        await self._link.run(op, within=self._timeout - passed, begun=begun)
                    if outbox.needs:
                        await self._make_room()
                    if (refused := outbox.refused) is not None:
                        await self._follow(refused)
                    op = begun = None
                    if (pause := outbox.pause()) is None:
                        return
                    if (op := outbox.take(self._replicas)) is None:
                        await self._wait(pause)
                except Exception as error:
                    outbox.fail(error)
                    op = begun = None
                except BaseException as error:  # the loop is ending
                    outbox.fail(PublishUncertain(f"publish was interrupted: {type(error).__name__}"))
                    raise
                passed = 0.0
        finally:
            if outbox is self._outbox:
                self._flushing, self._flusher = False, None

    async def _wait(self, seconds: float) -> None:
        """Until something may go out that had to wait, or something else is to be sent."""
        self._added.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._added.wait(), seconds)

    async def _make_room(self) -> None:
        from rstream.store.room import make_room

        outbox = self._outbox
        steps = make_room(outbox.layout, outbox.needs, outbox.hopeless)
        outbox.resend(await drive(self._link, steps, self._timeout))

    async def _follow(self, refused: Shard) -> None:
        """The stream was resharded: go over to what it is now, with all that is held."""
        from rstream.store.reshard import follow

        try:
            steps = follow(self._target.declaration(), refused, self._timeout)
            layout = await drive(self._link, steps, self._timeout)
        except StoreError as error:
            error.sent = False  # what was refused was not added
            raise
        self._target.adopt(layout)
        self._outbox.go_on(layout)


def ids_of(sent: Sent, places: Sequence[Shard]) -> list[EntryId]:
    """The id of each event, in the order they were given. Raises the first error, with what was published."""
    by_shard: dict[Shard, list[EntryId]] = {}
    errors = []
    for parcel, result in sent:
        if isinstance(result, BaseException):
            errors.append(result)
        else:
            by_shard.setdefault(parcel.shard, []).extend(result)
    if errors:
        if isinstance(errors[0], StoreError):
            parts = [error.published for error in errors if isinstance(error, StoreError)]
            errors[0].published = [id for ids in (*by_shard.values(), *parts) for id in ids]
        raise errors[0]
    turns = {shard: iter(ids) for shard, ids in by_shard.items()}
    return [*map(next, map(turns.__getitem__, places))]
