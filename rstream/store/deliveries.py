"""The queue half: groups, fetch, settle, recover. docs/delivery.md explains it to users.

The rule that all of it rests on: an entry pending for a worker that is alive is nobody else's business; an
entry pending for one that is not may be claimed by anyone; and whoever ends a delivery must still own it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgpack

from rstream.store.layout import Layout
from rstream.store.link import Op, first
from rstream.store.log import FLUSH_BYTES, FLUSH_ENTRIES, Record
from rstream.store.scripts import BEAT, BEGIN, EMIT, FETCH, GROUP, LEAVE, MINE, RECOVER, SETTLE, Call

Kind = Literal["ack", "retry", "dead", "release"]

READ_BYTES = 4 * 1024 * 1024
"""Payload that one call brings at most (and one entry, or the entries of one small read, more)."""

MANY = 2**31

PSEUDO = ("~released", "~again", "~retry")
"""Consumers that are never alive: what waits there is free to be claimed (~retry: when it is due)."""


class Fetched(NamedTuple):
    """One entry as a worker gets it: `deliveries` counts the attempts begun so far, this one included only
    where it came by a fresh read (`source` None); otherwise it must be begun first."""

    shard: int
    id: bytes
    flat: Sequence[bytes]
    deliveries: int
    source: str | None


class Emit(NamedTuple):
    """An event that is appended to another stream of the same server by the ack. target: the shard's stream key."""

    target: str
    record: Record


class Outcome(NamedTuple):
    """How a delivery ended. ack: a = dedupe key that succeeded ("" = none), b = how long that counts, in ms · retry:
    a = delay in ms · dead: a = reason, b = error in one line, c = traceback · release: a = attempts begun so far, b =
    the pseudo-consumer that gets it. emits: of an ack.
    """

    shard: int
    id: bytes
    attempt: int
    kind: Kind
    a: int | str = ""
    b: int | str = ""
    c: str = ""
    emits: tuple[Emit, ...] = ()


class Beat(NamedTuple):
    """known: the worker was known to live in all shards already · now: Redis's clock in ms."""

    known: bool
    now: int


class Refusal(NamedTuple):
    """A settle that the fence stopped: the entry is pending for `owner` ("" = nobody, it is settled)."""

    outcome: Outcome
    owner: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """lost: (shard, id) of entries that were pending but are no longer stored · next_due: seconds until the
    next waiting retry, or None · left: whether suspects were left to other workers.
    """

    claimed: list[Fetched]
    lost: list[tuple[int, bytes]]
    next_due: float | None
    left: bool


