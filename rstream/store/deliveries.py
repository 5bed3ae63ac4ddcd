"""The queue half: groups, fetch, settle, recover. docs/delivery.md explains it to users.

The rule that all of it rests on: an entry pending for a worker that is alive is nobody else's business; an
entry pending for one that is not may be claimed by anyone; and whoever ends a delivery must still own it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgpack

from rstream.store.keys import Shard, by_slot
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.record import FLUSH_BYTES, FLUSH_ENTRIES, Record
from rstream.store.scripts import ACK, BEAT, BEGIN, EMIT, FETCH, GROUP, LEAVE, MINE, OTHERS, RECOVER, SETTLE, Call

Kind = Literal["ack", "expired", "skipped", "retry", "dead", "release", "park", "lost"]

STAYS = ("retry", "release", "park")
"""What ends a delivery in these ways stays pending; in all others it is acked."""

READ_BYTES = 4 * 1024 * 1024
"""Payload that one call brings at most (and one entry, or the entries of one small read, more)."""

MANY = 2**31

PSEUDO = ("~released", "~again", "~retry", "~parked")
"""Consumers that are never alive: what waits there is free to be claimed (~retry: when it is due; ~parked: when it is
its key's turn)."""

BUFFER = 4096
"""Bytes that are set aside to pack outcomes; it grows. (msgpack itself begins with 256 KiB, which the system maps and
clears each time.)"""

BARE = "bare"

LOST = "~lost"
"""Named as the owner of what was dropped, and written down as that."""

Tokens = Mapping[Shard, str]
"""Shards of an ordered group and the `worker|epoch` by which they are owned."""

Others = Mapping[Shard, Sequence[bytes]]
"""The names of other workers by shard."""


class Fetched(NamedTuple):
    """One entry as a worker gets it: `deliveries` counts the attempts begun so far, this one included only
    where it came by a fresh read (`source` None); otherwise it must be begun first."""

    shard: Shard
    id: bytes
    flat: Sequence[bytes]
    deliveries: int
    source: str | None


class Emit(NamedTuple):
    """An event that is appended to a shard of another stream of the same server by the ack."""

    target: Shard
    record: Record


class Outcome(NamedTuple):
    """How a delivery ended. ack: a = dedupe key that succeeded ("" = none), b = how long that counts, in ms; c = "bare"
    where it has none, is a first attempt, and no checkpoint or step was kept of it · retry:
    a = delay in ms, b = attempts begun, where this one is not to count · dead: a = reason, b = error in one line, c =
    traceback · release: a = attempts begun so far, b = the pseudo-consumer that gets it · park: a = attempts begun so
    far, b = key, c = "!" where a worker may have died of it · lost: it is not stored any more · expired, skipped: acked
    and counted as that. emits: of an ack.
    """

    shard: Shard
    id: bytes
    attempt: int
    kind: Kind
    a: int | str = ""
    b: int | str | bytes = ""
    c: str = ""
    emits: tuple[Emit, ...] = ()


class Beat(NamedTuple):
    """known: the worker was known to live in all shards already · now: Redis's clock in ms."""

    known: bool
    now: int


class Read(NamedTuple):
    """gone: shards that were not read, for the worker does not own them any more · more: whether there may be more."""

    entries: list[Fetched]
    gone: list[Shard]
    more: bool


class Refusal(NamedTuple):
    """A settle that the fence stopped: the entry is pending for `owner` ("" = nobody, it is settled; ~lost: nobody, and
    it was dropped, unprocessed).
    """

    outcome: Outcome
    owner: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """lost: (shard, id) of entries that were pending but are no longer stored · next_due: seconds until the
    next waiting retry, or None · left: whether suspects were left to other workers.
    """

    claimed: list[Fetched]
    lost: list[tuple[Shard, bytes]]
    next_due: float | None
    left: bool


class GroupOps:
    """The operations of one worker in one group of one stream. Without `shards`, on those of all generations.

    spread: the shards may lie on different servers, so that a call must not touch two slots.
    """

    def __init__(self, layout: Layout, group: str, worker: str, *, spread: bool = False) -> None:
        self.layout, self.group, self.worker, self.spread = layout, group, worker, spread

    def parts(self, shards: Sequence[Shard] | None) -> list[Sequence[Shard]]:
        """Those that one call may touch, together."""
        wanted = self.layout.every if shards is None else shards
        return [*by_slot(wanted)] if self.spread else [wanted] if wanted else []

    def create(self, start: str, shards: Sequence[Shard] | None = None, *, written: int | None = None) -> Op[bool]:
        """Make the group on shards, reading from `start` (an id, "0" or "$"). True if it was not there.

        written: the generation that is written to (default: the layout's). Only its shards are made where they are not
        there: one of an older generation would not be sealed.
        """
        wanted = self.layout.every if shards is None else shards
        current = self.layout.generation if written is None else written
        calls = [
            GROUP([shard.stream], self.group, start, int(shard.generation >= current), self.worker) for shard in wanted
        ]
        return Op(calls, lambda replies: 1 in replies)

    def beat(self, lease_ms: int, owned: Tokens | None = None, shards: Sequence[Shard] | None = None) -> Op[Beat]:
        """Say that this worker lives, in every shard, and still owns some."""
        parts, tokens = self.parts(shards), owned or {}
        calls = []
        for part in parts:
            names = [name for s in part for name in (s.alive(self.group, self.worker), s.owner(self.group))]
            calls.append(BEAT(names, lease_ms, *(tokens.get(shard, "") for shard in part)))

        def parse(replies: list[Any]) -> Beat:
            known = sum(reply[0] for reply in replies) == sum(map(len, parts))
            return Beat(known, max(reply[1] for reply in replies))

        return Op(calls, parse)

    def fetch(
        self,
        limit: int,
        shards: Sequence[Shard] | None = None,
        owned: Tokens | None = None,
        *,
        begun: bool = True,
    ) -> Op[Read]:
        """At most `limit` new entries (on many servers: rounded up to a multiple of the shards), the first shard served
        first; of an ordered group only of shards that are owned. Sent twice it strands entries: see `mine`.

        begun: their first attempt counts from now; else they have to be begun as what was released has.
        """
        parts = self.parts(shards)
        share = -(-limit // max(1, len(parts)))
        calls = [
            FETCH(
                [name for shard in part for name in (shard.stream, shard.owner(self.group))],
                self.group, self.worker, share, READ_BYTES // len(parts), int(begun),
                *(owned[shard] if owned else "" for shard in part),
            )
            for part in parts
        ]  # fmt: skip

        def parse(replies: list[Any]) -> Read:
            unpacked = [msgpack.unpackb(reply, raw=True) for reply in replies]
            pairs = list(zip(parts, unpacked, strict=True))
            found = [(part[n], entries) for part, reply in pairs for n, entries in reply[0]]
            entries, gone = _fresh(found), [part[n] for part, reply in pairs for n in reply[1]]
            if not begun:
                entries = [each._replace(deliveries=0, source="~released") for each in entries]
            return Read(entries, gone, any(reply[2] for reply in unpacked))

        return Op(calls, parse)

    def wait(self, count: int, block_ms: int, shards: Sequence[Shard]) -> Op[list[Fetched]]:
        """As `fetch`, waiting up to `block_ms` for entries; `count` is per shard here, as Redis has it. The shards have
        to be on one server.
        """
        by_name = {shard.stream.encode(): shard for shard in shards}
        call: Call = (
            "XREADGROUP", "GROUP", self.group, self.worker, "COUNT", count, "BLOCK", block_ms,
            "STREAMS", *(shard.stream for shard in shards), *[">"] * len(shards),
        )  # fmt: skip
        return Op([call], lambda replies: _fresh([(by_name[name], found) for name, found in replies[0] or ()]))

    def mine(
        self, shard: Shard, start: str, limit: int, budget: int = READ_BYTES
    ) -> Op[list[tuple[bytes, int, Sequence[bytes] | None]]]:
        """What is pending for this worker: (id, deliveries, fields or None where they were trimmed). budget: bytes of
        payload after which the page ends.
        """
        call = MINE([shard.stream], self.group, self.worker, start, limit, budget)
        return Op([call], lambda replies: [(id, count, flat or None) for id, count, flat in replies[0]])

    def others(self, shards: Sequence[Shard] | None = None) -> Op[Others]:
        """The other workers that have, or had, a part in the group: those that `recover` may have to judge."""
        parts = self.parts(shards)
        calls = [OTHERS([shard.stream for shard in part], self.group, self.worker) for part in parts]

        def parse(replies: list[Any]) -> Others:
            pairs = zip(parts, replies, strict=True)
            return {shard: names for part, reply in pairs for shard, names in zip(part, reply, strict=True)}

        return Op(calls, parse)

    def recover(
        self,
        limit: int,
        lease_ms: int,
        shards: Sequence[Shard] | None = None,
        owned: Tokens | None = None,
        *,
        others: Others | None = None,
        doubt: int = MANY,
        used_up: int = MANY,
        suspects: int = MANY,
    ) -> Op[Recovered]:
        """Claim up to `limit` deliveries (on many servers: see `fetch`) that nobody alive holds, the first shard
        first; without a lease, not those of silent workers; with one, only those of these `others` that are silent.
        Of those that were delivered from `doubt` to less than `used_up` times, at most `suspects`. Of an ordered group
        only of shards that are owned.
        """
        parts, group = self.parts(shards), self.group
        share = -(-limit // max(1, len(parts)))
        calls = []
        for part in parts:
            bounds = share, lease_ms, READ_BYTES // len(parts), doubt, suspects, used_up
            names: list[str | bytes] = []
            by_shard: list[str | int] = []
            for shard in part:
                alive = self._alive(shard, (others or {}).get(shard, ())) if lease_ms else []
                names += shard.stream, shard.retry(group), shard.owner(group), shard.parked(group)
                names += shard.lost, shard.done, *alive
                by_shard += owned[shard] if owned else "", len(alive)
            calls.append(RECOVER(names, group, self.worker, *bounds, *by_shard))
        return Op(calls, lambda replies: _recovered(list(zip(parts, replies, strict=True))))

    def _alive(self, shard: Shard, others: Sequence[bytes]) -> list[bytes]:
        """The alive keys of this worker and of others, whose names may be anything."""
        prefix = shard.alive(self.group, "").encode()
        return [prefix + name for name in (self.worker.encode(), *others)]

    def begin(self, entry: Fetched) -> Op[bool | None]:
        """Burn the next attempt of a recovered entry. False: it is not ours any more · None: it was dropped."""
        call = BEGIN([entry.shard.stream, entry.shard.lost], self.group, self.worker, entry.id, entry.deliveries + 1)
        return Op([call], lambda replies: None if replies[0] < 0 else bool(replies[0]))

    def succeeded(self, shard: Shard, key: str) -> Op[bytes | None]:
        """The id of the entry by which a dedupe key succeeded in this group, or None. Looked for in this shard, and in
        those of older generations that may have held events of the same key.
        """
        before = [s for s in self.layout.ever if s.generation < shard.generation and s.overlaps(shard)]
        calls: list[Call] = [("GET", each.once(self.group, key)) for each in (shard, *before)]
        return Op(calls, lambda replies: next((id for id in replies if id), None))

    def settle(self, outcomes: Sequence[Outcome], *, again: bool = False) -> Op[list[Refusal]]:
        """End deliveries, one Lua call a shard, and one for the bare acks of all shards (on many servers: see `fetch`);
        those that emit, all or none of the batch, in calls of bounded size. Returns those that the fence refused.

        again: they were sent before, and may have been done: what is refused for that is not counted.
        """
        bare: dict[Shard, list[Outcome]] = {}
        by_shard: dict[Shard, list[Outcome]] = {}
        for outcome in outcomes:
            group = bare if outcome.c == BARE else by_shard
            if (batch := group.get(outcome.shard)) is None:
                batch = group[outcome.shard] = []
            batch.append(outcome)
        emitting = any(outcome.emits for batch in by_shard.values() for outcome in batch)
        batches = [part for batch in by_shard.values() for part in (_cut(batch) if emitting else [batch])]
        make = self._emit_call if emitting else self._settle_call
        calls = [make(batch[0].shard, batch, again) for batch in batches]
        for part in self.parts([*bare]):
            calls.append(self._ack_call(part, bare, again))
            batches.append([outcome for shard in part for outcome in bare[shard]])

        def parse(replies: list[Any]) -> list[Refusal]:
            return [
                Refusal(batch[index], owner.decode(), deliveries)
                for batch, reply in zip(batches, replies, strict=True)
                for index, owner, deliveries in reply
            ]

        return Op(calls, parse)

    def _ack_call(self, shards: Sequence[Shard], bare: Mapping[Shard, list[Outcome]], again: bool) -> Call:
        ids = [[outcome.id for outcome in bare[shard]] for shard in shards]
        packed = _packer(use_bin_type=False, buf_size=BUFFER).pack(ids)
        names = [name for shard in shards for name in (shard.stream, shard.done)]
        return ACK(names, self.group, self.worker, packed, int(again))

    def _settle_call(self, shard: Shard, batch: list[Outcome], again: bool) -> Call:
        group, aside = self.group, dict[Any, int]()  # the keys of what is put aside, by number
        for outcome in batch:
            if outcome.kind == "park":
                aside.setdefault(outcome.b, len(aside) + 1)
        told = [(*each[1:5], aside[each.b] if each.kind == "park" else each.b, each.c) for each in batch]
        packed = _packer(use_bin_type=False, unicode_errors="replace", buf_size=BUFFER).pack(told)
        names: list[str | bytes] = [
            shard.stream, shard.retry(group), shard.dead(group), shard.memo(group, ""), shard.parked(group), shard.lost,
            shard.done, *(shard.aside(group, key) for key in aside),
        ]  # fmt: skip
        return SETTLE(names, group, self.worker, packed, int(again))

    def _emit_call(self, shard: Shard, batch: list[Outcome], again: bool) -> Call:
        targets: dict[Shard, int] = {}
        packed = msgpack.packb([
            (each.id, each.attempt, each.a, each.b,
             [part for target, record in each.emits for part in (targets.setdefault(target, len(targets)), *record)])
            for each in batch
        ], use_bin_type=False)  # fmt: skip
        names = [shard.stream, shard.memo(self.group, ""), shard.done]
        names += [name for target in targets for name in (target.stream, target.sealed, target.size, target.marks)]
        return EMIT(names, self.group, self.worker, packed, int(again))

    def leave(self) -> Op[int]:
        """Leave the group; how many deliveries are still pending for this worker."""
        calls = [
            LEAVE([shard.stream, shard.alive(self.group, self.worker)], self.group, self.worker)
            for shard in self.layout.every
        ]
        return Op(calls, sum)


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


_packer = msgpack.Packer

new = tuple.__new__
"""What a NamedTuple's own does, in half the time: for what is made for every entry."""


def bare_ack(entry: Fetched) -> Outcome:
    """The outcome of nearly all deliveries."""
    return new(Outcome, (entry.shard, entry.id, 1, "ack", "", "", BARE, ()))


def _fresh(found: Sequence[Any]) -> list[Fetched]:
    # A trimmed-away entry of a blocked read comes with no fields; there is nothing to run.
    return [
        new(Fetched, (shard, id, flat, 1, None)) for shard, entries in found for id, flat in entries if flat is not None
    ]


def _recovered(replies: list[tuple[Sequence[Shard], Any]]) -> Recovered:
    claimed, lost, waits, left = [], [], [], False
    for part, (some, gone, next_due, passed_over) in replies:
        claimed += [
            Fetched(part[n], id, flat, count, source.decode(errors="replace")) for n, id, count, source, flat in some
        ]
        lost += [(part[n], id) for n, id in gone]
        waits += [next_due / 1000] if next_due >= 0 else []
        left = left or bool(passed_over)
    return Recovered(claimed, lost, min(waits, default=None), left)
