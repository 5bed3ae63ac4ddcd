"""What the janitor asks of Redis about a stream, and tells it: one call a shard each.

Cost of a look: one Lua call a shard, and reading `ns:seen:<stream>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from rstream.retention import Held, Limits, Retention, grain
from rstream.store import keys
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, both
from rstream.store.scripts import INDEX, LIMITS, OFFICE, TRIM, WEIGH, Call

LOOK = 1000
LOOK_BYTES = 2 * 1024 * 1024
"""Entries, and bytes of them, that one call counts."""


LOOKED = b"/"
"""The field of that."""

SWEEP_MS = 3600 * 1000
"""Between two sweeps of the blob store."""


class Group(NamedTuple):
    """A group in a shard. floor: all before it is settled · last: delivered last · unread: about, -1 = Redis cannot
    tell · silent: workers with no lease that have something pending.
    """

    name: str
    floor: bytes
    pending: int
    last: bytes
    unread: int
    lives: bool
    silent: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A shard. first: id of its first entry, or None · limits, soft: those that are in force; soft None = none are."""

    shard: Shard
    now: int
    first: bytes | None
    held: Held
    limits: Limits
    soft: int | None
    groups: tuple[Group, ...]


@dataclass(slots=True)
class Seen:
    """When (ms) a worker of each group lived last, and since when workers are silent. looked: when this was written."""

    looked: int = 0
    groups: dict[str, int] = field(default_factory=dict)
    silent: dict[tuple[str, bytes], int] = field(default_factory=dict)


class Trim(NamedTuple):
    """What was, or would be, trimmed of a shard. before: entries before this id, None = none · stopped: by which group,
    at which id · lost: entries that groups had not processed · more: there is more to do.
    """

    shard: Shard
    removed: int
    before: bytes | None
    stopped: str | None
    stop: bytes | None
    lost: Mapping[str, int]
    more: bool


class Losers(NamedTuple):
    """Groups that may lose entries, and their workers that are taken for dead."""

    groups: Sequence[str]
    dead: Mapping[str, Sequence[bytes]]


def weigh(shards: Sequence[Shard]) -> Op[list[Weight]]:
    """Of those shards that are there."""

    def parse(replies: list[Any]) -> list[Weight]:
        return [_weight(shard, reply) for shard, reply in zip(shards, replies, strict=True) if reply]

    return Op([WEIGH([shard.stream, shard.size, shard.marks]) for shard in shards], parse)


def _weight(shard: Shard, reply: list[Any]) -> Weight:
    now, entries, first, counted, packs, nodes, maxlen, maxbytes, soft, groups = reply
    found = tuple(
        Group(name.decode(errors="replace"), floor, pending, last, unread, bool(lives), tuple(silent))
        for name, floor, pending, last, unread, lives, silent in groups
    )
    held = Held(entries, counted, packs, nodes, sum(group.pending for group in found))
    limits = Limits(int(maxlen) if maxlen else None, int(maxbytes) if maxbytes else None)
    return Weight(shard, now, first or None, held, limits, int(soft) if soft else None, found)


def limit(shard: Shard, limits: Limits | None, retention: Retention | None) -> Op[bool]:
    """Put limits into force, or none; whether the shard is there and counts what it holds."""
    names = [shard.stream, shard.sealed, shard.size, shard.marks]
    if limits is None or retention is None:
        return Op([LIMITS(names, "", "", "", 0)], lambda replies: False)
    maxlen, maxbytes = ("" if each is None else each for each in limits)
    call = LIMITS(names, maxlen, maxbytes, retention.soft_level, grain(limits))
    return Op([call], lambda replies: bool(replies[0]))


def index(shard: Shard) -> Op[bool]:
    """Count a page of what was there before there were limits; whether there is more."""
    call = INDEX([shard.stream, shard.size, shard.marks], LOOK, LOOK_BYTES)
    return Op([call], lambda replies: bool(replies[0]))


def trim(shard: Shard, minid: str, limits: Limits, losers: Losers, *, dry: bool) -> Op[Trim]:
    """Trim a page of a shard, see trim.lua."""
    names: list[str | bytes] = [shard.stream, shard.size, shard.marks, shard.lost]
    for group in losers.groups:
        names += shard.retry(group), shard.parked(group), shard.memo(group, "")
    for group in losers.groups:
        names += [shard.alive(group, "").encode() + worker for worker in losers.dead.get(group, ())]
    told = msgpack.packb([(g, tuple(losers.dead.get(g, ()))) for g in losers.groups], use_bin_type=False)
    maxlen, maxbytes = ("" if each is None else each for each in limits)

    def parse(replies: list[Any]) -> Trim:
        removed, before, stopped, stop, lost, more = replies[0]
        counts = {name.decode(errors="replace"): count for name, count in lost}
        return Trim(shard, removed, before or None, stopped.decode() or None, stop or None, counts, bool(more))

    return Op([TRIM(names, minid, maxlen, maxbytes, int(dry), told)], parse)


def office(namespace: str, stream: str, worker: str, ttl_ms: int) -> Op[bool]:
    """Be the janitor of a stream for so long; False where another worker is."""
    return Op([OFFICE([keys.janitor(namespace, stream)], worker, ttl_ms)], lambda replies: bool(replies[0]))


def sweep(layout: Layout) -> Op[bool]:
    """Whether it is time to sweep the blob store; whoever asks does it."""
    call: Call = ("SET", keys.swept(layout.namespace, layout.name), 1, "NX", "PX", SWEEP_MS)
    # Where memory is full, deleting blobs would not help.
    return Op([call], lambda replies: replies[0] == b"OK", partial=True)


def seen(layout: Layout) -> Op[Seen]:
    def parse(replies: list[Any]) -> Seen:
        found = Seen()
        for name, at in zip(replies[0][::2], replies[0][1::2], strict=True):
            group, slash, worker = name.partition(b"/")
            if name == LOOKED:
                found.looked = int(at)
            elif slash:
                found.silent[group.decode(), worker] = int(at)
            else:
                found.groups[group.decode(errors="replace")] = int(at)
        return found

    return Op([("HGETALL", keys.seen(layout.namespace, layout.name))], parse)


def survey(layout: Layout, shards: Sequence[Shard]) -> Op[tuple[list[Weight], Seen]]:
    """`weigh` and `seen`, in one write."""
    return both(weigh(shards), seen(layout))


def now_seen(layout: Layout, new: Mapping[str | bytes, int], gone: Sequence[str | bytes]) -> Op[None]:
    """Write down what has changed."""
    key = keys.seen(layout.namespace, layout.name)
    calls: list[Call] = []
    if new:
        calls.append(("HSET", key, *(part for pair in new.items() for part in pair)))
    if gone:
        calls.append(("HDEL", key, *gone))
    return Op(calls, lambda replies: None, partial=True)  # where memory is full: the next look does
