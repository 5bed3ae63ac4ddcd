"""Replay: through a handler, into one group in place, as a new group. docs/replay.md says when to use which.

Of the first two:

- At least once. What is done is stored once a second and when the replay stops: after a kill, a handler gets the
  entries of the last second again; after `stop()` none. Into a group, each entry is given once also after a kill.
- One runner at a time. The lease is renewed from a thread, so that a handler that blocks the loop does not lose
  it; a runner that lost it begins nothing more, stores nothing more, and raises `ReplayBusy`.
- The window is resolved when the replay first starts: "2h ago" means the same after a restart.
- Memory: two pages a shard, and a backlog that is bounded in entries and in bytes; slow handlers slow the reading.

Cost: the reads of the window, and one small Lua call a second; into a group, one more for every 500 entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rstream.calling import Handler
from rstream.position import Position
from rstream.replay.fork import Fork, NewGroup
from rstream.replay.give import Giving
from rstream.replay.result import ReplayPlan, ReplayResult
from rstream.replay.run import Replay

if TYPE_CHECKING:
    from rstream.stream import Stream

__all__ = ["Fork", "Giving", "NewGroup", "Replay", "ReplayPlan", "ReplayResult", "as_group", "into_group", "replay"]


async def replay(
    stream: Stream[Any],
    handler: Handler,
    start: Position,
    end: Position,
    *,
    key: str | None = None,
    where: Sequence[str] = (),
    rate: str | float | None = None,
    speed: str | float | None = None,
    name: str | None = None,
    batch: int | None = None,
    concurrency: int | None = None,
    ordered: bool = True,
    restart: bool = False,
    progress: Callable[[ReplayResult], None] | None = None,
) -> ReplayResult:
    """Run `handler` over the entries from `start` to `end`, both included, at least once each; no group is touched.

    It is called as a consumer's handler is: `handler(event, delivery)` or `handler(event)`, with `delivery.group`
    the replay's name; one that takes a batch as `handler(events, batch)` or `handler(events)`. An entry on which it
    raises is counted and logged, and the replay goes on.

    key: only this key's entries · where: conditions as "status=200", all of which must hold · rate: entries a second,
    also as "200/s", "30/m", "10/h" · speed: a multiple of the original pace, also as "10x" · name: under which its
    progress is stored, default made of stream, window, key, conditions and handler, so that the same call goes on where
    a killed one was · batch: events a call, default as the handler was declared · concurrency: calls at once (16, of
    batches 1) · ordered: entries of one key in order, no two calls at once have some of it · restart: forget how far it
    had come · progress: called a few times a second.

    Raises `ConfigError`, `PositionError`, `ReplayBusy`, `StoreError`.
    """
    run = Replay(
        stream,
        handler,
        start,
        end,
        key=key,
        where=where,
        rate=rate,
        speed=speed,
        name=name,
        batch=batch,
        concurrency=concurrency,
        ordered=ordered,
        restart=restart,
        progress=progress,
    )
    return await run.run()


async def into_group(
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
) -> ReplayResult:
    """Have the workers of `group` handle once more what it has settled from `start` to `end`, both included; no other
    group notices, and nothing is published. It returns when all is given, not when it is handled.

    What is pending there is left alone, what the group has yet to read comes anyway, and what Redis does not store any
    more cannot be given: all of that is counted. The arguments are those of `replay`, as is what it raises.
    """
    run = Giving(
        stream,
        group,
        start,
        end,
        key=key,
        where=where,
        rate=rate,
        speed=speed,
        name=name,
        restart=restart,
        progress=progress,
    )
    return await run.run()


async def as_group(stream: Stream[Any], group: str, start: Position) -> NewGroup:
    """Make a group that begins at `start` ("latest" = with what is published from now on); a consumer that is declared
    for it catches up, and then follows live. Raises `PositionError`, `StoreError`, and `ConfigError` where there is
    such a group.
    """
    return await Fork(stream, group, start).make()
