"""Where Redis is, and what its errors mean. Nothing here retries: `link.py` does.

redis-py's own retries stay off: a retried XADD adds twice, a retried XREADGROUP strands entries. It is imported
late, because importing it takes as long as importing all the rest of rstream.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rstream.errors import (
    GroupMissing,
    MemoryFull,
    ServerTooOld,
    ShardLimited,
    ShardSealed,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StreamFull,
)
from rstream.store.scripts import Call
from rstream.store.sentinel import SentinelReport, Sentinels
from rstream.store.url import COMMAND_TIMEOUT, Address, Transport, Url, label, read, words

if TYPE_CHECKING:
    from rstream.store.embedded import Embedded

log = logging.getLogger("rstream")

_DENIED = re.compile(r"no permissions|ACL failure|user executing the script can't", re.IGNORECASE)
"""redis-py cuts the code off some of these, and servers word them differently."""

GREETING: tuple[Call, ...] = (("INFO", "server"), ("INFO", "memory"))

_ROLE: tuple[Call, ...] = (("ROLE",),)
_MISSING = ("NOGROUP ", "UNBLOCKED ", "ERR no such key", "no such key")
_DEPOSED = {"READONLY", "MASTERDOWN", "LOADING"}
_DEPOSED_TEXTS = ("UNBLOCKED force", "WAIT cannot be used with replica")
"""What a server says that is no master any more, or not yet again."""
_UNREADY = _DEPOSED | {"CLUSTERDOWN", "BUSY", "FAILOVER", "NOREPLICAS", "MISCONF", "NOSCRIPT"}
_REDIRECTIONS = {"MOVED", "ASK"}
_IS_IT = "is it running, and is this its address?"


class Endpoint:
    """One Redis, by URL: a server, what Sentinels watch, or a cluster; `embedded:DIR` starts a server (once) when
    first connected to.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url or "embedded:"
        self.embedded: Embedded | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self.reconnects = 0
        """Connections that were made for others that had broken."""
        self._read: Url | None = None if self.url.startswith("embedded:") else read(self.url)
        self._sentinels: Sentinels | None = None
        if self._read is not None and self._read.form == "sentinel":
            self._sentinels = Sentinels(self._read, self.label)

    def reconnected(self) -> None:
        with self._lock:  # they are made by several threads
            self.reconnects += 1

    @property
    def label(self) -> str:
        """The URL for messages: without user, password and options."""
        if self._read is None:
            return f"embedded:{self.embedded.directory}" if self.embedded else self.url
        return label(self.url)

    @property
    def clustered(self) -> bool:
        return self._read is not None and self._read.form == "cluster"

    @property
    def watched(self) -> bool:
        """Whether sentinels say where the server is: every time, it may be another one."""
        return self._sentinels is not None

    def sentinel_reports(self) -> list[SentinelReport]:
        """What each sentinel says of the master. Blocks; empty where none watch."""
        return [] if self._sentinels is None else self._sentinels.reports()

    @property
    def seeds(self) -> tuple[Address, ...]:
        """The nodes of a cluster that the URL names."""
        return self._read.seeds if self._read is not None else ()

    @property
    def transport(self) -> Transport:
        return "unix" if self._read is None else self._read.transport

    @property
    def patience(self) -> float:
        """Seconds to wait for a reply."""
        return COMMAND_TIMEOUT if self._read is None else float(self._read.options["socket_timeout"])

    def kwargs(self, address: Address | None = None) -> dict[str, Any]:
        """What redis-py's connection classes want. address: of a node of a cluster.

        Where the target is an embedded server, it runs afterwards; where sentinels know it, they are asked. Either
        may block for a moment, and the answer may not hold for long: a link asks anew when it could not connect.
        """
        if self._read is None:
            return read(f"unix://{quote(str(self._attached().socket))}").options
        if self._sentinels is not None:
            address = self._sentinels.master()
        elif self.clustered and address is None:
            address = self.seeds[0]
        return self._read.options | ({} if address is None else {"host": address[0], "port": address[1]})

    def _attached(self) -> Embedded:
        from rstream.store.embedded import attach

        with self._lock:
            before, self.embedded = self.embedded, attach(self.url.removeprefix("embedded:") or None)
            if before is not None:
                before.close()
            return self.embedded

    def close(self) -> None:
        """Let go of the embedded server, if there is one. Idempotent."""
        with self._lock:
            if self.embedded is not None:
                self.embedded.close()
                self.embedded = None

    # -- what its answers mean

    def unavailable(
        self, error: BaseException | str, *, sent: bool = False, at: Address | None = None, hint: str = _IS_IT
    ) -> StoreUnavailable:
        """The error for a Redis that does not answer; `sent`: the command may have reached it; at: which node."""
        why = words(error).rstrip(".") or type(error).__name__
        node = "" if at is None else f"{at[0]}:{at[1]}"
        told = why if node in why else f"{node}: {why}"
        result = StoreUnavailable(f"Redis at {self.label} does not answer: {told} ({hint})")
        result.sent = sent
        return result

    def unconfirmed(self, confirmed: int, replicas: int, ms: int) -> StoreUnavailable:
        """The error for a write that was applied, and that too few replicas have."""
        return StoreUnavailable(
            f"Redis at {self.label}: only {confirmed} of {replicas} replicas confirmed the write within {ms} ms "
            "(are that many connected, and can they keep up?)"
        )

    def refused(self, error: BaseException) -> StoreRefused:
        why = words(error).rstrip(".")
        if _code(error) == "NOPERM" or _DENIED.search(why):
            told = "what this user lacks: rstream doctor; what its work needs: rstream acl --help"
            refused = StoreRefused(f"Redis at {self.label} refused: {why} ({told})")
            refused.denied = True
            return refused
        return StoreRefused(f"Redis at {self.label} refused: {why}. Check user, password and rights in the URL")

    def reply_error(self, error: BaseException) -> StoreError:
        """What an error reply means to us."""
        code, text = _code(error), words(error)
        if code == "OOM":
            return MemoryFull(
                f"Redis at {self.label} is at maxmemory and refused the write: nothing was written. "
                "Raise maxmemory, or trim"
            )
        if code == "TRYAGAIN":
            return StoreUnavailable(
                f"Redis at {self.label} is moving a slot to another node, and of the keys that one call needs some are "
                f"still on their way: {text}"
            )
        if code in _UNREADY or text.startswith(_DEPOSED_TEXTS):
            return self.unavailable(text)
        if text.startswith("SEALED ") or "exhausted the last possible ID" in text:
            return ShardSealed(f"a shard takes no entries, its stream was resharded: {text}")
        if text.startswith("FULL "):
            return StreamFull(f"a shard is full of what is not processed: {text.removeprefix('FULL ')}")
        if text.startswith("LIMITED "):
            return ShardLimited(f"a shard has limits: {text.removeprefix('LIMITED ')}")
        if text.startswith(_MISSING):
            return GroupMissing(f"a shard or group is gone from Redis at {self.label}: {text}")
        if code in _REDIRECTIONS:
            return StoreRefused(f"Redis at {self.label} is a node of a cluster: its URL starts with redis+cluster://")
        if "cluster support disabled" in text:
            return StoreRefused(f"Redis at {self.label} is no cluster: its URL starts with redis:// (or rediss://)")
        return self.refused(error)

    def meanings(self, replies: list[Any]) -> list[Any]:
        """The same replies, errors as what they mean to us."""
        return [self.reply_error(reply) if isinstance(reply, Exception) else reply for reply in replies]

    # -- a new connection

    def greeting(self, *, known: bool) -> Sequence[Call]:
        """What is asked first on a new connection; `known`: not to a server of this link for the first time."""
        role = () if self._sentinels is None else _ROLE
        return role if known else (*role, *GREETING)

    def check_greeting(self, replies: list[Any]) -> None:
        """Judge the replies to `greeting()`. Raises `StoreError`."""
        if self._sentinels is not None:
            role, *replies = replies
            if isinstance(role, Exception):
                raise self.reply_error(role)
            if role[0] != b"master":
                raise self.unavailable(
                    "the server that the sentinels call master is a replica", hint="a failover seems to be under way"
                )
        if replies:
            self.check_server(replies)

    def check_server(self, replies: list[Any]) -> None:
        """Judge the replies to GREETING. Raises `ServerTooOld`; warns of an eviction policy that deletes."""
        info: dict[str, str] = {}
        for reply in replies:
            if isinstance(reply, bytes):
                info |= told_by(reply)
        self._check_version(info.get("redis_version", ""))
        policy = info.get("maxmemory_policy", "noeviction")
        if (victims := evicted_by(policy)) and policy not in self._warned:
            self._warned.add(policy)
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


def told_by(info: bytes) -> dict[str, str]:
    """A reply to INFO, by name."""
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def evicted_by(policy: str) -> str:
    """What of ours an eviction policy may delete; "" = nothing."""
    if policy == "noeviction":
        return ""
    return "whole streams" if policy.startswith("allkeys") else "leases, and with them order and fences"


def deposed(error: BaseException) -> bool:
    """Whether an error reply says that who sent it is no master (any more, or again)."""
    return _code(error) in _DEPOSED or str(error).startswith(_DEPOSED_TEXTS)


def _code(error: BaseException) -> str:
    # redis-py cuts the code of those errors that it has a class for off the text.
    code: str | None = getattr(error, "status_code", None)
    return code or str(error).partition(" ")[0]
