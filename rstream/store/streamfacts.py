"""What Redis says of a stream: its shards, groups, retention, archive. Nothing is changed.

Cost: 6 round trips a stream, some read-only Lua calls a shard in each, and the sizes of LOOK entries a shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rstream.event import EntryId
from rstream.retention import Retention
from rstream.store import archiving
from rstream.store import pause as pauses
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, together
from rstream.store.lost import Loss, losses
from rstream.store.pause import Pause
from rstream.store.pins import Pin, pins
from rstream.store.scripts import SIZES, Call
from rstream.store.stats import GroupStats, StreamStats, survey
from rstream.store.steps import Steps
from rstream.store.trim import Standing, Tidied, tidy
from rstream.store.weigh import Weight

LOOK, LOOK_BYTES = 64, 1024 * 1024
"""The newest entries of a shard whose sizes are looked at."""


class Sizes(NamedTuple):
    """Of a Redis Stream. length: entries · newest: id, None where it is empty · largest: bytes, of the `looked` newest
    ones, and its id.
    """

    length: int
    newest: EntryId | None
    looked: int
    bytes: int
    largest: int
    which: EntryId | None


@dataclass(slots=True)
class StreamFacts:
    """now: Redis's clock in ms · memory: bytes by shard, as Redis tells them · sizes: of entries by shard · letters: of
    dead letters, and due: when (ms) the earliest retry was to be, by group and shard · archiver: who archives it, as
    archiver.lua says · servers: by shard, which master has it · paused: groups, by name.
    """

    layout: Layout
    stats: StreamStats
    groups: list[GroupStats]
    weights: Mapping[Shard, Weight]
    standings: Sequence[Standing]
    pins: Sequence[Pin]
    losses: Sequence[Loss]
    memory: Mapping[Shard, int]
    sizes: Mapping[Shard, Sizes]
    letters: Mapping[tuple[str, Shard], Sizes]
    due: Mapping[tuple[str, Shard], int]
    archiver: str
    servers: Mapping[Shard, str] = field(default_factory=dict)
    paused: Mapping[str, Pause] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def now(self) -> int:
        return self.stats.now


def look_at(layout: Layout) -> Steps[StreamFacts]:
    """Raises `StoreError`."""
    found: list[Any] = yield together([survey(layout), losses(layout), _sizes(layout), archiving.hold(layout, "look")])
    (stats, groups), lost, sizes, archiver = found
    bytes: dict[Shard, int] = yield memory(layout)
    letters, due = yield _of_groups(groups)
    paused: dict[str, Pause] = yield pauses.paused(layout.namespace, layout.name, [group.name for group in groups])
    done: Tidied = yield from tidy(layout, layout.retention or Retention(), dry=True)
    behind: list[Pin] = yield from pins(layout)
    weights = {weight.shard: weight for weight in done.weights}
    return StreamFacts(
        layout, stats, groups, weights, done.groups, behind, lost, bytes, sizes, letters, due, archiver, paused=paused
    )


def memory(layout: Layout) -> Op[dict[Shard, int]]:
    """Of those that tell it."""
    calls: list[Call] = [("MEMORY", "USAGE", shard.stream) for shard in layout.every]

    def parse(replies: list[Any]) -> dict[Shard, int]:
        return {shard: told for shard, told in zip(layout.every, replies, strict=True) if isinstance(told, int)}

    return Op(calls, parse, partial=True)


def _sizes(layout: Layout) -> Op[dict[Shard, Sizes]]:
    calls = [SIZES([shard.stream], LOOK, LOOK_BYTES) for shard in layout.every]
    return Op(calls, lambda replies: {s: _sized(s, told) for s, told in zip(layout.every, replies, strict=True)})


def _sized(shard: Shard, told: Sequence[Any]) -> Sizes:
    length, newest, looked, total, largest, which = told
    ids = [shard.entry_id(id) if id else None for id in (newest, which)]
    return Sizes(length, ids[0], looked, total, largest, ids[1])


def _of_groups(groups: Sequence[GroupStats]) -> Op[tuple[dict[tuple[str, Shard], Sizes], dict[tuple[str, Shard], int]]]:
    """(dead letters, earliest retries), where there are some."""
    every = [(group.name, one) for group in groups for one in group.shards]
    dead = [(name, one.shard) for name, one in every if one.dead]
    waiting = [(name, one.shard) for name, one in every if one.retries]
    calls: list[Call] = [SIZES([shard.dead(name)], 1, 1) for name, shard in dead]
    calls += [("ZRANGE", shard.retry(name), 0, 0, "WITHSCORES") for name, shard in waiting]

    def parse(replies: list[Any]) -> tuple[dict[tuple[str, Shard], Sizes], dict[tuple[str, Shard], int]]:
        letters = {at: _sized(at[1], told) for at, told in zip(dead, replies[: len(dead)], strict=True)}
        firsts = zip(waiting, replies[len(dead) :], strict=True)
        return letters, {at: int(float(told[1])) for at, told in firsts if told}

    return Op(calls, parse)
