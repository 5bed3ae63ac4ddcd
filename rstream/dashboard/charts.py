"""Which numbers are plotted, and over what time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rstream.dashboard.live import Fleet, StreamNow, Watch
from rstream.dashboard.plots import Plot
from rstream.dashboard.words import iso
from rstream.event import MAX_PART
from rstream.position import bound

SPANS = {"1h": 3600, "6h": 6 * 3600, "24h": 24 * 3600, "7d": 7 * 24 * 3600, "30d": 30 * 24 * 3600}
FINE = 6 * 3600
"""Seconds for which there is history by the minute."""


@dataclass(frozen=True)
class Window:
    """What is shown. since, until: seconds (UTC) · span: the name of one that ends now, "" where it was typed."""

    since: int
    until: int
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
            return cls(min(since, until - 60), until, "")
        span = query.get("span", "")
        span = span if span in SPANS else "1h"
        return cls(now - SPANS[span], now, span)

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


async def charts(watch: Watch, fleet: Fleet, stream: StreamNow, group: str | None, window: Window) -> Charts:
    return Charts([], "No history")


async def sparks(watch: Watch, fleet: Fleet) -> Mapping[tuple[str, str], str]:
    return {}
