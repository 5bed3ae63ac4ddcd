"""What happened to a stream and its groups, by the minute and by the hour. docs/history.md explains it to users."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from rstream.buckets import DAY, HOUR, MINUTE, Bucket, GroupCounts, buckets
from rstream.errors import ConfigError
from rstream.position import Position, bound
from rstream.store.history import History, Place, load
from rstream.store.link import Op

if TYPE_CHECKING:
    from rstream.stream import Stream

__all__ = ["Bucket", "GroupCounts", "history", "history_of", "step_for", "window"]

MINUTES_FOR = timedelta(hours=6)
HOURS_FOR = timedelta(days=30)
"""For how long they are kept."""

_SPAN = re.compile(r"(\d+(?:\.\d+)?\s*(ms|s|m|h|d|w)\s*)+", re.ASCII)


async def history(
    stream: Stream[Any], since: Position = timedelta(hours=6), until: Position = None, *, step: timedelta | None = None
) -> list[Bucket]:
    """What happened from `since` to `until` (now): times of equal length, the oldest first, those in which nothing
    happened among them. Both: a datetime, a timedelta back from now, or as text ("7d", "2026-11-20T09:30").

    step: the length of each, in whole minutes; for what begins more than 6 hours ago in whole hours, for by then
    minutes are not kept any more (default: `step_for`). Nothing is known beyond 30 days. Raises `ConfigError`,
    `PositionError`, `StoreError`.
    """
    found = await stream.app.link.run(history_of(stream), within=stream.app.settings.publish_timeout)
    return window(found, since, until, step)


def history_of(stream: Stream[Any]) -> Op[History]:
    """All that is kept of a stream: one round trip."""
    return load(Place(stream.app.settings.namespace, stream.name))


def window(found: History, since: Position, until: Position = None, step: timedelta | None = None) -> list[Bucket]:
    """Part of what is kept, as `history` says."""
    start, end = _ms(since, "start", found.now), min(_ms(until, "end", found.now), found.now + 1)
    start = max(start, found.now - _whole(HOURS_FOR))
    wide = _checked(step_for(timedelta(milliseconds=found.now - start)) if step is None else step)
    if wide % HOUR and found.now - start > _whole(MINUTES_FOR) + MINUTE:
        raise ConfigError(
            f"history: minutes are kept for 6 hours, and this begins {(found.now - start) / HOUR:.3g} hours ago: "
            "ask for whole hours (step 1h), or begin later"
        )
    return buckets(found.fields, found.state, start, end, wide)


def step_for(span: timedelta) -> timedelta:
    """What shows a time that begins so long ago in some 10 to 60 lines."""
    for longest, minutes in ((1, 1), (3, 5), (6, 15), (48, 60)):
        if span <= timedelta(hours=longest):
            return timedelta(minutes=minutes)
    return timedelta(days=1)


def _ms(at: Position, side: Literal["start", "end"], now: int) -> int:
    if isinstance(at, str) and _SPAN.fullmatch(at.strip()):
        at = f"-{at.strip()}"
    return bound(at, side, now).ms


def _checked(step: timedelta) -> int:
    ms = _whole(step)
    if ms < MINUTE or ms % MINUTE or (ms > HOUR and ms % HOUR) or ms > 31 * DAY:
        raise ConfigError(f"history: a step is {step}, it must be whole minutes up to an hour, or whole hours")
    return ms


def _whole(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
