"""Where Redis is, and what its errors mean. Nothing here retries: `link.py` does.

redis-py's own retries stay off: a retried XADD adds twice, a retried XREADGROUP strands entries. It is imported
late, because importing it takes as long as importing all the rest of rstream.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rstream.errors import (
    ConfigError,
    GroupMissing,
    MemoryFull,
    ServerTooOld,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from rstream.store.scripts import Call

if TYPE_CHECKING:
    from rstream.store.embedded import Embedded

log = logging.getLogger("rstream")

COMMAND_TIMEOUT = 5.0
"""Seconds to wait for a reply before the connection counts as dead; `?socket_timeout=` in the URL overrides it."""

GREETING: tuple[Call, ...] = (("INFO", "server"), ("INFO", "memory"))

_HELP = "a URL is redis://HOST:PORT/DB, rediss://…, unix:///PATH, or embedded:DIR for a server that rstream starts"
_QUOTE = "in a password, / ? # : @ [ are written %2F %3F %23 %3A %40 %5B"
_OF_POOLS = ("connection_class", "max_connections", "timeout", "decode_responses")
"""What redis-py's clients and pools take from a URL, and we do not have."""
_MISSING = ("NOGROUP ", "UNBLOCKED ", "ERR no such key", "no such key")
_UNREADY = (
    "LOADING ",
    "READONLY ",
    "MASTERDOWN ",
    "CLUSTERDOWN ",
    "TRYAGAIN ",
    "BUSY ",
    "FAILOVER ",
    "NOREPLICAS ",
    "MISCONF ",
)


