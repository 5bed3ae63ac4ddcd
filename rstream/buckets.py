"""What happened to a stream and its groups, minute by minute and hour by hour: how totals that somebody looks at every
few seconds become buckets, buckets become bytes, and bytes buckets again. Pure.

What lies between two looks belongs to the minute of the second one. A total that is lower than it was says that Redis
lost data: nothing is known of what came in between, so that counts as nothing, and is counted as a reset.

Closed buckets are records, one behind the other: of the minutes of an hour in the field `m<hour>:<group>`, of the hours
of a day in `h<day>:<group>` (hours and days since 1970; group "" is the stream itself). A record is a msgpack array:
which minute of the hour, or hour of the day, then STREAM or GROUP, without the zeros at its end. Of the same minute
there may be several, for clocks are set back: they are added up. What is open still is in the state, with the last
totals.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgpack

STREAM = ("published", "resets")
COUNTED = ("acked", "retried", "dead", "expired", "skipped", "cancelled", "fenced", "redelivered", "lost")
GROUP = (*COUNTED, "behind")
"""All but `behind` (ms) are added up; of that the highest counts."""

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

KEPT = {"m": 7, "h": 31}
"""So many fields of each kind are kept of a group: minutes of 6 hours and the hour that goes on, hours of 30 days and
the day that goes on."""

FORMAT = 1

Rows = dict[str, list[int]]


class Sample(NamedTuple):
    """Totals. now: ms, Redis's · gone: published in shards that are not there any more · shards: published, by shard ·
    groups: COUNTED, by group · behind: ms, by group.
    """

    now: int
    gone: int
    shards: Mapping[str, int]
    groups: Mapping[str, Sequence[int]]
    behind: Mapping[str, int]


@dataclass(slots=True)
class Open:
    """The minute, or hour, that goes on: its number since 1970, and what is in it so far by group."""

    number: int
    rows: Rows = field(default_factory=dict)


@dataclass(slots=True)
class State:
    """The last totals, as in `Sample`, and the buckets that are open. resets: those that are in buckets."""

    minute: Open
    hour: Open
    resets: int = 0
    gone: int = 0
    shards: dict[str, int] = field(default_factory=dict)
    groups: Rows = field(default_factory=dict)

    def pack(self) -> bytes:
        opened = [[each.number, {group: _short(row) for group, row in each.rows.items()}] for each in self._open]
        told = [
            FORMAT,
            self.resets,
            self.gone,
            self.shards,
            {g: _short(row) for g, row in self.groups.items()},
            *opened,
        ]
        return bytes(msgpack.packb(told))

    @property
    def _open(self) -> tuple[Open, Open]:
        return self.minute, self.hour


def unpack(packed: bytes) -> State | None:
    """None where there is none, or one that this version cannot read: then it begins anew."""
    try:
        version, resets, gone, shards, groups, *opened = msgpack.unpackb(packed)
        if version != FORMAT:
            return None
        minute, hour = (Open(number, _all_long(rows)) for number, rows in opened)
        totals = _all_long(groups)
        rows = [*minute.rows.values(), *hour.rows.values(), *totals.values()]
        numbers = [resets, gone, minute.number, hour.number, *shards.values(), *itertools.chain(*rows)]
        if not all(isinstance(number, int) for number in numbers):
            return None
        return State(minute, hour, resets, gone, shards, totals)
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        return None


class Advance(NamedTuple):
    """closed: what is to be put behind these fields · resets: that are known of now."""

    state: State
    closed: dict[str, bytes]
    resets: int


def advance(before: State | None, sample: Sample, resets: int, forgotten: Collection[str] = ()) -> Advance:
    """Take a sample in. before: None where nothing is known, so that all there ever was belongs to this minute; it is
    changed · resets: that were noticed so far, by anybody · forgotten: groups that were removed, and count anew.
    """
    state = before or State(Open(0), Open(0), max(0, resets - 1))
    for group in forgotten:
        state.groups.pop(group, None)
    published, groups, back = _difference(state, sample)
    resets += back
    rows: Rows = {group: [*row, sample.behind.get(group, 0)] for group, row in groups.items()}
    rows[""] = [published, min(1, max(0, resets - state.resets))]  # of several at once one was seen
    closed: dict[str, bytes] = {}
    for unit, opened, size, together in (("m", state.minute, MINUTE, 60), ("h", state.hour, HOUR, 24)):
        if opened.number != sample.now // size:
            closed.update(_close(unit, opened, together))
            opened.number, opened.rows = sample.now // size, {}
        for group, row in rows.items():
            if any(row):
                opened.rows[group] = _sum(group, opened.rows.get(group), row)
    state.resets, state.gone, state.shards = resets, sample.gone, dict(sample.shards)
    state.groups |= {group: list(row) for group, row in sample.groups.items()}
    return Advance(state, closed, resets)


def _difference(state: State, sample: Sample) -> tuple[int, Rows, bool]:
    """Published, COUNTED by group, and whether something went back."""
    steps = [number - state.shards.get(shard, 0) for shard, number in sample.shards.items()]
    steps.append(sample.gone - state.gone - sum(n for shard, n in state.shards.items() if shard not in sample.shards))
    groups = {}
    for group, now in sample.groups.items():
        pairs = zip(now, state.groups.get(group) or [0] * len(COUNTED), strict=False)
        groups[group] = [new - old for new, old in pairs]
    back = min([*steps, *(step for row in groups.values() for step in row)]) < 0
    return sum(max(0, step) for step in steps), {g: [max(0, n) for n in row] for g, row in groups.items()}, back


def _close(unit: str, opened: Open, together: int) -> Iterable[tuple[str, bytes]]:
    for group, row in opened.rows.items():
        at, number = divmod(opened.number, together)
        yield f"{unit}{at}:{group}", msgpack.packb([number, *_short(row)])


def outdated(fields: Iterable[str], now: int, living: Collection[str]) -> list[str]:
    """Which fields are to go. Of groups that there are, and of the stream, the nearest to now stay, however far they
    are: a clock that was far ahead for a while has not made all of them old. Of others what is older than is kept.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for name in fields:
        if (parsed := _parsed(name)) is not None:
            unit, number, group = parsed
            found.setdefault((unit, group), []).append(number)
    gone = []
    for (unit, group), numbers in found.items():
        today = now // (HOUR if unit == "m" else DAY)
        numbers.sort(key=lambda number: abs(number - today))
        if group and group not in living:
            old = [number for number in numbers if abs(number - today) >= KEPT[unit]]
        else:
            old = numbers[KEPT[unit] :]
        gone += [f"{unit}{number}:{group}" for number in old]
    return gone


