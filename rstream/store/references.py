"""What the entries and dead letters of a stream refer to in its blob store.

Cost: every payload is looked through in Redis, `LOOK` entries or `LOOK_BYTES` a call; only references travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rstream.reference import Reference, unpacked
from rstream.store import layout as layouts
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import REFERENCES
from rstream.store.steps import Finding

LOOK = 1000
LOOK_BYTES = 4 * 1024 * 1024
KEYS = 16
"""Streams that are looked through at once."""


def references(layout: Layout) -> Finding[Reference]:
    """Find all of all generations, some more than once. The dead letters last: an entry may become one, and be trimmed,
    while we look; the other way round nothing goes.
    """
    yield from _of([shard.stream for shard in layout.every])
    groups: list[str] = yield layouts.groups(layout.every)
    yield from _of([shard.dead(group) for shard in layout.every for group in groups])


def _of(names: list[str]) -> Finding[Reference]:
    waiting = iter(names)
    at = dict.fromkeys(_some(waiting, KEYS), "-")
    while at:
        found: list[Reference] = []
        replies: list[Any] = yield Op([REFERENCES([name], start, LOOK, LOOK_BYTES) for name, start in at.items()], list)
        for name, (raw, last) in zip(list(at), replies, strict=True):
            found += map(unpacked, raw)
            if last:
                at[name] = "(" + last.decode()
            else:
                del at[name]
        at |= dict.fromkeys(_some(waiting, KEYS - len(at)), "-")
        yield found


def _some(names: Iterator[str], count: int) -> Iterable[str]:
    return [name for _, name in zip(range(count), names, strict=False)]
