"""Replays a window into one group, in place: what it has settled, its workers handle once more. Nothing is published,
and no other group notices.

As fast as it goes, entries are gathered, and given in few large calls, during which no worker of an ordered group owns
their shards: so all that is given together comes before newer entries of its key that have not begun. At a pace, each
entry is given at its time, while the group works on: those of a key come in order, others of it may come in between.

Each is given once, also where the giver is killed in the midst and goes on: the shards know how far it was.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from rstream.errors import ConfigError, RStreamError, StoreError
from rstream.event import EntryId
from rstream.position import Position
from rstream.replay.reading import Page, ahead, chunks
from rstream.replay.result import ReplayResult
from rstream.replay.runner import LEASE, Runner
from rstream.replay.sift import Sifted
from rstream.settings import check_name
from rstream.store import layout as layouts
from rstream.store import pause as pauses
from rstream.store.give import Given, GiveOps
from rstream.store.layout import Layout
from rstream.store.replays import Outcome, Window

if TYPE_CHECKING:
    from rstream.stream import Stream

log = logging.getLogger("rstream")

GATHER = 10_000
"""Entries that are given together: it takes some 0.1 s, in which an ordered group begins nothing."""

FAT = 2_000
"""Entries that go out in one write."""

MOST = 5_000
"""Entries of a shard that wait for workers; with more, giving waits for them. Who takes a shard over goes through all
that waits there before it reads on: with 20,000, live keys stood still for 3 to 7 s when a large replay began.
"""

TICK = 0.1
"""Seconds between two calls, at a pace."""


class Giving(Runner):
    """See `rstream.replay.into_group` for the arguments. Runs once."""

    way = "group"

    def __init__(
        self,
        stream: Stream[Any],
        group: str,
        start: Position,
        end: Position,
        *,
        key: str | None = None,
        where: Sequence[str] = (),
        rate: str | float | None = None,
        speed: str | float | None = None,
        name: str | None = None,
        restart: bool = False,
        progress: Callable[[ReplayResult], None] | None = None,
        notice: Callable[[str], None] = log.info,
        lease: float = LEASE,
    ) -> None:
        self.group = check_name("group", group)
        super().__init__(
            stream, start, end, {"group": group}, key=key, where=where, rate=rate, speed=speed, name=name,
            restart=restart, progress=progress, notice=notice, lease=lease,
        )  # fmt: skip
        self._giver: GiveOps | None = None
        self._gathered: list[EntryId] = []
        self._passed: Counter[Outcome] = Counter()  # read since the last that was given, and not to be given
        self._bad: dict[EntryId, Outcome] = {}

    async def _check(self, layout: Layout) -> None:
        known = await self._send(layouts.groups(layout.every))
        if self.group not in known:
            raise ConfigError(
                f"no group {self.group!r} reads stream {layout.name!r}: "
                + (f"there are {', '.join(known)}; " if known else "there are none yet; ")
                + "to make one that begins in the past, replay as a new group"
            )
        paused = await self._send(pauses.paused(layout.namespace, layout.name, [self.group]))
        if (pause := paused.get(self.group)) is not None:
            why = f" ({pause.why})" if pause.why else ""
            self._notice(
                f"group {self.group} was paused by {pause.by}{why}: what is given waits until it is resumed, and more "
                f"than {MOST:,} of a shard are not given before"
            )

    async def _look(self, layout: Layout, ids: Sequence[EntryId]) -> Mapping[str, int]:
        ops, found = GiveOps(layout, self.group, self.name, ""), Counter[str]()
        for some in chunks(ids, FAT):
            found.update((await self._send(ops.give(some, hold=False))).outcomes.values())
        return found

    async def _work(self, layout: Layout, window: Window) -> None:
        ops = self._giver = GiveOps(layout, self.group, self.name, self._run)
        read = ahead(self._left(layout, window))
        try:
            async for page in read:
                await self._page(ops, page)
                if self._stop_asked.is_set():
                    break
            else:
                await self._give_gathered(ops)
                self._read_all = not self._gathered
        except RStreamError as error:
            self._fail(error)
        finally:
            await read.aclose()

    async def _end_well(self) -> None:
        await super()._end_well()
        if self._finished and self._giver is not None:
            with suppress(StoreError):
                await self._send(self._giver.end())

    async def _page(self, ops: GiveOps, page: Page) -> None:
        if not self._gathered:
            self._mark.expect(page[0].id)
        found = await self._sifted(page)
        if len(found.matching) + len(found.others) < len(page):
            return  # it was asked to stop while the blob store was away
        if self.pace is not None:
            await self._give_paced(ops, page, found)
            return
        self._gathered += [entry.id for entry in found.matching]
        self._pass_over(found.others)
        self._read_to = page[-1].id
        if not self._gathered:
            self._commit(page[-1].id, {})
        elif len(self._gathered) >= GATHER:
            await self._give_gathered(ops)

    # -- together -----------------------------------------------------------------------------------------------

    async def _give_gathered(self, ops: GiveOps) -> None:
        """Give all that was gathered, while no worker of an ordered group owns a shard."""
        if not self._gathered:
            return
        assert self._read_to is not None
        outcomes: dict[EntryId, Outcome] = {}
        async with self._holding(ops):
            for ids in chunks(self._gathered, FAT):
                if not await self._held():
                    return
                given = await self._send(ops.give(ids, hold=True))
                outcomes.update(given.outcomes)
        self._gathered = []
        self._commit(self._read_to, outcomes)
        await self._await_workers(ops, given.waiting)

    @asynccontextmanager
    async def _holding(self, ops: GiveOps) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            with suppress(StoreError):  # then the group has its shards again in a moment
                await self.stream.app.link.run(ops.release(), within=1.0)
            raise
        await self._send(ops.release())
        await self._send(ops.ring())

    # -- at a pace ----------------------------------------------------------------------------------------------

    async def _give_paced(self, ops: GiveOps, page: Page, found: Sifted) -> None:
        self._read_to = None
        others = sorted(found.others.items())
        async for part in self._paced(found.matching, TICK):
            if not await self._held():
                return
            last = part[-1].id
            given = await self._give(ops, [entry.id for entry in part])
            passed = sum(1 for id, _ in others if id < last)
            self._pass_over(dict(others[:passed]))
            del others[:passed]
            self._commit(last, given.outcomes)
            await self._await_workers(ops, given.waiting)
            if last == found.matching[-1].id:
                break
        else:
            if found.matching:
                return  # it was asked to stop
        self._pass_over(dict(others))
        self._commit(page[-1].id, {})

    async def _give(self, ops: GiveOps, ids: Sequence[EntryId]) -> Given:
        """Lanes keep the order of a key only within a shard: beyond, holding does."""
        if not any(id.generation < ops.layout.generation for id in ids):
            given = await self._send(ops.give(ids, hold=False))
            await self._send(ops.ring())
            return given
        async with self._holding(ops):
            return await self._send(ops.give(ids, hold=True))

    # -- how far it is ------------------------------------------------------------------------------------------

    def _pass_over(self, others: Mapping[EntryId, Outcome]) -> None:
        self._passed.update(others.values())
        self._bad.update((id, outcome) for id, outcome in others.items() if outcome == "invalid")

    def _commit(self, position: EntryId, outcomes: Mapping[EntryId, Outcome]) -> None:
        self._passed.update(outcomes.values())
        self._mark.pass_over(position, self._passed, self._bad)
        self._passed, self._bad = Counter(), {}

    async def _await_workers(self, ops: GiveOps, waiting: int) -> None:
        """Let the group come after: what waits there is gone through by every worker that takes over a shard."""
        told = False
        while waiting > (MOST // 2 if told else MOST) and not self._stop_asked.is_set():
            if not told:
                self._notice(
                    f"group {self.group!r} has {waiting:,} entries in a shard that no worker has taken yet: going on "
                    "when it has caught up (Ctrl-C stops here; the same command goes on later)"
                )
            told = True
            await self._pause(0.25)
            waiting = await self._send(ops.waiting())

    async def _held(self) -> bool:
        """Wait until the lease surely holds; False where it was asked to stop before, or lost it."""
        while not self._keeper.holds():
            if not await self._pause(0.05):
                return False
        return True
