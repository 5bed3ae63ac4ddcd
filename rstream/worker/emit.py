"""Events that handlers return, on their way to the stream that their consumer emits to.

On the same server they travel with the ack: one Lua call, fenced. To another server they go before it: at least once,
with event ids that the target knows again; on a cluster, so do those for shards that do not share the slot of the
delivery's own. Where the target is resharded they go to its new shards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rstream import tracing
from rstream.delivery import Delivery
from rstream.errors import (
    EventTooLarge,
    MemoryFull,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StreamFull,
    StreamMismatch,
    UnknownStream,
)
from rstream.event import derived_event_id
from rstream.reference import Uploads
from rstream.store.connect import Endpoint
from rstream.store.deliveries import Emit, Outcome
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import backoff, together
from rstream.store.record import Record, new_ones, place_of, publish_once, weight_of
from rstream.store.reshard import follow
from rstream.store.room import make_room
from rstream.store.steps import drive
from rstream.stream import Stream

T = TypeVar("T")

log = logging.getLogger("rstream")

MAX_EVENTS = 1000
MAX_BYTES = 4 * 1024 * 1024
"""Of one delivery: they are appended by one call, which blocks the server meanwhile (1,000 events: about 2 ms)."""

REMEMBERED_MS = 24 * 3600 * 1000
"""How long another server knows an event again: what is acked is not emitted again, so it is about crashes between
emitting and acking that are redelivered later than that.
"""


Records = dict[Shard, list[Record]]
"""By shard of the target."""


class Emitter:
    """The target of one consumer."""

    def __init__(self, target: Stream[Any], layout: Layout, home: Endpoint) -> None:
        self._target, self._layout = target, layout
        self._same_server, self._spread = target.app.endpoint.url == home.url, home.clustered

    def records(self, delivery: Delivery, result: Any, uploads: Uploads | None) -> Records:
        """The events that a handler returned, by shard; `uploads` gets what has to be stored before they are. Raises
        `EventInvalid`, `EventTooLarge`, `KeyMissing`.
        """
        if result is None:
            return {}
        events = result if isinstance(result, list | tuple) else [result]
        name = delivery.idempotency_key
        ids = [derived_event_id(delivery.event_id, name, number) for number in range(len(events))]
        headers = tracing.carried(self._target.app.settings.tracing)
        records, _ = self._target.prepare(self._layout, events, ids=ids, uploads=uploads, headers=headers)
        size = sum(len(record.payload) for batch in records.values() for record in batch)
        if len(events) > MAX_EVENTS or size > MAX_BYTES:
            raise EventTooLarge(
                f"the handler returned {len(events):,} events of {size:,} bytes for stream {self._target.name!r}, at "
                f"most {MAX_EVENTS:,} of {MAX_BYTES:,} bytes are emitted at once: publish them with publish_many"
            )
        return records

    def uploads(self) -> Uploads | None:
        """For the events of some deliveries."""
        return self._target.claims.uploads()

    async def upload(self, uploads: Uploads | None, made: T, make: Callable[[Uploads | None], T]) -> T:
        """Before they are appended; see `Claims.store`. Raises `BlobError`."""
        return await self._target.claims.store(uploads, made, make)

    def atomic(self, shard: Shard, delivery: Delivery, records: Records) -> bool:
        """Whether the ack of a delivery of that shard can append them. On a cluster an earlier attempt may have emitted
        them before its ack, and only that way knows it.
        """
        if not self._spread:
            return self._same_server
        return self._same_server and delivery.attempt == 1 and _in_slot(shard, records)

    def with_ack(self, records: Records) -> tuple[Emit, ...]:
        """What the ack has to append."""
        return tuple(Emit(shard, record) for shard, batch in records.items() for record in batch)

    async def before_ack(self, returned: Sequence[tuple[Delivery, Records]]) -> None:
        """Append them now, however long their server is away. Raises `LeaseLost`, and what that server refuses."""
        left = [[record for batch in records.values() for record in batch] for _, records in returned]
        for pause in backoff():
            for delivery, _ in returned:
                await delivery._memo.check()  # who was taken over does not emit
            try:
                if not any(left := await self.store(left)):
                    return
                await self.follow()
            except StreamFull as error:
                log.warning("what %d deliveries emit to stream %r waits: %s", len(left), self._target.name, error)
                await self.make_room(record for part in left for record in part)
            except (StoreUnavailable, MemoryFull) as error:
                log.warning("what %d deliveries emit to stream %r waits: %s", len(left), self._target.name, error)
            await asyncio.sleep(pause)

    async def store(self, parts: Sequence[Sequence[Record]]) -> list[list[Record]]:
        """Append each record that the target does not know yet, a call for every part and shard; those that its shards
        refuse.
        """
        link = self._target.app.link
        if self._layout.older or self._layout.removed:
            unknown = await link.run(together([new_ones(self._layout, part) for part in parts]))
            parts = unknown
        op = together([publish_once(self._placed(part), REMEMBERED_MS) for part in parts])
        return await link.run(replace(op, replicas=self._target.app.settings.replicas))

    def _placed(self, records: Iterable[Record]) -> Records:
        placed: Records = {}
        for record in records:
            placed.setdefault(place_of(self._layout, record), []).append(record)
        return placed

    async def follow(self) -> None:
        """A shard of the target took nothing: go over to what that is now. Raises `StoreError`."""
        target, wait = self._target, self._target.app.settings.publish_timeout
        steps = follow(target.declaration(), self._layout.current[0], wait)
        try:
            layout = await drive(target.app.link, steps, wait)
            target.adopt(layout)
        except (StreamMismatch, UnknownStream) as error:  # Redis lost data, and has others now
            raise StoreRefused(str(error)) from None
        self._layout = layout

    async def make_room(self, records: Iterable[Record]) -> None:
        """Some shard of the target is full: trim what may be trimmed for them, where Redis lets us."""
        target, wait = self._target, self._target.app.settings.publish_timeout
        placed = self._placed(records).items()
        needs = {shard: (len(batch), sum(map(weight_of, batch))) for shard, batch in placed}
        try:
            await drive(target.app.link, make_room(self._layout, needs, {}), wait)
        except StoreError as error:
            log.warning("stream %r: no room was made: %s", target.name, error)

    def moved(self, outcome: Outcome) -> Outcome:
        """What it emits, for the shards that the target has now."""
        return outcome._replace(emits=self.with_ack(self._placed(record for _, record in outcome.emits)))

    def fits(self, outcome: Outcome) -> bool:
        """Whether one call may end it and append what it emits."""
        return not self._spread or _in_slot(outcome.shard, (target for target, _ in outcome.emits))


def _in_slot(shard: Shard, targets: Iterable[Shard]) -> bool:
    return all(target.slot == shard.slot for target in targets)
