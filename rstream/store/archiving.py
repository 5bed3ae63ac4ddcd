"""What the archiver asks of Redis. A shard's archive is a group that nobody reads by, `~archive`: what it has behind it
is archived, so it holds up the trimming as every group does, and resharding makes it in new generations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rstream.store import keys
from rstream.store.keys import Rank, Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import ARCHIVED, ARCHIVER, GROUP, RANGE, SHARD, STANDING
from rstream.store.steps import Steps

STOPPED = "~stopped"
PAGE, PAGE_BYTES = 1000, 1024 * 1024


@dataclass(frozen=True, slots=True)
class Standing:
    """now: ms, by Redis's clock · there: whether the shard is · last: id that was given last · added: entries, ever ·
    length: entries · first: id, None where it is empty · position: up to which it is archived, None: it is not to be ·
    following: the first id after that · maxlen, maxbytes: what the shard may hold, None where nothing limits it.
    """

    now: int
    there: bool = False
    last: Rank = (0, 0)
    added: int = 0
    length: int = 0
    first: Rank | None = None
    position: Rank | None = None
    following: Rank | None = None
    maxlen: int | None = None
    maxbytes: int | None = None


def standings(shards: Sequence[Shard]) -> Op[list[Standing]]:
    """One round trip."""
    calls = [STANDING([shard.stream, shard.size], keys.ARCHIVE) for shard in shards]
    return Op(calls, lambda replies: [*map(_standing, replies)])


def _standing(reply: Sequence[Any]) -> Standing:
    now, *rest = reply
    if not rest:
        return Standing(now)
    last, added, length, first, position, following, *limits = rest
    ranks = _rank(first), _rank(position), _rank(following)
    return Standing(now, True, keys.rank_of(last), added, length, *ranks, *(int(n) if n else None for n in limits))


def _rank(id: bytes) -> Rank | None:
    return keys.rank_of(id) if id else None


def page(shard: Shard, after: str) -> Op[tuple[list[tuple[bytes, list[bytes]]], bool]]:
    """Entries after an id as Redis gives them, and whether there may be more."""
    call = RANGE([shard.stream], "(" + after, "+", PAGE, PAGE_BYTES)
    return Op([call], lambda replies: (replies[0][0], bool(replies[0][1])))


def begin(layout: Layout, shards: Sequence[Shard]) -> Steps[int]:
    """`make`, unless it was switched off, also in this moment: a group that nobody archives by would hold up producers
    for good.
    """
    if (yield hold(layout, "look")) == STOPPED:
        return 0
    new: int = yield make(layout, shards)
    if new and (yield hold(layout, "look")) == STOPPED:
        yield from end(shards)
        return 0
    return new


def end(shards: Sequence[Shard]) -> Steps[int]:
    """Have these not be archived any more; how many were."""
    found: list[Standing] = yield standings(shards)
    on = [shard for shard, at in zip(shards, found, strict=True) if at.position is not None]
    if on:
        yield destroy(on)
    return len(on)


def make(layout: Layout, shards: Iterable[Shard]) -> Op[int]:
    """Have these be archived from the start of what is there; how many were not before."""
    calls = [GROUP([shard.stream], keys.ARCHIVE, "0", int(layout.writes(shard)), "") for shard in shards]
    return Op(calls, lambda replies: sum(reply == 1 for reply in replies))


def lift(shard: Shard, floor: str) -> Op[int]:
    """Have the ids of a shard go on after this one."""
    return Op([SHARD([shard.stream, shard.sealed], floor)], sum)


def advance(shard: Shard, to: str) -> Op[bool]:
    """Up to this id it is archived. False where it is not to be any more."""
    return Op([ARCHIVED([shard.stream], keys.ARCHIVE, to)], lambda replies: bool(replies[0]))


def destroy(shards: Iterable[Shard]) -> Op[int]:
    """Have these, which are there, not be archived any more; how many were."""
    return Op([("XGROUP", "DESTROY", shard.stream, keys.ARCHIVE) for shard in shards], sum)


def hold(layout: Layout, step: str, archiver: str = "", lease_ms: int = 1) -> Op[str]:
    """Who archives the stream after this step, see archiver.lua."""
    call = ARCHIVER([keys.archiver(layout.namespace, layout.name)], step, archiver, lease_ms)
    return Op([call], lambda replies: replies[0].decode())
