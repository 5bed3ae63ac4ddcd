"""The log half: what is stored of events, and how it is read. Publishing from a producer is in outbox.py."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgpack

from rstream.codec import unpack_headers
from rstream.errors import EntryInvalid
from rstream.event import MAX_PART, Entry, EntryId
from rstream.position import Position, bound
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import ONCE, RANGE, Call
from rstream.store.steps import Finding

E = TypeVar("E")

FLUSH_ENTRIES = 256
FLUSH_BYTES = 256 * 1024
"""One Lua call blocks the server: 256 small entries take it about 0.4 ms."""

PAGE = 500
READ_BYTES = 8 * 1024 * 1024
"""A page of all shards together: entries of a shard, and payload of all of them."""

CLOCK_TICK = 0.0015
"""Seconds after which Redis's clock surely shows another millisecond; see `Cursor`."""

CLOCK_SLACK = 1000
"""Milliseconds; ids that far ahead of Redis's clock show that it was set back."""


class Record(NamedTuple):
    """An event ready to be stored. `key` and `headers` are b"" for none."""

    payload: bytes
    key: bytes
    event_id: bytes
    headers: bytes


def place_of(layout: Layout, record: Record) -> Shard:
    """The shard that a record is written to."""
    return layout.shard(_hashed(record))


Records = Mapping[Shard, Sequence[Record]]


def publish_once(shards: Records, ttl_ms: int) -> Op[list[Record]]:
    """Append records, each only if its event id was not appended so within `ttl_ms`. Those that are not stored, because
    their shard is sealed or not there.
    """
    calls = []
    for shard, records in shards.items():
        markers = [shard.emitted(record.event_id) for record in records]
        packed = msgpack.packb([part for record in records for part in record], use_bin_type=False)
        calls.append(ONCE([shard.stream, shard.sealed, shard.size, shard.marks, *markers], ttl_ms, packed))

    def parse(replies: list[Any]) -> list[Record]:
        return [batch[n] for batch, left in zip(shards.values(), replies, strict=True) for n in left]

    return Op(calls, parse)


def new_ones(layout: Layout, records: Sequence[Record]) -> Op[list[Record]]:
    """Those that `publish_once` has not stored in an older generation, which takes nothing any more."""
    before = (*layout.removed, *layout.older)
    older = [(record, layout.of(*generation)) for record in records for generation in before]
    calls: list[Call] = [
        ("EXISTS", shards[keys.number_of(_hashed(record), len(shards))].emitted(record.event_id))
        for record, shards in older
    ]

    def parse(replies: list[Any]) -> list[Record]:
        known = {record.event_id for (record, _), stored in zip(older, replies, strict=True) if stored}
        return [record for record in records if record.event_id not in known]

    return Op(calls, parse)


def _hashed(record: Record) -> str:
    """What decides the shard of a record; without a key its event id: the same, whoever publishes it again."""
    return record.key.decode() if record.key else record.event_id.hex()


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


def read(
    layout: Layout,
    start: Position,
    end: Position,
    decode: Callable[[bytes], E],
    key: str | None = None,
    limit: int | None = None,
) -> Finding[Entry[E]]:
    """Find the entries of a window, in id order. Raises `PositionError`."""
    now = yield layouts.clock()
    last = bound(end, "end", now)
    if last.ms >= now:
        yield CLOCK_TICK
    cursor = Cursor(layout, bound(start, "start", now), last, decode, key, now=now, limit=limit)
    while (limit is None or limit > 0) and (op := cursor.op()):
        yield op
        found = cursor.ready()[:limit]
        limit = None if limit is None else limit - len(found)
        yield found  # whoever gets it may empty it


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
        end = max((keys.rank_of(id) for id in newest.values()), default=(0, 0))
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
