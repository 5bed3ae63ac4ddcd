"""What a Redis server says of itself, and its sentinels or cluster of it. Nothing is changed.

What a server does not tell (managed ones forbid CONFIG, a user may not have the right) is noted with the reason, and is
never an error. Cost: 3 round trips a server, PINGS one after the other, and a look at MOST_KEYS keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rstream.errors import StoreError
from rstream.store import keys, rights
from rstream.store.connect import told_by
from rstream.store.keys import Part
from rstream.store.layout import Layout
from rstream.store.rights import Denied
from rstream.store.scripts import EVERY, Call

Ask = Callable[[Sequence[Call]], list[Any]]

PINGS = 5
PAGE, MOST_KEYS = 1000, 10_000
"""Keys that one SCAN asks for, and that are looked at on a server."""

SETTINGS = (
    *("appendonly", "appendfsync", "save", "maxmemory-policy", "maxclients", "timeout", "client-output-buffer-limit"),
    *("min-replicas-to-write", "busy-reply-threshold", "cluster-require-full-coverage"),
)
SLOW_CALLS = 32


@dataclass(frozen=True, slots=True)
class SlowCall:
    """Of the slow log: only the command's name, for its arguments may be anybody's data. at: Unix time."""

    command: str
    seconds: float
    at: int


@dataclass(frozen=True, slots=True)
class Leak:
    """A key that should have a TTL and has none."""

    key: str
    part: Part


@dataclass(slots=True)
class ServerFacts:
    """name: its address in a cluster, else the URL without secrets · now: its clock, in s · ahead: seconds by which
    that is ahead of ours; not surer than `ping`, which a quick one of some took · leaks: of so many `keys` that were
    looked at · strays: streams that have keys, and are not listed · untold: what it did not tell, and why.
    """

    name: str
    info: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    cluster: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[tuple[str, str], ...] = ()
    now: float = 0.0
    ahead: float = 0.0
    ping: float = 0.0
    slow: tuple[SlowCall, ...] = ()
    user: str = ""
    denied: Mapping[str, Denied] = field(default_factory=dict)
    keys: int = 0
    leaks: tuple[Leak, ...] = ()
    strays: tuple[str, ...] = ()
    untold: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    def number(self, name: str) -> float | None:
        """Of INFO; None where it does not tell."""
        try:
            return float(self.info[name])
        except (KeyError, ValueError):
            return None


def look_at(name: str, ask: Ask, layout: Layout, known: Sequence[str] | None, *, clustered: bool) -> ServerFacts:
    """layout: of any stream, to know what keys are called · known: names of all streams, where they are known."""
    facts = ServerFacts(name)
    try:
        facts.ping = _ping(ask)
        _told(facts, ask, clustered=clustered)
        _rights(facts, ask, layout)
        _scan(facts, ask, layout.namespace, known)
    except StoreError as error:
        facts.failure = str(error)
    return facts


def _ping(ask: Ask) -> float:
    taken = []
    for _ in range(PINGS + 1):
        begun = time.perf_counter()
        ask([("PING",)])
        taken.append(time.perf_counter() - begun)
    return sorted(taken[1:])[1]  # of the way, not of who else is busy; the first one may have had to connect


def _told(facts: ServerFacts, ask: Ask, *, clustered: bool) -> None:
    questions: dict[str, Call] = {
        "TIME": ("TIME",),
        "INFO": ("INFO",),
        "CONFIG GET": ("CONFIG", "GET", *SETTINGS),
        "SLOWLOG GET": ("SLOWLOG", "GET", SLOW_CALLS),
        "ACL WHOAMI": ("ACL", "WHOAMI"),
    }
    if clustered:
        questions |= {"CLUSTER INFO": ("CLUSTER", "INFO"), "CLUSTER NODES": ("CLUSTER", "NODES")}
    begun = time.time()
    replies = dict(zip(questions, ask(list(questions.values())), strict=True))
    middle = (begun + time.time()) / 2
    for command, reply in replies.items():
        if isinstance(reply, StoreError):
            facts.untold[command] = _why(reply)
    got = {command: reply for command, reply in replies.items() if not isinstance(reply, StoreError)}
    if "TIME" in got:
        facts.now = int(got["TIME"][0]) + int(got["TIME"][1]) / 1e6
        facts.ahead = facts.now - middle
    facts.info = told_by(got.get("INFO", b""))
    flat = [part.decode(errors="replace") for part in got.get("CONFIG GET", ())]
    facts.config = dict(zip(flat[::2], flat[1::2], strict=True))
    if not facts.config:
        facts.untold.setdefault("CONFIG GET", "it tells nothing")
    facts.slow = tuple(SlowCall(_name(call[3]), call[2] / 1e6, call[1]) for call in got.get("SLOWLOG GET", ()))
    facts.user = got.get("ACL WHOAMI", b"").decode(errors="replace")
    facts.cluster = told_by(got.get("CLUSTER INFO", b""))
    facts.nodes = _nodes(got.get("CLUSTER NODES", b""))


def _why(error: StoreError) -> str:
    """Redis's own words, without ours around them."""
    return str(error).partition(" refused: ")[2].partition(". Check user")[0] or str(error)


def _name(arguments: Sequence[bytes]) -> str:
    """Of a command, and of a script which one."""
    words = [part.decode(errors="replace") for part in arguments[:2]]
    command = words[0].upper() if words and words[0].isalpha() else "?"
    script = next((each for each in EVERY if each.sha in words[1:]), None)
    return f"{command} {script.name}" if script is not None else command


def _nodes(told: bytes) -> tuple[tuple[str, str], ...]:
    """(address, flags) of all that a node of a cluster knows."""
    lines = [line.split() for line in told.decode(errors="replace").splitlines()]
    return tuple((words[1].partition("@")[0], words[2]) for words in lines if len(words) > 2)


def _rights(facts: ServerFacts, ask: Ask, layout: Layout) -> None:
    replies = ask(rights.ask(layout))
    if any(isinstance(reply, StoreError) for reply in replies):
        replies = ask(rights.ask(layout, eval_=True))
    for reply in replies:
        if isinstance(reply, StoreError):
            facts.untold["rights"] = _why(reply)
            return
    facts.denied = rights.judge(layout, replies)


def _scan(facts: ServerFacts, ask: Ask, namespace: str, known: Sequence[str] | None) -> None:
    """At keys without an order; where there are more than MOST_KEYS, at some of them."""
    cursor, leaks, strays = b"0", [], set[str]()
    for _ in range(MOST_KEYS // PAGE):
        reply = ask([("SCAN", cursor, "MATCH", keys.of_shards(namespace), "COUNT", PAGE)])[0]
        if isinstance(reply, StoreError):
            facts.untold["SCAN"] = _why(reply)
            break
        cursor, found = reply
        facts.keys += len(found)
        parts = {key: part for key in found if (part := keys.part_of(namespace, key)) is not None}
        strays |= {part.stream for part in parts.values()}.difference(known) if known is not None else set()
        expiring = [key for key, part in parts.items() if part.kind in keys.EXPIRING]
        for key, ttl in zip(expiring, ask([("PTTL", key) for key in expiring]) if expiring else (), strict=True):
            if ttl == -1:
                leaks.append(Leak(key.decode(errors="replace"), parts[key]))
        if cursor == b"0":
            break
    facts.leaks, facts.strays = tuple(leaks), tuple(sorted(strays))
