"""What has become of all that was published to a stream, ever: counted in Redis, in the same call as the thing itself.

A shard counts in `S:done`; what a group lost is in `S:lost`, how much was published in the Redis Stream. Where a shard
is removed after a resharding, `S:done` stays for long, and what it says is added to `ns:stream:<name>` in the one step
by which the stream forgets the generation. So a total is right before, in and after that step, whatever layout it was
asked by; it goes back only where Redis lost data. A group's counters go with the group.

Cost: one read-only Lua call a shard, all in one write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import TOTALS

ADDED = "added"

OUTCOMES = ("acked", "retried", "dead", "expired", "skipped", "cancelled")
"""How deliveries end."""

KINDS = (*OUTCOMES, "fenced", "redelivered", "lost")
"""All that is counted of a group."""


@dataclass(slots=True)
class GroupTotals:
    """Of a group of a stream, ever.

    acked: handlers that were done with an entry · retried: that are to be tried again · dead: given up; by
    reason: dead_letters · expired: too old to be started · skipped: doubles of what had succeeded · cancelled: by an
    operator · fenced: outcomes that were refused, because the delivery was somebody else's by then · redelivered: taken
    over from dead workers · lost: dropped, or gone, before they were processed · oldest: ms of the oldest entry that is
    not processed now, None where there is none.
    """

    name: str
    acked: int = 0
    retried: int = 0
    dead: int = 0
    expired: int = 0
    skipped: int = 0
    cancelled: int = 0
    fenced: int = 0
    redelivered: int = 0
    lost: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    oldest: int | None = None

    def count(self, kind: str, number: int) -> None:
        """kind: as in `S:done`, or "lost". One that is not known, of a later version, is left out."""
        kind, _, reason = kind.partition(":")
        if reason:
            self.dead_letters[reason] = self.dead_letters.get(reason, 0) + number
        if kind in KINDS:
            setattr(self, kind, getattr(self, kind) + number)


@dataclass(slots=True)
class Totals:
    """Of a stream. now: ms by Redis's clock, the latest of all shards · published: ever; shards: of each that still
    counts by itself · groups: those that there are, by name.
    """

    now: int
    published: int
    shards: Mapping[Shard, int]
    groups: dict[str, GroupTotals]

    def behind(self, group: str) -> float:
        """Seconds since the oldest entry was published that a group has not processed; 0.0 where there is none, or
        where the clock was set back since.
        """
        oldest = self.groups[group].oldest
        return 0.0 if oldest is None else max(0.0, (self.now - oldest) / 1000)


def totals(layout: Layout) -> Op[Totals]:
    """layout: as `load` gives it. One write."""
    shards = counted_by(layout)

    def parse(replies: list[Any]) -> Totals:
        return _sum(layout, dict(zip(shards, replies, strict=True)))

    return Op([_call(shard) for shard in shards], parse)


def counted_by(layout: Layout) -> list[Shard]:
    """The shards that count by themselves."""
    retired = [shard for generation, count in layout.retired for shard in layout.of(generation, count)]
    return [*retired, *layout.every]


def counts_of(shards: Sequence[Shard]) -> Op[dict[str, int]]:
    """What was counted in these, in all: `added`, and `<kind>:<group>`, lost included."""

    def parse(replies: list[Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for _, added, counts, lost, *_ in replies:
            for name, number in ((ADDED, added), *_pairs(counts), *_losses(lost)):
                found[name] = found.get(name, 0) + number
        return found

    return Op([_call(shard) for shard in shards], parse)


def _call(shard: Shard) -> Any:
    return TOTALS([shard.stream, shard.done, shard.lost])


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[str, int]]:
    return ((name.decode(errors="replace"), int(number)) for name, number in zip(flat[::2], flat[1::2], strict=True))


def _losses(flat: Sequence[Any]) -> Iterable[tuple[str, int]]:
    return ((f"lost:{group}", number) for group, number in _pairs(flat))


def _sum(layout: Layout, replies: Mapping[Shard, Sequence[Any]]) -> Totals:
    oldest = {shard: dict(_pairs(reply[4])) for shard, reply in replies.items()}
    found = {name: GroupTotals(name) for name in sorted({name for ages in oldest.values() for name in ages})}
    shards = {}
    for shard, (_, added, counts, lost, _, first) in replies.items():
        shards[shard] = added
        _add(found, [*_pairs(counts), *_losses(lost)])
        for group in found.values():  # one that is gone from a shard will be made anew, and read all there is
            _age(group, oldest[shard].get(group.name, first))
    _add(found, layout.counted.items())
    published = sum(shards.values()) + layout.counted.get(ADDED, 0)
    return Totals(max(reply[0] for reply in replies.values()), published, shards, found)


def _age(group: GroupTotals, ms: int) -> None:
    if ms >= 0 and (group.oldest is None or ms < group.oldest):
        group.oldest = ms


def _add(found: Mapping[str, GroupTotals], counts: Iterable[tuple[str, int]]) -> None:
    for name, number in counts:
        kind, _, group = name.rpartition(":")
        if group in found:
            found[group].count(kind, number)
