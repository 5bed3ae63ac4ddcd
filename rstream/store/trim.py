"""Trimming a stream as its retention says: what a janitor does at every look, a producer that met a full shard, and
`rstream trim`. Every step may be taken by several at once, and be broken off.

The floor of a shard is what all its groups have settled: before the oldest that is pending, and what is not yet read.
Nothing behind it is trimmed, unless the stream drops what is unprocessed, or a group had no living worker for so long
that it does not count any more; then what it loses is written down. docs/retention.md explains it to users.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rstream.logs import about
from rstream.retention import Limits, Retention, current_limits, older_limits, roomy
from rstream.store import layout as layouts
from rstream.store.keys import ARCHIVE, Shard, rank_of
from rstream.store.layout import Layout
from rstream.store.pause import paused
from rstream.store.pins import behind_first
from rstream.store.steps import Steps
from rstream.store.weigh import LOOKED, Losers, Seen, Trim, Weight, index, limit, now_seen, survey, trim, weigh

log = logging.getLogger("rstream")

DEAD_MS = 60_000
"""A worker that is silent for so long is taken for dead: longer than any is that only waits for its Redis. (What it had
in hand is taken over long before, where its group has others.)
"""

UNSEEN_MS = 3600 * 1000
"""Between two looks: what is longer does not count as time without a worker."""

SEEN_MS = 10_000
"""How exactly it is known when a group had a living worker last."""

Needs = Mapping[Shard, tuple[int, int]]
"""Entries, and bytes of them, by shard."""

NOTHING: Needs = {}

Alarm = Literal["", "soon", "ignored"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A group, as far as retention waits for it. idle: seconds without a living worker · alarm: "soon" from half of
    group_ttl on, then "ignored": it keeps nothing from being trimmed any more.
    """

    name: str
    idle: float
    alarm: Alarm = ""


class Dropped:
    """What groups lost, told in one line each, also where the work is broken off."""

    def __init__(self) -> None:
        self._lost: dict[str, list[tuple[Shard, int]]] = {}

    def add(self, part: Trim) -> None:
        for group, count in part.lost.items():
            self._lost.setdefault(group, []).append((part.shard, count))

    def tell(self, stream: str) -> None:
        for group, found in self._lost.items():
            text = "%s/%s: %d entries of shard %s were dropped before they were processed: rstream trim %s --dry-run"
            shards = dict.fromkeys(str(shard) for shard, _ in found)
            named = ", ".join([*shards][:8]) + (f" and {len(shards) - 8} others" if len(shards) > 8 else "")
            extra = about({"stream": stream, "group": group})
            log.warning(text, stream, group, sum(count for _, count in found), named, stream, extra=extra)


@dataclass(slots=True)
class Tidied:
    """What was trimmed, or in a dry run would be. weights: shards before that."""

    weights: list[Weight]
    groups: list[Standing]
    trims: list[Trim] = field(default_factory=list)
    dropped: Dropped = field(default_factory=Dropped)

    @property
    def lost(self) -> dict[str, int]:
        """By group, only now."""
        found: dict[str, int] = {}
        for each in self.trims:
            for group, count in each.lost.items():
                found[group] = found.get(group, 0) + count
        return found


def tidy(layout: Layout, retention: Retention, *, dry: bool = False, needs: Needs = NOTHING) -> Steps[Tidied]:
    """Trim a stream, and bring its limits up to date. needs: shards that were full, and what has to fit into them."""
    dropped = Dropped()
    try:
        return (yield from _tidy(layout, retention, dropped, dry=dry, needs=needs))
    finally:
        dropped.tell(layout.name)


def _tidy(layout: Layout, retention: Retention, dropped: Dropped, *, dry: bool, needs: Needs) -> Steps[Tidied]:
    shards = tuple(needs) if needs and not layout.older else layout.every
    weights, before = yield survey(layout, shards)
    if not weights:
        return Tidied([], [])
    now = max(weight.now for weight in weights)
    missed = _shift(before, now)
    groups = standings(weights, before, retention, now)
    held = yield from _held(layout, groups)
    groups = [replace(each, alarm="") if each.name in held else each for each in groups]
    losers = _losers(weights, groups, before, retention, now)
    if not dry:
        new = _news(weights, before, now, held, all_of_it=missed)
        gone = _gone(weights, before) if shards == layout.every else []
        if new or gone:
            yield now_seen(layout, new, gone)
        if retention.counts and (yield from _count(weights, retention)):
            weights = yield weigh(shards)
    done = Tidied(weights, groups, dropped=dropped)
    minid = f"{now - int(retention.age_seconds * 1000)}-0" if retention.age_seconds is not None else ""
    current, older = _split(layout, weights)
    beside = older_limits(retention, [each.held for each in current], [[each.held for each in g] for g in older])
    for generation, limits in zip(older, beside, strict=True):
        for weight, each in zip(generation, limits, strict=True):
            yield from _trim(done, weight, minid, each, losers, dry=dry)
    if older and not dry:
        older = [(yield weigh([each.shard for generation in older for each in generation]))]
    left = [each.held for generation in older for each in generation]
    wanted = current_limits(retention, [each.held for each in current], left, layout.shards)
    changed = False
    for weight, each in zip(current, wanted, strict=True):
        now_limited = each if dry or not retention.counts else (yield from _limit(weight, each, retention))
        changed = changed or now_limited is not weight.limits
        yield from _trim(done, weight, minid, now_limited, losers, needs.get(weight.shard), dry=dry)
    if changed and retention.counts and not dry:
        yield from _recall(layout, [each.shard for each in current])
    return done


