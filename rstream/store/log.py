"""The log half: publish and read. Publishing is exact: a flush that is sent twice is applied once.

A producer numbers its flushes per shard and has one in flight per shard; Redis remembers the last number beside
the entries. So a resend gets the first answer back, and a packet that arrives late is refused.
"""

from __future__ import annotations

import copy
import heapq
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgpack

from rstream.codec import unpack_headers
from rstream.errors import EntryInvalid, PublishUncertain, StoreError
from rstream.event import MAX_PART, Entry, EntryId
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import ONCE, PUBLISH, RANGE, Call

E = TypeVar("E")

FLUSH_ENTRIES = 256
FLUSH_BYTES = 256 * 1024
"""One Lua call blocks the server: 256 small entries take it about 0.4 ms."""

WRITE_BYTES = 1024 * 1024
"""All flushes of one write: what a broken connection makes a producer send again."""

SEQ_TTL_MS = 15 * 60 * 1000
"""How long Redis remembers a producer's last flush; far more than `publish_timeout` allows a resend to take."""

PAGE = 500
READ_BYTES = 8 * 1024 * 1024
"""A page of all shards together: entries of a shard, and payload of all of them."""

CLOCK_SLACK = 1000
"""Milliseconds; ids that far ahead of Redis's clock show that it was set back."""


class Record(NamedTuple):
    """An event ready to be stored. `key` and `headers` are b"" for none."""

    payload: bytes
    key: bytes
    event_id: bytes
    headers: bytes


