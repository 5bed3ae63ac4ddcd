"""Replays as a new group: it begins in the past, catches up, and follows live: for an A/B test, or a shadow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rstream.errors import ConfigError
from rstream.event import MAX_PART, EntryId, Key
from rstream.position import Position
from rstream.replay.reading import pages
from rstream.replay.result import ReplayPlan
from rstream.replay.sift import Sifted
from rstream.replay.survey import Survey, plan_of
from rstream.reset.plan import read_up_to, start_of
from rstream.settings import check_name
from rstream.store.deliveries import GroupOps
from rstream.store.layout import Layout
from rstream.store.link import Op, together
from rstream.store.replays import Progress
from rstream.store.stats import StreamStats, survey

if TYPE_CHECKING:
    from rstream.stream import Stream


@dataclass(frozen=True)
class NewGroup:
    """A group that was made. positions: the last entry that counts as read, in each shard · plan: what it has to catch
    up with.
    """

    stream: str
    group: str
    positions: tuple[EntryId, ...]
    plan: ReplayPlan


class Fork:
    """A group to be made. start: the first entry that it gets, "latest" = what is published from now on."""

    def __init__(self, stream: Stream[Any], group: str, start: Position) -> None:
        self.stream, self.group = stream, check_name("group", group)
        self._start = start

    async def plan(self) -> ReplayPlan:
        """What there is to catch up with; makes nothing. Reads it. Raises `PositionError`, and `ConfigError` where
        there is such a group.
        """
        return (await self._look())[0]

    async def make(self) -> NewGroup:
        """Make it, on all shards. Raises what `plan` does."""
        plan, layout, positions = await self._look()
        ops = GroupOps(layout, self.group, "")
        pairs = zip(layout.every, positions, strict=True)
        made = await self._send(together([ops.create(at.redis, [shard]) for shard, at in pairs]))
        if not any(made):
            raise self._exists()  # somebody was faster
        return NewGroup(self.stream.name, self.group, tuple(positions), plan)

    async def _send(self, op: Op[Any]) -> Any:
        return await self.stream.app.link.run(op, within=self.stream.app.settings.publish_timeout)

    async def _look(self) -> tuple[ReplayPlan, Layout, list[EntryId]]:
        layout = await self.stream.layout(fresh=True)
        stats: StreamStats = (await self._send(survey(layout)))[0]
        if self.group in stats.groups:
            raise self._exists()
        at = start_of(self._start, stats.shards, stats.now, None)
        positions = [read_up_to(at, shard, None) for shard in stats.shards]
        counted = Survey(Progress(), stats)
        if at is not None and stats.last is not None and at <= stats.last:
            async for page in pages(self.stream, layout, at, _end(stats.last), None, _undecoded):
                counted.add(page, Sifted(page, {}))
        plan = plan_of(counted, self.group, self.stream.name, "new group", None, {"gone": counted.archived})
        plan = replace(plan, left=plan.entries - plan.gone)
        return plan, layout, positions

    def _exists(self) -> ConfigError:
        return ConfigError(
            f"stream {self.stream.name!r} has a group {self.group!r} already: name another one, or have that one read "
            f"again: rstream groups reset {self.stream.name} --group {self.group} --to X"
        )


def _end(last: EntryId) -> EntryId:
    return EntryId(last.ms, last.seq, MAX_PART, MAX_PART)


def _undecoded(payload: bytes, key: Key) -> Any:
    raise AssertionError("nothing of it is looked at")
