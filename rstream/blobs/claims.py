"""The claim check of one stream: what is too large for Redis goes to the blob store before its entry is appended, and
comes back, checked, before the entry is decoded.

Blobs have the key `<namespace>/<stream>/blobs/<day>/<sha256>`. A publish stores its blobs under the day of that publish
and refers to no others, also where the same bytes are there under another day: so nothing new ever refers to a blob of
an old day, and `rstream.blobs.gc` can delete those that nothing refers to without asking the producers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rstream.blobs import owners
from rstream.blobs.blob import Blob
from rstream.codec import Codec, unpack_payload
from rstream.errors import BlobError, BlobRefused, EntryInvalid, EventTooLarge
from rstream.reference import LARGEST, SOURCE, WHOLE, Media, Reference, Source, Uploads, whole
from rstream.store import layout as layouts
from rstream.store.link import Op, backoff

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.blobs.shelf import Shelf
    from rstream.crypto import Seal
    from rstream.event import Decode, Entry, Key

E = TypeVar("E")
T = TypeVar("T")

log = logging.getLogger("rstream")

WINDOW, WINDOW_BYTES = 16, 32 * 1024 * 1024
"""Entries, and bytes, that a reading fetches at once (or one entry, however large)."""


class Claims:
    """source: where the stream has its blobs; None where the app has no blob store · seal: how its payloads are
    encrypted before they go anywhere; None where they are not.
    """

    def __init__(self, app: RStream, stream: str, seal: Seal | None = None) -> None:
        self._app, self._settings, self._stream, self.seal = app, app.settings, stream, seal
        url = self._settings.blobs
        self.source = None if url is None else Source(url, prefix(self._settings.namespace, stream))
        self._marked = False

    @property
    def _shelf(self) -> Shelf:
        from rstream.blobs.shelf import shelf

        if self.source is None:
            raise BlobRefused(
                f"payloads of stream {self._stream!r} are in a blob store, and this app has none: give "
                "RStream(blobs=…) or RSTREAM_BLOBS the store that its publishers have"
            )
        return shelf(self.source.url)

    # -- publishing ---------------------------------------------------------------------------------------------

    def uploads(self, at_once: bool = False) -> Uploads | None:
        """For one publish; None where there is no blob store. at_once: files may be read while events are encoded."""
        if self.source is None:
            return None
        day = int(today().strftime("%Y%m%d"))
        return Uploads(day, self._settings.blob_threshold, at_once, whole=self.seal is not None)

    def inline(self, payloads: Sequence[bytes]) -> bool:
        """Whether all these may go into their entries as they are."""
        return self.source is None and max(map(len, payloads), default=0) <= self._settings.max_event_bytes

    def check(self, payload: bytes, version: int, uploads: Uploads | None) -> bytes:
        """An encoded event as its entry has it. Raises `EventTooLarge`."""
        size, limit = len(payload), self._settings.max_event_bytes
        if uploads is None and size <= limit:
            return payload
        told = f"event for stream {self._stream!r} has {size:,} bytes encoded"
        if uploads is None:
            raise EventTooLarge(
                f"{told}, the limit is {limit:,}: give RStream(blobs='s3://bucket/prefix' or 'file:///directory') "
                "for large ones to be kept there, or raise max_event_bytes"
            )
        if size > LARGEST:
            raise EventTooLarge(f"{told}, at most {LARGEST:,} are: have a field of type rstream.Blob for what is large")
        return uploads.payload(payload, version)

    async def store(self, uploads: Uploads | None, made: T, make: Callable[[Uploads | None], T]) -> T:
        """Have in the store what something refers to that was made by `make(uploads)`. It is made anew where files had
        to be read first, which takes too long for an event loop. Raises `BlobError`s, and what reading a file may.
        """
        if uploads is not None and uploads.unread:
            await self._shelf.all(partial(uploads.look, media) for media in uploads.unread)
            held, uploads = uploads.held, self.uploads(at_once=True)
            assert uploads is not None
            uploads.held = held
            made = make(uploads)
        if uploads is not None and uploads.waiting:
            if not self._marked:
                owner = await self._app.link.run(self._owner, within=self._settings.publish_timeout)
            await self._shelf.all(self._puts(uploads, None if self._marked else owner))
            self._marked = True
        return made

    def store_sync(self, uploads: Uploads | None) -> None:
        """Raises as `store`."""
        if uploads is not None and uploads.waiting:
            if not self._marked:
                owner = self._app.sync_link.run(self._owner, within=self._settings.publish_timeout)
            self._shelf.all_sync(self._puts(uploads, None if self._marked else owner))
            self._marked = True

    @property
    def _owner(self) -> Op[str]:
        return layouts.owner(self._settings.namespace, self._stream)

    def _puts(self, uploads: Uploads, id: str | None) -> Iterator[Callable[[], None]]:
        """id: of the Redis whose blobs they are, where it is still to be marked."""
        if id is not None:
            key = owners.prefix(self._settings.namespace, self._stream) + id
            yield partial(owners.mark, self._shelf.store, key, self._app.endpoint.label)
        for reference, value in uploads.waiting.items():
            yield partial(self._put, reference, value)

    def _put(self, reference: Reference, value: bytes | Media) -> None:
        """Also where it is there already: then it has a new time."""
        assert self.source is not None
        store, key = self._shelf.store, self.source.key(reference)
        if isinstance(value, bytes):
            store.put(key, value)
        elif isinstance(value, Blob) and value._data is not None:
            store.put(key, value._data)
        elif isinstance(value, Blob):
            with value.sync.path() as path:
                store.put(key, path)

    # -- reading ------------------------------------------------------------------------------------------------

    def decoder(self, codec: Codec[E]) -> Decode[E]:
        """`codec.decode`, with which blobs know where they are, after what is encrypted was decrypted."""
        seal, source, plain = self.seal, self.source, codec.decode
        if seal is None and source is None:
            return plain

        def decode(payload: bytes, key: Key = None) -> E:
            token = SOURCE.set(source)
            try:
                return plain(payload if seal is None else seal.open(payload, key))
            finally:
                SOURCE.reset(token)

        return decode

    def fields(self, entry: Entry[Any]) -> dict[str, Any]:
        """What an entry holds, as it was written: of whatever version, decrypted. Raises `EntryInvalid`."""
        payload = entry.payload if self.seal is None else self.seal.open(entry.payload, entry.key)
        return unpack_payload(payload)[1]

    async def fetch(self, reference: Reference) -> bytes:
        """A payload. Raises `BlobMissing`, `BlobAltered`, `BlobError`."""
        held = self._shelf
        assert self.source is not None
        return await held.run(partial(held.fetch, self.source, reference))

    async def open(self, entry: Entry[Any]) -> None:
        """Have the entry hold its payload; or, where that is missing or altered, say so when its event is touched.
        Raises `BlobError`.
        """
        try:
            if self.source is not None and (reference := whole(entry.payload)) is not None:
                entry.payload = await self.fetch(reference)
        except EntryInvalid as error:
            entry.spoil(error)

    async def open_at_last(self, entry: Entry[Any], stop: asyncio.Event) -> bool:
        """As `open`, however long the blob store is away. False where it is told to stop before."""
        for pause in backoff(cap=10.0):
            try:
                await self.open(entry)
                return True
            except BlobError as error:
                log.warning("entry %s of stream %s waits: %s", entry.id, self._stream, error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            if stop.is_set():
                break
        return False

    async def open_all(self, entries: Sequence[Entry[Any]], stop: asyncio.Event) -> bool:
        """As `open_at_last`, for many: what has a payload in the blob store is fetched in parallel."""
        if self.source is None:
            return True
        for window in _windows([*entries]):
            large = [entry for entry in window if size_of(entry.payload) != len(entry.payload)]
            if large and not all(await asyncio.gather(*(self.open_at_last(entry, stop) for entry in large))):
                return False
        return True

    def open_sync(self, entry: Entry[Any]) -> None:
        try:
            if self.source is not None and (reference := whole(entry.payload)) is not None:
                entry.payload = self._shelf.fetch(self.source, reference)
        except EntryInvalid as error:
            entry.spoil(error)

    async def opened(self, entries: list[Entry[E]]) -> AsyncIterator[Entry[E]]:
        """Entries that were read, with their payloads, which are fetched in parallel. They are taken out of the list:
        nobody but their reader holds what was fetched.
        """
        for window in _windows(entries):
            if any(entry.payload[:1] == WHOLE for entry in window):
                await asyncio.gather(*map(self.open, window))
            while window:
                yield window.popleft()

    def opened_sync(self, entries: list[Entry[E]]) -> Iterator[Entry[E]]:
        for window in _windows(entries):
            if self.source is not None and any(entry.payload[:1] == WHOLE for entry in window):
                self._shelf.all_sync([partial(self.open_sync, entry) for entry in window])
            while window:
                yield window.popleft()


def today() -> date:
    return datetime.now(UTC).date()


def prefix(namespace: str, stream: str) -> str:
    """Of the keys of a stream's blobs."""
    return f"{namespace}/{stream}/blobs/"


def size_of(payload: bytes) -> int:
    """Of the encoded event, wherever it is."""
    try:
        reference = whole(payload)
    except EntryInvalid:
        return len(payload)
    return len(payload) if reference is None else reference.size


def _windows(entries: list[Entry[E]]) -> Iterator[deque[Entry[E]]]:
    left = deque(entries)
    entries.clear()
    if not any(entry.payload[:1] == WHOLE for entry in left):  # as nearly always: nothing is to be fetched
        yield left
        return
    window: deque[Entry[E]] = deque()
    count = held = 0
    while left:
        size = size_of(left[0].payload)
        large = size != len(left[0].payload)
        if large and count and (count >= WINDOW or held + size > WINDOW_BYTES):
            yield window
            window, count, held = deque(), 0, 0
        window.append(left.popleft())
        count, held = count + large, held + size * large
    if window:
        yield window
