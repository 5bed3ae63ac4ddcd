"""What resetting a group asks of Redis: where it stands, how much lies between two positions, and the steps themselves.
docs/groups.md explains it to users.

Every operation may be sent twice, and looks at no more than a page of a shard.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from rstream.errors import StoreError
from rstream.store import keys
from rstream.store.bell import ring
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import AGAIN, COUNT, DISOWN, RESET, Call

PAGE = 500
"""Pending entries that one call settles."""

GROWN = 3 * PAGE
"""So many in a range that held two pages at most show that others have added to it."""

LOOK = 1000
LOOK_BYTES = 4 * 1024 * 1024
"""Entries, and bytes of them, that one call looks at: 1000 small ones take it 1 to 4 ms."""


class Settled(NamedTuple):
    """A page of a reset. living: workers because of which nothing was done · grown: the range is too large, look anew ·
    number: of deliveries settled · rest: the next id to settle in the range, "" = none · at: where the group was moved.
    """

    living: Sequence[str] = ()
    grown: bool = False
    number: int = 0
    rest: str = ""
    at: str = ""


class Given(NamedTuple):
    """A page of giving entries again. living: as above · given, left: entries · last: looked at, "" at the end."""

    living: Sequence[str] = ()
    given: int = 0
    left: int = 0
    last: str = ""


class ResetOps:
    """The operations on one group of one stream. While they are at work, they own shards as no worker does."""

    def __init__(self, layout: Layout, group: str) -> None:
        self.layout, self.group = layout, group
        self._token = f"~reset-{secrets.token_hex(4)}|0"

    def members(self, now: int) -> Op[list[str]]:
        """The workers that take part in the group, if it is ordered. now: Redis's clock."""
        call = ("ZRANGE", keys.members(self.layout.namespace, self.layout.name, self.group), now, "+inf", "BYSCORE")
        return Op([call], lambda replies: [_text(name) for name in replies[0]])

    def count(self, shard: Shard, after: str, upto: str) -> Op[tuple[int, str]]:
        """How many entries of a page lie behind one id, up to another; and the last of the page, "" = it was the last
        page.
        """
        call = COUNT([shard.stream], after, upto, LOOK, LOOK_BYTES)
        return Op([call], lambda replies: (replies[0][0], _text(replies[0][1])))

    def pending(self, shard: Shard, start: str, end: str) -> Op[tuple[int, str]]:
        """How many deliveries of a page are pending, and the last of it, "" = it was the last page."""
        call: Call = ("XPENDING", shard.stream, self.group, start, end, PAGE)

        def parse(replies: list[Any]) -> tuple[int, str]:
            found = replies[0]
            return len(found), _text(found[-1][0]) if len(found) == PAGE else ""

        return Op([call], parse)

    def settle(self, shard: Shard, after: str, upto: str, floor: str, *, forced: bool) -> Op[Settled]:
        """Settle a range of what is pending without running it, and have the group read on from `floor` (where that is
        not ""), as reset.lua says.
        """
        group = self.group
        names = [shard.stream, shard.retry(group), shard.parked(group)]
        names += [shard.owner(group), shard.epoch(group), shard.memo(group, "")]
        call = RESET(names, group, int(forced), self._token, after, upto, floor, GROWN, LOOK_BYTES)

        def parse(replies: list[Any]) -> Settled:
            verdict, *rest = replies[0]
            if verdict == b"living":
                return Settled(living=[_text(name) for name in rest])
            if verdict == b"grown":
                return Settled(grown=True)
            return Settled((), False, rest[0], _text(rest[1]), _text(rest[2]))

        return Op([call], parse)

    def again(self, shard: Shard, key: str, start: str, end: str, *, dry: bool, forced: bool) -> Op[Given]:
        """Give a page of a key's entries to the group again."""
        names = [shard.stream, shard.owner(self.group), shard.epoch(self.group)]
        token = "" if dry else self._token
        call = AGAIN(names, self.group, int(forced), token, key, start, end, LOOK, LOOK_BYTES)

        def parse(replies: list[Any]) -> Given:
            verdict, *rest = replies[0]
            if verdict == b"living":
                return Given(living=[_text(name) for name in rest])
            return Given((), rest[0], rest[1], _text(rest[2]))

        return Op([call], parse)

    def release(self, shards: Sequence[Shard]) -> Op[None]:
        """Let the group's workers own these again, and have them look now. (Where memory is full they are not told,
        and look by themselves.)
        """
        rung = ring(self.layout.namespace, self.layout.name, self.group)
        calls = [DISOWN([shard.owner(self.group)], self._token.rpartition("|")[0]) for shard in shards]

        def parse(replies: list[Any]) -> None:
            for reply in replies[: len(calls)]:
                if isinstance(reply, StoreError):
                    raise reply

        return Op([*calls, *rung.calls], parse, partial=True)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
