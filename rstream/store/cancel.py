"""Settling what others hold, by hand: one fenced Lua call a shard, and a ring by which their workers learn of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from rstream.store.keys import Shard
from rstream.store.link import Op
from rstream.store.scripts import CANCEL

Verdict = Literal["cancelled", "settled", "unread", "gone"]


class Judged(NamedTuple):
    """What became of one. holder: a worker or a pseudo-consumer that had it, "" where nobody did."""

    verdict: Verdict
    holder: str
    deliveries: int


def cancel(shard: Shard, group: str, ids: Sequence[str], keys: Sequence[bytes]) -> Op[list[Judged]]:
    """Settle these. keys: of those that may be put aside. Sent twice, the second finds what the first did settled."""
    names: list[str | bytes] = [
        shard.stream, shard.retry(group), shard.memo(group, ""), shard.done, shard.parked(group),
        *(shard.aside(group, key) for key in keys),
    ]  # fmt: skip

    def parse(replies: list[Any]) -> list[Judged]:
        return [Judged(verdict.decode(), holder.decode(errors="replace"), n) for verdict, holder, n in replies[0]]

    return Op([CANCEL(names, group, *ids)], parse)
