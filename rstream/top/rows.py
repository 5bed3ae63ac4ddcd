"""What the rows of the screen say, made of two looks at the fleet. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rstream.event import EntryId
from rstream.store.keys import ARCHIVE
from rstream.store.pause import Pause
from rstream.store.stats import GroupStats
from rstream.store.totals import Totals

Name = tuple[str, str]
"""(stream, group)"""


@dataclass(frozen=True, slots=True)
class StreamLook:
    """A stream at one moment."""

    entries: int
    groups: Sequence[GroupStats]
    totals: Totals


@dataclass(frozen=True, slots=True)
class Look:
    """All streams. now: ms by Redis's clock."""

    now: int
    streams: Mapping[str, StreamLook] = field(default_factory=dict)
    paused: Mapping[Name, Pause] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group. unread: None where Redis cannot tell · behind, age: seconds, of the oldest entry that is not processed
    and of the oldest that is pending, which `oldest` and `holder` name · came, done: entries a second that were
    published, and that the group ended, since the last look; None at the first · lost: ever · silent: workers that hold
    something and have lost their lease · paused: by whom and why.
    """

    stream: str
    group: str
    unread: int | None
    behind: float
    pending: int
    age: float
    oldest: EntryId | None
    holder: str | None
    came: float | None
    done: float | None
    retries: int
    dead: int
    lost: int
    alive: int
    silent: int
    paused: Pause | None

    @property
    def name(self) -> str:
        return f"{self.stream}/{self.group}"


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream: what is stored, and the sums and worst of its groups."""

    stream: str
    entries: int
    shards: int
    groups: int
    came: float | None
    behind: float
    pending: int
    dead: int
    lost: int
    paused: int

    @property
    def name(self) -> str:
        return self.stream


Row = GroupRow | StreamRow


def group_rows(look: Look, before: Look | None) -> list[GroupRow]:
    """All groups but the archive's, which nobody reads by."""
    return [
        _group(look, before, name, stats)
        for name, stream in look.streams.items()
        for stats in stream.groups
        if stats.name != ARCHIVE
    ]


def _group(look: Look, before: Look | None, stream: str, stats: GroupStats) -> GroupRow:
    oldest = min((one for one in stats.shards if one.oldest is not None), key=lambda one: one.oldest, default=None)  # type: ignore[arg-type, return-value]
    totals = look.streams[stream].totals.groups.get(stats.name)
    return GroupRow(
        stream, stats.name, stats.lag, stats.behind, stats.pending,
        age=oldest.oldest_age if oldest else 0.0,
        oldest=oldest.oldest if oldest else None,
        holder=oldest.holder if oldest else None,
        came=_rate(look, before, stream, lambda found: found.totals.published),
        done=_rate(look, before, stream, lambda found: _ended(found.totals, stats.name)),
        retries=stats.retries, dead=stats.dead, lost=totals.lost if totals else 0,
        alive=sum(worker.alive for worker in stats.workers),
        silent=sum(not worker.alive and worker.pending > 0 for worker in stats.workers),
        paused=look.paused.get((stream, stats.name)),
    )  # fmt: skip


def _ended(totals: Totals, group: str) -> int | None:
    """Deliveries that were ended for good, ever."""
    found = totals.groups.get(group)
    return None if found is None else found.acked + found.dead + found.expired + found.skipped + found.cancelled


def _rate(look: Look, before: Look | None, stream: str, count: Callable[[StreamLook], int | None]) -> float | None:
    """None where there is nothing to compare with, or Redis lost what it had counted."""
    if before is None or stream not in before.streams or look.now <= before.now:
        return None
    then, now = count(before.streams[stream]), count(look.streams[stream])
    return None if then is None or now is None or now < then else (now - then) * 1000 / (look.now - before.now)


def stream_rows(look: Look, groups: Iterable[GroupRow]) -> list[StreamRow]:
    by_stream: dict[str, list[GroupRow]] = {name: [] for name in look.streams}
    for row in groups:
        by_stream[row.stream].append(row)
    return [
        StreamRow(
            name, look.streams[name].entries, len(look.streams[name].totals.shards), len(rows),
            next((row.came for row in rows), None),
            max((row.behind for row in rows), default=0.0),
            sum(row.pending for row in rows), sum(row.dead for row in rows), sum(row.lost for row in rows),
            sum(row.paused is not None for row in rows),
        )
        for name, rows in by_stream.items()
    ]  # fmt: skip


def as_json(row: GroupRow) -> dict[str, Any]:
    return {
        "stream": row.stream, "group": row.group, "unread": row.unread, "behind_seconds": row.behind,
        "pending": row.pending, "oldest_pending": row.oldest and str(row.oldest), "oldest_pending_seconds": row.age,
        "held_by": row.holder, "published_per_second": row.came, "done_per_second": row.done, "retries": row.retries,
        "dead": row.dead, "lost": row.lost, "workers_alive": row.alive, "workers_silent": row.silent,
        "paused": row.paused and row.paused._asdict(),
    }  # fmt: skip
