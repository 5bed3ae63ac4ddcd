"""Giving entries to one group again, in place: what a replay into a live group asks of Redis.

Every operation may be sent twice. A call is of one shard: on a cluster, of one slot.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rstream.errors import StoreError
from rstream.event import EntryId
from rstream.store.bell import ring
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.replays import TTL_MS, Outcome
from rstream.store.scripts import DISOWN, GIVE, Call

PAGE = 500
"""Entries that one call gives."""

KEPT_MS = 3600 * 1000
"""How long a shard remembers a run that has ended: a call of it may come late, when Redis gets to read it."""

HOLD_MS = 5000
"""How long a giver that dies keeps a shard from its group."""

VERDICTS: dict[int, Outcome] = {
    ord("g"): "given",
    ord("b"): "given",  # by this run, before it was killed; hardly ever one that was found otherwise then
    ord("p"): "pending",
    ord("u"): "unread",
    ord("n"): "gone",
}


class Given(NamedTuple):
    """outcomes: given, pending, unread or gone · waiting: how many entries wait for workers of the group, in the shard
    that has most of those that were given to.
    """

    outcomes: Mapping[EntryId, Outcome]
    waiting: int


class _Page(NamedTuple):
    """What one call gives. after: the last id of the page before it, "" = it is the first."""

    shard: Shard
    ids: Sequence[EntryId]
    after: str = ""


class GiveOps:
    """The operations by which one run of a replay gives entries to a group. run: "" = it only says what it would do."""

    def __init__(self, layout: Layout, group: str, name: str, run: str) -> None:
        self.layout, self.group = layout, group
        self._name, self._run = name, run
        self._token = f"~replay-{secrets.token_hex(4)}|0"
        self._shards = {(shard.generation, shard.number): shard for shard in layout.every}

    def give(self, ids: Sequence[EntryId], *, hold: bool) -> Op[Given]:
        """Give these, in id order. hold: no worker of an ordered group owns their shards, until `release`; nor those of
        newer generations that may have events of the same keys, which must not be begun before these are done.
        """
        by_shard: dict[Shard, list[EntryId]] = {}
        outcomes: dict[EntryId, Outcome] = {}
        for id in ids:
            if (shard := self._shards.get((id.generation, id.shard))) is None:
                outcomes[id] = "gone"  # with its shard: a generation that is archived, and removed
            else:
                by_shard.setdefault(shard, []).append(id)
        pages = [page for shard, mine in by_shard.items() for page in _pages(shard, mine)]
        token = self._token if hold else ""
        if hold:
            newer = [_Page(shard, ()) for shard in self.layout.every if self._follows(shard, by_shard)]
            pages = newer + pages

        def parse(replies: list[Any]) -> Given:
            most = 0
            for (_, mine, _), (verdicts, waiting) in zip(pages, replies, strict=True):
                outcomes.update(zip(mine, map(VERDICTS.__getitem__, verdicts), strict=True))
                most = max(most, waiting)
            return Given(outcomes, most)

        return Op([self._call(page, token) for page in pages], parse)

    def _follows(self, shard: Shard, given: Mapping[Shard, object]) -> bool:
        return shard not in given and any(
            other.generation < shard.generation and other.overlaps(shard) for other in given
        )

    def _call(self, page: _Page, token: str) -> Call:
        group, (shard, ids, after) = self.group, page
        names = [shard.stream, shard.owner(group), shard.epoch(group), shard.given(group, self._name)]
        return GIVE(names, group, token, HOLD_MS, self._run, TTL_MS, after, *(id.redis for id in ids))

    def waiting(self) -> Op[int]:
        """How many entries that were given wait for workers, in the shard that has most."""
        calls: list[Call] = [("XPENDING", shard.stream, self.group) for shard in self.layout.every]

        def parse(replies: list[Any]) -> int:
            held = [dict(reply[3] or ()) for reply in replies if not isinstance(reply, StoreError)]
            return max((int(each.get(b"~again", 0)) for each in held), default=0)

        return Op(calls, parse, partial=True)

    def release(self) -> Op[None]:
        """Let the group's workers own all shards again. They look when they are told: see `ring`."""
        holder = self._token.rpartition("|")[0]
        calls = [DISOWN([shard.owner(self.group)], holder) for shard in self.layout.every]
        return Op(calls, lambda replies: None)

    def end(self) -> Op[None]:
        """Nothing more is given by this run."""
        markers = [shard.given(self.group, self._name) for shard in self.layout.every]
        return Op([("PEXPIRE", marker, KEPT_MS) for marker in markers], lambda replies: None, partial=True)

    def ring(self) -> Op[None]:
        """Have the group's workers look now. (Where memory is full they are not told, and look by themselves.) Not in
        one write with `release`: on a cluster it could be heard before that is done.
        """
        return ring(self.layout.namespace, self.layout.name, self.group)


def _pages(shard: Shard, ids: Sequence[EntryId]) -> Iterator[_Page]:
    for at in range(0, len(ids), PAGE):
        yield _Page(shard, ids[at : at + PAGE], ids[at - 1].redis if at else "")
