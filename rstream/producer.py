"""Drives an `Outbox`: gathers concurrent publishes into flushes, one write in flight, exact through broken lines and
through reshardings. Where a shard is full it makes room, or waits for it as long as the callers do; where one is
nearly full of what is not processed, it sends less often there.

A lone publish goes out at once; gathering waits for the reply before it or the next loop tick, never for a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from rstream.errors import PublishUncertain, StoreError
from rstream.event import EntryId
from rstream.process import clock
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Link, Op, SyncLink
from rstream.store.log import Parts
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel, Sent, Slip, weight_of
from rstream.store.steps import drive, drive_sync

T = TypeVar("T")

NAP = 0.05
"""Seconds after which a thread looks again whether another one has sent what it waits for."""


class Target(Protocol):
    """A stream, as far as its producers know it."""

    def declaration(self) -> Op[Layout]: ...
    def adopt(self, layout: Layout) -> None: ...


class Queue:
    """Keeps the events of a key in the order of their publishes, also where one has to wait for its blobs.

    busy: somebody waits; until then nobody has to pass through.
    """

    def __init__(self) -> None:
        self._ahead: dict[bytes, list[asyncio.Event]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._ahead)

    async def pass_through(self, shards: Mapping[Shard, Sequence[Parts]], work: Awaitable[T]) -> T:
        """Do the work, and wait for whoever has one of the same keys and came before. Whoever returns from here goes on
        without waiting, and those behind it come later.
        """
        keys = {key for records in shards.values() for _, key, *_ in records if key}
        before = {each for key in keys for each in self._ahead.get(key, ())}
        mine = asyncio.Event()
        for key in keys:
            self._ahead.setdefault(key, []).append(mine)
        try:
            done = await work
            for each in before:
                await each.wait()
            return done
        finally:
            # Those that wait are woken in a later turn of the loop than this one goes on in.
            mine.set()
            for key in keys:
                self._ahead[key].remove(mine)
                if not self._ahead[key]:
                    del self._ahead[key]


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

    async def send(self, groups: Iterable[Mapping[Shard, Sequence[Parts]]]) -> Sent:
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

    async def send_one(self, shard: Shard, record: Parts) -> EntryId:
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
        self._flusher = asyncio.get_running_loop().create_task(self._flush(op, begun, passed))

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


class SyncProducer:
    """The publisher of one stream for all threads of a process: whoever gets the lock flushes for everybody."""

    def __init__(
        self, target: Target, layout: Layout, link: SyncLink, timeout: float, replicas: int = 0, full_wait: float = 0.0
    ) -> None:
        self._target, self._link, self._timeout, self._replicas = target, link, timeout, replicas
        self._full_wait = full_wait
        self._renew(layout)

    def _renew(self, layout: Layout) -> None:
        self._outbox = Outbox(layout)
        self._adding, self._flushing = threading.Lock(), threading.Lock()
        self._pid = os.getpid()

    def send(self, groups: Iterable[Mapping[Shard, Sequence[Parts]]]) -> Sent:
        """As `Producer.send`."""
        if self._pid != os.getpid():
            # A forked child that went on with the parent's producer id and numbers would have its
            # events taken for resends.
            self._renew(self._outbox.layout)
        until, coming = clock() + self._full_wait, iter(groups)
        parcels: list[Parcel] = []
        left: deque[Slip] = deque()
        failed = False

        def more() -> bool:
            """Add a group; whether there was one."""
            nonlocal failed
            while left and left[0].done():
                failed = left.popleft().error is not None or failed
            shards = None if failed else next(coming, None)
            if shards is None:
                return False
            new = [parcel for shard, batch in shards.items() for parcel in Parcel.pack(shard, batch, Slip, until)]
            parcels.extend(new)
            left.extend(cast("Slip", parcel.promise) for parcel in new)
            with self._adding:
                self._outbox.add(new)
            return True

        while more() or left:
            self._carry(left, more)
        slips = [cast("Slip", parcel.promise) for parcel in parcels]
        return [(parcel, slip.error or slip.result) for parcel, slip in zip(parcels, slips, strict=True)]

    def send_one(self, shard: Shard, record: Parts) -> EntryId:
        """As `send`, for one: its id."""
        if self._pid != os.getpid():
            self._renew(self._outbox.layout)
        slip = Slip()
        parcel = Parcel(shard, (record,), slip, weight_of(record), clock() + self._full_wait)
        if not self._send_alone(parcel):
            with self._adding:
                self._outbox.add((parcel,))
        if not slip.done():
            self._carry((slip,))
        if slip.error is not None:
            raise slip.error
        return cast("EntryId", slip.result[0])

    def _send_alone(self, parcel: Parcel) -> bool:
        """Send it now; whether that was possible, for nobody else sends, or has something to be sent."""
        if not self._flushing.acquire(blocking=False):
            return False
        try:
            with self._adding:
                op = self._outbox.take_alone(parcel, self._replicas)
            if op is not None:
                self._flush(op)
            return op is not None
        finally:
            self._flushing.release()

    def _carry(self, slips: Collection[Slip], more: Callable[[], object] | None = None) -> None:
        """Flush until they are through. more: called while the server works."""
        while not all(slip.done() for slip in slips):
            pause = 0.0
            with self._flushing:
                if not all(slip.done() for slip in slips):
                    pause = self._flush_once(more)
            if pause:  # without the lock: what others have to send may go out now
                time.sleep(pause)

    def _flush_once(self, meanwhile: Callable[[], object] | None = None) -> float:
        """Seconds to wait before there is more to flush."""
        with self._adding:
            op = self._outbox.take(self._replicas)
            if op is None:
                return min(NAP, self._outbox.pause() or 0.0)
        self._flush(op, meanwhile)
        return 0.0

    def _flush(self, op: Op[None], meanwhile: Callable[[], object] | None = None) -> None:
        """What was taken; it needs the lock."""
        try:
            self._link.run(op, within=self._timeout, meanwhile=meanwhile)
            if self._outbox.troubled:
                if self._outbox.needs:
                    self._make_room()
                if (refused := self._outbox.refused) is not None:
                    self._follow(refused)
        except BaseException as error:
            uncertain = PublishUncertain(f"publish was interrupted: {type(error).__name__}")
            with self._adding:
                self._outbox.fail(error if isinstance(error, Exception) else uncertain)
            if not isinstance(error, Exception):
                raise

    def _make_room(self) -> None:
        from rstream.store.room import make_room

        outbox = self._outbox
        steps = make_room(outbox.layout, outbox.needs, outbox.hopeless)
        errors = drive_sync(self._link, steps, self._timeout)
        with self._adding:
            outbox.resend(errors)

    def _follow(self, refused: Shard) -> None:
        """As `Producer._follow`."""
        from rstream.store.reshard import follow

        try:
            steps = follow(self._target.declaration(), refused, self._timeout)
            layout = drive_sync(self._link, steps, self._timeout)
        except StoreError as error:
            error.sent = False
            raise
        self._target.adopt(layout)
        with self._adding:
            self._outbox.go_on(layout)
