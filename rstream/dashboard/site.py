"""What all pages share: the look at Redis, the templates, who asks; and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from rstream.app import RStream
from rstream.dashboard import words
from rstream.dashboard.auth import Caller, Keys
from rstream.dashboard.live import Fleet, StreamNow, Watch
from rstream.dashboard.replays import Replays
from rstream.errors import RStreamError, StoreError, StoreRefused, UnknownStream
from rstream.store.stats import GroupStats

log = logging.getLogger("rstream.dashboard")

Endpoint = Callable[[Request], Awaitable[Response]]


class Site:
    """app: with a short `publish_timeout`, for nobody waits for a page for half a minute."""

    def __init__(self, app: RStream, keys: Keys, watch: Watch | None = None) -> None:
        self.app, self.keys = app, keys
        self.watch = watch or Watch(app)
        self.replays = Replays()
        self._pages = Environment(
            loader=PackageLoader("rstream.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            enable_async=False,
        )
        filters = (words.age, words.count, words.size, words.rate, words.moment, words.iso, words.place)
        self._pages.filters |= {each.__name__: each for each in filters}
        self._pages.filters |= {"finger": words.fingerprint, "kind_of": words.kind_of}
        self._pages.globals |= {"several": words.several}

    def page(self, request: Request, name: str, status: int = 200, *, live: bool = False, **told: Any) -> Response:
        """A page by its template. live: it keeps itself fresh."""
        caller = request.scope.get("caller")
        told |= {
            "path": request.scope["path"],
            "query": request.query_params,
            "caller": caller,
            "csrf": self.keys.form_token(caller) if isinstance(caller, Caller) else "",
            "where": self.app.endpoint.label,
            "namespace": self.app.settings.namespace,
            "open": self.keys.open is not None,
            "layout": "fragment.html" if "x-live" in request.headers else "base.html",
            "live": live,
            "running": self.replays.running,
        }
        return HTMLResponse(self._pages.get_template(name).render(told), status)

    def problem(self, request: Request, status: int, title: str, text: str) -> Response:
        if "x-live" in request.headers:
            return PlainTextResponse(text, status)
        again = status == 503
        return self.page(request, "problem.html", status, live=again, title=title, text=text, again=again)

    def safely(self, endpoint: Endpoint) -> Endpoint:
        """What is raised becomes a page that says so: Redis that is away (503), what cannot be done (400)."""

        async def answered(request: Request) -> Response:
            try:
                return await endpoint(request)
            except HTTPException as error:
                title = "Not here" if error.status_code == 404 else "No"
                return self.problem(request, error.status_code, title, error.detail)
            except UnknownStream as error:
                return self.problem(request, 404, "Not here", _line(error))
            except StoreRefused as error:
                rights = "`rstream acl dashboard` prints the rights to look, `rstream acl admin` those to act"
                return self.problem(request, 403, "Redis refuses that", f"{_line(error)}. {rights}")
            except StoreError as error:
                return self.problem(request, 503, "Redis does not answer as it should", _line(error))
            except RStreamError as error:
                return self.problem(request, 400, "That cannot be done", _line(error))

        return answered

    # -- what a path names --------------------------------------------------------------------------------------

    async def stream(self, request: Request) -> tuple[Fleet, StreamNow]:
        """Raises `HTTPException` where there is no such stream."""
        fleet = await self.watch.fleet()
        name, namespace = request.path_params["stream"], self.app.settings.namespace
        found = fleet.streams.get(name)
        if found is None:
            raise HTTPException(404, f"There is no stream {name!r} in namespace {namespace!r}")
        return fleet, found

    async def group(self, request: Request) -> tuple[Fleet, StreamNow, GroupStats]:
        """Raises `HTTPException` where there is no such stream or group."""
        fleet, stream = await self.stream(request)
        found = stream.group(request.path_params["group"])
        if found is None:
            raise HTTPException(404, f"No group {request.path_params['group']!r} reads stream {stream.name!r}")
        return fleet, stream, found


def _line(error: RStreamError) -> str:
    return " ".join(str(error).split())