def retain(layout: Layout, retention: Retention | None) -> Steps[None]:
    """Store another retention, or that there is none, and put it into force for producers."""
    yield layouts.retain(layout.namespace, layout.name, retention)
    if retention is None or not retention.counts:
        for shard in layout.every:
            yield limit(shard, None, None)
    else:
        yield from limit_new(replace(layout, retention=retention), layout.current)


def limit_new(layout: Layout, shards: Sequence[Shard]) -> Steps[None]:
    """Put limits into force for shards that are, or will be, written to; what they hold is counted first."""
    retention = layout.retention
    if retention is None or not retention.counts:
        return
    new: list[Weight] = yield weigh(shards)
    if (yield from _count(new, retention)):
        new = yield weigh(shards)
    old: list[Weight] = yield weigh([shard for shard in layout.every if shard not in shards])
    wanted = current_limits(retention, [each.held for each in new], [each.held for each in old], len(shards))
    changed = False
    for weight, each in zip(new, wanted, strict=True):
        changed = (yield from _limit(weight, each, retention)) is not weight.limits or changed
    if changed:
        yield from _recall(layout, shards)


def _recall(layout: Layout, shards: Sequence[Shard]) -> Steps[None]:
    """Who put limits into force may be late: where the retention was taken away meanwhile, nobody would look again."""
    (stored,) = yield layouts.retentions(layout.namespace, [layout.name])
    if stored is None or not stored.counts:
        for shard in shards:
            yield limit(shard, None, None)


def _split(layout: Layout, weights: Sequence[Weight]) -> tuple[list[Weight], list[list[Weight]]]:
    """The shards that are written to, and those of older generations, the oldest first."""
    current = [each for each in weights if layout.writes(each.shard)]
    rest = [[w for w in weights if w.shard.generation == generation] for generation, _ in layout.older]
    return current, [generation for generation in rest if generation]


def _count(weights: Sequence[Weight], retention: Retention) -> Steps[bool]:
    """Have every shard count what it holds, also what was there before; whether that is news."""
    new = [weight for weight in weights if weight.held.counted < 0]
    for weight in new:
        if (yield limit(weight.shard, Limits(None, None), retention)):
            while (yield index(weight.shard)):
                pass
    return bool(new)


def _limit(weight: Weight, wanted: Limits, retention: Retention) -> Steps[Limits]:
    """Those that are in force then: for a small difference nothing is changed."""
    if (
        weight.soft != retention.soft_level
        or weight.limits.entries != wanted.entries
        or _far(weight.limits.bytes, wanted.bytes)
    ):
        yield limit(weight.shard, wanted, retention)
        return wanted
    return weight.limits


