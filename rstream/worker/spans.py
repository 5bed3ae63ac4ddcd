"""The spans of one consumer's handler: what `rstream.tracing` has to know of deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from rstream import tracing
from rstream.codec import unpack_headers
from rstream.consumer import Consumer
from rstream.errors import EntryInvalid
from rstream.store.deliveries import Fetched, GroupOps
from rstream.tracing import Headers, Processing, Tracing


class Spans:
    """Made for a worker that starts when somebody looks at spans."""

    def __init__(self, tracing: Tracing, consumer: Consumer, ops: GroupOps) -> None:
        app = consumer.stream.app
        self._tracing, self._ops, self._mode, self._server = tracing, ops, app.settings.tracing, app.endpoint.label

    def of_one(self, entry: Fetched, attempt: int) -> AbstractContextManager[Processing]:
        told = {
            "messaging.message.id": str(entry.shard.entry_id(entry.id)),
            "messaging.destination.partition.id": str(entry.shard),
            "rstream.attempt": attempt,
        }
        return self._processing([entry], told, batch=False)

    def of_batch(self, entries: Sequence[Fetched]) -> AbstractContextManager[Processing]:
        return self._processing(entries, {}, batch=True)

    def _processing(
        self, entries: Sequence[Fetched], told: dict[str, Any], *, batch: bool
    ) -> AbstractContextManager[Processing]:
        told |= {"messaging.consumer.group.name": self._ops.group, "messaging.client.id": self._ops.worker}
        name, headers = self._ops.layout.name, [_headers(entry) for entry in entries]
        return self._tracing.processing(name, self._server, self._mode, headers, told, batch=batch)


def spans_of(consumer: Consumer, ops: GroupOps) -> Spans | None:
    """None where nobody looks."""
    found = tracing.active(consumer.stream.app.settings.tracing)
    return None if found is None else Spans(found, consumer, ops)


def _headers(entry: Fetched) -> Headers:
    fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
    try:
        return unpack_headers(fields.get(b"h"))
    except EntryInvalid:
        return {}
