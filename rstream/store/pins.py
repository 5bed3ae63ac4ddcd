"""What keeps shards from being trimmed further: which group, by which entry, and whose delivery that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rstream.event import EntryId
from rstream.store.keys import Shard, rank_of
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import COUNT, Call
from rstream.store.stats import GroupStats, ShardGroupStats, group_stats
from rstream.store.steps import Steps
from rstream.store.weigh import Weight

LOOK = 1000
LOOK_BYTES = 4 * 1024 * 1024

LAST = f"{2**64 - 1}-{2**64 - 1}"
"""No id comes behind it."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The group of a shard that is behind all others there. entry: the oldest that it has not processed; None where it
    is unread, for then it is the first behind what was delivered last · age: seconds, of the oldest entry · holder: the
    worker that has it, or a pseudo-consumer; alive, attempt: of that · unread: None where Redis cannot tell.
    """

    shard: Shard
    group: str
    entry: EntryId | None
    age: float
    holder: str | None
    alive: bool
    attempt: int
    unread: int | None


def pins(layout: Layout) -> Steps[list[Pin]]:
    """Of shards in which some group has something to do. Two round trips."""
    found: list[GroupStats] = yield group_stats(layout)
    behind = pins_in(found)
    attempts: dict[Shard, int] = yield _attempts(behind)
    return [replace(pin, attempt=attempts.get(pin.shard, 0)) for pin in behind]


def pins_in(found: Sequence[GroupStats]) -> list[Pin]:
    """The same from what is known of groups already, without attempts."""
    alive = {(group.name, worker.worker) for group in found for worker in group.workers if worker.alive}
    behind: dict[Shard, tuple[str, ShardGroupStats]] = {}
    for group in found:
        for one in group.shards:
            if _busy(one) and (one.shard not in behind or _floor(one) < _floor(behind[one.shard][1])):
                behind[one.shard] = group.name, one
    return [
        Pin(
            shard,
            name,
            one.oldest if _is_pending(one) else None,
            one.behind,
            one.holder if _is_pending(one) else None,
            (name, one.holder) in alive,
            0,
            one.lag,
        )
        for shard, (name, one) in behind.items()
    ]


def _busy(one: ShardGroupStats) -> bool:
    return bool(one.pending or one.lag is None or one.lag)


def _is_pending(one: ShardGroupStats) -> bool:
    """Whether the oldest that is not processed is pending: it comes before all that is unread, as a rule."""
    return one.oldest is not None and (one.position is None or one.oldest <= one.position)


def _floor(one: ShardGroupStats) -> EntryId:
    if _is_pending(one):
        assert one.oldest is not None
        return one.oldest
    return one.position or EntryId(0, 0, one.shard.generation, one.shard.number)


def _attempts(behind: Sequence[Pin]) -> Op[dict[Shard, int]]:
    asked = [(pin, pin.entry.redis) for pin in behind if pin.entry is not None]
    calls: list[Call] = [("XPENDING", pin.shard.stream, pin.group, id, id, 1) for pin, id in asked]

    def parse(replies: list[Any]) -> dict[Shard, int]:
        return {pin.shard: reply[0][3] for (pin, _), reply in zip(asked, replies, strict=True) if reply}

    return Op(calls, parse)


# -- how much that is ------------------------------------------------------------------------------------------------


def fill(weight: Weight) -> float:
    """How full a shard is by its limits."""
    parts = [0.0]
    if weight.limits.entries:
        parts.append(weight.held.entries / weight.limits.entries)
    if weight.limits.bytes and weight.held.counted > 0:
        parts.append(weight.held.counted / weight.limits.bytes)
    return max(parts)


def unprocessed(weight: Weight, pin: Pin) -> float:
    """Which part of what a shard holds the group has not processed, about."""
    group = next((each for each in weight.groups if each.name == pin.group), None)
    if group is None or not weight.held.entries:
        return 0.0
    unread = pin.unread if pin.unread is not None else group.unread if group.unread >= 0 else None
    if pin.entry is not None and weight.first is not None and (pin.entry.ms, pin.entry.seq) <= rank_of(weight.first):
        return 1.0  # what is behind a pending entry stays, processed or not
    if unread is not None:
        return min(1.0, (unread + group.pending) / weight.held.entries)
    return 1.0 if weight.first is not None and rank_of(group.floor) <= rank_of(weight.first) else 0.0


def count_before(shard: Shard, before: bytes) -> Steps[int]:
    """How many entries a shard has before an id: a call for every thousand."""
    ms, seq = rank_of(before)
    last = f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{2**64 - 1}"
    after, total = "0-0", 0
    while True:
        count: int
        count, looked = yield Op([COUNT([shard.stream], after, last, LOOK, LOOK_BYTES)], lambda replies: replies[0])
        total += count
        if not looked:
            return total
        after = looked.decode()


def behind_first(shard: Shard, first: bytes, count: int) -> Steps[str]:
    """The id behind so many entries, of which `first` is the first: a call for every thousand."""
    after, left = first.decode(), count - 1
    while left > 0:
        call = COUNT([shard.stream], after, LAST, min(LOOK, left), LOOK_BYTES)
        number, looked = yield Op([call], lambda replies: replies[0])
        if not looked:
            return LAST
        after, left = looked.decode(), left - number
    ms, seq = rank_of(after.encode())
    return f"{ms}-{seq + 1}"
