"""What is in a stream and how far its groups are: one Lua call a shard, all of them in one write.

Each shard is seen at one moment, the shards one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rstream.errors import ConfigError
from rstream.event import EntryId
from rstream.store.deliveries import PSEUDO
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import STATS, Call


@dataclass(frozen=True, slots=True)
class ShardStats:
    """entries stored now, and the ids of the first and the last of them · given: the last id that was given to an
    entry, also one that is removed; of a shard that is sealed, the highest there can be.
    """

    shard: Shard
    entries: int
    first: EntryId | None
    last: EntryId | None
    given: EntryId | None = None


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


@dataclass(slots=True)
class ShardGroupStats:
    """A group in one shard. All as in `GroupStats`, and:

    older: of a generation that is not written to any more · owner: the worker that owns the shard in an ordered group,
    "" where nobody does at the moment, None where nobody ever did, or the group is not ordered · epoch: the owner's, or
    the last one · position: last delivered, None where the shard lost the group · oldest, holder: of what is pending,
    and who has it; oldest_age: in seconds · parked: put aside until its key's turn.
    """

    shard: Shard
    older: bool
    owner: str | None = None
    epoch: int | None = None
    position: EntryId | None = None
    lag: int | None = 0
    behind: float = 0.0
    pending: int = 0
    oldest: EntryId | None = None
    oldest_age: float = 0.0
    holder: str | None = None
    parked: int = 0
    retries: int = 0
    dead: int = 0


@dataclass
class GroupStats:
    """A group over all shards of its stream.

    pending: deliveries that are not settled, waiting retries included · lag: entries nobody was given yet, None
    where Redis cannot tell · behind: seconds since the oldest unprocessed entry was published, 0.0 without one ·
    retries: waiting for their time · dead: dead letters · waiting: pending for nobody: `released`, `again`, `retry`,
    `parked` · positions: last delivered, per shard · missing: shards that lost the group · shards: one by one.
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
    shards: list[ShardGroupStats] = field(default_factory=list)


def stream_stats(layout: Layout) -> Op[StreamStats]:
    """One round trip."""
    return Op(_calls(layout), lambda replies: _stream(layout, replies))


def group_stats(layout: Layout) -> Op[list[GroupStats]]:
    """All groups of a stream, by name. One round trip."""
    return Op(_calls(layout), lambda replies: _groups(layout, replies))


def survey(layout: Layout) -> Op[tuple[StreamStats, list[GroupStats]]]:
    """Both, as of the same moment. One round trip."""
    return Op(_calls(layout), lambda replies: (_stream(layout, replies), _groups(layout, replies)))


def find(groups: Sequence[GroupStats], name: str, layout: Layout) -> GroupStats:
    """The group of this name. Raises `ConfigError` naming those there are."""
    for stats in groups:
        if stats.name == name:
            return stats
    raise no_such_group(name, layout, [stats.name for stats in groups])


def no_such_group(name: str, layout: Layout, known: Sequence[str]) -> ConfigError:
    """What to raise, naming those there are."""
    told = f"there are {', '.join(known)}" if known else "there are none yet; a worker makes them"
    return ConfigError(f"no group {name!r} reads stream {layout.name!r}: {told}")


def _calls(layout: Layout) -> list[Call]:
    return [STATS([shard.stream]) for shard in layout.every]


def _id(shard: Shard, raw: bytes | None) -> EntryId | None:
    return None if raw is None else shard.entry_id(raw)


def _stream(layout: Layout, replies: list[Any]) -> StreamStats:
    shards = [
        ShardStats(shard, entries, _id(shard, first), _id(shard, last), _id(shard, given))
        for shard, (_, entries, first, last, _, given) in zip(layout.every, replies, strict=True)
    ]
    groups = sorted({_text(group[0]) for reply in replies for group in reply[4]})
    return StreamStats(layout, max(reply[0] for reply in replies), shards, groups)


def _groups(layout: Layout, replies: list[Any]) -> list[GroupStats]:
    by_shard = [{_text(group[0]): group for group in reply[4]} for reply in replies]
    found = []
    for name in sorted({name for groups in by_shard for name in groups}):
        stats = GroupStats(name)
        for shard, groups, (now, entries, first, *_) in zip(layout.every, by_shard, replies, strict=True):
            older = shard.generation < layout.generation
            if raw := groups.get(name):
                one = _in_shard(shard, older, now, raw)
                _count_workers(stats, raw[9])
            else:  # a worker will make the group anew, and read all there is
                one = ShardGroupStats(shard, older, lag=entries, behind=_age(now, first))
            _add(stats, one)
        stats.workers.sort(key=lambda worker: (not worker.alive, worker.worker))
        found.append(stats)
    return found


def _in_shard(shard: Shard, older: bool, now: int, raw: Sequence[Any]) -> ShardGroupStats:
    _, position, pending, oldest, holder, following, unread, retries, dead, consumers, owner, epoch = raw
    worker, _, by = _text(owner or b"").rpartition("|")
    return ShardGroupStats(
        shard,
        older,
        owner=worker if owner or epoch else None,
        epoch=int(by or epoch) if owner or epoch else None,
        position=shard.entry_id(position),
        lag=None if unread < 0 else unread,
        behind=max(_age(now, oldest), _age(now, following)),
        pending=pending,
        oldest=_id(shard, oldest),
        oldest_age=_age(now, oldest),
        holder=None if holder is None else _text(holder),
        parked=sum(holds for name, holds, _ in consumers if name == b"~parked"),
        retries=retries,
        dead=dead,
    )


def _add(stats: GroupStats, one: ShardGroupStats) -> None:
    stats.shards.append(one)
    if one.position is None:
        stats.missing.append(one.shard)
    else:
        stats.positions.append(one.position)
    stats.pending += one.pending
    stats.lag = None if stats.lag is None or one.lag is None else stats.lag + one.lag
    stats.behind = max(stats.behind, one.behind)
    stats.retries += one.retries
    stats.dead += one.dead


def _age(now: int, id: bytes | None) -> float:
    """Seconds since an entry of this id was published; 0.0 without one, or where the clock was set back since."""
    return 0.0 if id is None else max(0.0, (now - int(id.split(b"-")[0])) / 1000)


def _count_workers(stats: GroupStats, consumers: Sequence[Sequence[Any]]) -> None:
    for raw, holds, alive in consumers:
        name = _text(raw)
        if name in PSEUDO:
            stats.waiting[name.lstrip("~")] += holds
            continue
        worker = next((worker for worker in stats.workers if worker.worker == name), None)
        if worker is None:
            worker = WorkerStats(name)
            stats.workers.append(worker)
        worker.pending += holds
        worker.alive = worker.alive or bool(alive)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