def _far(one: int | None, other: int | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > other // 200


def _trim(
    done: Tidied,
    weight: Weight,
    minid: str,
    limits: Limits,
    losers: Losers,
    need: tuple[int, int] | None = None,
    *,
    dry: bool,
) -> Steps[None]:
    """Where there is something to trim: all of it."""
    held = weight.held
    if need is not None and over(held.entries + need[0], held.counted + need[1], limits):
        limits = Limits(*(roomy(*each, loses=bool(losers.groups)) for each in zip(limits, need, strict=True)))
    if dry and limits.entries is not None and weight.first is not None and held.entries > limits.entries:
        # A call goes through some of them only, and the next would begin where that has trimmed.
        minid = _later(minid, (yield from behind_first(weight.shard, weight.first, held.entries - limits.entries)))
        limits = limits._replace(entries=None)
    too_much = over(held.entries, held.counted, limits)
    if weight.first is None or not (too_much or (minid and rank_of(weight.first) < rank_of(minid.encode()))):
        return
    whole: Trim | None = None
    while True:
        part: Trim = yield trim(weight.shard, minid, limits, losers, dry=dry)
        done.dropped.add(part)
        whole = part if whole is None else _sum(whole, part)
        if not part.more or dry:
            break
    if whole.before is not None:
        done.trims.append(whole)


def over(entries: int, counted: int, limits: Limits) -> bool:
    """Whether so much is beyond the limits."""
    return (limits.entries is not None and entries > limits.entries) or (
        limits.bytes is not None and counted > limits.bytes
    )


def _sum(one: Trim, other: Trim) -> Trim:
    lost = dict(one.lost)
    for group, count in other.lost.items():
        lost[group] = lost.get(group, 0) + count
    before = other.before or one.before
    return other._replace(removed=one.removed + other.removed, before=before, lost=lost)


def _later(one: str, other: str) -> str:
    return other if not one or rank_of(one.encode()) < rank_of(other.encode()) else one


# -- who counts -----------------------------------------------------------------------------------------------------


def who_counts(weights: Sequence[Weight], before: Seen, retention: Retention) -> list[Standing]:
    """As `tidy` has it. before: is changed."""
    now = max((weight.now for weight in weights), default=0)
    _shift(before, now)
    return standings(weights, before, retention, now)


def standings(weights: Sequence[Weight], before: Seen, retention: Retention, now: int) -> list[Standing]:
    """Of all groups, by name."""
    found = []
    for name in sorted({group.name for weight in weights for group in weight.groups}):
        lives = any(group.lives for weight in weights for group in weight.groups if group.name == name)
        idle = 0.0 if lives else max(0, now - before.groups.get(name, now)) / 1000
        alarm: Alarm = ""
        if name != ARCHIVE:
            alarm = "ignored" if idle > retention.ttl_seconds else "soon" if idle > retention.ttl_seconds / 2 else ""
        found.append(Standing(name, idle, alarm))
    return found


def _held(layout: Layout, groups: Sequence[Standing]) -> Steps[Collection[str]]:
    """Those that would soon not count any more, and are paused: somebody wants them to be waited for."""
    late = [each.name for each in groups if each.alarm]
    found: Collection[str] = (yield paused(layout.namespace, layout.name, late)) if late else ()
    return found


def _losers(
    weights: Sequence[Weight], groups: Sequence[Standing], before: Seen, retention: Retention, now: int
) -> Losers:
    drops = retention.unprocessed == "drop"
    names = [each.name for each in groups if each.name != ARCHIVE and (drops or each.alarm == "ignored")]
    silent = _silent(weights)
    dead: dict[str, list[bytes]] = {}
    for (group, worker), since in before.silent.items():
        if (group, worker) in silent and now - since >= DEAD_MS:
            dead.setdefault(group, []).append(worker)
    return Losers(names, dead)


def _silent(weights: Sequence[Weight]) -> set[tuple[str, bytes]]:
    """(group, worker) of those that live nowhere, though something is pending for them."""
    return {(group.name, worker) for weight in weights for group in weight.groups for worker in group.silent}


def _shift(before: Seen, now: int) -> bool:
    """Where nobody looked for long, nobody was there to be alarmed, and no worker to be seen: that time does not count.
    Whether it was so.
    """
    missed = now - before.looked if before.looked else 0
    if missed <= UNSEEN_MS:
        return False
    before.groups = {name: min(now, at + missed) for name, at in before.groups.items()}
    before.silent = {}
    return True


def _news(
    weights: Sequence[Weight], before: Seen, now: int, held: Collection[str], *, all_of_it: bool
) -> dict[str | bytes, int]:
    """What is to be written down of who lives. held: groups that count as if they did."""
    new: dict[str | bytes, int] = {}
    if all_of_it:
        new.update(before.groups)
    if now - before.looked > SEEN_MS:
        new[LOOKED] = now
    names = {group.name for weight in weights for group in weight.groups}
    living = {group.name for weight in weights for group in weight.groups if group.lives}.union(held)
    for name in names:
        at = before.groups.get(name)
        if at is None or (name in living and now - at > SEEN_MS):
            new[name] = now
    for group, worker in _silent(weights) - before.silent.keys():
        new[group.encode() + b"/" + worker] = now
    return new


def _gone(weights: Sequence[Weight], before: Seen) -> list[str | bytes]:
    """What is not to be remembered any more."""
    names = {group.name for weight in weights for group in weight.groups}
    returned = before.silent.keys() - _silent(weights)
    return [*(group.encode() + b"/" + worker for group, worker in returned), *(before.groups.keys() - names)]