class Endpoint:
    """One Redis, by URL; `embedded:DIR` starts a server (once) when first connected to."""

    def __init__(self, url: str | None) -> None:
        self.url = url or "embedded:"
        self.embedded: Embedded | None = None
        self._lock = threading.Lock()
        self._check_url()

    def _check_url(self) -> None:
        if self.url.startswith("embedded:"):
            return
        scheme = self.url.partition("://")[0]
        if scheme not in ("redis", "rediss", "unix") or "://" not in self.url:
            raise ConfigError(f"{self.label!r} is no URL of a Redis: {_HELP}")
        database = self.url.partition("://")[2].rpartition("@")[2].partition("?")[0].partition("/")[2].strip("/")
        if scheme != "unix" and database and not database.isdecimal():
            raise ConfigError(f"{self.label!r} cannot be used: its database is no number; {_HELP}")
        try:
            self._check_options()
        except ValueError as error:
            # urllib quotes what it cannot read, which may be half a password.
            why = str(error) if "connection URL" in str(error) else f"its host or port cannot be read ({_QUOTE})"
            raise ConfigError(f"{self.label!r} cannot be used: {why}; {_HELP}") from None

    def _check_options(self) -> None:
        """Raises `ValueError`."""
        from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

        kinds: dict[str, Any] = {"tcp": Connection, "tls": SSLConnection, "unix": UnixDomainSocketConnection}
        try:
            kinds[self.transport](**self.kwargs())  # connects nothing yet
        except TypeError as error:
            # After a ? with an @ behind it may be a password that was not quoted.
            named = re.search(r"'\w+'", str(error))
            name = "it" if "@" in self.url.partition("?")[2] or named is None else named[0]
            raise ValueError(f"{name} is no option of a connection URL") from None

    @property
    def label(self) -> str:
        """The URL for messages: without user, password and options."""
        if self.url.startswith("embedded:"):
            return f"embedded:{self.embedded.directory}" if self.embedded else self.url
        # By hand: of a password with an unquoted / ? # or @, urlsplit takes a part for host, port or path.
        scheme, separator, rest = self.url.rpartition("://")
        user, _, place = rest.rpartition("@")
        if "?" in user or "#" in user:
            place = "…"
        if scheme and not scheme.isalpha():
            scheme = "…"
        return scheme + separator + place.partition("?")[0].partition("#")[0]

    def kwargs(self) -> dict[str, Any]:
        """What redis-py's connection classes want. Where the target is an embedded server, it runs afterwards (this
        may block for a moment), so a link asks anew when it could not connect.
        """
        from redis.asyncio.connection import parse_url

        kwargs: dict[str, Any] = dict(parse_url(self._real_url()))
        if "path" not in kwargs:
            kwargs.setdefault("socket_keepalive", True)
        for name in _OF_POOLS:
            kwargs.pop(name, None)
        kwargs.setdefault("socket_timeout", COMMAND_TIMEOUT)
        kwargs.setdefault("socket_connect_timeout", kwargs["socket_timeout"])
        # driver_info=None saves two commands a connection; RESP2 gives the same plain lists on every server.
        return kwargs | {"protocol": 2, "driver_info": None, "client_name": "rstream"}

    def _real_url(self) -> str:
        if not self.url.startswith("embedded:"):
            return self.url
        from rstream.store.embedded import attach

        with self._lock:
            before, self.embedded = self.embedded, attach(self.url.removeprefix("embedded:") or None)
            if before is not None:
                before.close()
            return f"unix://{quote(str(self.embedded.socket))}"

    @property
    def transport(self) -> str:
        """tcp, tls or unix."""
        scheme = self.url.partition(":")[0]
        return {"redis": "tcp", "rediss": "tls"}.get(scheme, "unix")

    @property
    def clustered(self) -> bool:
        """Whether keys of different slots may lie on different servers."""
        return "+cluster:" in self.url.partition("//")[0]

    def close(self) -> None:
        """Let go of the embedded server, if there is one. Idempotent."""
        with self._lock:
            if self.embedded is not None:
                self.embedded.close()
                self.embedded = None

    def unavailable(self, error: BaseException | str, *, sent: bool = False) -> StoreUnavailable:
        """The error for a Redis that does not answer; `sent`: the command may have reached it."""
        why = str(error).rstrip(".") or type(error).__name__
        result = StoreUnavailable(
            f"Redis at {self.label} does not answer: {why} (is it running, and is this its address?)"
        )
        result.sent = sent
        return result

    def refused(self, error: BaseException) -> StoreRefused:
        why = str(error).rstrip(".")
        return StoreRefused(f"Redis at {self.label} refused: {why}. Check user, password and rights in the URL")

    def reply_error(self, error: BaseException) -> StoreError:
        """What an error reply means to us."""
        from redis import exceptions as redis_errors

        text = str(error)
        if isinstance(error, redis_errors.OutOfMemoryError) or text.startswith("OOM"):
            return MemoryFull(
                f"Redis at {self.label} is at maxmemory and refused the write: nothing was written. "
                "Raise maxmemory, or trim"
            )
        if text.startswith(_MISSING):
            return GroupMissing(f"a shard or group is gone from Redis at {self.label}: {text}")
        unready = (redis_errors.BusyLoadingError, redis_errors.ReadOnlyError, redis_errors.TryAgainError)
        if isinstance(error, unready) or text.startswith(_UNREADY):
            return self.unavailable(text)
        return self.refused(error)

    def check_server(self, replies: list[Any]) -> None:
        """Judge the replies to GREETING. Raises `ServerTooOld`; warns of an eviction policy that deletes."""
        info: dict[str, str] = {}
        for reply in replies:
            if isinstance(reply, bytes):
                lines = reply.decode(errors="replace").splitlines()
                info.update(line.split(":", 1) for line in lines if ":" in line)  # type: ignore[misc]
        self._check_version(info.get("redis_version", ""))
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            victims = "whole streams" if policy.startswith("allkeys") else "leases, and with them order and fences"
            log.warning(
                "Redis at %s has maxmemory-policy %s: when memory is full it may delete %s. Set it to noeviction",
                self.label, policy, victims,
            )  # fmt: skip

    def _check_version(self, version: str) -> None:
        with contextlib.suppress(ValueError):
            if int(version.partition(".")[0]) < 7:
                raise ServerTooOld(
                    f"Redis at {self.label} is version {version}: rstream needs Redis 7.0 or newer, or any Valkey"
                )
