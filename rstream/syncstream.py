"""A stream for code without an event loop: the same calls, blocking."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rstream import tracing
from rstream.event import Entry, EntryId
from rstream.position import Position
from rstream.preparing import flattened
from rstream.producer import ids_of
from rstream.store.layout import Layout
from rstream.store.log import read
from rstream.store.steps import drive_sync, flow_sync
from rstream.syncproducer import SyncProducer
from rstream.tracing import Carried

if TYPE_CHECKING:
    from rstream.deadletter import SyncDeadLetters
    from rstream.store.reshard import Resharding
    from rstream.stream import Stream

E = TypeVar("E")

log = logging.getLogger("rstream")


class SyncStream(Generic[E]):
    """A stream for code without an event loop: the same calls, blocking, safe in threads and after a fork."""

    def __init__(self, stream: Stream[E]) -> None:
        self._stream = stream
        self._producer: SyncProducer | None = None

    def layout(self, *, fresh: bool = False) -> Layout:
        """As `Stream.layout`."""
        stream = self._stream
        if fresh or stream._layout is None:
            wait = stream.app.settings.publish_timeout
            stream.adopt(drive_sync(stream.app.sync_link, stream._declared(), wait))
        assert stream._layout is not None
        return stream._layout

    def reshard(self, shards: int, *, dry_run: bool = False, progress: Callable[[str], None] = log.info) -> Resharding:
        """As `Stream.reshard`."""
        from rstream.store.reshard import reshard

        self.layout()
        app = self._stream.app
        steps = reshard(app.settings.namespace, self._stream.name, shards, dry_run=dry_run, tell=progress)
        done = drive_sync(app.sync_link, steps, app.settings.publish_timeout)
        self.layout(fresh=True)
        return done

    def publish(
        self,
        event: E | Mapping[str, Any],
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> EntryId:
        """As `Stream.publish`."""
        stream = self._stream
        if type(headers) is not Carried and (spans := tracing.active(stream.app.settings.tracing)) is not None:
            with spans.sending(stream.name, stream.app.endpoint.label, headers) as sending:
                id = self.publish(event, key=key, headers=sending.headers)
                sending.sent([id])
                return id
        if stream._layout is None or stream.claims.source is not None:
            many = headers if type(headers) is Carried else Carried(headers or {})
            return self.publish_many([event], key=key, headers=many)[0]
        return self._made(stream._layout).send_one(*stream.preparing.one(stream._layout, event, key, headers))

    def publish_many(
        self,
        events: Iterable[E | Mapping[str, Any]],
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[EntryId]:
        """As `Stream.publish_many`."""
        stream = self._stream
        if type(headers) is not Carried and (spans := tracing.active(stream.app.settings.tracing)) is not None:
            with spans.sending(stream.name, stream.app.endpoint.label, headers, batch=True) as sending:
                ids = self.publish_many(events, key=key, headers=sending.headers)
                sending.sent(ids)
                return ids
        layout = self.layout()
        claims = self._stream.claims
        uploads = claims.uploads(at_once=True)
        if uploads is None:
            groups, places = self._stream.preparing.groups(layout, events, key, headers)
            return ids_of(self._made(layout).send(groups), places)
        records, places = self._stream.preparing.all(layout, events, key, headers, uploads=uploads)
        claims.store_sync(uploads)
        return ids_of(self._made(layout).send((flattened(records),)), places)

    def _made(self, layout: Layout) -> SyncProducer:
        if self._producer is None:
            stream, app = self._stream, self._stream.app
            wait, replicas = app.settings.publish_timeout, app.settings.replicas
            self._producer = SyncProducer(stream, layout, app.sync_link, wait, replicas, stream._full_wait)
        return self._producer

    def dead(self, group: str) -> SyncDeadLetters[E]:
        """As `Stream.dead`."""
        from rstream.deadletter import SyncDeadLetters

        return SyncDeadLetters(self._stream, group)

    def read(
        self,
        start: Position = None,
        end: Position = None,
        *,
        key: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Entry[E]]:
        """As `Stream.read`."""
        app, claims = self._stream.app, self._stream.claims
        steps = read(self.layout(fresh=True), start, end, claims.decoder(self._stream.codec), key, limit)
        for found in flow_sync(app.sync_link, steps, app.settings.publish_timeout):
            yield from claims.opened_sync(found)
