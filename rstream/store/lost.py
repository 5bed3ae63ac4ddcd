"""What groups lost: entries that were dropped before they had processed them, see lua/parts/lose.lua."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from rstream.event import EntryId
from rstream.store.keys import Shard, rank_of
from rstream.store.layout import Layout
from rstream.store.link import Op


class Range(NamedTuple):
    """Entries of one shard: all that were stored from `first` to `last`. (Of very many ranges the oldest are one, in
    which there may have been others.)
    """

    first: EntryId
    last: EntryId
    number: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What a group lost in one shard. count: since ever · ranges: in the order of ids, the oldest of many as one · at:
    when (ms) it last did.
    """

    group: str
    shard: Shard
    count: int
    ranges: tuple[Range, ...]
    at: int


def losses(layout: Layout) -> Op[list[Loss]]:
    """Of all groups and shards, also of generations that were removed. One call a shard."""
    shards = layout.ever

    def parse(replies: list[Any]) -> list[Loss]:
        found = []
        for shard, flat in zip(shards, replies, strict=True):
            for name, packed in zip(flat[::2], flat[1::2], strict=True):
                found.append(_loss(shard, name, packed))
        return sorted(found, key=lambda loss: (loss.group, loss.shard.generation, loss.shard.number))

    return Op([("HGETALL", shard.lost) for shard in shards], parse)


def _loss(shard: Shard, name: bytes, packed: bytes) -> Loss:
    count, _, ranges, at = msgpack.unpackb(packed, raw=True)
    ordered = sorted(ranges, key=lambda each: rank_of(each[0]))
    parts = tuple(Range(shard.entry_id(first), shard.entry_id(last), int(n)) for first, last, n in ordered)
    return Loss(name.decode(errors="replace"), shard, int(count), parts, int(at))