class Promise(Protocol):
    """A future, of asyncio or of concurrent.futures."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


@dataclass(slots=True)
class Parcel:
    """Records that go to one shard together; `promise` gets the EntryId of the first, the others follow it."""

    shard: Shard
    records: list[Record]
    promise: Promise
    size: int

    @classmethod
    def pack(cls, shard: Shard, records: Iterable[Record], promise: Callable[[], Promise]) -> list[Parcel]:
        """Cut records into parcels of at most one flush each."""
        parcels: list[Parcel] = []
        batch: list[Record] = []
        size = 0
        for record in records:
            weight = len(record.payload) + len(record.key) + len(record.headers) + 64
            if batch and (len(batch) >= FLUSH_ENTRIES or size + weight > FLUSH_BYTES):
                parcels.append(cls(shard, batch, promise(), size))
                batch, size = [], 0
            batch.append(record)
            size += weight
        if batch:
            parcels.append(cls(shard, batch, promise(), size))
        return parcels


@dataclass(slots=True)
class _Flush:
    shard: Shard
    seq: int
    parcels: list[Parcel]

    def call(self, producer: str) -> Call:
        # Redis's cmsgpack knows the old raw strings only, hence use_bin_type=False.
        flat = [part for parcel in self.parcels for record in parcel.records for part in record]
        packed = msgpack.packb(flat, use_bin_type=False)
        return PUBLISH([self.shard.stream, self.shard.seq(producer)], self.seq, SEQ_TTL_MS, packed)


def publish_once(shards: Mapping[Shard, Sequence[Record]], ttl_ms: int) -> Op[int]:
    """Append records, each only if its event id was not appended so within `ttl_ms`. How many were."""
    calls = []
    for shard, records in shards.items():
        markers = [shard.emitted(record.event_id) for record in records]
        packed = msgpack.packb([part for record in records for part in record], use_bin_type=False)
        calls.append(ONCE([shard.stream, *markers], ttl_ms, packed))
    return Op(calls, sum)


@dataclass
class Outbox:
    """What a producer has yet to send, per shard. No I/O: `take` gives an Op, its driver sends it.

    A producer id is never shared: whoever forks makes a new Outbox.
    """

    producer: str = field(default_factory=lambda: secrets.token_hex(8))
    _waiting: dict[Shard, deque[Parcel]] = field(default_factory=dict)
    _seq: dict[Shard, int] = field(default_factory=dict)
    _taken: list[_Flush] = field(default_factory=list)

    def add(self, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            self._waiting.setdefault(parcel.shard, deque()).append(parcel)

    def take(self) -> Op[None] | None:
        """One flush of every shard that has something waiting, in one write. None when nothing waits.

        The Op must end, by `finish` or by `fail`, before the next `take`.
        """
        size = 0
        for shard in list(self._waiting):
            flush = self._cut(shard)
            self._taken.append(flush)
            size += sum(parcel.size for parcel in flush.parcels)
            if size >= WRITE_BYTES:
                break
        if not self._taken:
            return None
        return Op([flush.call(self.producer) for flush in self._taken], self._finish, partial=True)

    def _cut(self, shard: Shard) -> _Flush:
        waiting = self._waiting.pop(shard)
        parcels = [waiting.popleft()]
        count, size = len(parcels[0].records), parcels[0].size
        while waiting and count + len(waiting[0].records) <= FLUSH_ENTRIES and size + waiting[0].size <= FLUSH_BYTES:
            parcels.append(waiting.popleft())
            count, size = count + len(parcels[-1].records), size + parcels[-1].size
        if waiting:
            self._waiting[shard] = waiting  # at the end again: shards take turns
        self._seq[shard] = self._seq.get(shard, 0) + 1
        return _Flush(shard, self._seq[shard], parcels)

    def _finish(self, replies: list[Any]) -> None:
        for flush, reply in zip(self._taken, replies, strict=True):
            if isinstance(reply, StoreError):
                _reject(flush.parcels, reply)
            else:
                self._answer(flush, reply)
        self._taken = []

    def _answer(self, flush: _Flush, reply: bytes) -> None:
        ms, seq = _parts(reply)
        for parcel in flush.parcels:
            if not parcel.promise.done():
                parcel.promise.set_result(EntryId(ms, seq, flush.shard.generation, flush.shard.number))
            seq += len(parcel.records)

    def fail(self, error: BaseException) -> None:
        """The Op raised: its callers learn it, and so does everybody still waiting (order would break)."""
        for flush in self._taken:
            _reject(flush.parcels, error)
        self._taken = []
        unsent = copy.copy(error)
        if isinstance(unsent, StoreError):
            unsent.sent = False
        for waiting in self._waiting.values():
            _reject(waiting, unsent)
        self._waiting.clear()


def _reject(parcels: Iterable[Parcel], error: BaseException) -> None:
    """Tell callers, each with an error of its own: they put into it what they had published."""
    for parcel in parcels:
        if not parcel.promise.done():
            parcel.promise.set_exception(_verdict(error))


def _verdict(error: BaseException) -> BaseException:
    if isinstance(error, StoreError) and error.sent and not isinstance(error, PublishUncertain):
        return PublishUncertain(
            f"{error}. The connection broke before that: what was sent last may or may not have been added. "
            "Publish it again only if twice is better than never"
        )
    twin: BaseException = copy.copy(error)
    return twin


def _parts(id: bytes) -> tuple[int, int]:
    ms, seq = id.split(b"-")
    return int(ms), int(seq)


def make_entry(id: EntryId, flat: Sequence[bytes], decode: Callable[[bytes], E]) -> Entry[E]:
    """An entry from Redis's reply. One that rstream did not write says so when its event is touched: it must not
    end the reading of all the others.
    """
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    key = fields.get(b"k")
    headers: Mapping[str, str] = {}
    try:
        headers = unpack_headers(fields.get(b"h"))
    except EntryInvalid as error:
        decode = _raising(error)
    return Entry(
        id,
        fields.get(b"e", b""),
        None if key is None else key.decode(errors="replace"),
        fields.get(b"i", b""),
        headers,
        decode,
    )


def _raising(error: EntryInvalid) -> Callable[[bytes], Any]:
    def decode(payload: bytes) -> Any:
        raise error

    return decode


class Cursor(Generic[E]):
    """Reads a window of a stream, merged over shards in id order. No I/O: whoever drives it runs `op()` until
    it is None, and takes what is `ready()` after each.

    start, end: inclusive bounds · key: only this key's entries (one shard a generation is read) · now: Redis's clock,
    where the window reaches up to it: see `_bound` · limit: entries that will be taken at most. Memory: READ_BYTES.
    """

    def __init__(
        self,
        layout: Layout,
        start: EntryId,
        end: EntryId,
        decode: Callable[[bytes], E],
        key: str | None = None,
        *,
        now: int | None = None,
        limit: int | None = None,
    ) -> None:
        self._start, self._end = start, end
        self._decode, self._key, self._now = decode, key, now
        shards = layout.holding(key)
        self._page = PAGE if limit is None else max(1, min(PAGE, limit))
        self._budget = max(1, READ_BYTES // len(shards))
        self._next: dict[Shard, str] = dict.fromkeys(shards, start.redis)
        self._bounded = False
        self._pages: dict[Shard, deque[Entry[E]]] = {shard: deque() for shard in shards}

    def op(self) -> Op[None] | None:
        """The next read: the newest id of each shard first (where the window ends), then pages."""
        if not self._bounded:
            return Op([self._newest(shard) for shard in self._next], self._bound)
        hungry = [shard for shard in self._next if not self._pages[shard]]
        if not hungry:
            return None
        return Op([self._range(shard) for shard in hungry], lambda replies: self._feed(hungry, replies))

    def _newest(self, shard: Shard) -> Call:
        return ("XREVRANGE", shard.stream, self._end.redis, self._start.redis, "COUNT", 1)

    def _bound(self, replies: list[Any]) -> None:
        """Fix the end now: a reader behind a fast producer would otherwise never arrive.

        A window up to now ends with the last millisecond that was over when the reading began: of a later one, some
        shards may have been read already when others get its next entry, and who goes on after the last id would
        miss that. Unless Redis's clock was set back: then ids run ahead of it, and all there is counts.
        """
        newest = {shard: reply[0][0] for shard, reply in zip(list(self._next), replies, strict=True) if reply}
        self._next = {shard: at for shard, at in self._next.items() if shard in newest}
        end = max((_parts(id) for id in newest.values()), default=(0, 0))
        if self._now is not None and end[0] <= self._now + CLOCK_SLACK:
            end = min(end, (self._now, MAX_PART))
        self._end = min(self._end, EntryId(*end, MAX_PART, MAX_PART))
        self._bounded = True

    def _range(self, shard: Shard) -> Call:
        return RANGE([shard.stream], self._next[shard], self._end.redis, self._page, self._budget)

    def _feed(self, shards: list[Shard], replies: list[Any]) -> None:
        for shard, (found, more) in zip(shards, replies, strict=True):
            for id, flat in found:
                entry = make_entry(shard.entry_id(id), flat, self._decode)
                if self._start <= entry.id <= self._end and self._key in (None, entry.key):
                    self._pages[shard].append(entry)
            if more:
                self._next[shard] = "(" + found[-1][0].decode()
            else:
                del self._next[shard]

    def ready(self) -> list[Entry[E]]:
        """The entries whose turn has come: up to the end of the shortest page that has a successor."""
        stops = [page[-1].id for shard, page in self._pages.items() if shard in self._next and page]
        if len(stops) < len(self._next):
            return []  # a shard that may hold earlier entries has nothing read yet
        stop = min(stops, default=self._end)
        parts = []
        for page in self._pages.values():
            part = []
            while page and page[0].id <= stop:
                part.append(page.popleft())
            parts.append(part)
        return list(heapq.merge(*parts, key=lambda entry: entry.id))
