"""The log half: how what is stored of events is read. What is to be stored is in record.py and outbox.py."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from operator import attrgetter
from typing import Any, Generic, TypeVar

from rstream.codec import unpack_headers
from rstream.errors import EntryInvalid
from rstream.event import MAX_PART, Decode, Entry, EntryId, Key
from rstream.position import Position, bound
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.keys import END, Rank, Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, aside
from rstream.store.past import Archived, Reading, ask_edges, begin_of, may_be_archived, read_edges, told_of
from rstream.store.scripts import RANGE, Call
from rstream.store.steps import Finding

E = TypeVar("E")

PAGE = 500
READ_BYTES = 8 * 1024 * 1024
"""A page of all shards together: entries of a shard, and payload of all of them."""

PAST_BYTES = 32 * 1024 * 1024
"""What is fetched of the archive and not given yet, of all shards together: 256 KiB each at least."""

CLOCK_TICK = 0.0015
"""Seconds after which Redis's clock surely shows another millisecond; see `Cursor`."""

CLOCK_SLACK = 1000
"""Milliseconds; ids that far ahead of Redis's clock show that it was set back."""


def make_entry(id: EntryId, flat: Sequence[bytes], decode: Decode[E]) -> Entry[E]:
    """An entry from Redis's reply. One that rstream did not write says so when its event is touched: it must not
    end the reading of all the others.
    """
    if len(flat) == 6 and flat[0] == b"e" and flat[2] == b"k" and flat[4] == b"i":  # as nearly all are
        return Entry(id, flat[1], flat[3].decode(errors="replace"), flat[5], {}, decode)
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


def make_entries(shard: Shard, found: Sequence[tuple[bytes, Sequence[bytes]]], decode: Decode[E]) -> list[Entry[E]]:
    """A page of a shard."""
    generation, number, new = shard.generation, shard.number, tuple.__new__
    entries = []
    for id, flat in found:
        ms, _, seq = id.partition(b"-")
        entries.append(make_entry(new(EntryId, (int(ms), int(seq), generation, number)), flat, decode))
    return entries


def _raising(error: EntryInvalid) -> Decode[Any]:
    def decode(payload: bytes, key: Key) -> Any:
        raise error

    return decode


