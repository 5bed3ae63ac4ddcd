"""URLs of a Redis, taken apart. Nothing here connects, and no message holds a password.

redis-py's parser reads each host with its user and options; what it does not know (several hosts, a master's name) is
read here. redis-py is imported late, because importing it takes as long as importing all the rest of rstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

from rstream.errors import ConfigError

Address = tuple[str, int]
"""Host and port."""

Transport = Literal["tcp", "tls", "unix"]
Form = Literal["server", "sentinel", "cluster"]

CONNECTIONS: Mapping[Transport, str] = {
    "tcp": "Connection",
    "tls": "SSLConnection",
    "unix": "UnixDomainSocketConnection",
}
"""redis-py's classes, in `redis.connection` and in `redis.asyncio.connection`."""

COMMAND_TIMEOUT = 5.0
"""Seconds to wait for a reply before the connection counts as dead; `?socket_timeout=` in the URL overrides it."""

_SCHEMES: Mapping[str, tuple[Transport, Form]] = {
    "redis": ("tcp", "server"),
    "rediss": ("tls", "server"),
    "unix": ("unix", "server"),
    "redis+sentinel": ("tcp", "sentinel"),
    "rediss+sentinel": ("tls", "sentinel"),
    "redis+cluster": ("tcp", "cluster"),
    "rediss+cluster": ("tls", "cluster"),
}
_PORTS = {"sentinel": 26379, "cluster": 6379}
_HELP = (
    "a URL is redis://HOST:PORT/DB, rediss://…, unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB, "
    "redis+cluster://HOST:PORT,HOST:PORT, or embedded:DIR for a server that rstream starts"
)
_UNREADABLE = "its host or port cannot be read (in a password, / ? # : @ [ are written %2F %3F %23 %3A %40 %5B)"
_NO_PORT = re.compile(r"[^/?#\[]*:(?!\d*(?:[,/?#]|$))")
"""Of a URL without an @: what follows the : may be the password of a user, with no host behind it."""

_OF_POOLS = ("connection_class", "max_connections", "timeout", "decode_responses")
"""What redis-py's clients and pools take from a URL, and we do not have."""


class _Unusable(ValueError):
    """Its text may be told."""


@dataclass(frozen=True, slots=True)
class Url:
    """What a URL says. options: for redis-py's connections · seeds: sentinels, or nodes of a cluster · master: the
    name that the sentinels know it by · credentials: of the sentinels.
    """

    form: Form
    transport: Transport
    options: dict[str, Any]
    seeds: tuple[Address, ...] = ()
    master: str = ""
    credentials: dict[str, Any] = field(default_factory=dict)


def label(text: str) -> str:
    """A URL for messages: without user, password and options."""
    # By hand: of a password with an unquoted / ? # or @, urlsplit takes a part for host, port or path.
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    user, at, place = rest.rpartition("@")
    if re.search("[?#]", user) or re.search("[^a-z+]", scheme) or (not at and _NO_PORT.match(place)):
        place = "…"
    if scheme and not scheme.isalpha() and scheme not in _SCHEMES:
        scheme = "…"
    return scheme + separator + place.partition("?")[0].partition("#")[0]


def read(text: str) -> Url:
    """Raises `ConfigError`."""
    scheme, separator, rest = text.partition("://")
    if scheme not in _SCHEMES or not separator:
        raise ConfigError(f"{label(text)!r} is no URL of a Redis: {_HELP}")
    transport, form = _SCHEMES[scheme]
    try:
        url = _one(transport, text, rest) if form == "server" else _several(form, transport, scheme, rest)
        _check_options(url, text)
    except ValueError as error:
        # urllib quotes what it cannot read, which may be half a password.
        tellable = isinstance(error, _Unusable) or "connection URL" in str(error)
        raise ConfigError(
            f"{label(text)!r} cannot be used: {str(error) if tellable else _UNREADABLE}; {_HELP}"
        ) from None
    return url


def _one(transport: Transport, text: str, rest: str) -> Url:
    database = rest.rpartition("@")[2].partition("?")[0].partition("/")[2]
    if transport != "unix":
        _number(database.strip("/"))
    return Url("server", transport, _options(text))


def _several(form: Form, transport: Transport, scheme: str, rest: str) -> Url:
    plain = scheme.partition("+")[0]
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    tail, _, fragment = rest[len(place) :].partition("#")
    path, _, query = tail.partition("?")
    if "@" in path + fragment:
        raise _Unusable(_UNREADABLE)
    if query:
        parse_qs(query, strict_parsing=True)  # what is no option may be the rest of a password
    user, at, hosts = place.rpartition("@")
    seeds = []
    for host in hosts.split(","):
        options = _options(f"{plain}://{user}{at}{host}?{query}")
        if "host" not in options:
            raise _Unusable("it lacks a host")
        seeds.append((options.pop("host"), options.pop("port", _PORTS[form])))
    if form == "cluster":
        if path.strip("/") not in ("", "0") or options.pop("db", 0):
            raise _Unusable("a cluster has no numbered databases")
        return Url(form, transport, options, tuple(seeds))
    return _watched(transport, options, tuple(seeds), path)


def _watched(transport: Transport, options: dict[str, Any], seeds: tuple[Address, ...], path: str) -> Url:
    name, _, database = path.removeprefix("/").partition("/")
    if not name:
        raise _Unusable("it lacks the name by which the sentinels know the master")
    if number := _number(database.strip("/")):
        options.setdefault("db", number)
    told = {key: options.pop(f"sentinel_{key}", None) for key in ("username", "password")}
    return Url("sentinel", transport, options, seeds, unquote(name), {k: v for k, v in told.items() if v})


def _number(database: str) -> int:
    if database and not database.isdecimal():
        raise _Unusable("its database is no number")
    return int(database or 0)


def _options(text: str) -> dict[str, Any]:
    """Of a URL that redis-py knows. Raises `ValueError`."""
    from redis.asyncio.connection import parse_url

    options: dict[str, Any] = dict(parse_url(text))
    if "path" not in options:
        options.setdefault("socket_keepalive", True)
    for name in _OF_POOLS:
        options.pop(name, None)
    options.setdefault("socket_timeout", COMMAND_TIMEOUT)
    options.setdefault("socket_connect_timeout", options["socket_timeout"])
    # driver_info=None saves two commands a connection; RESP2 gives the same plain lists on every server.
    return options | {"protocol": 2, "driver_info": None, "client_name": "rstream"}


def _check_options(url: Url, text: str) -> None:
    from redis import connection as kinds

    try:
        getattr(kinds, CONNECTIONS[url.transport])(**url.options)  # connects nothing yet
    except TypeError as error:
        # After a ? with an @ behind it may be a password that was not quoted.
        named = re.search(r"'\w+'", str(error))
        name = "it" if "@" in text.partition("?")[2] or named is None else named[0]
        raise _Unusable(f"{name} is no option of a connection URL") from None
