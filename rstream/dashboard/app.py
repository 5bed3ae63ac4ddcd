"""The dashboard as an ASGI app: what is where, and who may."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from rstream.app import RStream
from rstream.dashboard.actions import Actions
from rstream.dashboard.auth import LOOPBACK, Keys, Role, is_loopback
from rstream.dashboard.guard import Acting, Guard, acting
from rstream.dashboard.letters import LetterActions
from rstream.dashboard.pages import Pages
from rstream.dashboard.site import Endpoint, Site
from rstream.errors import ConfigError


class Static(StaticFiles):
    """Files of the wheel: a browser asks whether they are still the same."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def check(host: str, operator: str | None, viewer: str | None) -> None:
    """Refuse to be open to others. Raises `ConfigError`."""
    if not is_loopback(host) and not (operator or viewer):
        raise ConfigError(
            f"the dashboard would be open to everybody who reaches {host}: set RSTREAM_DASHBOARD_TOKEN to the token of "
            "operators (RSTREAM_DASHBOARD_VIEWER_TOKEN: of those who only look), such as `openssl rand -hex 20` makes "
            "one, or leave --host out and come through an SSH tunnel"
        )


def make_app(
    app: RStream,
    *,
    host: str = "127.0.0.1",
    operator: str | None = None,
    viewer: str | None = None,
    open: Role = "operator",
    hosts: Iterable[str] = (),
) -> Guard:
    """host: that it listens at · operator, viewer: tokens; with neither, everybody who reaches a loopback address has
    the role `open` · hosts: further names that it may be called by there. Raises `ConfigError`.
    """
    check(host, operator, viewer)
    keys = Keys(operator, viewer, open, os.urandom(32))
    names = frozenset((*LOOPBACK, host, f"[{host}]", *(name.lower() for name in hosts)))
    site = Site(app, keys)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with app:
            yield
            await site.replays.aclose()

    made = Starlette(
        routes=routes(site),
        exception_handlers={404: _not_found(site), 405: _not_found(site)},
        lifespan=lifespan,
    )
    return Guard(made, keys, names if is_loopback(host) else None)


def routes(site: Site) -> list[Route | Mount]:
    pages, actions, letters = Pages(site), Actions(site), LetterActions(site)
    group = "/s/{stream}/g/{group}"

    def get(path: str, page: Endpoint) -> Route:
        return Route(path, site.safely(page), methods=["GET"])

    def post(path: str, act: Acting, *, role_needed: bool = True) -> Route:
        return Route(path, site.safely(acting(site.keys, act, role_needed=role_needed)), methods=["POST"])

    return [
        get("/", pages.overview),
        get("/workers", pages.workers),
        get("/find", pages.find),
        get("/s/{stream}", pages.stream),
        get("/s/{stream}/e/{id}", pages.entry),
        post("/s/{stream}/e/{id}", actions.reveal_entry),
        get(group, pages.group),
        post(group + "/keys", actions.reveal_keys),
        post(group + "/pause", actions.pause),
        post(group + "/resume", actions.resume),
        post(group + "/cancel", actions.cancel),
        get(group + "/dead", pages.dead),
        post(group + "/dead", letters.reveal_list),
        post(group + "/dead/plan", letters.plan),
        post(group + "/dead/do", letters.do),
        get(group + "/dead/{letter}", pages.letter),
        post(group + "/dead/{letter}", letters.reveal),
        get("/s/{stream}/replay", pages.replay),
        post("/s/{stream}/replay/plan", actions.plan_replay),
        post("/s/{stream}/replay/run", actions.run_replay),
        get("/replays", pages.replays),
        post("/replays/{number}/stop", actions.stop_replay),
        get("/login", actions.login_page),
        Route("/login", site.safely(actions.login), methods=["POST"]),
        post("/logout", actions.logout, role_needed=False),
        get("/healthz", pages.healthz),
        get("/readyz", pages.readyz),
        Mount("/static", Static(packages=[("rstream.dashboard", "static")])),
    ]


def _not_found(site: Site) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        return site.problem(request, 404, "Not here", "There is no such page")

    return answer
