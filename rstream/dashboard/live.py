"""One look at Redis for all who watch.

What is asked for is looked at when somebody asks, once for all who ask meanwhile, and not again before it is `EVERY`
seconds old, or ten times as old as the look took: so viewers cost Redis a tenth of one connection's time at most,
however many there are, and nobody costs nothing. That Redis is away is remembered for `EVERY` seconds.

Cost of a look at the fleet: 4 round trips, two calls a shard and two a group.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rstream.app import RStream
from rstream.errors import UnknownStream
from rstream.event import EntryId
from rstream.operate.pending import Pending, told
from rstream.store import layout as layouts
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, both, together
from rstream.store.lost import Loss, losses
from rstream.store.pause import Pause, are_paused
from rstream.store.pending import Page, PendingOps, Which
from rstream.store.stats import GroupStats, StreamStats, survey
from rstream.store.steps import Steps, drive
from rstream.store.workers import WorkerInfo, workers
from rstream.stream import Stream

T = TypeVar("T")

EVERY = 1.0
SHARE = 10
KEPT = 256
"""Answers that are kept: what nobody asks for any more goes first."""


class Shared:
    """Answers by name, each made once for all who ask."""

    def __init__(self, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._answers: OrderedDict[Hashable, tuple[asyncio.Task[Any], list[float]]] = OrderedDict()
        self.looks = 0

    async def get(self, name: Hashable, look: Callable[[], Awaitable[T]], every: float | None = None) -> T:
        """What `look` gives, or gave a moment ago. every: seconds it is good for."""
        task, good_until = self._answers.get(name, (None, [0.0]))
        if task is None or (task.done() and self._clock() >= good_until[0]):
            good_until = [0.0]
            task = asyncio.create_task(self._look(look, every or self._every, good_until))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may be gone
            self._answers[name] = task, good_until
        self._answers.move_to_end(name)
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        answer: T = await asyncio.shield(task)
        return answer

    async def _look(self, look: Callable[[], Awaitable[T]], every: float, good_until: list[float]) -> T:
        began = self._clock()
        self.looks += 1
        share = 0
        try:
            answer = await look()
            share = SHARE  # what failed did not keep Redis busy
            return answer
        finally:
            now = self._clock()
            good_until[0] = now + max(every, share * (now - began))

    def forget(self) -> None:
        """Something was changed: whoever asks next sees it."""
        self._answers.clear()


class Seen(Stream[Any]):
    """A stream that is looked at: where Redis has lost it, nobody declares it anew by looking."""

    def _declared(self) -> Steps[Layout]:
        layout = yield layouts.load(self.app.settings.namespace, self.name)
        if layout is None:
            raise UnknownStream(f"stream {self.name!r} is gone: Redis lost it, or somebody has removed it")
        found: Layout = layout
        return found


@dataclass(frozen=True)
class StreamNow:
    """A stream at one moment."""

    stats: StreamStats
    groups: Sequence[GroupStats]
    losses: Sequence[Loss]

    @property
    def layout(self) -> Layout:
        return self.stats.layout

    @property
    def name(self) -> str:
        return self.layout.name

    def group(self, name: str) -> GroupStats | None:
        return next((group for group in self.groups if group.name == name), None)

    def lost(self, group: str) -> list[Loss]:
        return [loss for loss in self.losses if loss.group == group]


@dataclass(frozen=True)
class Fleet:
    """now: Redis's clock in ms · gone: streams of which Redis has only the name · paused, oldest: the groups that are
    paused, and of those that have something pending the entry that has waited longest; by (stream, group).
    """

    now: int
    streams: Mapping[str, StreamNow]
    gone: Sequence[str] = ()
    paused: Mapping[tuple[str, str], Pause] = field(default_factory=dict)
    oldest: Mapping[tuple[str, str], Pending] = field(default_factory=dict)


class Watch:
    """What the pages look at."""

    def __init__(self, app: RStream, shared: Shared | None = None) -> None:
        self.app, self.shared = app, shared or Shared()
        self._opened: dict[str, tuple[Layout, Stream[Any]]] = {}

    async def run(self, op: Op[T]) -> T:
        return await self.app.link.run(op)

    async def fleet(self) -> Fleet:
        """All streams and groups. Raises `StoreError`."""
        return await self.shared.get("fleet", self._fleet)

    async def _fleet(self) -> Fleet:
        namespace = self.app.settings.namespace
        now, names = await self.run(both(layouts.clock(), layouts.names(namespace)))
        stored = await self.run(together([layouts.load(namespace, name) for name in names])) if names else []
        known = [layout for layout in stored if layout is not None]
        looks = [both(survey(layout), losses(layout)) for layout in known]
        found = await self.run(together(looks)) if looks else []
        streams = {stats.layout.name: StreamNow(stats, groups, lost) for (stats, groups), lost in found}
        groups = [(stream.name, group.name) for stream in streams.values() for group in stream.groups]
        paused, oldest = (
            ({}, {}) if not groups else await self.run(both(are_paused(namespace, groups), _oldest(streams)))
        )
        return Fleet(now, streams, [name for name in names if name not in streams], paused, oldest)

    async def workers(self) -> list[WorkerInfo]:
        """All that lived lately. Raises `StoreError`."""

        async def look() -> list[WorkerInfo]:
            return await drive(self.app.link, workers(self.app.settings.namespace), 0.0)

        return await self.shared.get("workers", look)

    async def held(self, layout: Layout, group: str, ids: Sequence[EntryId]) -> dict[EntryId, Pending]:
        """Those of these entries that are pending for a group. One round trip."""
        shards = {(shard.generation, shard.number): shard for shard in layout.every}
        ops, known = PendingOps(layout, group), [id for id in ids if id[2:] in shards]
        looks = [ops.look({shards[id[2:]]: id.redis}, Which(end=id.redis, limit=1), 1) for id in known]
        pages = [page for found in await self.run(together(looks)) for page, _ in found.values()] if looks else []
        return {one.id: one for page in pages for one in map(told, page)}

    def opened(self, now: StreamNow) -> Stream[Any]:
        """The stream, to read and to act on: as it is stored now, not as it was before Redis lost it."""
        known = self._opened.get(now.name)
        if known is None or known[0] != now.layout:
            known = self._opened[now.name] = now.layout, self.app._as_stored(now.layout, Seen)
        return known[1]


def _oldest(streams: Mapping[str, StreamNow]) -> Op[dict[tuple[str, str], Pending]]:
    """Of each group the pending entry that has waited longest: whose key it is, and who has it since when."""
    looks, names = [], []
    for stream in streams.values():
        for group in stream.groups:
            first = max((one for one in group.shards if one.oldest), key=lambda one: one.oldest_age, default=None)
            if first is not None and first.oldest is not None:
                id = first.oldest.redis
                look = PendingOps(stream.layout, group.name).look({first.shard: id}, Which(end=id, limit=1), 1)
                looks.append(look)
                names.append((stream.name, group.name))

    def parse(found: list[dict[Shard, Page]]) -> dict[tuple[str, str], Pending]:
        pairs = zip(names, found, strict=True)
        return {name: told(page[0]) for name, pages in pairs for page, _ in pages.values() if page}

    return together(looks).then(parse)
