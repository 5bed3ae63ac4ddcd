"""Which numbers are plotted, and over what time: buckets of history become lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rstream.dashboard.live import Fleet, StreamNow, Watch
from rstream.dashboard.plots import Line, Plot, spark
from rstream.dashboard.words import iso
from rstream.event import MAX_PART
from rstream.history import Bucket, GroupCounts, history_of
from rstream.history import window as times
from rstream.position import bound
from rstream.store.history import History
from rstream.store.keys import ARCHIVE
from rstream.store.link import together

SPANS = {"1h": 3600, "6h": 6 * 3600, "24h": 24 * 3600, "7d": 7 * 24 * 3600, "30d": 30 * 24 * 3600}

LINES = 6
"""Groups of a stream that have a line each: those with most to tell."""

EVERY, EVERY_SPARKS = 5.0, 20.0
"""Seconds that history is good for: workers add to it every 5 s."""

FRESH = 0.25
"""The share of a bucket that has to be over before its rate says something."""

DONE = ("acked", "dead", "expired", "skipped", "cancelled", "lost")
"""What takes an entry out of a group's backlog."""


@dataclass(frozen=True)
class Window:
    """What is shown. since, until: seconds (UTC) · now · span: the name of one that ends now, "" where it was typed."""

    since: int
    until: int
    now: int
    span: str

    names = tuple(SPANS)

    @classmethod
    def of(cls, query: Mapping[str, str], now_ms: int) -> Window:
        """Raises `PositionError`."""
        now = now_ms // 1000
        if query.get("from", "").strip() and query.get("zoom"):
            start = bound(query["from"].strip(), "start", now_ms).ms // 1000
            end = bound(query.get("to", "").strip() or "now", "end", now_ms).ms
            until = now if end >= MAX_PART else min(now, end // 1000)
            since = max(start, now - SPANS["30d"])
            return cls(min(since, until - 60), until, now, "")
        span = query.get("span", "")
        span = span if span in SPANS else "1h"
        return cls(now - SPANS[span], now, now, span)

    @property
    def step(self) -> int:
        """Seconds of a bucket. Minutes are kept for 6 hours."""
        if self.now - self.since > SPANS["6h"]:
            return 3600 if self.until - self.since <= SPANS["7d"] else 3 * 3600
        return 60

    @property
    def from_text(self) -> str:
        return iso(self.since * 1000)

    @property
    def until_text(self) -> str:
        return iso(self.until * 1000)


@dataclass(frozen=True)
class Charts:
    """why: there are none."""

    plots: Sequence[Plot]
    why: str = ""


async def charts(watch: Watch, stream: StreamNow, group: str | None, window: Window) -> Charts:
    """Of a stream and all its groups, or of one group."""
    step = window.step
    since, until = str(window.since // step * step * 1000), str(window.until * 1000)
    found = times(await _kept(watch, stream), since, until, timedelta(seconds=step))
    if not any(found):
        return Charts([], "No history of this time: workers write it down, every few seconds while they run.")
    if group is None:
        return Charts(_of_stream(found, stream, window))
    return Charts(_of_group(found, stream, group, window))


def _of_stream(found: Sequence[Bucket], stream: StreamNow, window: Window) -> list[Plot]:
    names = sorted(
        (group.name for group in stream.groups if group.name != ARCHIVE), key=lambda name: -_most(found, name)
    )
    shown = sorted(names[:LINES])
    more = f"the {LINES} groups with most to do" if len(names) > LINES else ""
    throughput = [Line("published", "published", _rates(found, window, lambda b: b.published), filled=True)]
    lag = []
    for n, name in enumerate(shown):
        throughput.append(Line(f"{name} done", f"g{n}", _rates(found, window, _done(name))))
        lag.append(Line(name, f"g{n}", [_of(b, name).behind for b in found]))
    return [
        _plot("Throughput", "/min", found, window, throughput, more),
        _plot("Lag: age of the oldest entry", "s", found, window, lag, more),
        _failures(found, window, names),
    ]


def _of_group(found: Sequence[Bucket], stream: StreamNow, name: str, window: Window) -> list[Plot]:
    lines = [
        Line("published", "published", _rates(found, window, lambda b: b.published), filled=True),
        Line("done", "acked", _rates(found, window, _done(name))),
    ]
    behind = [Line("oldest", "delay", [_of(b, name).behind for b in found], filled=True)]
    plots = [
        _plot("Throughput", "/min", found, window, lines),
        _plot("Lag: age of the oldest entry", "s", found, window, behind),
    ]
    if (backlog := _backlog(found, stream, name, window)) is not None:
        line = [Line("entries", "lag", backlog, filled=True)]
        note = "reckoned back; too high before a replay"
        plots.append(_plot("Backlog", "", found, window, line, note))
    return [*plots, _failures(found, window, [name])]


def _failures(found: Sequence[Bucket], window: Window, names: Sequence[str]) -> Plot:
    def summed(*kinds: str) -> list[float | None]:
        return [float(sum(getattr(_of(b, name), kind) for name in names for kind in kinds)) for b in found]

    lines = [
        Line("retried", "retried", summed("retried")),
        Line("dead", "dead", summed("dead"), filled=True),
        Line("taken over, fenced", "published", summed("redelivered", "fenced")),
        Line("expired, lost", "other", summed("expired", "lost")),
    ]
    return _plot("Failures", "", found, window, lines, "Redis lost data in this time" * any(b.resets for b in found))


def _plot(
    title: str, unit: str, found: Sequence[Bucket], window: Window, lines: Sequence[Line], note: str = ""
) -> Plot:
    return Plot(title, unit, [int(bucket.start.timestamp()) for bucket in found], window.step, lines, note)


def _backlog(found: Sequence[Bucket], stream: StreamNow, name: str, window: Window) -> list[float | None] | None:
    """Entries that were not processed at the end of each bucket: those of now, and what came and went since."""
    group = stream.group(name)
    if group is None or group.lag is None or window.until < window.now:
        return None
    values: list[float | None] = []
    left: float | None = group.lag + group.pending
    for bucket in reversed(found):
        values.append(left)
        if left is not None:
            counts = _of(bucket, name)
            left = max(0.0, left - bucket.published + sum(getattr(counts, kind) for kind in DONE))
            left = None if bucket.resets else left  # what was before is another story
    begun = next((n for n, bucket in enumerate(found) if bucket), len(found))  # before, nothing was written down
    return [None if n < begun else value for n, value in enumerate(values[::-1])]


def _rates(found: Sequence[Bucket], window: Window, number: Callable[[Bucket], float]) -> list[float | None]:
    """A minute. Of the bucket that goes on: of what is over of it."""
    values: list[float | None] = []
    for bucket in found:
        over = min(bucket.seconds, window.now - bucket.start.timestamp())
        values.append(60 * number(bucket) / over if over >= FRESH * bucket.seconds else None)
    return values


def _done(name: str) -> Callable[[Bucket], float]:
    return lambda bucket: _of(bucket, name).acked


def _of(bucket: Bucket, name: str) -> GroupCounts:
    return bucket.groups.get(name) or NOTHING


NOTHING = GroupCounts()


def _most(found: Sequence[Bucket], name: str) -> float:
    return sum(_of(bucket, name).acked for bucket in found) + max(_of(bucket, name).behind for bucket in found)


async def _kept(watch: Watch, stream: StreamNow) -> History:
    opened = watch.opened(stream)
    return await watch.shared.get(("history", stream.name), lambda: watch.run(history_of(opened)), EVERY)


async def sparks(watch: Watch, fleet: Fleet) -> Mapping[tuple[str, str], str]:
    """What each group got done in the last hour, minute by minute, as a line of a word's size."""
    streams = [stream for stream in fleet.streams.values() if stream.groups]

    async def look() -> list[list[Bucket]]:
        kept = await watch.run(together([history_of(watch.opened(stream)) for stream in streams])) if streams else []
        return [times(each, timedelta(hours=1), step=timedelta(minutes=1)) for each in kept]

    names = tuple(stream.name for stream in streams)
    found = await watch.shared.get(("sparks", names), look, EVERY_SPARKS)
    return {
        (stream.name, group.name): spark([_of(bucket, group.name).acked for bucket in told], "acked")
        for stream, told in zip(streams, found, strict=True)
        if any(told)
        for group in stream.groups
    }
