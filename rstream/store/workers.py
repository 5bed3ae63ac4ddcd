"""Who works: every worker says with its lease's beat what it is and does, for whoever looks at the fleet.

Nothing decides by this: whether a worker lives, for others, its `alive` keys say. It goes when it ends well; else it is
kept for `FORGET`, so that it can be seen who died, and where. Cost: two small calls in the round trip of a beat.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgpack

from rstream.store import keys
from rstream.store.link import Op
from rstream.store.scripts import ENROL, PRESENT, ROSTER, Call
from rstream.store.steps import Steps

log = logging.getLogger("rstream")

FORGET = 3600.0
"""Seconds of silence after which a worker is forgotten."""

DEAD = 3.0
"""Leases of silence after which a worker counts as dead: its deliveries have long been taken over."""

BLOCKED = 5.0
"""Seconds of a blocked event loop that are worth a word."""

State = Literal["alive", "blocked", "ending", "silent", "dead"]
"""beats and works · beats, but its event loop is blocked by a handler · was told to end, and finishes what runs · has
not beaten for a lease, and lost it: frozen, cut off, or dead · silent for so long that it hardly comes back."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a worker says of itself.

    process: its number in `rstream worker --processes`, 0 where it is the only one · started: seconds since the epoch,
    by Redis's clock, as all times here · groups: as `stream/group` · concurrency: deliveries that it handles at once ·
    handled, failed: since its start · ending: it was told to · stalled: seconds for which its event loop has been
    blocked · loop_stall: the longest of the last minute · rss: bytes of memory · lease: seconds, the shortest of its
    groups'.
    """

    id: str
    host: str
    pid: int
    process: int
    version: str
    started: float
    groups: tuple[str, ...]
    paused: tuple[str, ...]
    concurrency: int
    in_flight: int
    buffered: int
    handled: int
    failed: int
    ending: bool
    stalled: float
    loop_stall: float
    rss: int
    lease: float


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as the fleet knows it. said: None where nothing is left of that but its id · beat: when it said so ·
    silent: seconds since.
    """

    id: str
    beat: float
    silent: float
    said: Presence | None

    @property
    def state(self) -> State:
        said = self.said
        if said is None or self.silent > max(DEAD * said.lease, said.lease + 10.0):
            return "dead"
        if self.silent > said.lease:
            return "silent"
        if said.ending:
            return "ending"
        return "blocked" if said.stalled >= BLOCKED else "alive"


def present(namespace: str, said: Presence) -> list[Call]:
    """To be sent with a beat. On a cluster the two keys may be on two servers, neither of them one of the beat's."""
    body = msgpack.packb(asdict(said))
    return [
        PRESENT([keys.worker(namespace, said.id)], body, int(FORGET * 1000)),
        ENROL([keys.workers(namespace)], said.id, int(FORGET * 1000)),
    ]


def absent(namespace: str, id: str) -> Op[None]:
    """It has ended."""
    calls: list[Call] = [("UNLINK", keys.worker(namespace, id)), ("ZREM", keys.workers(namespace), id)]
    return Op(calls, lambda replies: None)


def workers(namespace: str) -> Steps[list[WorkerInfo]]:
    """All that lived lately, the newest first. Two round trips."""
    now, beats = yield Op([ROSTER([keys.workers(namespace)])], lambda replies: _roster(replies[0]))
    if not beats:
        return []
    calls: list[Call] = [("GET", keys.worker(namespace, id)) for id in beats]
    bodies: list[Any] = yield Op(calls, lambda replies: replies)
    found = [
        WorkerInfo(id, beat, max(0.0, now - beat), _read(body))
        for (id, beat), body in zip(beats.items(), bodies, strict=True)
    ]
    return sorted(found, key=lambda each: (-(each.said.started if each.said else 0.0), each.id))


def _roster(reply: Sequence[Any]) -> tuple[float, dict[str, float]]:
    now, flat = reply
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return now / 1000, {id.decode(errors="replace"): float(beat) / 1000 for id, beat in pairs}


def _read(body: bytes | None) -> Presence | None:
    """Also what a newer or an older rstream wrote, as far as it is known."""
    if body is None:
        return None
    try:
        told = msgpack.unpackb(body)
        known = {name: told[name] for name in Presence.__dataclass_fields__}
        return Presence(**known | {name: tuple(known[name]) for name in ("groups", "paused")})
    except (ValueError, TypeError, KeyError) as error:
        log.debug("what a worker says of itself cannot be read: %s", error)
        return None
