"""A stream as users hold it: publish, read, and declare consumers; `.sync` is the same for threads.

What few processes use (the archive, dead letters, resharding, limits) is imported when it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from rstream import tracing
from rstream.blobs.claims import Claims
from rstream.codec import Codec, ModelCodec
from rstream.consumer import Consumer, Options
from rstream.declaring import archive_of, check_key, declare
from rstream.errors import ConfigError
from rstream.event import Entry, EntryId
from rstream.perloop import PerLoop
from rstream.position import Position
from rstream.preparing import Preparing, flattened
from rstream.producer import Producer, ids_of
from rstream.queue import Queue
from rstream.reference import Uploads
from rstream.retention import Retention
from rstream.settings import check_name
from rstream.store import layout as layouts
from rstream.store.keys import Shard
from rstream.store.layout import MAX_SHARDS, Layout
from rstream.store.link import Op
from rstream.store.log import read
from rstream.store.record import Record
from rstream.store.steps import Steps, drive, flow
from rstream.syncstream import SyncStream
from rstream.tracing import Carried
from rstream.upgrades import Hook

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.archive.archive import Archive
    from rstream.crypto import Keyring, Seal
    from rstream.deadletter import DeadLetters
    from rstream.store.reshard import Resharding

E = TypeVar("E")
H = TypeVar("H", bound=Callable[..., Any])

log = logging.getLogger("rstream")


class Stream(Generic[E]):
    """A named, schema'd log. Made by `RStream.stream`; nothing is sent to Redis before it is first used."""

    def __init__(
        self,
        app: RStream,
        name: str,
        codec: Codec[E],
        schema: Mapping[str, Any],
        key: str | None,
        shards: int,
        retention: Retention | None = None,
        full_wait: float | None = None,
        archive: bool | float = False,
        encrypt: Keyring | None = None,
    ) -> None:
        check_name("stream", name)
        if full_wait is not None and full_wait < 0:
            raise ConfigError(f"stream {name!r}: full_wait is {full_wait}, it must be a number of seconds")
        if not 1 <= shards <= MAX_SHARDS:
            raise ConfigError(f"stream {name!r}: shards is {shards}, it must be between 1 and {MAX_SHARDS}")
        if key is not None and key not in schema.get("properties", {}):
            raise ConfigError(f"stream {name!r}: its events have no field {key!r} to be the key")
        self.app, self.name, self.codec, self.key, self.shards = app, name, codec, key, shards
        self.retention = retention
        self._full_wait = app.settings.full_wait if full_wait is None else full_wait
        self.claims = Claims(app, name, _seal(app, name, encrypt))
        self.past = _past(app, name)
        self.archive = archive_of(self, archive)
        self.preparing = Preparing(self)
        self.consumers: list[Consumer] = []
        self.sync = SyncStream(self)
        self._schema = schema
        self._layout: Layout | None = None
        self._loading: PerLoop[asyncio.Task[None]] = PerLoop()
        self._producers: PerLoop[Producer] = PerLoop()
        self._told = False
        self._queues: PerLoop[Queue] = PerLoop()

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, key={self.key!r})"

    # -- declaring ----------------------------------------------------------------------------------------------

    def consumer(self, group: str, **options: Unpack[Options]) -> Callable[[H], H]:
        """Declare the decorated function as the handler of `group`; it stays directly callable.

        It is called as `handler(event, delivery)`, or `handler(event)` where it takes one argument (or others that
        are not a delivery): `async def` on the event loop, `def` in a thread. Raises `ConfigError`.

        - `concurrency`: calls at once, per process (16; with `batch` 1; in processes one per core).
        - `lease`: seconds a worker may be silent before its deliveries are taken over (30).
        - `ordered`: events of one key are handled one at a time and in order, also through retries, while keys run in
          parallel (the default where the stream has a key). With False, workers compete for all events.
        - `on_retry`: in ordered groups, whether an event that waits for its next attempt has the later ones of its key
          wait, too ("block", the default), or not ("skip").
        - `start`: where a group that does not exist yet begins: "earliest" (of what is retained; the default),
          "latest", an id, a datetime or "2h ago".
        - `retry`: a `RetryPolicy`: what happens after a failure.
        - `prefetch`: deliveries held beyond those being handled (sized by the measured handler time).
        - `expires`: seconds after publishing after which an event is worthless: it is counted and not started.
        - `run_in`: "process" for CPU work and for code that may crash (the handler is then defined at the top level of
          a module; events, deliveries and what it returns are pickled).
        - `timeout`: seconds that the handler may take: then it fails with `HandlerTimeout`; `rstream.calling` says how
          each kind is interrupted. `hard_timeout`: seconds after which the worker process itself is ended, its stacks
          written to stderr: for what no timeout can interrupt.
        - `once`: a field of the event that names what it is about; where an event of the same stream key with the same
          value has succeeded in this group within `once_for` seconds (a day), this one is acked and not started.
          (Doubles that run at the same time both run.)
        - `batch`: call the handler with a list of up to so many events, as `handler(events, batch)` or
          `handler(events)`, once that many are there or the first has waited `max_wait` seconds (0.5). It tells which
          of them failed by `batch.fail`, or by returning a list with an exception in their places; one that raises is
          called again with halves of the batch until it is known.
        - `emits`: a stream; the events that the handler returns (one, a list, or None; of a batch a list with that for
          each event) are published there by the same Redis call as the ack where both streams are on one server;
          otherwise at least once, with event ids by which the target drops doubles.
        """
        check_name("group", group)

        def declare(handler: H) -> H:
            if any(consumer.group == group for consumer in self.consumers):
                raise ConfigError(f"group {group!r} of stream {self.name!r} has a handler already: name another group")
            self.consumers.append(Consumer(stream=self, group=group, handler=handler, **options))
            return handler

        return declare

    def upgrade(self, version: int | str) -> Callable[[Hook], Hook]:
        """Declare the decorated function as what turns a payload of an older schema version into the next one's.

        It gets the fields as they are stored (a dict of plain values) and returns them changed. version: the number of
        the old version, or its digest, which is the same on every Redis; `rstream schema show` tells both. A payload
        goes through the hooks of its version and all later ones, then into the model. Raises `ConfigError`.
        """

        def add(hook: Hook) -> Hook:
            if not isinstance(self.codec, ModelCodec):
                raise ConfigError(f"stream {self.name!r} has no model to upgrade to: declare it with app.stream")
            self.codec.upgrades.add(version, hook)
            return hook

        return add

    def declaration(self, compared: int = layouts.COMPARED) -> Op[Layout]:
        settings = self.app.settings
        return layouts.declare(
            settings.namespace, self.name, self.shards, self.key, self._schema, compared, self.retention
        )

    async def layout(self, *, fresh: bool = False) -> Layout:
        """What is stored of this stream; stores the declaration on first use. Raises `StreamMismatch`,
        and `SchemaIncompatible` where a new version of the model does not go with the stored ones.

        Without `fresh`, what somebody here has learned last. To publish that is enough: where the stream was resharded
        since, Redis refuses what goes to the old shards. Who reads has to know of the new ones.
        """
        if fresh and self._layout is not None:
            self.adopt(await drive(self.app.link, self._declared(), self.app.settings.publish_timeout))
        elif self._layout is None:
            # One task for all who wait: a thousand first publishes cost one round trip, and go on in their order.
            await asyncio.shield(self._loading.get(self._begin_loading))
        assert self._layout is not None
        return self._layout

    def _begin_loading(self) -> asyncio.Task[None]:
        loading = asyncio.create_task(self._load())
        loading.add_done_callback(lambda _: self._loading.pop())  # also where it is cancelled before it has begun
        return loading

    async def _load(self) -> None:
        self.adopt(await drive(self.app.link, self._declared(), self.app.settings.publish_timeout))

    def _declared(self) -> Steps[Layout]:
        known = self._layout
        if known is not None:  # then it mostly is as it was, and a look at it needs no right to write
            (generations,) = yield layouts.generations(known.namespace, [self.name])
            if generations == {known.generation, *dict(known.older)}:
                return known
        layout = yield from declare(self)
        if layout.new:
            from rstream.store.reshard import make

            yield make(layout)
        if known is None and self.archive is not None:  # before anybody trims
            from rstream.store.archiving import begin

            yield from begin(layout, layout.every)
        if layout.limited or known is None:  # who stored it may have died before it was in force
            from rstream.store.trim import limit_new

            yield from limit_new(layout, layout.current)
        return layout

    def adopt(self, layout: Layout) -> None:
        """Take what is stored for the truth: it wins over what was declared. Raises `StreamMismatch`."""
        check_key(self, layout)
        if layout.shards != self.shards:
            if self._layout is None:
                text = "stream %r has %d shards, the declared %d are ignored"
                log.warning(text, self.name, layout.shards, self.shards)
            else:
                log.info(
                    "stream %r was resharded: it has %d shards now, and had %d", self.name, layout.shards, self.shards
                )
            self.shards = layout.shards
        if self.retention not in (None, layout.retention) and not self._told:
            self._told = True
            text = "stream %r keeps what is stored of its retention (%s), the declared one is ignored (%s): see %s"
            how = f"rstream streams retention {self.name}"
            log.warning(text, self.name, layout.retention or "everything", self.retention, how)
        if not layout.schemas and self._layout is not None:
            layout = replace(layout, schemas=self._layout.schemas)
        self._layout = layout if layout.past is self.past else replace(layout, past=self.past)

    async def reshard(
        self, shards: int, *, dry_run: bool = False, progress: Callable[[str], None] = log.info
    ) -> Resharding:
        """Give the stream another number of shards while producers and workers run; going on where somebody began the
        same and did not finish. Old shards in which nothing is left are removed.

        `progress` is told each step. Raises `ConfigError` where a resharding to another number is not finished, and
        `StoreError`s: then call it again.
        """
        from rstream.store.reshard import reshard

        await self.layout()
        steps = reshard(self.app.settings.namespace, self.name, shards, dry_run=dry_run, tell=progress)
        done = await drive(self.app.link, steps, self.app.settings.publish_timeout)
        await self.layout(fresh=True)
        return done

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(
        self,
        event: E | Mapping[str, Any],
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> EntryId:
        """Add one event, exactly once, also when the connection breaks in between. Returns its id.

        `key` is for streams that have no key field. Raises `EventInvalid`, `EventTooLarge`, `KeyMissing` (nothing
        was sent), `BlobError`, `MemoryFull`, `StreamFull` (nothing was added), `StoreUnavailable`, `PublishUncertain`.
        """
        if type(headers) is not Carried and (spans := tracing.active(self.app.settings.tracing)) is not None:
            with spans.sending(self.name, self.app.endpoint.label, headers) as sending:
                id = await self.publish(event, key=key, headers=sending.headers)
                sending.sent([id])
                return id
        if self._layout is None or self.claims.source is not None:
            many = headers if type(headers) is Carried else Carried(headers or {})
            return (await self.publish_many([event], key=key, headers=many))[0]
        shard, record = self.preparing.one(self._layout, event, key, headers)
        return (await self._producers.get(self._make_producer).send_one(shard, record))[0]

    def _make_producer(self) -> Producer:
        settings, layout = self.app.settings, self._layout
        assert layout is not None
        return Producer(self, layout, self.app.link, settings.publish_timeout, settings.replicas, self._full_wait)

    def _let_go(self) -> None:
        """The link for this event loop is closed. Whoever goes on publishing gets a new one."""
        self._producers.pop()

    async def publish_many(
        self,
        events: Iterable[E | Mapping[str, Any]],
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[EntryId]:
        """As `publish`, for many: ids in the order of the events. All are checked before any is sent.

        When Redis fails in the midst, the error's `published` lists what surely was added.
        """
        if type(headers) is not Carried and (spans := tracing.active(self.app.settings.tracing)) is not None:
            with spans.sending(self.name, self.app.endpoint.label, headers, batch=True) as sending:
                ids = await self.publish_many(events, key=key, headers=sending.headers)
                sending.sent(ids)
                return ids
        layout = self._layout or await self.layout()
        uploads = self.claims.uploads()
        if uploads is None:
            groups, places = self.preparing.groups(layout, events, key, headers)
            return ids_of(await self._producers.get(self._make_producer).send(groups), places)
        events = [*events]  # they may be encoded twice

        def make(uploads: Uploads | None) -> tuple[dict[Shard, list[Record]], list[Shard]]:
            return self.preparing.all(layout, events, key, headers, uploads=uploads)

        records, places = made = make(uploads)
        producer = self._producers.get(self._make_producer)
        if uploads.waiting or uploads.unread or self._queues.get(Queue).busy:
            storing = self.claims.store(uploads, made, make)
            records, places = await self._queues.get(Queue).pass_through(records, storing)
        return ids_of(await producer.send((flattened(records),)), places)

    def prepare(
        self,
        layout: Layout,
        events: Iterable[E | Mapping[str, Any]],
        ids: Sequence[bytes] | None = None,
        uploads: Uploads | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[dict[Shard, list[Record]], list[Shard]]:
        """As `Preparing.all`."""
        return self.preparing.all(layout, events, headers=headers, ids=ids, uploads=uploads)

    # -- reading ------------------------------------------------------------------------------------------------

    def dead(self, group: str) -> DeadLetters[E]:
        """The dead letters of a group: what its consumer gave up, to be looked at, redriven or discarded."""
        from rstream.deadletter import DeadLetters

        return DeadLetters(self, group)

    async def read(
        self,
        start: Position = None,
        end: Position = None,
        *,
        key: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Entry[E]]:
        """The entries from `start` to `end`, both included, merged over all shards in id order.

        Bounds are ids, datetimes, "2h ago", "earliest" or "latest"; without an end, up to what was published when
        the reading began. Whoever goes on after the last id misses nothing.
        `key`: only this key's entries. Raises `PositionError`, `StoreUnavailable`, `BlobError`.
        """
        steps = read(await self.layout(fresh=True), start, end, self.claims.decoder(self.codec), key, limit)
        async for found in flow(self.app.link, steps, self.app.settings.publish_timeout):
            async for entry in self.claims.opened(found):
                yield entry


def _seal(app: RStream, name: str, ring: Keyring | None) -> Seal | None:
    if ring is None:
        return None
    from rstream.crypto import Seal

    return Seal(ring, app.settings.namespace, name).register()


def _past(app: RStream, name: str) -> Archive | None:
    """None where the app has no blob store."""
    if app.settings.blobs is None:
        return None
    from rstream.archive.archive import Archive

    return Archive.of(app.settings, name)
