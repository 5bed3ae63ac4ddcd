"""What is in a stream and how far its groups are: one Lua call a shard, all of them in one write.

Each shard is seen at one moment, the shards one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rstream.event import EntryId
from rstream.store import layout as layouts
from rstream.store.deliveries import PSEUDO
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import STATS, Call

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardStats:
    """entries stored now, and the ids of the first and the last of them."""

    shard: Shard
    entries: int
    first: EntryId | None
    last: EntryId | None


@dataclass(frozen=True, slots=True)
class StreamStats:
    """now: Redis's clock in ms · groups: names."""

    layout: Layout
    now: int
    shards: list[ShardStats]
    groups: list[str]

    @property
    def entries(self) -> int:
        return sum(shard.entries for shard in self.shards)

    @property
    def first(self) -> EntryId | None:
        return min((shard.first for shard in self.shards if shard.first), default=None)

    @property
    def last(self) -> EntryId | None:
        return max((shard.last for shard in self.shards if shard.last), default=None)


@dataclass(slots=True)
class WorkerStats:
    """A worker's deliveries over all shards; alive: its lease holds."""

    worker: str
    pending: int = 0
    alive: bool = False


@dataclass
class GroupStats:
    """A group over all shards of its stream.

    pending: deliveries that are not settled, waiting retries included · lag: entries nobody was given yet, None
    where Redis cannot tell · behind: seconds since the oldest unprocessed entry was published, 0.0 without one ·
    retries: waiting for their time · dead: dead letters · waiting: pending for nobody: `released`, `again`, `retry` ·
    positions: last delivered, per shard · missing: shards that lost the group.
    """

    name: str
    pending: int = 0
    lag: int | None = 0
    behind: float = 0.0
    retries: int = 0
    dead: int = 0
    waiting: dict[str, int] = field(default_factory=lambda: {name.lstrip("~"): 0 for name in PSEUDO})
    workers: list[WorkerStats] = field(default_factory=list)
    positions: list[EntryId] = field(default_factory=list)
    missing: list[Shard] = field(default_factory=list)


def stream_stats(layout: Layout) -> Op[StreamStats]:
    """One round trip."""
    return Op(_calls(layout), lambda replies: _stream(layout, replies))


def group_stats(layout: Layout) -> Op[list[GroupStats]]:
    """All groups of a stream, by name. One round trip."""
    return Op(_calls(layout), lambda replies: _groups(layout, replies))


def all_layouts(namespace: str, names: Sequence[str]) -> Op[list[Layout | None]]:
    """What is stored of many streams; None where nothing is. One round trip."""
    return together([layouts.load(namespace, name) for name in names])


def all_streams(layouts: Iterable[Layout]) -> Op[list[StreamStats]]:
    """`stream_stats` of many streams. One round trip."""
    return together([stream_stats(layout) for layout in layouts])


def together(ops: Sequence[Op[T]]) -> Op[list[T]]:
    """Many operations in one write."""

    def parse(replies: list[Any]) -> list[T]:
        at = iter(replies)
        return [op.parse([next(at) for _ in op.calls]) for op in ops]

    return Op([call for op in ops for call in op.calls], parse)


def _calls(layout: Layout) -> list[Call]:
    return [STATS([shard.stream]) for shard in layout.every]


def _id(shard: Shard, raw: bytes | None) -> EntryId | None:
    return None if raw is None else shard.entry_id(raw)


def _stream(layout: Layout, replies: list[Any]) -> StreamStats:
    shards = [
        ShardStats(shard, entries, _id(shard, first), _id(shard, last))
        for shard, (_, entries, first, last, _) in zip(layout.every, replies, strict=True)
    ]
    groups = sorted({_text(group[0]) for reply in replies for group in reply[4]})
    return StreamStats(layout, max(reply[0] for reply in replies), shards, groups)


def _groups(layout: Layout, replies: list[Any]) -> list[GroupStats]:
    by_shard = [{_text(group[0]): group for group in reply[4]} for reply in replies]
    found = []
    for name in sorted({name for groups in by_shard for name in groups}):
        stats = GroupStats(name)
        for shard, groups, (now, entries, first, _, _) in zip(layout.every, by_shard, replies, strict=True):
            if raw := groups.get(name):
                _add(stats, shard, now, raw)
                continue
            stats.missing.append(shard)  # a worker will make the group anew, and read all there is
            stats.lag = None if stats.lag is None else stats.lag + entries
            if first is not None:
                _unprocessed(stats, now, first)
        stats.workers.sort(key=lambda worker: (not worker.alive, worker.worker))
        found.append(stats)
    return found


def _add(stats: GroupStats, shard: Shard, now: int, raw: Sequence[Any]) -> None:
    _, position, pending, oldest, following, unread, retries, dead, consumers = raw
    stats.positions.append(shard.entry_id(position))
    stats.pending += pending
    stats.lag = None if stats.lag is None or unread < 0 else stats.lag + unread
    stats.retries += retries
    stats.dead += dead
    for id in (oldest, following):
        if id is not None:
            _unprocessed(stats, now, id)
    for name, holds, alive in consumers:
        _count_in(stats, _text(name), holds, bool(alive))


def _unprocessed(stats: GroupStats, now: int, id: bytes) -> None:
    stats.behind = max(stats.behind, (now - int(id.split(b"-")[0])) / 1000)


def _count_in(stats: GroupStats, name: str, holds: int, alive: bool) -> None:
    if name in PSEUDO:
        stats.waiting[name.lstrip("~")] += holds
        return
    worker = next((worker for worker in stats.workers if worker.worker == name), None)
    if worker is None:
        worker = WorkerStats(name)
        stats.workers.append(worker)
    worker.pending += holds
    worker.alive = worker.alive or alive


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