def read(
    layout: Layout,
    start: Position,
    end: Position,
    decode: Decode[E],
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


class _Feed(Generic[E]):
    """A shard, as a cursor reads it.

    floor: all before this id was read, or is not there · sure: an entry was seen there · past: what of the archive is
    to be read before Redis is, by `coming` · over: nothing is to come · page, at: what was read, and how far it was
    given.
    """

    def __init__(self, shard: Shard, start: EntryId) -> None:
        self.shard, self.floor = shard, start[:2]
        self.over = self.sure = False
        self.past: Reading | None = None
        self.coming: Future[list[Entry[E]] | None] | None = None
        self.page: list[Entry[E]] = []
        self.at = 0

    @property
    def empty(self) -> bool:
        return self.at == len(self.page)

    def open(self, past: Reading) -> None:
        """Read this before anything else."""
        self.past, self.coming = past, past.next()

    def upto(self, stop: EntryId | None) -> list[Entry[E]]:
        """What was read up to an id, for good."""
        if stop is None or self.empty or self.page[-1].id <= stop:
            at = len(self.page)
        else:
            at = bisect_right(self.page, stop, self.at, key=_id_of)
        part, self.at = self.page[self.at : at], at
        if self.empty:
            self.page, self.at = [], 0
        return part


_id_of = attrgetter("id")


class Cursor(Generic[E]):
    """Reads a window of a stream, merged over shards in id order. No I/O: whoever drives it runs `op()` until
    it is None, and takes what is `ready()` after each.

    start, end: inclusive bounds · key: only this key's entries (one shard a generation is read) · now: Redis's clock,
    where the window reaches up to it: see `_fix_end` · limit: entries that will be taken at most · trimmed: told where
    entries were trimmed before they were read, and are in no archive: the first of them; without it, nobody is · seen:
    the start is an entry that was there.

    What Redis has no more comes from the archive, where the layout knows of one: that is looked into where a shard in
    Redis begins after the window does and something may have been before, and wherever a trim overtakes the reading.
    (What is trimmed was archived before; so what is found missing is found there.) Memory: READ_BYTES, and PAST_BYTES
    where the archive is read.
    """

    def __init__(
        self,
        layout: Layout,
        start: EntryId,
        end: EntryId,
        decode: Decode[E],
        key: str | None = None,
        *,
        now: int | None = None,
        limit: int | None = None,
        trimmed: Callable[[EntryId], None] | None = None,
        seen: bool = False,
    ) -> None:
        self._start, self._end = start, end
        self._decode, self._key, self._now = decode, key, now
        self._trimmed = trimmed
        shards = layout.holding(key)
        self._page = PAGE if limit is None else max(1, min(PAGE, limit))
        self._budget = max(1, READ_BYTES // len(shards))
        self._feeds = {shard: _Feed[E](shard, start) for shard in shards}
        for shard, feed in self._feeds.items():
            feed.sure = seen and start[2:] == (shard.generation, shard.number)
        self._bounded = False
        self._newest = [(0, 0)]
        self._layout, self._past = layout, layout.past
        self._firsts: dict[Shard, Rank] = {}  # where shards begin in Redis, of those whose archive is to be asked
        self._surveying = False
        self._told: dict[Shard, Rank] = {}  # up to where they are archived

    def op(self) -> Op[None] | None:
        """The next read: the edges of each shard first, then pages."""
        if not self._bounded:
            return Op([self._edges(shard) for shard in self._feeds], self._bound)
        if self._surveying and self._past is not None:
            return self._past.survey(self._key, self._told).then(self._survey)
        if self._firsts and self._past is not None:
            return self._past.look([*self._firsts]).then(self._fill)
        hungry = [feed for feed in self._feeds.values() if feed.empty and not feed.over]
        if present := [feed for feed in hungry if feed.past is None]:
            return Op([self._range(feed) for feed in present], lambda replies: self._feed(present, replies))
        if hungry:
            return aside(
                lambda: [feed.coming for feed in hungry if feed.coming], lambda found: self._take(hungry, found)
            )
        return None

    # -- the window -------------------------------------------------------------------------------------------------

    def _edges(self, shard: Shard) -> Call:
        return ask_edges(shard, self._start, self._end, archive=self._past is not None)

    def _bound(self, replies: list[Any]) -> None:
        self._bounded = True
        found = read_edges(replies)
        self._surveying = self._past is not None and may_be_archived(self._layout, self._start, found)
        self._told = told_of(self._feeds, found)
        for feed, edges in zip(self._feeds.values(), found, strict=True):
            if edges.newest:
                self._newest.append(edges.newest)
            feed.over = edges.newest is None
            if self._past is None:
                if feed.over:
                    self._missed(feed)
            elif edges.first > feed.floor:
                if self._surveying:
                    self._firsts[feed.shard] = edges.first
                else:
                    self._missed(feed)
                    feed.floor = edges.first
        if not self._surveying:
            self._fix_end()

    def _survey(self, found: Mapping[Shard, Archived]) -> None:
        """What is archived from the start of the window on and not in Redis, also of shards that are gone there."""
        self._surveying = False
        for shard, archived in found.items():
            if shard not in self._feeds:
                self._feeds[shard] = _Feed(shard, self._start)
                self._feeds[shard].over = True
                self._firsts[shard] = END
            if shard in self._firsts:
                self._newest.append(archived.last_rank)
        self._fix_end()
        self._fill(found)

    def _fill(self, found: Mapping[Shard, Archived]) -> None:
        """Go over to the archive where Redis begins later than we have read."""
        firsts, self._firsts = self._firsts, {}
        window = max(256 * 1024, min(PAST_BYTES // 2 // len(self._feeds), 4 * 1024 * 1024))
        for shard, begins in firsts.items():
            feed, archived = self._feeds[shard], found.get(shard)
            start = max(self._start, EntryId(*feed.floor, 0, 0))
            if self._past is not None and archived is not None and archived.last_rank >= feed.floor:
                feed.open(self._past.read(shard, archived, start, self._end, begins, self._key, self._decode, window))
            else:
                self._missed(feed)
            feed.floor, feed.sure = begins, begins < END  # what is in neither is nowhere
            feed.over = feed.past is None and (feed.over or begins > self._end[:2])

    def _fix_end(self) -> None:
        """Fix the end now: a reader behind a fast producer would otherwise never arrive.

        A window up to now ends with the last millisecond that was over when the reading began: of a later one, some
        shards may have been read already when others get its next entry, and who goes on after the last id would
        miss that. Unless Redis's clock was set back: then ids run ahead of it, and all there is counts.
        """
        end = max(self._newest)
        if self._now is not None and end[0] <= self._now + CLOCK_SLACK:
            end = min(end, (self._now, MAX_PART))
        self._end = min(self._end, EntryId(*end, MAX_PART, MAX_PART))

    # -- pages ------------------------------------------------------------------------------------------------------

    def _range(self, feed: _Feed[E]) -> Call:
        ms, seq = feed.floor
        told = (1,) if self._past is not None or self._trimmed is not None else ()
        return RANGE([feed.shard.stream], f"{ms}-{seq}", self._end.redis, self._page, self._budget, *told)

    def _feed(self, feeds: list[_Feed[E]], replies: list[Any]) -> None:
        for feed, (found, more, *told) in zip(feeds, replies, strict=True):
            if told and (begins := begin_of(told[0])) > feed.floor:  # a trim was faster
                if self._past is not None:
                    self._firsts[feed.shard] = begins  # what it took comes before this page
                    continue
                self._missed(feed)
            page = make_entries(feed.shard, found, self._decode)
            feed.page, feed.at = self._wanted(page), 0
            if not more:
                feed.over = True
            elif told:
                feed.floor, feed.sure = keys.rank_of(told[1]), True
            else:
                feed.floor = _after(keys.rank_of(found[-1][0]))

    def _missed(self, feed: _Feed[E]) -> None:
        id = EntryId(*feed.floor, feed.shard.generation, feed.shard.number)
        if self._trimmed is not None and feed.sure and self._start <= id <= self._end:
            self._trimmed(id)

    def _wanted(self, page: list[Entry[E]]) -> list[Entry[E]]:
        start, end, key = self._start, self._end, self._key
        if key is not None:
            page = [entry for entry in page if entry.key == key]
        if page and not start <= page[0].id <= page[-1].id <= end:
            page = [entry for entry in page if start <= entry.id <= end]
        return page

    def _take(self, feeds: list[_Feed[E]], found: list[list[Entry[E]] | None]) -> None:
        for feed, page in zip(feeds, found, strict=True):
            assert feed.past is not None
            if page is None:
                feed.past = feed.coming = None
                feed.over = feed.floor > self._end[:2]
            else:
                feed.page, feed.at, feed.coming = page, 0, feed.past.next()

    def ready(self) -> list[Entry[E]]:
        """The entries whose turn has come: up to the end of the shortest page that has a successor."""
        going = [feed for feed in self._feeds.values() if not feed.over]
        if not self._bounded or self._surveying or any(feed.empty for feed in going):
            return []  # a shard that may hold earlier entries has nothing read yet
        stop = min((feed.page[-1].id for feed in going), default=None)
        parts = [part for feed in self._feeds.values() if (part := feed.upto(stop))]
        if len(parts) <= 1:
            return parts[0] if parts else []
        found = [entry for part in parts for entry in part]
        found.sort(key=_id_of)  # of runs that are in order: merges them
        return found


def _after(id: Rank) -> Rank:
    ms, seq = id
    return (ms, seq + 1) if seq < MAX_PART else (ms + 1, 0)
