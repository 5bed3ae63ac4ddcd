"""Counts what a replay would go through, page by page: the plan before it. Pure but for the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from rstream.blobs.claims import size_of
from rstream.event import Entry, EntryId
from rstream.replay.pace import Pace, Rate
from rstream.replay.result import ReplayPlan, Way
from rstream.replay.sift import Sifted
from rstream.store.replays import Progress
from rstream.store.stats import StreamStats


class Survey:
    """done: by earlier runs · stats: says where each shard begins in Redis; what lies before comes from the archive."""

    def __init__(self, done: Progress, stats: StreamStats) -> None:
        self.at, self._beyond = done.position, done.beyond
        begun = [(each.shard, each.first) for each in stats.shards if each.first is not None]
        self._oldest = {(shard.generation, shard.number): first for shard, first in begun}
        self.entries = self.bytes = self.archived = self.matching = self.left = self.left_matching = 0
        self.first: EntryId | None = None
        self.last: EntryId | None = None
        self.left_from: EntryId | None = None
        self.shards: set[tuple[int, int]] = set()
        self._began = perf_counter()

    def add(self, page: Sequence[Entry[Any]], sifted: Sifted) -> Sequence[EntryId]:
        """The next page; the ids of those that match, and that no earlier run has done."""
        self.entries += len(page)
        self.bytes += sum(size_of(entry.payload) for entry in page)
        self.matching += len(sifted.matching)
        self.first, self.last = self.first or page[0].id, page[-1].id
        for entry in page:
            place = (entry.id.generation, entry.id.shard)
            self.shards.add(place)
            self.archived += place not in self._oldest or entry.id < self._oldest[place]
        left = [entry.id for entry in page if self._is_left(entry.id)]
        self.left += len(left)
        self.left_from = self.left_from or next(iter(left), None)
        wanted = [entry.id for entry in sifted.matching if self._is_left(entry.id)]
        self.left_matching += len(wanted)
        return wanted

    def _is_left(self, id: EntryId) -> bool:
        return (self.at is None or id > self.at) and id not in self._beyond

    @property
    def reading(self) -> float:
        """Seconds that it takes to read what is left, as the reading of all went."""
        return (perf_counter() - self._began) * self.left / max(1, self.entries)

    @property
    def span_ms(self) -> int:
        return self.last.ms - self.left_from.ms if self.last and self.left_from else 0


def plan_of(
    survey: Survey, name: str, stream: str, way: Way, pace: Pace | None, found: Mapping[str, int]
) -> ReplayPlan:
    seconds, paced = survey.reading, 0.0
    if pace is not None:
        paced = pace.seconds(survey.left_matching, survey.span_ms)
    return ReplayPlan(
        name=name,
        stream=stream,
        start=survey.first,
        end=survey.last,
        entries=survey.entries,
        bytes=survey.bytes,
        shards=len(survey.shards),
        resume_after=survey.at,
        left=survey.left,
        way=way,
        archived=survey.archived,
        matching=survey.matching,
        seconds=max(seconds, paced),
        basis="reading" if pace is None or paced < seconds else "rate" if isinstance(pace, Rate) else "speed",
        **found,
    )
