"""The least rights of whoever works with a stream: one table, from which the rules of a Redis user are made. Pure.

A user's first part may only call scripts, with all keys that it has to do with; what a script then does is judged
command by command, and the parts behind it (ACL "selectors", in parentheses) say which commands go with which keys. So
a producer may add to a shard, and not to the dead letters beside it. What workers may is read out of the scripts, and
cannot lag behind them; what the suite does under these rights shows that nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from rstream.store import scripts
from rstream.store.rights import ADMIN_SCRIPTS, PLAIN, called_by

Role = Literal["producer", "worker", "dashboard", "admin"]
ROLES: tuple[Role, ...] = ("producer", "worker", "dashboard", "admin")

OF_SHARDS = {
    "entries": tuple(f":{'[0-9]' * digits}" for digits in (1, 2, 3, 4)),
    "shards": (":*",),  # the entries, and all that is kept beside them
    **{kind: (f":*:{kind}",) for kind in ("sealed", "size", "marks")},
    **{kind: (f":*:{kind}:*",) for kind in ("seq", "alive", "dead", "emitted")},
}
"""Keys of shards by kind: what follows the name of the stream in them, as patterns."""

OF_STREAMS = {
    **{kind: f"{kind}:{{}}" for kind in ("stream", "owner", "seen", "janitor", "swept", "archiver", "history")},
    **{kind: f"{kind}:{{}}:*" for kind in ("members", "replay")},
    **{kind: kind for kind in ("streams", "bell", "workers")},
    "worker": "worker:*",
}
"""Other keys by kind: what follows the namespace, as patterns; {} is the stream."""


class Grant(NamedTuple):
    """Commands that may be called on keys of these kinds."""

    kinds: tuple[str, ...]
    commands: tuple[str, ...]


CONNECTION = (
    *("EVALSHA", "SCRIPT LOAD", "PING", "INFO", "ROLE", "WAIT", "SELECT", "ASKING", "READONLY", "CLUSTER SLOTS"),
    *("CLUSTER SHARDS", "CLIENT SETNAME", "TIME"),
)
"""What everybody needs, whatever the keys: to connect, to find the server, and to call scripts."""

PUBLISH = (
    Grant(("entries",), ("XADD", "XLEN", "XINFO GROUPS", "EXISTS")),
    Grant(("seq",), ("GET", "SET", "PEXPIRE")),
    Grant(("size", "sealed", "marks"), ("EXISTS", "HMGET")),
    Grant(("stream", "archiver"), ("HGETALL", "HGET", "HKEYS", "GET")),
    Grant(("streams",), ("SADD",)),
)
"""To a stream that others have declared, with this version of its model."""

LIMITED = (
    Grant(("entries",), ("XPENDING", "XRANGE", "XREVRANGE", "XTRIM", "XINFO STREAM", "XINFO CONSUMERS")),
    Grant(("size", "marks"), ("HSET", "HGET", "HDEL", "HEXISTS", "UNLINK", "EXISTS", "ZADD", "ZCARD", "ZRANGE")),
    Grant(("marks",), ("ZREMRANGEBYSCORE",)),
    Grant(("seen",), ("HGETALL", "HSET", "HDEL")),
    Grant(("alive",), ("EXISTS",)),
)
"""Beside that, to a stream whose retention has limits: who meets one makes room, and has to see what is there."""

DECLARE = (
    Grant(("stream",), ("HSET", "HSETNX", "HINCRBY")),
    Grant(("entries",), ("XGROUP CREATE", "XGROUP DESTROY", "XSETID", "XINFO STREAM")),
)
"""Beside that, to declare streams and new versions of their models."""

EMIT = (Grant(("emitted",), ("SET", "EXISTS")), Grant(("entries",), ("XINFO STREAM",)))
"""Beside that, to be emitted to by the handlers of another stream."""

READ = (
    *("EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HSTRLEN", "MEMORY USAGE", "MGET"),
    *("PTTL", "SCARD", "SISMEMBER", "SMEMBERS", "STRLEN", "TTL", "TYPE", "XINFO CONSUMERS", "XINFO GROUPS"),
    *("XINFO STREAM", "XLEN", "XPENDING", "XRANGE", "XREAD", "XREVRANGE", "ZCARD", "ZCOUNT", "ZRANGE"),
    *("ZMSCORE", "ZRANGEBYSCORE", "ZSCORE"),
)
"""What changes nothing."""

EVERYWHERE = ("shards", *OF_STREAMS)

ASK = ("ACL WHOAMI", "CLUSTER INFO", "CLUSTER NODES")
"""What the doctor asks the server, whatever the keys."""

PRY = ("CONFIG GET", "SLOWLOG GET", "SCAN")
"""What else it asks where it may. Redis cannot confine these: they show the passwords in the server's settings
(`requirepass`: whoever reads it may do everything), what everybody sent, and the names of all keys.
"""


@cache
def working() -> tuple[str, ...]:
    """All commands that workers call, in scripts or without."""
    used = [script for script in scripts.EVERY if script.name not in ADMIN_SCRIPTS]
    plain = {*PLAIN["consume"], "HSET", "HDEL", "SET", "ZRANGE", "XRANGE", "XREVRANGE", "XREADGROUP", "ZADD", "ZREM"}
    found = {*plain, *(command for script in used for command in called_by(script))}
    return tuple(sorted(found - {*CONNECTION}))


@cache
def administering() -> tuple[str, ...]:
    """All commands that anybody calls."""
    found = {*working(), *READ, *(command for script in scripts.EVERY for command in called_by(script))}
    return tuple(sorted(found - {*CONNECTION}))


def grants(role: Role, *, limited: bool = False, declares: bool = False) -> tuple[Grant, ...]:
    """What a role may do with a stream of its own."""
    if role == "producer":
        return PUBLISH + (LIMITED if limited else ()) + (DECLARE if declares else ())
    if role == "worker":  # its own stream it only reads: to publish is not its work
        quiet = tuple(command for command in working() if command != "XADD")
        return (Grant(EVERYWHERE, quiet), Grant(("dead", "bell"), ("XADD",)))
    return (Grant(EVERYWHERE, READ if role == "dashboard" else administering()),)


def rules(
    role: Role,
    namespace: str,
    streams: Sequence[str],
    *,
    emits: Iterable[str] = (),
    limited: bool = False,
    declares: bool = False,
    pries: bool = False,
) -> list[str]:
    """For ACL SETUSER, or a line of an ACL file: of a user who may do nothing yet.

    streams: names, or "*" for all · emits: streams that a worker's handlers emit to · limited: the producer's streams
    (and what is emitted to) have a retention by entries or bytes · declares: it may be the first · pries: a dashboard
    or admin may see all of the server, passwords too, for the whole of `rstream doctor`.
    """
    own, others = grants(role, limited=limited, declares=declares), PUBLISH + EMIT + (LIMITED if limited else ())
    parts = [(own, [*streams])] + ([(others, [*emits])] if emits else [])
    patterns = dict.fromkeys(
        pattern for each, names in parts for grant in each for pattern in _patterns(namespace, names, grant.kinds)
    )
    connection = (*CONNECTION, *(ASK if role in ("admin", "dashboard") else ()), *(PRY if pries else ()))
    found = [*(f"~{pattern}" for pattern in patterns), "resetchannels", *map(_allowed, connection)]
    for each, names in parts:
        for grant in each:
            told = [f"~{pattern}" for pattern in _patterns(namespace, names, grant.kinds)]
            found.append(f"({' '.join([*told, *map(_allowed, grant.commands)])})")
    return found


def _patterns(namespace: str, streams: Sequence[str], kinds: Iterable[str]) -> list[str]:
    found = []
    for kind in kinds:
        for stream in streams:
            if kind in OF_SHARDS:
                found += [f"{{{namespace}:*}}:{stream}{rest}" for rest in OF_SHARDS[kind]]
            else:
                found.append(f"{namespace}:{OF_STREAMS[kind].format(stream)}")
    return [*dict.fromkeys(found)]


def _allowed(command: str) -> str:
    return f"+{command.lower().replace(' ', '|')}"
