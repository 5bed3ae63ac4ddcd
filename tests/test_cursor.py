"""The merged read, against sorted Python lists: any shards, pages, bounds and keys."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream import Entry, EntryId
from rstream.codec import pack_headers
from rstream.event import MAX_PART
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.log import Cursor
from rstream.store.scripts import EDGES, RANGE

GENERATION = 2
KEYS = ["ada", "bob", "eve", None]
FIRST, LAST = EntryId(0, 0, 0, 0), EntryId(MAX_PART, MAX_PART, MAX_PART, MAX_PART)


def _text(payload: bytes, key: object) -> str:
    return payload.decode()


@dataclass
class Log:
    """A stream in lists. `run` answers the two calls that a cursor sends, as Redis would."""

    shards: int
    rows: list[list[tuple[tuple[int, int], list[bytes]]]] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.layout = Layout("ns", "s", GENERATION, self.shards, "key", 1)
        self.rows = [[] for _ in range(self.shards)]

    def add(self, ms: int, key: str | None, shard: int, headers: bytes = b"") -> EntryId:
        """As the publish script does: the next id of the shard, at or after `ms`."""
        if key is not None:
            shard = self.layout.shard(key).number
        row = self.rows[shard]
        last = row[-1][0] if row else (-1, 0)
        id = (ms, 0) if ms > last[0] else (last[0], last[1] + 1)
        named = [b"k", key.encode()] if key else []
        row.append((id, [b"e", b"payload", *named, b"i", bytes(16), *([b"h", headers] if headers else [])]))
        return EntryId(*id, GENERATION, shard)

    def run(self, op: Op[None]) -> None:
        self.asked += 1
        op.parse([self._answer(*call) for call in op.calls])

    def _answer(self, command: Any, *rest: Any) -> Any:
        sha, keys, stream, low, high, *rest = rest
        assert (command, keys) == ("EVALSHA", 1)
        if sha == EDGES.sha:
            found = self._between(stream, low, high)
            assert rest == [""]
            return found[-1][0] if found else b"", b"", 0, b""
        limit, budget = rest
        assert sha == RANGE.sha and limit >= 1
        found = []
        for entry in self._between(stream, low, high):
            if len(found) == limit or budget <= 0:
                return found, 1
            found.append(entry)
            budget -= len(entry[1][1])
        return found, 0

    def _between(self, stream: str, low: str, high: str) -> list[Any]:
        row = self.rows[[keys.stream for keys in self.layout.current].index(stream)]
        ids = [id for id, _ in row]
        start = bisect_right(ids, parsed(low[1:])) if low.startswith("(") else bisect_left(ids, parsed(low))
        return [(b"%d-%d" % id, flat) for id, flat in row[start : bisect_right(ids, parsed(high))]]

    def read(self, start: EntryId, end: EntryId, key: str | None = None, page: int = 3) -> list[EntryId]:
        cursor = Cursor(self.layout, start, end, _text, key, limit=page)
        return [entry.id for entry in drive(cursor, self, page)]

    def ids(self) -> list[EntryId]:
        return sorted(EntryId(*id, GENERATION, n) for n, row in enumerate(self.rows) for id, _ in row)


def parsed(text: str) -> tuple[int, int]:
    ms, seq = map(int, text.split("-"))
    assert 0 <= ms <= MAX_PART and 0 <= seq <= MAX_PART  # Redis refuses others
    return ms, seq


def drive(cursor: Cursor[str], log: Log, page: int, between: Any = None) -> list[Entry[str]]:
    found: list[Entry[str]] = []
    while op := cursor.op():
        log.run(op)
        assert all(len(feed.page) <= page for feed in cursor._feeds.values())
        found += cursor.ready()
        if between:
            between()
    assert all(feed.empty and feed.over for feed in cursor._feeds.values())
    return found


moments = st.integers(0, 12)
adds = st.lists(st.tuples(moments, st.sampled_from(KEYS), st.integers(0, 6)), max_size=40)
bounds = st.builds(
    EntryId,
    moments,
    st.sampled_from([0, 1, 2, 3, MAX_PART]),
    st.sampled_from([0, GENERATION, MAX_PART]),
    st.sampled_from([0, 1, 3, MAX_PART]),
)


def filled(shards: int, events: list[tuple[int, str | None, int]]) -> tuple[Log, dict[EntryId, str | None]]:
    log = Log(shards)
    return log, {log.add(ms, key, shard % shards): key for ms, key, shard in sorted(events, key=lambda e: e[0])}


@settings(max_examples=600, deadline=None)
@given(
    shards=st.integers(1, 7),
    events=adds,
    start=st.just(FIRST) | bounds,
    end=st.just(LAST) | bounds,
    key=st.sampled_from(KEYS),
    page=st.integers(1, 8),
)
def test_a_window_is_the_sorted_filtered_list(
    shards: int, events: list[Any], start: EntryId, end: EntryId, key: str | None, page: int
) -> None:
    log, by_id = filled(shards, events)
    wanted = [id for id in sorted(by_id) if start <= id <= end and key in (None, by_id[id])]
    assert log.read(start, end, key, page) == wanted


@settings(max_examples=300, deadline=None)
@given(
    shards=st.integers(1, 4),
    events=adds,
    later=st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 6)), max_size=40),
    end=st.just(LAST) | bounds,
    page=st.integers(1, 4),
)
def test_what_is_published_meanwhile_does_not_prolong_the_window(
    shards: int, events: list[Any], later: list[tuple[str | None, int]], end: EntryId, page: int
) -> None:
    log, by_id = filled(shards, events)
    cursor = Cursor(log.layout, FIRST, end, _text, limit=page)

    def publish() -> None:
        if later:
            key, shard = later.pop()
            log.add(13, key, shard % shards)

    assert [entry.id for entry in drive(cursor, log, page, publish)] == [id for id in sorted(by_id) if id <= end]


@settings(max_examples=200, deadline=None)
@given(shards=st.integers(1, 4), events=adds, page=st.integers(1, 4), data=st.data())
def test_a_read_goes_on_after_the_id_where_it_stopped(shards: int, events: list[Any], page: int, data: Any) -> None:
    log, by_id = filled(shards, events)
    ids = sorted(by_id)
    for id in ids:
        assert log.read(id, LAST, page=page) == ids[ids.index(id) :]
        assert log.read(FIRST, id, page=page) == ids[: ids.index(id) + 1]
        assert log.read(id, id, page=page) == [id]


def test_entries_come_as_they_are_stored() -> None:
    log = Log(2)
    id = log.add(5, "ada", 0, pack_headers({"trace": "t"}))
    (entry,) = drive(Cursor(log.layout, FIRST, LAST, _text), log, 500)
    assert (entry.id, entry.key, entry.event, entry.event_id) == (id, "ada", "payload", bytes(16))
    assert entry.headers == {"trace": "t"}


def test_one_key_reads_one_shard() -> None:
    log = Log(7)
    for n in range(40):
        log.add(n, ["ada", "bob", "eve"][n % 3], 0)
    cursor = Cursor(log.layout, FIRST, LAST, _text, "ada", limit=3)
    while op := cursor.op():
        streams = [call[3] if call[0] == "EVALSHA" else call[1] for call in op.calls]
        assert streams == [log.layout.shard("ada").stream]
        log.run(op)
        assert {entry.key for entry in cursor.ready()} <= {"ada"}


def test_an_empty_window_costs_one_round_trip() -> None:
    log = Log(7)
    assert log.read(FIRST, LAST) == [] and log.asked == 1
    log.add(5, None, 0)
    log.asked = 0
    assert log.read(EntryId(6, 0, 0, 0), LAST) == [] and log.asked == 1
    log.asked = 0
    assert log.read(LAST, FIRST) == [] and log.asked == 1


@pytest.mark.parametrize("shards", [1, 4])
def test_round_trips_are_few(shards: int) -> None:
    log = Log(shards)
    for n in range(100):
        log.add(n, None, n % shards)
    assert log.read(FIRST, LAST, page=10) == log.ids()
    assert log.asked <= 2 + 100 / 10


@pytest.mark.parametrize("headers", [b"\xc1", b"\x01", b"\x81\xa1a\x05"])
def test_a_garbled_entry_does_not_hide_those_after_it(headers: bytes) -> None:
    log = Log(1)
    for n in range(5):
        log.add(n, None, 0, headers if n == 2 else b"")
    assert log.read(FIRST, LAST) == log.ids()
