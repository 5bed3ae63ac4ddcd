"""A group with what is pending of it, and one entry as every group stands to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rstream import operate
from rstream.dashboard.charts import Window, charts
from rstream.dashboard.contents import MOST, Contents, text_of
from rstream.dashboard.live import StreamNow
from rstream.dashboard.site import Site
from rstream.dashboard.view import STATES, row_of
from rstream.errors import PositionError, UnknownEntry
from rstream.event import EntryId
from rstream.operate import Pending, PendingPage
from rstream.store.keys import ARCHIVE

SHOWN = 50
"""Pending entries on one page."""

VERDICTS = {
    "cancelled": "cancelled",
    "settled": "was settled before",
    "unread": "no worker was given it yet",
    "gone": "its shard or group is gone",
}


async def group_page(site: Site, request: Request, *, reveal: bool) -> Response:
    """reveal: with keys and checkpoints."""
    fleet, stream, group = await site.group(request)
    opened, window = site.watch.opened(stream), Window.of(request.query_params, fleet.now)

    after = EntryId.parse(behind) if (behind := request.query_params.get("after", "").strip()) else None

    async def look() -> PendingPage:
        return await operate.pending(opened, group.name, limit=SHOWN, after=after)

    page = PendingPage([], False)
    if group.name != ARCHIVE and group.pending:
        page = await site.watch.shared.get(("pending", stream.name, group.name, after), look)
    plots = await charts(site.watch, stream, group.name, window)
    return site.page(
        request, "group.html", live=not reveal, fleet=fleet, stream=stream, row=row_of(fleet, stream, group),
        lost=stream.lost(group.name), pending=page.entries, more=page.more, after=after, states=STATES, plots=plots,
        window=window, reveal=reveal,
    )  # fmt: skip


async def page(site: Site, request: Request, *, reveal: bool) -> Response:
    """One entry. reveal: with its event, key and headers."""
    fleet, stream = await site.stream(request)
    try:
        shown = await _shown(site, stream, request.path_params["id"], reveal)
    except (UnknownEntry, PositionError) as error:
        raise HTTPException(404, str(error)) from None
    contents = None
    if reveal:
        text = "" if shown.event is None else json.dumps(shown.event, indent=2, ensure_ascii=False)
        fields = {text_of(n): text_of(v)[:MOST] for n, v in shown.fields.items()} if shown.event is None else {}
        contents = Contents(
            shown.key, shown.event_id or "", shown.headers, text[:MOST], shown.problem or "", fields, len(text) > MOST
        )
    return site.page(
        request,
        "entry.html",
        live=not reveal,
        fleet=fleet,
        stream=stream,
        shown=shown,
        contents=contents,
        states=STATES,
    )


async def _shown(site: Site, stream: StreamNow, id: str, reveal: bool) -> operate.Shown:
    def look() -> Awaitable[operate.Shown]:
        return operate.show(site.watch.opened(stream), id, payload=reveal)

    return await (look() if reveal else site.watch.shared.get(("entry", stream.name, id), look))


def told_of(ids: Sequence[EntryId], found: Mapping[EntryId, Pending]) -> list[tuple[EntryId, str]]:
    """What these entries are to a group, for a plan."""
    told = []
    for id in ids:
        one = found.get(id)
        who = "" if one is None or one.worker is None else f", {one.worker}"
        told.append((id, f"{STATES[one.state]}{who}, attempt {one.attempt}" if one else "not pending any more"))
    return told
