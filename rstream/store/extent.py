"""How much is in a window of a stream, over archive and Redis, without reading it.

Cost: of the archive, the rows of manifests, and the segments that lie across a bound; with a key, the indexes of all,
and the blocks that may have it. Of Redis, every entry is looked at there, LOOK or LOOK_BYTES a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rstream.event import EntryId
from rstream.store.keys import END, Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.past import Archived, Edges, Extent, ask_edges, may_be_archived, read_edges, told_of
from rstream.store.scripts import MEASURE
from rstream.store.steps import Steps

LOOK, LOOK_BYTES = 5000, 4 * 1024 * 1024


class Measured(NamedTuple):
    """A window as it is now. archived: those of the entries that come from the archive."""

    first: EntryId | None
    last: EntryId | None
    entries: int
    payload: int
    archived: int


def measure(layout: Layout, start: EntryId, end: EntryId, key: str | None = None) -> Steps[Measured]:
    """start, end: inclusive bounds. Raises `StoreError`, `BlobError`, `ArchiveDamaged`."""
    shards, past = layout.holding(key), layout.past
    calls = [ask_edges(shard, start, end, archive=True) for shard in shards]
    told: list[Edges] = yield Op(calls, read_edges)
    begins = {shard: edges.first for shard, edges in zip(shards, told, strict=True)}
    found: Mapping[Shard, Archived] = {}
    if past is not None and may_be_archived(layout, start, told):
        found = yield past.survey(key, told_of(shards, told))
    parts = list[Extent]()
    for shard in {**begins, **found}:
        if past is not None and (archived := found.get(shard)) is not None:
            parts.append((yield past.measure(shard, archived, start, end, begins.get(shard, END), key)))
    taken = sum(part.entries for part in parts)
    for shard, edges in zip(shards, told, strict=True):
        if edges.newest:
            parts += yield from _in_redis(shard, start, end, key)
    firsts, lasts = [p.first for p in parts if p.first], [p.last for p in parts if p.last]
    entries, payload = sum(part.entries for part in parts), sum(part.payload for part in parts)
    return Measured(min(firsts, default=None), max(lasts, default=None), entries, payload, taken)


def _in_redis(shard: Shard, start: EntryId, end: EntryId, key: str | None) -> Steps[list[Extent]]:
    parts, at = list[Extent](), _redis_start(start, shard)
    while at:
        call = MEASURE([shard.stream], at, _redis_end(end, shard), key or "", LOOK, LOOK_BYTES)
        (reply,) = yield Op([call], list)
        count, payload, first, last, after = reply
        if count:
            parts.append(Extent(shard.entry_id(first), shard.entry_id(last), count, payload))
        at = after and "(" + after.decode()
    return parts


def _redis_start(start: EntryId, shard: Shard) -> str:
    here = EntryId(*start[:2], shard.generation, shard.number)
    return start.redis if here >= start else "(" + start.redis


def _redis_end(end: EntryId, shard: Shard) -> str:
    here = EntryId(*end[:2], shard.generation, shard.number)
    return end.redis if here <= end else "(" + end.redis
