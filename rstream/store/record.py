"""Events ready to be stored, and storing them once where no producer's numbers tell. Publishing from a producer is in
outbox.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from rstream.store import keys
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import ONCE, Call

FLUSH_ENTRIES = 256
FLUSH_BYTES = 256 * 1024
"""One Lua call blocks the server: 256 small entries take it about 0.4 ms."""

Parts = tuple[bytes, bytes, bytes, bytes]
"""Those of a record, where making one would take longer than what is done with it."""


class Record(NamedTuple):
    """An event ready to be stored. `key` and `headers` are b"" for none."""

    payload: bytes
    key: bytes
    event_id: bytes
    headers: bytes


def weight_of(record: Record | Parts) -> int:
    """Bytes; a little more than what it counts as where there are limits."""
    payload, key, event_id, headers = record
    return len(payload) + len(key) + len(event_id) + len(headers) + 48


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
