"""A bell that all workers of a namespace hear: something is to be looked at now. Only a hint, which may get lost:
whoever listens also looks by itself, less often.

Rung when a worker joins, leaves, or gives up shards or deliveries, when a delivery that others wait for has ended, when
entries are given to a group again, and when a stream was resharded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rstream.store import keys
from rstream.store.link import Op

LENGTH = 1000
"""Rings that are kept, about."""


class Ring(NamedTuple):
    """group: "" = all of the stream."""

    stream: str
    group: str


def ring(namespace: str, stream: str, group: str = "") -> Op[None]:
    """Where memory is full nobody is told, and that is no error."""
    call = ("XADD", keys.bell(namespace), "MAXLEN", "~", LENGTH, "*", "s", stream, "g", group)
    return Op([call], lambda replies: None, partial=True)


def last(namespace: str) -> Op[bytes]:
    """The id of the last ring so far."""
    calls = [("XREVRANGE", keys.bell(namespace), "+", "-", "COUNT", 1)]
    return Op(calls, lambda replies: replies[0][0][0] if replies[0] else b"0-0")


def listen(namespace: str, after: bytes, block_ms: int) -> Op[tuple[bytes, set[Ring]]]:
    """Wait for rings; the id of the last one, and what they were about."""

    def parse(replies: list[Any]) -> tuple[bytes, set[Ring]]:
        rings = replies[0][0][1] if replies[0] else []
        return rings[-1][0] if rings else after, {Ring(flat[1].decode(), flat[3].decode()) for _, flat in rings}

    return Op([("XREAD", "COUNT", LENGTH, "BLOCK", block_ms, "STREAMS", keys.bell(namespace), after)], parse)
