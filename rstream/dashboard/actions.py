"""What operators do from the dashboard. Everything that changes something was shown as a plan before, where it could
surprise, and is one line in the log: who, from where, what; never what an event holds.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rstream import operate
from rstream.dashboard import entries
from rstream.dashboard.auth import local_path
from rstream.dashboard.guard import COOKIE, Form, caller_of, form_of, log, note
from rstream.dashboard.site import Site
from rstream.event import EntryId
from rstream.replay import Fork, Giving
from rstream.replay.result import ReplayPlan

PLAN_SECONDS = 20.0
"""How long a plan may take: it reads the window."""


class Actions:
    """A method a form."""

    def __init__(self, site: Site) -> None:
        self.site = site

    # -- a session ----------------------------------------------------------------------------------------------

    async def login_page(self, request: Request) -> Response:
        if self.site.keys.open is not None or request.scope.get("caller") is not None:
            return RedirectResponse(local_path(request.query_params.get("next", "/")), 303)
        return self.site.page(request, "login.html", next=request.query_params.get("next", "/"), wrong=False)

    async def login(self, request: Request) -> Response:
        form = await form_of(request)
        role = self.site.keys.role_of(form.one("token"))
        client = request.client.host if request.client else "a socket"
        if role is None:
            log.warning("login refused: wrong token from %s", client)
            return self.site.page(request, "login.html", 403, next=form.one("next"), wrong=True)
        log.info("%s %s logged in", role, client)
        answer = RedirectResponse(local_path(form.one("next") or "/"), 303)
        session = self.site.keys.session(role, time.time(), secrets.token_urlsafe(12))
        secure = request.scope["scheme"] == "https"
        answer.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    async def logout(self, request: Request, form: Form) -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    # -- a group ------------------------------------------------------------------------------------------------

    async def pause(self, request: Request, form: Form) -> Response:
        stream, group, back = await self._of(request)
        await operate.pause(stream, group, why=form.one("why")[:200], by=f"dashboard {caller_of(request).role}")
        return self._done(request, "paused", back, stream=stream.name, group=group)

    async def resume(self, request: Request, form: Form) -> Response:
        stream, group, back = await self._of(request)
        await operate.resume(stream, group)
        return self._done(request, "resumed", back, stream=stream.name, group=group)

    async def cancel(self, request: Request, form: Form) -> Response:
        """First what would be cancelled; with `sure`, it is."""
        stream, group, back = await self._of(request)
        ids = [EntryId.parse(id) for id in dict.fromkeys(form.get("id", []))]
        if not ids:
            raise HTTPException(400, "No entry is picked: tick some")
        told = {"stream": stream, "group": group, "back": back}
        if not form.one("sure"):
            held = await self.site.watch.held(await stream.layout(fresh=True), group, ids)
            return self.site.page(request, "cancel.html", **told, held=entries.told_of(ids, held))
        done = await operate.cancel(stream, group, ids)
        note(request, "cancelled", stream=stream.name, group=group, ids=",".join(map(str, ids)))
        self.site.watch.shared.forget()
        return self.site.page(request, "cancelled.html", **told, done=done, verdicts=entries.VERDICTS)

    async def _of(self, request: Request) -> tuple[Any, str, str]:
        _, stream, group = await self.site.group(request)
        return self.site.watch.opened(stream), group.name, f"/s/{stream.name}/g/{group.name}"

    def _done(self, request: Request, what: str, back: str, **about: object) -> Response:
        note(request, what, **about)
        self.site.watch.shared.forget()
        return RedirectResponse(back, 303)

    # -- a replay -----------------------------------------------------------------------------------------------

    async def plan_replay(self, request: Request, form: Form) -> Response:
        """What would be given again, or caught up with; nothing is done."""
        _, stream = await self.site.stream(request)
        asked, opened = _asked(form), self.site.watch.opened(stream)
        making = Fork(opened, asked["group"], asked["from"]) if asked["way"] == "new" else _giving(opened, asked)
        try:
            async with asyncio.timeout(PLAN_SECONDS):
                plan = await making.plan()
        except TimeoutError:
            why = f"It takes more than {PLAN_SECONDS:.0f} s to count: pick a smaller window, or use `rstream replay`"
            raise HTTPException(400, why) from None
        return self.site.page(request, "plan.html", stream=stream, plan=plan, asked=_fixed(asked, plan))

    async def run_replay(self, request: Request, form: Form) -> Response:
        _, stream = await self.site.stream(request)
        asked, opened = _asked(form), self.site.watch.opened(stream)
        about = {"stream": stream.name, "group": asked["group"], "from": asked["from"], "to": asked["to"]}
        if asked["way"] == "new":
            await Fork(opened, asked["group"], asked["from"]).make()
            return self._done(request, "made a group in the past", f"/s/{stream.name}/g/{asked['group']}", **about)
        self.site.replays.start(_giving(opened, asked), asked)
        return self._done(request, "replay begun", "/replays", **about)

    async def stop_replay(self, request: Request, form: Form) -> Response:
        number = request.path_params["number"]
        self.site.replays.stop(number)
        return self._done(request, "replay stopped", "/replays", number=number)

    # -- contents -----------------------------------------------------------------------------------------------

    async def reveal_entry(self, request: Request, form: Form) -> Response:
        note(request, "revealed an entry", stream=request.path_params["stream"], id=request.path_params["id"])
        return await entries.page(self.site, request, reveal=True)

    async def reveal_keys(self, request: Request, form: Form) -> Response:
        note(request, "revealed keys", stream=request.path_params["stream"], group=request.path_params["group"])
        return await entries.group_page(self.site, request, reveal=True)


def _asked(form: Form) -> dict[str, str]:
    asked = {name: form.one(name) for name in ("way", "group", "from", "to", "key", "where", "rate")}
    if not asked["group"]:
        raise HTTPException(400, "Which group? The one that gets the entries again, or the name of a new one")
    if not asked["from"] or (asked["way"] != "new" and not asked["to"]):
        raise HTTPException(400, "From when until when? An ISO time, an id, or a span such as '2h ago'")
    return asked


def _giving(stream: Any, asked: Mapping[str, str]) -> Giving:
    where = [asked["where"]] if asked["where"] else []
    key, rate = asked["key"] or None, asked["rate"] or None
    return Giving(stream, asked["group"], asked["from"], asked["to"], key=key, where=where, rate=rate)


def _fixed(asked: Mapping[str, str], plan: ReplayPlan) -> dict[str, str]:
    """The same, by the ids that the plan has found: what is confirmed is what was shown."""
    if plan.start is None or plan.end is None:
        return dict(asked)
    return {**asked, "from": str(plan.start), "to": str(plan.end)}
