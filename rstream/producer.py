"""Publishes events to one stream, from one event loop: gathers concurrent publishes into flushes.

There are two outboxes, for the lower and the upper half of the keys' hashes, each with a producer id and numbers of its
own and a write of its own in flight: while Redis works for one of them, this process works for the other. A key keeps
its half through any resharding, so its order does not depend on what the other half does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence

from rstream import process
from rstream.courier import Courier, Target
from rstream.errors import StoreError
from rstream.event import EntryId
from rstream.process import clock
from rstream.store.keys import Shard, half_of
from rstream.store.layout import Layout
from rstream.store.link import Link
from rstream.store.parcel import Parcel, by_half
from rstream.store.record import Parts, weight_of

Sent = list[tuple[Parcel, Sequence[EntryId] | BaseException]]
"""Each parcel with the ids of its records, or its error."""


class Producer:
    """The publisher of one stream in one event loop. full_wait: seconds to wait for room."""

    def __init__(
        self, target: Target, layout: Layout, link: Link, timeout: float, replicas: int = 0, full_wait: float = 0.0
    ) -> None:
        self._target, self._link, self._timeout, self._replicas = target, link, timeout, replicas
        self._full_wait = full_wait
        self._renew(layout)

    def _renew(self, layout: Layout) -> None:
        self.couriers = [
            Courier(self._target, layout, self._link, self._timeout, self._replicas) for _ in range(outboxes(layout))
        ]
        if len(self.couriers) == 2:
            self.couriers[0].other, self.couriers[1].other = self.couriers[1], self.couriers[0]
        self._adding, self._queue = asyncio.Lock(), 0
        self._forks = process.forks

    async def send(self, groups: Iterable[Mapping[Shard, Sequence[bytes]]]) -> Sent:
        """Publish records (flat, as a `Parcel` has them) to their shards, or to those that followed them; a group after
        the other, each made while the server works on those before it. Once one fails, no further one is sent.
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
                    self._add(new)
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

    def send_one(self, shard: Shard, record: Parts) -> Awaitable[Sequence[EntryId]]:
        """As `send`, for one: a sequence of its id alone. (Not a coroutine: one more takes time for each event.)"""
        promise: asyncio.Future[Sequence[EntryId]] = self._begin().create_future()
        until = clock() + self._full_wait if self._full_wait else 0.0
        parcel = Parcel(shard, record, promise, weight_of(record), until)
        if self._queue:
            return self._send_in_turn(parcel, promise)
        self._courier(shard, record).add_one(parcel)
        return promise

    async def _send_in_turn(self, parcel: Parcel, promise: asyncio.Future[Sequence[EntryId]]) -> Sequence[EntryId]:
        async with self._turn():
            self._add((parcel,))
        return await promise

    def _begin(self) -> asyncio.AbstractEventLoop:
        if self._forks != process.forks:
            self._renew(self.couriers[0].outbox.layout)  # see SyncProducer
        return asyncio.get_running_loop()

    def _courier(self, shard: Shard, record: Parts) -> Courier:
        if len(self.couriers) == 1:
            return self.couriers[0]
        return self.couriers[half_of(record[1]) if shard.half is None else shard.half]

    def _add(self, parcels: Sequence[Parcel]) -> None:
        for courier, mine in zip(self.couriers, by_half(parcels, len(self.couriers)), strict=True):
            if mine:
                courier.add(mine)


def outboxes(layout: Layout) -> int:
    """How many a producer has, for as long as it lives: one where there is one shard, which then keeps the order of all
    its events, not only those of a key.
    """
    return 1 if layout.shards == 1 else 2


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
