"""A bell that all workers of a namespace hear: something is to be looked at now. Only a hint, which may get lost:
whoever listens also looks by itself, less often.

Rung when a worker joins, leaves, or gives up shards or deliveries, when a delivery that others wait for has ended, when
entries are given to a group again, when a stream was resharded, and when somebody paused or resumed a group or
cancelled deliveries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rstream.event import EntryId
from rstream.store import keys
from rstream.store.keys import rank_of
from rstream.store.link import Op
from rstream.store.scripts import RING

LENGTH = 1000
"""Rings that are kept, about."""


class Ring(NamedTuple):
    """group: "" = all of the stream."""

    stream: str
    group: str


class Heard(NamedTuple):
    """last: the id of the last ring · cancelled: entries of a group whose deliveries were ended by hand."""

    last: bytes
    rings: set[Ring]
    cancelled: dict[Ring, list[EntryId]]


def ring(namespace: str, stream: str, group: str = "", cancelled: Sequence[EntryId] = ()) -> Op[None]:
    """That it cannot be rung is no error. cancelled: entries, at most some hundred."""
    told = ("c", " ".join(map(str, cancelled))) if cancelled else ()
    return Op(
        [RING([keys.bell(namespace)], LENGTH, "s", stream, "g", group, *told)], lambda replies: None, partial=True
    )


def last(namespace: str) -> Op[bytes]:
    """The id of the last ring so far."""
    calls = [("XREVRANGE", keys.bell(namespace), "+", "-", "COUNT", 1)]
    return Op(calls, lambda replies: replies[0][0][0] if replies[0] else b"0-0")


def from_where(heard: bytes, last: bytes) -> bytes:
    """After which ring to listen again. heard: the last that was heard before, b"" = none. What was rung meanwhile is
    heard now, above all what was cancelled; but where Redis lost data, the last ring may be older than that.
    """
    return heard if heard and rank_of(heard) <= rank_of(last) else last


def listen(namespace: str, after: bytes, block_ms: int) -> Op[Heard]:
    """Wait for rings."""

    def parse(replies: list[Any]) -> Heard:
        heard = Heard(after, set(), {})
        for id, flat in replies[0][0][1] if replies[0] else []:
            about = Ring(flat[1].decode(), flat[3].decode())
            heard = heard._replace(last=id)
            heard.rings.add(about)
            if flat[4:5] == [b"c"]:
                heard.cancelled.setdefault(about, []).extend(map(EntryId.parse, flat[5].decode().split()))
        return heard

    return Op([("XREAD", "COUNT", LENGTH, "BLOCK", block_ms, "STREAMS", keys.bell(namespace), after)], parse)
