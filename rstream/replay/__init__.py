"""Replay: run a handler over a window of a stream again, without a consumer group, so that no live group notices.

- At least once. What is done is stored once a second and when the replay stops: after a kill, the entries of the
  last second run again; after `Replay.stop()` none does.
- One runner at a time. The lease is renewed from a thread, so that a handler that blocks the loop does not lose
  it; a runner that lost it begins nothing more, stores nothing more, and raises `ReplayBusy`.
- The window is resolved when the replay first starts: "2h ago" means the same after a restart.
- Memory: a page a shard, and a backlog that is bounded in entries and in bytes; slow handlers slow the reading.

Cost: the reads of the window, and one small Lua call a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rstream.calling import Handler
from rstream.position import Position
from rstream.replay.result import ReplayPlan, ReplayResult
from rstream.replay.run import Replay

if TYPE_CHECKING:
    from rstream.stream import Stream

__all__ = ["Replay", "ReplayPlan", "ReplayResult", "replay"]


async def replay(
    stream: Stream[Any],
    handler: Handler,
    start: Position,
    end: Position,
    *,
    key: str | None = None,
    name: str | None = None,
    concurrency: int = 16,
    ordered: bool = True,
    restart: bool = False,
    progress: Callable[[ReplayResult], None] | None = None,
) -> ReplayResult:
    """Run `handler` over the entries from `start` to `end`, both included, at least once each; no group is touched.

    It is called as a consumer's handler is: `handler(event, delivery)` or `handler(event)`, with `delivery.group`
    the replay's name. An entry on which it raises is counted and logged, and the replay goes on.
    key: only this key's entries · name: under which its progress is stored, default made of the other arguments, so
    that the same call goes on where a killed one was · concurrency: entries handled at once · ordered: those of one
    key one at a time, in order · restart: forget how far it had come · progress: called a few times a second.
    Raises `ConfigError`, `PositionError`, `ReplayBusy`, `StoreError`.
    """
    run = Replay(
        stream,
        handler,
        start,
        end,
        key=key,
        name=name,
        concurrency=concurrency,
        ordered=ordered,
        restart=restart,
        progress=progress,
    )
    return await run.run()