class GroupOps:
    """The operations of one worker in one group of one stream."""

    def __init__(self, layout: Layout, group: str, worker: str) -> None:
        self.layout, self.group, self.worker = layout, group, worker
        self._streams = [keys.stream for keys in layout.keys]

    def create(self, start: str) -> Op[bool]:
        """Make the group on every shard, reading from `start` (an id, "0" or "$"). True if it was not there."""
        return Op([GROUP([stream], self.group, start) for stream in self._streams], any)

    def beat(self, lease_ms: int) -> Op[Beat]:
        """Say that this worker lives, in every shard."""
        alive = [keys.alive(self.group, self.worker) for keys in self.layout.keys]
        return Op([BEAT(alive, lease_ms)], lambda replies: Beat(replies[0][0] == len(alive), replies[0][1]))

    def fetch(self, limit: int, first: int) -> Op[list[Fetched]]:
        """At most `limit` new entries, shard `first` served first. Sent twice it strands entries: see `mine`."""
        call = FETCH(self._streams, self.group, self.worker, limit, first, READ_BYTES)
        return Op([call], lambda replies: _fresh(replies[0]))

    def wait(self, count: int, block_ms: int) -> Op[list[Fetched]]:
        """As `fetch`, waiting up to `block_ms` for entries; `count` is per shard here, as Redis has it."""
        shards = {stream.encode(): shard for shard, stream in enumerate(self._streams)}
        call: Call = (
            "XREADGROUP", "GROUP", self.group, self.worker, "COUNT", count, "BLOCK", block_ms,
            "STREAMS", *self._streams, *[">"] * len(self._streams),
        )  # fmt: skip
        return Op([call], lambda replies: _fresh([(shards[name], found) for name, found in replies[0] or ()]))

    def mine(self, shard: int, start: str, limit: int) -> Op[list[tuple[bytes, int, Sequence[bytes] | None]]]:
        """What is pending for this worker: (id, deliveries, fields or None where they were trimmed)."""
        call = MINE([self._streams[shard]], self.group, self.worker, start, limit, READ_BYTES)
        return Op([call], lambda replies: [(id, count, flat or None) for id, count, flat in replies[0]])

    def recover(
        self, limit: int, first: int, lease_ms: int, *, doubt: int = MANY, used_up: int = MANY, suspects: int = MANY
    ) -> Op[Recovered]:
        """Claim up to `limit` deliveries that nobody alive holds; without a lease, not those of silent workers. Of
        those that were delivered from `doubt` to less than `used_up` times, at most `suspects`.
        """
        keys = [key for shard in self.layout.keys for key in (shard.stream, shard.retry(self.group))]
        call = RECOVER(keys, self.group, self.worker, limit, lease_ms, first, READ_BYTES, doubt, suspects, used_up)
        return Op([call], lambda replies: _recovered(*replies[0]))

    def begin(self, entry: Fetched) -> Op[bool]:
        """Burn the next attempt of a recovered entry. False where it is not ours any more."""
        call = BEGIN([self._streams[entry.shard]], self.group, self.worker, entry.id, entry.deliveries + 1)
        return Op([call], lambda replies: bool(replies[0]))

    def succeeded(self, shard: int, key: str) -> Op[bytes | None]:
        """The id of the entry by which a dedupe key succeeded in this group, or None."""
        return Op([("GET", self.layout.keys[shard].once(self.group, key))], first)

    def settle(self, outcomes: Sequence[Outcome]) -> Op[list[Refusal]]:
        """End deliveries, one Lua call a shard; those that emit, all or none of the batch, in calls of bounded size.
        Returns those that the fence refused.
        """
        by_shard: dict[int, list[Outcome]] = {}
        for outcome in outcomes:
            by_shard.setdefault(outcome.shard, []).append(outcome)
        emitting = any(outcome.emits for outcome in outcomes)
        batches = [part for batch in by_shard.values() for part in (_cut(batch) if emitting else [batch])]
        calls = [(self._emit_call if emitting else self._settle_call)(batch[0].shard, batch) for batch in batches]

        def parse(replies: list[Any]) -> list[Refusal]:
            return [
                Refusal(batch[index], owner.decode(), deliveries)
                for batch, reply in zip(batches, replies, strict=True)
                for index, owner, deliveries in reply
            ]

        return Op(calls, parse)

    def _settle_call(self, shard: int, batch: list[Outcome]) -> Call:
        keys = self.layout.keys[shard]
        packed = msgpack.packb([outcome[1:7] for outcome in batch], use_bin_type=False, unicode_errors="replace")
        names = [keys.stream, keys.retry(self.group), keys.dead(self.group), keys.memo(self.group, "")]
        return SETTLE(names, self.group, self.worker, packed)

    def _emit_call(self, shard: int, batch: list[Outcome]) -> Call:
        keys = self.layout.keys[shard]
        targets: dict[str, int] = {}
        packed = msgpack.packb([
            (each.id, each.attempt, each.a, each.b,
             [part for target, record in each.emits for part in (targets.setdefault(target, len(targets)), *record)])
            for each in batch
        ], use_bin_type=False)  # fmt: skip
        return EMIT([keys.stream, keys.memo(self.group, ""), *targets], self.group, self.worker, packed)

    def leave(self) -> Op[int]:
        """Leave the group; how many deliveries are still pending for this worker."""
        calls = [
            LEAVE([keys.stream, keys.alive(self.group, self.worker)], self.group, self.worker)
            for keys in self.layout.keys
        ]
        return Op(calls, sum)

    def pending(self) -> Op[int]:
        """Deliveries of the whole group that are not settled: running, waiting for a retry, or stranded."""
        calls: list[Call] = [("XPENDING", stream, self.group) for stream in self._streams]
        return Op(calls, lambda replies: sum(reply[0] for reply in replies))


def _cut(batch: list[Outcome]) -> list[list[Outcome]]:
    """Parts that emit about as much as a producer flushes in one call."""
    parts: list[list[Outcome]] = []
    count = size = 0
    for outcome in batch:
        if not parts or count >= FLUSH_ENTRIES or size >= FLUSH_BYTES:
            parts.append([])
            count = size = 0
        parts[-1].append(outcome)
        count += 1 + len(outcome.emits)
        size += sum(len(emit.record.payload) for emit in outcome.emits)
    return parts


def _fresh(found: Sequence[Any]) -> list[Fetched]:
    # A trimmed-away entry of a blocked read comes with no fields; there is nothing to run.
    return [Fetched(shard, id, flat, 1, None) for shard, entries in found for id, flat in entries if flat is not None]


def _recovered(claimed: list[Any], lost: list[Any], next_due: int, left: int) -> Recovered:
    return Recovered(
        [Fetched(shard, id, flat, count, source.decode()) for shard, id, count, source, flat in claimed],
        [(shard, id) for shard, id in lost],
        None if next_due < 0 else next_due / 1000,
        bool(left),
    )