def _parsed(name: str) -> tuple[str, int, str] | None:
    head, colon, group = name.partition(":")
    if not colon or head[:1] not in KEPT or not head[1:].isdecimal():
        return None
    return head[0], int(head[1:]), group


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class GroupCounts:
    """What became of a group's deliveries in a time: see `rstream.store.totals.GroupTotals`. behind: seconds, the
    highest age of its oldest unprocessed entry that was seen.
    """

    acked: int = 0
    retried: int = 0
    dead: int = 0
    expired: int = 0
    skipped: int = 0
    cancelled: int = 0
    fenced: int = 0
    redelivered: int = 0
    lost: int = 0
    behind: float = 0.0

    def add(self, other: GroupCounts) -> None:
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.behind = max(self.behind, other.behind)


@dataclass(slots=True)
class Bucket:
    """A time: from `start` on (UTC) for `seconds`. published: entries · resets: times that Redis was found to have lost
    data · groups: those of which something is known, by name.
    """

    start: datetime
    seconds: int
    published: int = 0
    resets: int = 0
    groups: dict[str, GroupCounts] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is known to have happened, or to have waited."""
        return bool(self.published or self.resets or self.groups)


def buckets(fields: Mapping[str, bytes], state: State | None, start: int, end: int, step: int) -> list[Bucket]:
    """All from the one of `start` to the one before `end` (ms), of `step` ms each: whole minutes, or whole hours, where
    hours are kept for longer. Also those in which nothing happened.
    """
    unit = "h" if step % HOUR == 0 else "m"
    size = HOUR if unit == "h" else MINUTE
    found = {
        at: Bucket(datetime.fromtimestamp(at * step / 1000, UTC), step // 1000)
        for at in range(start // step, -(-end // step))
    }
    for number, group, row in _records(fields, state, unit):
        if (bucket := found.get(number * size // step)) is not None:
            _add(bucket, group, row)
    return [*found.values()]


def _records(fields: Mapping[str, bytes], state: State | None, unit: str) -> Iterable[tuple[int, str, Sequence[int]]]:
    """(minute or hour since 1970, group, row)"""
    for name, packed in fields.items():
        parsed = _parsed(name)
        if parsed is not None and parsed[0] == unit:
            for number, *row in _unpacked(packed):
                yield parsed[1] * (24 if unit == "h" else 60) + number, parsed[2], row
    if state is not None:
        opened = state.hour if unit == "h" else state.minute
        for group, row in opened.rows.items():
            yield opened.number, group, row


def _unpacked(packed: bytes) -> Iterable[list[int]]:
    """As far as it can be read: anybody may have written there."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(packed)
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        for record in unpacker:
            if isinstance(record, list) and record and all(isinstance(number, int) for number in record):
                yield record


def _add(bucket: Bucket, group: str, row: Sequence[int]) -> None:
    if not group:
        published, resets = _long("", row)
        bucket.published += published
        bucket.resets += resets
        return
    *counts, behind = _long(group, row)
    counted = GroupCounts(**dict(zip(COUNTED, counts, strict=True)), behind=behind / 1000)
    bucket.groups.setdefault(group, GroupCounts()).add(counted)


# -- rows -----------------------------------------------------------------------------------------------------------


def _short(row: Sequence[int]) -> list[int]:
    """Without the zeros at its end."""
    end = len(row)
    while end and not row[end - 1]:
        end -= 1
    return [*row[:end]]


def _long(group: str, row: Sequence[Any]) -> list[int]:
    """With them; without what later versions put behind it."""
    width = len(GROUP if group else STREAM)
    return [*row[:width], *[0] * (width - len(row))]


def _all_long(rows: Mapping[str, Sequence[int]]) -> Rows:
    return {group: _long(group, row) for group, row in rows.items()}


def _sum(group: str, one: Sequence[int] | None, other: Sequence[int]) -> list[int]:
    if one is None:
        return [*other]
    total = [a + b for a, b in zip(one, other, strict=True)]
    if group:
        total[-1] = max(one[-1], other[-1])
    return total
