"""All that Redis knows of the streams of a namespace and their groups at a moment: what `rstream metrics` tells.

Cost: three round trips, however many streams there are; in the last of them four read-only calls a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rstream.errors import RStreamError, StoreError
from rstream.retention import Retention
from rstream.store import keys, streamfacts
from rstream.store import layout as layouts
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.pause import names_in
from rstream.store.pins import Pin, pins_in
from rstream.store.stats import GroupStats, StreamStats, survey
from rstream.store.steps import Steps
from rstream.store.totals import Totals, totals
from rstream.store.trim import Standing, who_counts
from rstream.store.weigh import Seen, Weight, seen, weigh

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StreamState:
    """memory: bytes, None where Redis does not tell them for all shards · pins, weights, standings: what holds up the
    trimming, see pins.py, weigh.py, trim.py · paused: groups · birth, seq, resets: of its history.
    """

    layout: Layout
    stats: StreamStats
    groups: Sequence[GroupStats]
    totals: Totals
    memory: int | None
    weights: Sequence[Weight]
    standings: Sequence[Standing]
    paused: frozenset[str]
    birth: str
    seq: int
    resets: int

    @property
    def pins(self) -> list[Pin]:
        return pins_in(self.groups)


def fleet(namespace: str) -> Steps[tuple[list[StreamState], dict[str, Exception]]]:
    """All streams, by name; and those that cannot be told of, and why. Raises `StoreError` where Redis is away."""
    names: list[str] = yield layouts.names(namespace)
    failed: dict[str, Exception] = {}
    declared: list[Any] = yield _each([_declared(namespace, name) for name in names])
    known: list[tuple[Layout, frozenset[str]]] = []
    for name, found in zip(names, declared, strict=True):
        if isinstance(found, Exception):
            failed[name] = found
        elif found[0] is None:
            failed[name] = LookupError("its declaration is gone")
        else:
            known.append(found)
    states: list[Any] = yield _each([_state(*each) for each in known])
    found = []
    for (layout, _), state in zip(known, states, strict=True):
        if isinstance(state, Exception):
            failed[layout.name] = state
        else:
            found.append(state)
    return found, failed


def _declared(namespace: str, name: str) -> Op[tuple[Layout | None, frozenset[str]]]:
    stored = layouts.load(namespace, name)
    return Op(stored.calls, lambda replies: (stored.parse(replies), names_in(replies[0])))


def _state(layout: Layout, paused: frozenset[str]) -> Op[StreamState]:
    history = keys.history(layout.namespace, layout.name)
    parts: list[Op[Any]] = [
        survey(layout),
        totals(layout),
        weigh(layout.every),
        seen(layout),
        streamfacts.memory(layout),
        Op([("HMGET", history, "birth", "seq", "resets")], lambda replies: replies[0]),
    ]

    def made(results: list[Any]) -> StreamState:
        (stats, groups), counted, weights, looked, memory, (birth, seq, resets) = results
        return StreamState(
            layout,
            stats,
            groups,
            counted,
            sum(memory.values()) if len(memory) == len(layout.every) else None,
            weights,
            _standings(layout, weights, looked),
            paused,
            (birth or b"").decode(errors="replace"),
            int(seq or 0),
            int(resets or 0),
        )

    return _all(parts, made)


def _standings(layout: Layout, weights: Sequence[Weight], looked: Seen) -> list[Standing]:
    return who_counts(weights, looked, layout.retention or Retention()) if weights else []


# -- several operations in one write, of which each may fail ---------------------------------------------------------


def _each(ops: Sequence[Op[Any]]) -> Op[list[Any]]:
    """What each comes to; where it fails, the error."""

    def parse(replies: list[Any]) -> list[Any]:
        found: list[Any] = []
        for op, part in _parts(ops, replies):
            try:
                found.append(_parsed(op, part))
            except (RStreamError, LookupError, ValueError, TypeError) as error:  # anybody may have written there
                found.append(error)
        return found

    return Op([call for op in ops for call in op.calls], parse, partial=True)


def _all(ops: Sequence[Op[Any]], made: Callable[[list[Any]], R]) -> Op[R]:
    """Made of what all of them come to."""

    def parse(replies: list[Any]) -> R:
        return made([_parsed(op, part) for op, part in _parts(ops, replies)])

    return Op([call for op in ops for call in op.calls], parse, partial=True)


def _parts(ops: Sequence[Op[Any]], replies: list[Any]) -> list[tuple[Op[Any], list[Any]]]:
    parts, at = [], 0
    for op in ops:
        parts.append((op, replies[at : at + len(op.calls)]))
        at += len(op.calls)
    return parts


def _parsed(op: Op[Any], replies: list[Any]) -> Any:
    for reply in replies:
        if isinstance(reply, StoreError) and not op.partial:
            raise reply
    return op.parse(replies)
