"""Looks at the fleet: all streams and groups in one write, after one that asks what there is.

Cost of a look: two Lua calls a shard, which neither change nor block anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rstream.store import layout as layouts
from rstream.store.layout import Layout
from rstream.store.link import both, together
from rstream.store.pause import are_paused
from rstream.store.stats import StreamStats, survey
from rstream.store.steps import Steps, drive
from rstream.store.totals import totals
from rstream.top.rows import Look, StreamLook

if TYPE_CHECKING:
    from rstream.app import RStream


async def look(app: RStream, only: str | None = None) -> Look:
    """only: this stream. Raises `StoreError`: a Redis that is away is not waited for."""
    return await drive(app.link, _look(app.settings.namespace, only), 0.0)


def _look(namespace: str, only: str | None) -> Steps[Look]:
    names: list[str] = [only] if only is not None else (yield layouts.names(namespace))
    found: list[Layout | None] = yield together([layouts.load(namespace, name) for name in names])
    there = [layout for layout in found if layout is not None]
    if not there:
        return Look((yield layouts.clock()))
    asked: list[Any] = yield together([both(survey(layout), totals(layout)) for layout in there])
    streams, now = {}, 0
    for layout, ((stats, groups), counted) in zip(there, asked, strict=True):
        stored: StreamStats = stats
        streams[layout.name] = StreamLook(stored.entries, groups, counted)
        now = max(now, stored.now, counted.now)
    every = [(name, group.name) for name, stream in streams.items() for group in stream.groups]
    return Look(now, streams, (yield are_paused(namespace, every)) if every else {})
