"""RStream: declares streams and owns the connections."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from rstream.codec import ModelCodec
from rstream.consumer import Consumer
from rstream.errors import ConfigError, UnknownStream
from rstream.perloop import PerLoop
from rstream.retention import Retention
from rstream.schema import SchemaCodec, describe
from rstream.settings import Durability, Mode, Settings
from rstream.store import layout as layouts
from rstream.store.connect import Endpoint
from rstream.store.link import Link, SyncLink
from rstream.stream import Stream
from rstream.upgrades import Upgrades

if TYPE_CHECKING:
    from rstream.crypto import Keyring

M = TypeVar("M", bound=BaseModel)


class RStream:
    """The streams of an application, on one Redis.

    url: redis://, rediss://, redis+sentinel://, redis+cluster://, unix:// or embedded:DIR (a server that rstream
    starts); default RSTREAM_URL, else an embedded server in the user's data directory · namespace: prefix of every key;
    default RSTREAM_NAMESPACE, else "rstream" · publish_timeout: seconds a call may wait for Redis to come back (30) ·
    full_wait: seconds a publish may wait for room in a full stream (0: it raises `StreamFull` at once) ·
    max_event_bytes: encoded size of the largest event (1 MiB) where there is no blob store · blobs: where payloads and
    `Blob` fields above `blob_threshold` bytes (32 KiB) are kept, "s3://bucket/prefix?endpoint=…" or
    "file:///directory"; default RSTREAM_BLOBS, else nowhere · durability: "replicated" has `publish` return when a
    replica has the events, too (default RSTREAM_DURABILITY, else "local") · encrypt: the keys with which the payloads
    of its streams are encrypted, where they do not say otherwise · tracing: where OpenTelemetry is set up, whether a
    handler's span is a child of the publisher's ("parent"), only linked to it ("link"), or there is none ("off");
    default RSTREAM_TRACING, else "parent". Connects when first used. Raises `ConfigError`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        publish_timeout: float | None = None,
        full_wait: float | None = None,
        max_event_bytes: int | None = None,
        durability: Durability | None = None,
        blobs: str | None = None,
        blob_threshold: int | None = None,
        encrypt: Keyring | None = None,
        tracing: Mode | None = None,
    ) -> None:
        self.settings = Settings.load(
            url=url,
            namespace=namespace,
            publish_timeout=publish_timeout,
            full_wait=full_wait,
            max_event_bytes=max_event_bytes,
            durability=durability,
            blobs=blobs,
            blob_threshold=blob_threshold,
            tracing=tracing,
        )
        if self.settings.blobs is not None:
            from rstream.blobs import check_url

            check_url(self.settings.blobs)
        self._encrypt = encrypt
        self.endpoint = Endpoint(self.settings.url)
        self.streams: dict[str, Stream[Any]] = {}
        self._links: PerLoop[Link] = PerLoop()
        self._sync_link: SyncLink | None = None

    def __repr__(self) -> str:
        return f"RStream({self.endpoint.label!r}, namespace={self.settings.namespace!r})"

    def stream(
        self,
        name: str,
        model: type[M],
        *,
        key: str | None = None,
        shards: int = 8,
        retention: Retention | None = None,
        full_wait: float | None = None,
        archive: bool | float = False,
        encrypt: Keyring | Literal[False] | None = None,
    ) -> Stream[M]:
        """Declare a stream of `model` events.

        key: the field that says which entity an event belongs to; events of one key stay in one shard, in order ·
        shards: how many Redis Streams the stream is cut into when it is first used; later the stored number wins ·
        retention: what is kept; the first one that is declared is stored, and wins until `rstream streams retention`
        stores another. Without one, nothing is ever trimmed · full_wait: seconds to wait for room where it is full
        (default: the app's) · archive: have workers write its entries to the blob store before they may be trimmed; a
        number says after how many seconds also little is written (True: 60) · encrypt: the keys with which its
        payloads are encrypted (default: the app's); False: they are not. Raises `ConfigError`.
        """
        if name in self.streams:
            raise ConfigError(f"stream {name!r} is declared already in this app: declare it once and import it")
        schema = describe(model, key)
        codec = ModelCodec(model, Upgrades(name, schema))
        ring = self._encrypt if encrypt is None else encrypt or None
        self.streams[name] = Stream(self, name, codec, schema, key, shards, retention, full_wait, archive, ring)
        return self.streams[name]

    def open(self, name: str) -> Stream[Any]:
        """A stream as it is stored, for code that has no model: its events are plain dicts, checked against the
        stored schema. Where they are encrypted, it takes the keys of the app, else those in RSTREAM_KEYS. Blocks for
        one round trip. Raises `UnknownStream`, `StoreUnavailable`.
        """
        if name in self.streams:
            return self.streams[name]
        layout = self.sync_link.run(layouts.load(self.settings.namespace, name))
        if layout is None or layout.schema is None:
            known = self.sync_link.run(layouts.names(self.settings.namespace))
            raise UnknownStream(
                f"no stream {name!r} in namespace {self.settings.namespace!r} at {self.endpoint.label}: "
                + (f"there are {', '.join(known)}" if known else "there are none yet; the first publish declares one")
            )
        self.streams[name] = self._as_stored(layout)
        return self.streams[name]

    def _as_stored(self, layout: layouts.Layout, kind: type[Stream[Any]] = Stream) -> Stream[Any]:
        assert layout.schema is not None
        ring = self._ring_for_stored() if layout.encrypted else None
        codec = SchemaCodec(layout.schema)
        stream = kind(self, layout.name, codec, layout.schema, layout.key, layout.shards, encrypt=ring)
        stream.adopt(layout)
        return stream

    def _ring_for_stored(self) -> Keyring:
        from rstream.crypto import Keyring

        return self._encrypt or Keyring.env()

    @property
    def consumers(self) -> list[Consumer]:
        """All declared consumers."""
        return [consumer for stream in self.streams.values() for consumer in stream.consumers]

    @property
    def link(self) -> Link:
        """The connections of the running event loop."""
        return self._links.get(lambda: Link(self.endpoint))

    @property
    def sync_link(self) -> SyncLink:
        """The connections for threads."""
        if self._sync_link is None:
            self._sync_link = SyncLink(self.endpoint)
        return self._sync_link

    def close(self) -> None:
        """Close the sync connections and let go of the embedded server. Idempotent."""
        if self._sync_link is not None:
            self._sync_link.close()
        self.endpoint.close()

    async def aclose(self) -> None:
        """Close all connections of this event loop, and what `close` closes. Idempotent."""
        link = self._links.pop()
        if link is not None:
            await link.aclose()
        for stream in self.streams.values():
            stream._let_go()
        self.close()

    def __enter__(self) -> RStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> RStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
