"""Who owns which shard of an ordered group, and what a new owner has to know. docs/ordering.md explains it to users.

A shard is owned by `worker|epoch`, a key that lives as long as the worker's lease; only its owner reads new entries
there and takes over old ones, and Redis checks that in the same call. What a former owner still runs stays with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rstream.store import keys
from rstream.store.deliveries import READ_BYTES, Fetched, GroupOps
from rstream.store.keys import Shard
from rstream.store.link import Op, both
from rstream.store.scripts import DISOWN, HOLDERS, INHERIT, LOOK, MEMBERS, OWN, PARKED, UNPARK, Call

PAGE = 200
"""Pending entries that one call looks at."""
KEYS = 1000
"""Keys of events that one call asks about."""


class Look(NamedTuple):
    """How the group stands in one shard. token: `worker|epoch` of the owner, "" = none · epoch: the last one · unread:
    whether something is · pending: deliveries that are not settled · position: the id that was delivered last, "" where
    the group is missing.
    """

    token: str
    epoch: int
    unread: bool
    pending: int
    position: bytes

    @property
    def owner(self) -> str:
        """A worker, "" = nobody."""
        return self.token.rpartition("|")[0]

    @property
    def drained(self) -> bool:
        """Whether the group has nothing to do here at the moment; in an older generation: any more."""
        return not self.unread and not self.pending


class Heir(NamedTuple):
    """A pending entry that somebody else has. key: None where it has none, or is trimmed."""

    id: bytes
    holder: str
    key: bytes | None


class Parked(NamedTuple):
    """Entries that are put aside: the first and how many."""

    first: bytes
    number: int


class Unparked(NamedTuple):
    """entries: brought back · lost: ids that are not stored any more · first: of what is still put aside, or None."""

    entries: list[Fetched]
    lost: list[bytes]
    first: bytes | None


class OwnerOps:
    """The operations by which a worker takes part in an ordered group."""

    def __init__(self, ops: GroupOps) -> None:
        self._ops = ops

    def take_part(self, lease_ms: int) -> Op[list[str]]:
        """Be a member for another lease (0: no more); the members."""
        layout, group = self._ops.layout, self._ops.group
        call = MEMBERS([keys.members(layout.namespace, layout.name, group)], self._ops.worker, lease_ms)
        return Op([call], lambda replies: [name.decode() for name in replies[0]])

    def look(self, shards: Sequence[Shard]) -> Op[dict[Shard, Look]]:
        parts, group = self._ops.parts(shards), self._ops.group
        calls = [
            LOOK([name for s in part for name in (s.stream, s.owner(group), s.epoch(group))], group) for part in parts
        ]

        def parse(replies: list[Any]) -> dict[Shard, Look]:
            pairs = [pair for part, reply in zip(parts, replies, strict=True) for pair in zip(part, reply, strict=True)]
            return {shard: _look(*raw) for shard, raw in pairs}

        return Op(calls, parse)

    def look_round(self, lease_ms: int, shards: Sequence[Shard]) -> Op[tuple[list[str], dict[Shard, Look]]]:
        """`take_part` and then `look`, in one write."""
        return both(self.take_part(lease_ms), self.look(shards))

    def own(self, floors: Mapping[Shard, int], lease_ms: int) -> Op[dict[Shard, str]]:
        """Become the owner of shards that nobody owns, each by an epoch above its floor; the tokens of those that now
        are this worker's.
        """
        shards, group = list(floors), self._ops.group
        calls = [
            OWN([shard.owner(group), shard.epoch(group)], self._ops.worker, lease_ms, floor)
            for shard, floor in floors.items()
        ]

        def parse(replies: list[Any]) -> dict[Shard, str]:
            tokens = {shard: reply.decode() for shard, reply in zip(shards, replies, strict=True)}
            return {shard: token for shard, token in tokens.items() if token.rpartition("|")[0] == self._ops.worker}

        return Op(calls, parse)

    def disown(self, shards: Sequence[Shard]) -> Op[int]:
        """Stop owning these, as far as they are this worker's; how many were."""
        parts, group = self._ops.parts(shards), self._ops.group
        calls = [DISOWN([shard.owner(group) for shard in part], self._ops.worker) for part in parts]
        return Op(calls, sum)

    def inherit(self, shard: Shard, start: str = "-") -> Op[tuple[list[Heir], str]]:
        """A page of what is pending in a shard; and where the next one starts, "" after the last."""
        call = INHERIT([shard.stream], self._ops.group, start, PAGE, READ_BYTES)

        def parse(replies: list[Any]) -> tuple[list[Heir], str]:
            found, last = replies[0]
            return [Heir(id, holder.decode(), key) for id, holder, key in found], last and "(" + last.decode()

        return Op([call], parse)

    def holders(self, entries: Sequence[tuple[Shard, bytes]]) -> Op[list[str]]:
        """For whom each entry is pending; "" = for nobody, it is settled."""
        by_shard: dict[Shard, list[bytes]] = {}
        for shard, id in entries:
            by_shard.setdefault(shard, []).append(id)
        calls = [HOLDERS([shard.stream], self._ops.group, *ids) for shard, ids in by_shard.items()]

        def parse(replies: list[Any]) -> list[str]:
            found = {
                (shard, id): holder.decode()
                for (shard, ids), reply in zip(by_shard.items(), replies, strict=True)
                for id, holder in zip(ids, reply, strict=True)
            }
            return [found[entry] for entry in entries]

        return Op(calls, parse)

    def crowded(self, shard: Shard) -> Op[list[bytes]]:
        """The keys of which something is put aside in a shard."""
        return Op([("SMEMBERS", shard.parked(self._ops.group))], lambda replies: list(replies[0]))

    def parked(self, shard: Shard, keys: Sequence[bytes]) -> Op[dict[bytes, Parked]]:
        """What is put aside of keys in a shard. (All names are given to Redis: where a slot is being moved, it then
        waits for those that have not come yet.)
        """
        parts = [keys[at : at + KEYS] for at in range(0, len(keys), KEYS)]
        calls = [PARKED([shard.aside(self._ops.group, key) for key in part]) for part in parts]

        def parse(replies: list[Any]) -> dict[bytes, Parked]:
            pairs = zip(keys, (each for reply in replies for each in reply), strict=True)
            return {key: Parked(id, count) for key, (id, count) in pairs if id}

        return Op(calls, parse)

    def unpark(self, shard: Shard, token: str, key: bytes, limit: int) -> Op[Unparked | None]:
        """Bring back the first entries that are put aside of a key; None where the shard is not owned by that token."""
        group = self._ops.group
        names: list[str | bytes] = [shard.stream, shard.owner(group), shard.parked(group), shard.aside(group, key)]
        names.append(shard.lost)
        call = UNPARK(names, group, self._ops.worker, token, key, limit, READ_BYTES)

        def parse(replies: list[Any]) -> Unparked | None:
            if replies[0] is None:
                return None
            claimed, lost, first = replies[0]
            entries = [Fetched(shard, id, flat, n, source.decode()) for id, n, flat, source in claimed]
            return Unparked(entries, lost, first or None)

        return Op([call], parse)

    def knock(self, after: Mapping[Shard, bytes], block_ms: int) -> Op[dict[Shard, bytes]]:
        """Wait until there is something after these ids in any of the shards, which have to be on one server; the first
        id after each. A doorbell that delivers nothing.
        """
        by_name = {shard.stream.encode(): shard for shard in after}
        names = [shard.stream for shard in after]
        call: Call = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *names, *after.values())
        return Op([call], lambda replies: {by_name[name]: found[0][0] for name, found in replies[0] or ()})


def _look(token: bytes, epoch: int, unread: int, pending: int, position: bytes) -> Look:
    return Look(token.decode(), epoch, bool(unread), pending, position)
