"""What is wrong, where, and who has it: rows of the fleet's table, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from rstream.dashboard.live import Fleet, StreamNow
from rstream.dashboard.words import age, several
from rstream.operate.pending import Pending
from rstream.store.keys import ARCHIVE
from rstream.store.pause import Pause
from rstream.store.stats import GroupStats
from rstream.store.workers import WorkerInfo

Level = Literal["bad", "warn", "note", "ok"]
LEVELS: Sequence[Level] = ("bad", "warn", "note", "ok")

LATE, VERY_LATE = 60.0, 600.0
"""Seconds that the oldest unprocessed entry has waited."""

RECENT_MS = 24 * 3600 * 1000
"""Losses are news for that long."""

WAITING = {
    "retry": "waits for its next attempt",
    "again": "was given again, waits for a worker",
    "released": "was handed back, waits for a worker",
    "parked": "waits for its key's turn",
}
STATES = {"held": "in hand", "silent": "with a silent worker", **WAITING}


@dataclass(frozen=True)
class Trouble:
    """level · word: for the table · text: a sentence."""

    level: Level
    word: str
    text: str


@dataclass(frozen=True)
class GroupRow:
    """A group and all that is the matter with it, the worst first.

    oldest: the pending entry that has waited longest · holder: the worker that has it, "" where it waits · told: what
    that means · paused: how, or None · lost: entries, since ever · recently: of the last day.
    """

    stream: str
    stats: GroupStats
    oldest: Pending | None
    paused: Pause | None
    lost: int
    recently: int

    @property
    def name(self) -> str:
        return self.stats.name

    @property
    def archive(self) -> bool:
        """It is what the archiver reads by, and no group of anybody's."""
        return self.name == ARCHIVE

    @property
    def label(self) -> str:
        return "archive" if self.archive else self.name

    @cached_property
    def troubles(self) -> Sequence[Trouble]:
        found = _of_archive(self) if self.archive else _troubles(self)
        return sorted(found, key=lambda each: LEVELS.index(each.level))

    @property
    def level(self) -> Level:
        return self.troubles[0].level if self.troubles else "ok"

    @property
    def word(self) -> str:
        return self.troubles[0].word if self.troubles else "fine"

    @property
    def workers(self) -> int:
        return sum(worker.alive for worker in self.stats.workers)

    @property
    def busy(self) -> bool:
        return bool(self.stats.pending or self.stats.lag is None or self.stats.lag)

    @property
    def in_hand(self) -> int:
        """Pending for workers, and not for nobody."""
        return self.stats.pending - sum(self.stats.waiting.values())

    @property
    def holds(self) -> str:
        """Who has the oldest entry, in words."""
        if self.oldest is None:
            return ""
        return self.oldest.worker or WAITING[self.oldest.state]


@dataclass(frozen=True)
class Overview:
    """rows: all groups, the worst first."""

    rows: Sequence[GroupRow]

    @property
    def ailing(self) -> list[GroupRow]:
        return [row for row in self.rows if row.level in ("bad", "warn")]

    @property
    def level(self) -> Level:
        return self.rows[0].level if self.rows else "ok"


def overview(fleet: Fleet) -> Overview:
    rows = [row_of(fleet, stream, group) for stream in fleet.streams.values() for group in stream.groups]
    return Overview(sorted(rows, key=lambda row: (LEVELS.index(row.level), -row.stats.behind, row.stream, row.name)))


def row_of(fleet: Fleet, stream: StreamNow, group: GroupStats) -> GroupRow:
    name, losses = (stream.name, group.name), stream.lost(group.name)
    recent = sum(loss.count for loss in losses if fleet.now - loss.at < RECENT_MS)
    lost = sum(loss.count for loss in losses)
    return GroupRow(stream.name, group, fleet.oldest.get(name), fleet.paused.get(name), lost, recent)


def _of_archive(row: GroupRow) -> Iterator[Trouble]:
    if row.stats.behind > VERY_LATE:
        text = f"the oldest entry that is not archived is {age(row.stats.behind)} old, and cannot be trimmed before"
        yield Trouble("warn", "archive behind", text)


def _troubles(row: GroupRow) -> Iterator[Trouble]:
    stats, oldest = row.stats, row.oldest
    if stats.missing:
        shards = several(len(stats.missing), "shard")
        text = f"{shards} lost the group: Redis lost data. A worker makes it anew, and reads all that is left"
        yield Trouble("bad", "lost its place", text)
    if row.recently:
        entries = several(row.recently, "entry was", "entries were")
        yield Trouble("bad", "lost entries", f"{entries} dropped unprocessed, the last within a day")
    if row.paused is not None:
        why = f": {row.paused.why}" if row.paused.why else ""
        yield Trouble("warn" if stats.behind > LATE else "note", "paused", f"by {row.paused.by}{why}")
    elif not row.workers and row.busy:
        late = stats.behind > LATE
        yield Trouble("bad" if late else "warn", "no worker", "there is something to do, and no worker is alive")
    elif stats.behind > LATE:
        level: Level = "bad" if stats.behind > VERY_LATE else "warn"
        yield Trouble(level, "behind", f"the oldest unprocessed entry is {age(stats.behind)} old{_why(row)}")
    if oldest is not None and oldest.state == "silent":
        then = "others take it over" if row.workers else "the next worker that starts takes it over"
        text = f"{oldest.worker} has {oldest.id} and gives no sign of life: {then}"
        yield Trouble("warn", "silent worker", text)
    if stats.dead:
        yield Trouble("warn", "dead letters", f"{several(stats.dead, 'entry was', 'entries were')} given up")


def _why(row: GroupRow) -> str:
    oldest = row.oldest
    if oldest is None or oldest.age < row.stats.behind - 1:
        return ", and nobody was given it yet"
    if oldest.worker is None:
        return f": {oldest.id} {WAITING[oldest.state]}"
    return f": {oldest.id}, which {oldest.worker} has for {age(oldest.since)}, in attempt {oldest.attempt}"


@dataclass
class WorkerRow:
    """A worker: what it says of itself, where it does, and what is pending for it. alive: in some group."""

    name: str
    info: WorkerInfo | None = None
    alive: bool = False
    pending: int = 0
    groups: list[tuple[str, str]] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.info is not None:
            return self.info.state
        return "alive" if self.alive else "silent"

    @property
    def level(self) -> Level:
        if self.state in ("silent", "dead"):
            return "bad" if self.pending else "note"
        return {"alive": "ok", "ending": "note"}.get(self.state, "warn")  # type: ignore[return-value]


def workers_of(fleet: Fleet, told: Sequence[WorkerInfo]) -> list[WorkerRow]:
    """Those that say so, and those that have something; what ails first."""
    rows = {info.id: WorkerRow(info.id, info) for info in told}
    for stream in fleet.streams.values():
        for group in stream.groups:
            for worker in group.workers:
                if worker.worker not in rows and not (worker.alive or worker.pending):
                    continue
                row = rows.setdefault(worker.worker, WorkerRow(worker.worker))
                row.alive, row.pending = row.alive or worker.alive, row.pending + worker.pending
                row.groups.append((stream.name, group.name))
    return sorted(rows.values(), key=lambda row: (LEVELS.index(row.level) if row.level != "note" else 9, row.name))
