"""Who somebody is, and whether a request is their own doing: tokens, sessions, CSRF, origins, hosts. Pure.

A session is a signed cookie: role, when it ends, a nonce. It is signed with a key made of the tokens, so sessions
outlive a restart, hold on every replica, and end when a token is changed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rstream.errors import ConfigError

Role = Literal["viewer", "operator"]

MIN_TOKEN = 16
SESSION_SECONDS = 12 * 3600
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Caller:
    """Somebody with a role. ambient: the browser sends along what it is known by, so that another site could have made
    it ask, and forms need their token · nonce: of the session.
    """

    role: Role
    ambient: bool
    nonce: str = ""

    @property
    def acts(self) -> bool:
        return self.role == "operator"


class Keys:
    """operator, viewer: tokens · open: the role of everybody, where there are no tokens · secret: random bytes, that
    forms are signed with where no token does it.
    """

    def __init__(self, operator: str | None, viewer: str | None, open: Role | None, secret: bytes) -> None:
        self._tokens: dict[Role, str] = {}
        if operator is not None:
            self._tokens["operator"] = _strong(operator, "RSTREAM_DASHBOARD_TOKEN")
        if viewer is not None:
            self._tokens["viewer"] = _strong(viewer, "RSTREAM_DASHBOARD_VIEWER_TOKEN")
        if operator is not None and operator == viewer:
            raise ConfigError("the token of viewers is that of operators: then viewers may act. Make up another one")
        self.open: Role | None = None if self._tokens else open
        seed = "\0".join(self._tokens.get(role, "") for role in ("operator", "viewer")).encode() or secret
        self._key = hashlib.sha256(b"rstream dashboard\0" + seed).digest()

    def role_of(self, token: str) -> Role | None:
        """Takes as long for a wrong token as for a right one."""
        found: Role | None = None
        for role, known in self._tokens.items():
            if hmac.compare_digest(known.encode(), token.encode(errors="replace")):
                found = role
        return found

    def bearer(self, header: str) -> Caller | None:
        """By `Authorization: Bearer TOKEN`, which no browser sends by itself."""
        kind, _, token = header.partition(" ")
        role = self.role_of(token.strip()) if kind.lower() == "bearer" else None
        return Caller(role, ambient=False) if role else None

    def session(self, role: Role, now: float, nonce: str) -> str:
        """The value of a cookie."""
        told = f"{role}.{int(now) + SESSION_SECONDS}.{nonce}"
        return f"{told}.{self._sign('session', told)}"

    def caller(self, cookie: str, now: float) -> Caller | None:
        """Who this cookie was given to, while it holds; without tokens, everybody."""
        if self.open is not None:
            return Caller(self.open, ambient=True)
        told, _, signature = cookie.rpartition(".")
        role, _, rest = told.partition(".")
        until, _, nonce = rest.partition(".")
        if not hmac.compare_digest(self._sign("session", told).encode(), signature.encode(errors="replace")):
            return None
        if role not in self._tokens or int(until) <= now:
            return None
        return Caller("operator" if role == "operator" else "viewer", ambient=True, nonce=nonce)

    def form_token(self, caller: Caller) -> str:
        """What a form of this session carries; no other site can read it."""
        return self._sign("form", caller.nonce)

    def is_form_token(self, caller: Caller, given: str) -> bool:
        return hmac.compare_digest(self.form_token(caller).encode(), given.encode(errors="replace"))

    def _sign(self, what: str, text: str) -> str:
        return hmac.new(self._key, f"{what}\0{text}".encode(errors="replace"), hashlib.sha256).hexdigest()


def _strong(token: str, where: str) -> str:
    if len(token) < MIN_TOKEN or token.strip() != token:
        raise ConfigError(
            f"{where} is too weak: give at least {MIN_TOKEN} characters without blanks around them, such as those of "
            "`openssl rand -hex 20`"
        )
    return token


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or (host.startswith("127.") and host.replace(".", "").isdigit())


def host_allowed(header: str, allowed: Iterable[str]) -> bool:
    """Whether a `Host` header names one of these, whatever the port. A site whose name was pointed at 127.0.0.1 (DNS
    rebinding) comes with its own name.
    """
    name = header.lower()
    name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
    return name in allowed


def own_request(headers: Mapping[str, str], caller: Caller | None) -> bool:
    """Whether a request that changes something was made by one of our own pages, as far as its headers tell. Browsers
    send at least one of them along; who comes with a bearer token is no browser that was tricked.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in (None, "same-origin"):
        return False
    if origin is not None:
        name = origin.partition("://")[2].lower()  # of `null` there is none
        return name != "" and name == headers.get("host", "").lower()
    return site is not None or (caller is not None and not caller.ambient)


def local_path(path: str) -> str:
    """Where to go after the login: a page of ours, whatever was asked for."""
    fine = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if fine else "/"
