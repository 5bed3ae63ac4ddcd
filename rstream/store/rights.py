"""Which commands rstream needs on which keys, and which of them a user may not run.

What the scripts call is read out of their sources, so that this cannot lag behind them. Redis itself judges, see
lua/rights.lua: one call a server, which runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from rstream.store import keys, scripts
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.scripts import RIGHTS, Arg, Call, Script

PUBLISHING = (
    "declare",
    "restore",
    "generations",
    "group",
    "shard",
    "publish",
    "once",
    "limits",
    "weigh",
    "trim",
    "index",
)
LOOKING = (
    *("stats", "totals", "range", "generations", "dead", "count", "weigh", "standing", "references", "sizes"),
    *("roster", "pending", "entry"),
)
ADMIN_SCRIPTS = frozenset({"redrive", "reset", "remove", "again", "give", "cancel", "pause"})
"""What no worker does by itself."""
PLAIN: Mapping[str, tuple[str, ...]] = {
    "publish": ("EVALSHA", "SCRIPT LOAD", "HGET", "HGETALL", "SADD"),
    "consume": (
        *("EVALSHA", "SCRIPT LOAD", "HGET", "HGETALL", "SADD", "SMEMBERS", "XREAD", "XPENDING", "GET", "XINFO GROUPS"),
    ),
    "look": (
        *("EVALSHA", "SCRIPT LOAD", "GET", "HGET", "HGETALL", "SMEMBERS", "XRANGE", "XREVRANGE", "XINFO GROUPS"),
        *("ZMSCORE",),
    ),
}
"""What is called without a script, by what it is for."""

USES = tuple(PLAIN)

_OURS = ("rights", "sizes")
_WRITES = {
    *("DEL", "HDEL", "HINCRBY", "HSET", "HSETNX", "PEXPIRE", "SADD", "SET", "SREM", "UNLINK", "XACK", "XADD", "XCLAIM"),
    *("XDEL", "XGROUP CREATE", "XGROUP CREATECONSUMER", "XGROUP DELCONSUMER", "XGROUP DESTROY", "XGROUP SETID"),
    *("XREADGROUP", "XSETID", "XTRIM", "ZADD", "ZREM", "ZREMRANGEBYSCORE"),
}
_CALLED = re.compile(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?")
_TWO_WORDS = {"XINFO", "XGROUP", "SCRIPT", "MEMORY"}
_SPECIAL: Mapping[str, Call] = {
    "XREADGROUP": ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "KEYS", ">"),
    "XREAD": ("XREAD", "STREAMS", "KEYS", "$"),
    "EVALSHA": ("EVALSHA", "0" * 40, "1", "KEYS"),
    "SCRIPT LOAD": ("SCRIPT", "LOAD", "return 1"),
    "TIME": ("TIME",),
    **{name: (name, "KEYS") for name in ("EXISTS", "DEL", "UNLINK")},  # all that follows is keys
}


@dataclass(frozen=True, slots=True)
class Denied:
    """What a user may not do. commands: on no key of these · keys: by no command, though commands are allowed
    elsewhere, as patterns for ACL SETUSER · declares: it is needed to declare streams and make room in them, and what
    is left does for publishing to one that is stored.
    """

    commands: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    declares: bool = False

    def __bool__(self) -> bool:
        return bool(self.commands or self.keys)


@cache
def commands_of(use: str) -> tuple[str, ...]:
    """What is needed to "publish" (and declare), to "consume" (all that workers do), or to "look", sorted."""
    names = {"publish": PUBLISHING, "look": LOOKING}.get(use)
    others = {*_OURS, *ADMIN_SCRIPTS}
    used = [script for script in scripts.EVERY if (script.name in names if names else script.name not in others)]
    return tuple(sorted({*PLAIN[use], *(command for script in used for command in called_by(script))}))


def called_by(script: Script) -> set[str]:
    """The commands in its source, with the second word where there is one."""
    found = _CALLED.findall(script.source)
    called = {f"{first} {second}" if first in _TWO_WORDS else first for first, second in found}
    reads = "flags=no-writes" in script.source.partition("\n")[0]
    return called - _WRITES if reads else called  # a part that it shares may have more than it calls


def keys_of(use: str, layout: Layout) -> dict[str, Arg]:
    """One key of each kind that is needed, by the pattern that stands for all of them."""
    namespace, shard = layout.namespace, layout.current[0]
    found: dict[str, Arg] = {
        f"{{{namespace}:*": shard.stream,
        f"{namespace}:stream:*": keys.stream(namespace, layout.name),
    }
    if use == "look":
        return found | {
            f"{{{namespace}:*:dead:*": shard.dead("g"),
            f"{namespace}:streams": keys.streams(namespace),
            f"{namespace}:worker:*": keys.worker(namespace, "w"),
            f"{namespace}:workers": keys.workers(namespace),
        }
    found |= {f"{namespace}:streams": keys.streams(namespace), f"{{{namespace}:*:seq:*": shard.seq("p")}
    if use == "publish":
        return found
    return found | _workers(namespace, layout.name, shard)


def _workers(namespace: str, stream: str, shard: Shard) -> dict[str, Arg]:
    return {
        f"{{{namespace}:*:alive:*": shard.alive("g", "w"),
        f"{{{namespace}:*:owner:*": shard.owner("g"),
        f"{{{namespace}:*:dead:*": shard.dead("g"),
        f"{{{namespace}:*:memo:*": shard.memo("g", "1-1"),
        f"{namespace}:members:*": keys.members(namespace, stream, "g"),
        f"{namespace}:seen:*": keys.seen(namespace, stream),
        f"{namespace}:janitor:*": keys.janitor(namespace, stream),
        f"{namespace}:bell": keys.bell(namespace),
        f"{namespace}:worker:*": keys.worker(namespace, "w"),
        f"{namespace}:workers": keys.workers(namespace),
    }


def ask(layout: Layout, *, eval_: bool = False) -> list[Call]:
    """One call for each of USES. eval_: for who may not load scripts, and may run them."""
    calls = []
    for use in USES:
        names = list(keys_of(use, layout).values())
        parts: list[Arg] = [len(names), *names]
        for command in commands_of(use):
            call = _call(command)
            parts += [len(call), *call]
        asked = RIGHTS([], *parts)
        calls.append(("EVAL", RIGHTS.source, *asked[2:]) if eval_ else asked)
    return calls


def judge(layout: Layout, replies: Sequence[Sequence[bytes]]) -> dict[str, Denied]:
    """By use, what is denied."""
    found = {
        use: _denied(commands_of(use), [*keys_of(use, layout)], reply) for use, reply in zip(USES, replies, strict=True)
    }
    if found["publish"] and _just_publishes(layout, replies[USES.index("publish")]):
        found["publish"] = replace(found["publish"], declares=True)
    return found


def _just_publishes(layout: Layout, marks: Sequence[bytes]) -> bool:
    """Whether a flush can be added to a shard that is there."""
    known, names = dict(zip(commands_of("publish"), marks, strict=True)), [*keys_of("publish", layout).values()]
    shard, stored = layout.current[0], keys.stream(layout.namespace, layout.name)
    needed = [("XADD", shard.stream), ("GET", shard.seq("p")), ("SET", shard.seq("p")), ("HGETALL", stored)]
    needed += [("EVALSHA", shard.stream), ("EVALSHA", shard.seq("p")), ("SCRIPT LOAD", shard.stream)]
    return all(known[command][names.index(key)] == ord("1") for command, key in needed)


def _denied(commands: Sequence[str], patterns: Sequence[str], marks: Sequence[bytes]) -> Denied:
    """A command is denied where it is for all keys; a key where all that reads is, or all that writes."""
    known = {command: each.decode() for command, each in zip(commands, marks, strict=True) if each}
    never = tuple(command for command, each in known.items() if "1" not in each)
    allowed = {command: each for command, each in known.items() if "1" in each and "KEYS" in _call(command)}
    writes = [each for command, each in allowed.items() if command in _WRITES]
    reads = [each for command, each in allowed.items() if command not in _WRITES]
    shut = tuple(
        pattern
        for n, pattern in enumerate(patterns)
        if any(kind and not any(each[n] == "1" for each in kind) for kind in (writes, reads))
    )
    return Denied(never, shut)


def _call(command: str) -> Call:
    """As it is asked about."""
    return _SPECIAL.get(command) or (*command.split(), "KEYS", "a", "b", "c")
