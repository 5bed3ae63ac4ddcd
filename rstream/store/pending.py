"""Who holds what: the pending entries of a group, and one entry as every group stands to it. docs/pending.md explains
it to users.

Nothing is changed, and everything comes in pages of bounded size: 100,000 pending entries are looked through in 200
short calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rstream.errors import StoreError
from rstream.memo import MAX_BYTES
from rstream.store import keys
from rstream.store.deliveries import READ_BYTES
from rstream.store.keys import Rank, Shard, rank_of
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import ENTRY, PENDING

LOOK = 500
"""Pending entries that one call looks at."""

CHECKPOINT = 4096
"""Bytes of a checkpoint that is brought in a list; of a single entry any that there may be is."""


class Held(NamedTuple):
    """A pending entry in Redis's terms. key: None where it has none, or is trimmed · size: of its payload in bytes, -1
    where it is trimmed · held, lease: ms; lease: -2 = none · due: ms, by Redis's clock · checkpoint: None where it is
    too large, or there is none · steps: finished ones · by: "attempt worker" that kept these · now: Redis's clock (ms).
    """

    shard: Shard
    id: bytes
    key: bytes | None
    size: int
    holder: str
    held: int
    deliveries: int
    due: int | None
    lease: int
    checkpoint_bytes: int
    checkpoint: bytes | None
    steps: int
    by: str
    now: int


@dataclass(frozen=True)
class Which:
    """start, end: of what is looked for · holder: a worker or pseudo-consumer, "" = any · key: b"" = any · held: ms for
    which it was held at least · limit: how many a call brings.
    """

    end: str = "+"
    holder: str = ""
    key: bytes = b""
    held: int = 0
    limit: int = LOOK


class Standing(NamedTuple):
    """How a group stands to an entry. read: the last id that it was given in the shard · held: None where it is not
    pending.
    """

    group: str
    read: Rank
    held: Held | None


class Found(NamedTuple):
    """An entry in its shard. flat: its fields and values, None where it is not stored · first: where the shard begins,
    None where it is empty or gone · given: the last id that was given to an entry.
    """

    now: int
    flat: Sequence[bytes] | None
    first: Rank | None
    given: Rank | None
    groups: list[Standing]


Page = tuple[list[Held], str]
"""What was found in a shard, and where the next page begins: "" after the last."""


class PendingOps:
    """The looks at what is pending of one group of one stream."""

    def __init__(self, layout: Layout, group: str) -> None:
        self.layout, self.group = layout, group

    def look(self, starts: Mapping[Shard, str], which: Which, look: int = LOOK) -> Op[dict[Shard, Page]]:
        """A page of each of these shards, from where it says."""
        budget = max(1, READ_BYTES // max(1, len(starts)))
        calls = [
            PENDING(
                [shard.stream], self.group, start, which.end, which.limit, look, budget,
                which.holder, which.key, which.held, CHECKPOINT,
            )
            for shard, start in starts.items()
        ]  # fmt: skip
        return Op(calls, lambda replies: dict(zip(starts, map(_page, starts, replies), strict=True)))


def entry(shard: Shard, id: str) -> Op[Found]:
    """One entry, and all groups of its shard."""

    def parse(replies: list[Any]) -> Found:
        now, flat, first, given, groups = replies[0]
        standings = [
            Standing(name.decode(errors="replace"), rank_of(read), raw and _held(shard, now, None, 0, raw))
            for name, read, raw in groups
        ]
        return Found(now, flat, first and rank_of(first), given and rank_of(given), standings)

    return Op([ENTRY([shard.stream], id, MAX_BYTES)], parse)


def beats(namespace: str, workers: Sequence[str]) -> Op[dict[str, float]]:
    """Seconds since each of these workers was last heard of, of those that say so; where the user may not ask, none."""

    def parse(replies: list[Any]) -> dict[str, float]:
        if any(isinstance(reply, StoreError) for reply in replies):
            return {}
        (seconds, micros), scores = replies
        now = int(seconds) * 1000 + int(micros) // 1000
        pairs = zip(workers, scores, strict=True)
        return {name: max(0.0, (now - float(score)) / 1000) for name, score in pairs if score is not None}

    return Op([("TIME",), ("ZMSCORE", keys.workers(namespace), *workers)], parse, partial=True)


def _page(shard: Shard, reply: Any) -> Page:
    now, found, last = reply
    return [_held(shard, now, key, size, raw) for key, size, *raw in found], last and "(" + last.decode()


def _held(shard: Shard, now: int, key: bytes | None, size: int, raw: Sequence[Any]) -> Held:
    id, holder, held, deliveries, due, lease, kept, checkpoint, steps, by = raw
    return Held(
        shard, id, key, size, holder.decode(errors="replace"), held, deliveries,
        None if due is None else int(float(due)), lease, kept, checkpoint, steps, by.decode(errors="replace"), now,
    )  # fmt: skip
