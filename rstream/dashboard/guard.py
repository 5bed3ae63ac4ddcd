"""What every request passes first: the host it asks for, who asks, whether it is their own doing; and the headers that
every answer gets. No page can leave it out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rstream.dashboard.auth import Caller, Keys, host_allowed, own_request

log = logging.getLogger("rstream.dashboard")

COOKIE = "rstream_dashboard"
OPEN_PATHS = ("/login", "/healthz", "/readyz")
MAX_FORM = 64 * 1024
MAX_FIELDS = 2000

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware. hosts: names that `Host` may have; None: any, because tokens are demanded."""

    def __init__(self, app: ASGIApp, keys: Keys, hosts: frozenset[str] | None) -> None:
        self._app, self._keys, self._hosts = app, keys, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(HTTPConnection(scope))
        await (refused or self._app)(scope, receive, dressed)

    def _refusal(self, connection: HTTPConnection) -> Response | None:
        # What it is routed by. Never `connection.url`: that is made of `Host`, and who asks may write a path in there.
        headers, path, method = connection.headers, connection.scope["path"], connection.scope["method"]
        if self._hosts is not None and not host_allowed(headers.get("host", ""), self._hosts):
            return _no(
                421,
                "This dashboard does not answer to that host name: open it by localhost, or start it with --allow-host",
            )
        if "authorization" in headers:
            caller = self._keys.bearer(headers["authorization"])
        else:
            caller = self._keys.caller(connection.cookies.get(COOKIE, ""), time.time())
        connection.scope["caller"] = caller
        if method not in ("GET", "HEAD") and not own_request(headers, caller):
            log.warning("refused %s %r of %s: not from a page of the dashboard", method, path, _client(connection))
            return _no(403, "Refused: this request does not come from a page of this dashboard")
        if caller is not None or path in OPEN_PATHS or path.startswith("/static/"):
            return None
        if method == "GET" and "authorization" not in headers and "x-live" not in headers:
            query = connection.scope["query_string"].decode(errors="replace")
            asked = quote(path + (f"?{query}" if query else ""))
            return RedirectResponse("/login" if path == "/" else f"/login?next={asked}", 303)
        return _no(401, "A token is needed: log in at /login, or send Authorization: Bearer TOKEN", bearer=True)


def _no(status: int, text: str, *, bearer: bool = False) -> Response:
    return PlainTextResponse(text + "\n", status, {"WWW-Authenticate": "Bearer"} if bearer else None)


def _client(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "a socket"


def caller_of(request: HTTPConnection) -> Caller:
    caller = request.scope.get("caller")
    assert isinstance(caller, Caller)
    return caller


class Form(dict[str, list[str]]):
    """What was sent: every field may be there several times."""

    def one(self, name: str) -> str:
        return (self.get(name) or [""])[0].strip()


async def form_of(request: Request) -> Form:
    """The form that was sent, of bounded size. Raises `HTTPException`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise HTTPException(413, "That is too much for a form")
    try:
        fields = parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise HTTPException(413, "That is too much for a form") from None
    form = Form()
    for name, value in fields:
        form.setdefault(name, []).append(value)
    return form


Acting = Callable[[Request, Form], Awaitable[Response]]


def acting(keys: Keys, act: Acting, *, role_needed: bool = True) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that changes or reveals something: for operators, by a form of the caller's own session."""

    async def endpoint(request: Request) -> Response:
        caller, form = caller_of(request), await form_of(request)
        if caller.ambient and not keys.is_form_token(caller, form.one("csrf")):
            log.warning("refused %r of %s %s: wrong form token", request.scope["path"], caller.role, _client(request))
            raise HTTPException(
                403, "The form is not of this session: go back, load the page again, and send it once more"
            )
        if role_needed and not caller.acts:
            log.warning("refused %r of %s %s: operators only", request.scope["path"], caller.role, _client(request))
            raise HTTPException(403, "Your token may look and not act: this takes the operator's token")
        return await act(request, form)

    return endpoint


def note(request: Request, what: str, **about: object) -> None:
    """An action, for the log: who, from where, what. Never a key or anything of an event."""
    told = (f"{name}={_on_a_line(value)}" for name, value in about.items() if value not in (None, "", ()))
    log.info("%s %s %s %s", caller_of(request).role, _client(request), what, " ".join(told))


def _on_a_line(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)
