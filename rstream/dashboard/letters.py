"""Dead letters: found by filters, shown, given back to their group or thrown away; each of it first as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rstream.dashboard.contents import Contents
from rstream.dashboard.guard import Form, caller_of, note
from rstream.dashboard.site import Site
from rstream.deadletter import DeadLetters, Filters
from rstream.errors import PositionError
from rstream.event import EntryId
from rstream.position import bound
from rstream.store import layout as layouts
from rstream.store.dead import Head

SHOWN = 100
"""Letters on one page."""

COUNTED = 10.0
"""Seconds that the numbers by reason are good for: to count, all letters are looked through."""

LEFT = 20
"""Of those that cannot be redriven, so many are named."""

REASONS = (
    *("failed", "rejected", "undecodable", "outdated", "invalid", "crashed"),
    *("undecryptable", "plaintext", "blob missing", "blob altered"),
)
FILTERS = ("reason", "since", "until", "error", "key")
TELLING = ("error", "key")
"""Filters that tell of the event: who may not see contents may not try them out either."""


def filters_of(given: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name in FILTERS if (text := given.get(name, "").strip())}


def _filters(chosen: Mapping[str, str | int]) -> Filters:
    return {**chosen}  # type: ignore[typeddict-item]


async def listed(site: Site, request: Request, given: Mapping[str, str], *, reveal: bool) -> Response:
    """The letters that match. reveal: with keys and errors."""
    fleet, stream, group = await site.group(request)
    chosen = filters_of(given)
    if not caller_of(request).acts and any(name in chosen for name in TELLING):
        raise HTTPException(403, "To filter by key or error text takes the operator's token: it tells of events")
    letters: DeadLetters[Any] = site.watch.opened(stream).dead(group.name)
    name = "dead", stream.name, group.name

    async def look() -> list[Head]:
        return [head async for head in letters.heads(**_filters({**chosen, "limit": SHOWN + 1}))]

    counts = await site.watch.shared.get(name, letters.count, COUNTED) if group.dead else {}
    found, problem = list[Head](), ""
    try:
        found = await site.watch.shared.get(("letters", *name, *chosen.items()), look) if group.dead else []
    except PositionError as error:
        problem = str(error)
    page = f"/s/{stream.name}/g/{group.name}/dead"
    return site.page(
        request, "dead.html", live=not reveal, fleet=fleet, stream=stream, group=group, letters=found[:SHOWN],
        more=len(found) > SHOWN, counts=counts, chosen=chosen, reasons=REASONS, reveal=reveal, problem=problem,
        later=f"{page}?{urlencode({**chosen, 'since': found[SHOWN].id})}" if len(found) > SHOWN else "",
        back=f"{page}?{urlencode(chosen)}",
    )  # fmt: skip


async def one(site: Site, request: Request, *, reveal: bool) -> Response:
    """One letter. reveal: with its traceback and all of its event."""
    fleet, stream, group = await site.group(request)
    letters: DeadLetters[Any] = site.watch.opened(stream).dead(group.name)
    id = _id(request.path_params["letter"])
    found = [letter async for letter in letters.read(ids=[id], limit=1)]
    if not found:
        raise HTTPException(404, f"Group {group.name} has no dead letter {id}: it was redriven or discarded")
    contents = Contents.of_letter(found[0]) if reveal else None
    return site.page(
        request, "letter.html", fleet=fleet, stream=stream, group=group, letter=found[0], contents=contents
    )


def _id(text: str) -> EntryId:
    try:
        return EntryId.parse(text)
    except PositionError as error:
        raise HTTPException(404, str(error)) from None


class LetterActions:
    """A method a form."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def reveal_list(self, request: Request, form: Form) -> Response:
        chosen = filters_of({name: form.one(name) for name in FILTERS})
        note(request, "revealed keys and errors of dead letters", **self._about(request))
        return await listed(self.site, request, chosen, reveal=True)

    async def reveal(self, request: Request, form: Form) -> Response:
        note(request, "revealed a dead letter", **self._about(request), letter=request.path_params["letter"])
        return await one(self.site, request, reveal=True)

    async def plan(self, request: Request, form: Form) -> Response:
        """What would be redriven or discarded; nothing is."""
        _, stream, group = await self.site.group(request)
        verb, chosen, ids = _verb(form), filters_of({name: form.one(name) for name in FILTERS}), form.get("id", [])
        everything = form.one("which") == "all"
        if not ids and not everything:
            raise HTTPException(400, "No letter is picked: tick some, or choose all that match")
        if everything:  # those that are there now, and not what dies until somebody has read the plan
            ids, chosen = [], resolved(chosen, await self.site.watch.run(layouts.clock()))
        done = await self._do(request, verb, chosen, ids, dry_run=True)
        return self.site.page(
            request, "deadplan.html", stream=stream, group=group, verb=verb, done=done, left=done.left[:LEFT],
            chosen=chosen, ids=ids, confirmed=False,
        )  # fmt: skip

    async def do(self, request: Request, form: Form) -> Response:
        _, stream, group = await self.site.group(request)
        verb, chosen, ids = _verb(form), filters_of({name: form.one(name) for name in FILTERS}), form.get("id", [])
        if not ids and not chosen:
            raise HTTPException(400, "No letter is picked")
        done = await self._do(request, verb, chosen, ids, dry_run=False)
        self.site.watch.shared.forget()
        told = {"filters": ",".join(chosen), "picked": len(ids), "done": done.done, "left": len(done.left)}
        note(request, f"dead letters: {verb}", **self._about(request), **told)
        return self.site.page(
            request, "deadplan.html", stream=stream, group=group, verb=verb, done=done, left=done.left[:LEFT],
            chosen=chosen, ids=ids, confirmed=True,
        )  # fmt: skip

    async def _do(self, request: Request, verb: str, chosen: Mapping[str, str], ids: list[str], dry_run: bool) -> Any:
        _, stream, group = await self.site.group(request)
        letters: DeadLetters[Any] = self.site.watch.opened(stream).dead(group.name)
        filters = _filters(chosen)
        if ids:
            filters = {"ids": ids}
        act = letters.redrive if verb == "redrive" else letters.discard
        return await act(dry_run=dry_run, **filters)

    def _about(self, request: Request) -> dict[str, str]:
        return {name: request.path_params[name] for name in ("stream", "group")}


def resolved(chosen: Mapping[str, str], now: int) -> dict[str, str]:
    """The same filters, their times as ids, none of them after now. Raises `PositionError`."""
    start, end = bound(chosen.get("since"), "start", now), bound(chosen.get("until"), "end", now)
    until = f"{end.ms}-{end.seq}" if end.ms <= now else str(now)
    since = {"since": f"{start.ms}-{start.seq}"} if "since" in chosen else {}
    return {**chosen, **since, "until": until}


def _verb(form: Form) -> Literal["redrive", "discard"]:
    with suppress(KeyError):
        return {"redrive": "redrive", "discard": "discard"}[form.one("verb")]  # type: ignore[return-value]
    raise HTTPException(400, "Neither redrive nor discard")
