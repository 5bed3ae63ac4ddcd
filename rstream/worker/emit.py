"""Events that handlers return, on their way to the stream that their consumer emits to.

On the same server they travel with the ack: one Lua call, fenced. To another server they go before it: at least once,
with event ids that the target knows again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from rstream.delivery import Delivery
from rstream.errors import EventTooLarge, MemoryFull, StoreUnavailable
from rstream.event import derived_event_id
from rstream.store.connect import Endpoint
from rstream.store.deliveries import Emit
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import backoff, together
from rstream.store.log import Record, publish_once
from rstream.stream import Stream

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
        self.atomic = target.app.endpoint.url == home.url

    def records(self, delivery: Delivery, result: Any) -> Records:
        """The events that a handler returned, by shard. Raises `EventInvalid`, `EventTooLarge`, `KeyMissing`."""
        if result is None:
            return {}
        events = result if isinstance(result, list | tuple) else [result]
        name = delivery.idempotency_key
        ids = [derived_event_id(delivery.event_id, name, number) for number in range(len(events))]
        records, _ = self._target.prepare(self._layout, events, ids=ids)
        size = sum(len(record.payload) for batch in records.values() for record in batch)
        if len(events) > MAX_EVENTS or size > MAX_BYTES:
            raise EventTooLarge(
                f"the handler returned {len(events):,} events of {size:,} bytes for stream {self._target.name!r}, at "
                f"most {MAX_EVENTS:,} of {MAX_BYTES:,} bytes are emitted at once: publish them with publish_many"
            )
        return records

    def with_ack(self, records: Records) -> tuple[Emit, ...]:
        """For streams on one server: what the ack has to append."""
        return tuple(Emit(shard.stream, record) for shard, batch in records.items() for record in batch)

    async def before_ack(self, returned: Sequence[tuple[Delivery, Records]]) -> None:
        """For streams on two servers: append them now, however long the other server is away. Raises `LeaseLost`, and
        what the other server refuses.
        """
        ops = [publish_once(records, REMEMBERED_MS) for _, records in returned]
        for pause in backoff():
            for delivery, _ in returned:
                await delivery._memo.check()  # who was taken over does not emit
            try:
                await self._target.app.link.run(together(ops))
                return
            except (StoreUnavailable, MemoryFull) as error:
                log.warning("what %d deliveries emit to stream %r waits: %s", len(ops), self._target.name, error)
            await asyncio.sleep(pause)
