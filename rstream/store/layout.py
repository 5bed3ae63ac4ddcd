"""The truth about a stream, as stored in `ns:stream:<name>`: generations, shard counts, key field, schemas, retention.

What is stored wins over what a process declares.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rstream.compat import digest
from rstream.errors import GroupMissing, MemoryFull, StoreError, StoreRefused
from rstream.retention import NONE, Retention
from rstream.store import keys
from rstream.store.keys import Shard
from rstream.store.link import Op
from rstream.store.past import Past
from rstream.store.scripts import DECLARE, GENERATIONS, RESTORE, Call

MAX_SHARDS = 1024


@dataclass(frozen=True)
class Layout:
    """namespace, name · generation that is written to, and its number of shards · key: the key field, or None ·
    version: the schema version that this process writes; 0 where its schema was not stored · older: (generation,
    number of shards) of those that were written to before and are still there, oldest first · planned: the same of
    one that a resharding has begun to make · removed: the same of those that are not there any more · schema: JSON
    Schema of that version, where it was loaded · schemas: those of all versions, as far as they were loaded ·
    retention: None where everything is kept · encrypted: whether somebody declared it so, where that was asked · new,
    limited: it, or its retention, was stored just now, by this process · past: the stream's archive, where the app has
    a blob store · retired: those of `removed` that are being removed just now, and counted: what was counted in the
    others, see totals.py; both only where `load` made this.
    """

    namespace: str
    name: str
    generation: int
    shards: int
    key: str | None
    version: int
    older: tuple[tuple[int, int], ...] = ()
    planned: tuple[int, int] | None = None
    removed: tuple[tuple[int, int], ...] = ()
    schema: Mapping[str, Any] | None = None
    schemas: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    retention: Retention | None = None
    encrypted: bool = field(default=False, compare=False)
    new: bool = field(default=False, compare=False)
    limited: bool = field(default=False, compare=False)
    past: Past | None = field(default=None, compare=False, repr=False)
    retired: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    counted: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def current(self) -> tuple[Shard, ...]:
        """The shards that are written to."""
        return self.of(self.generation, self.shards)

    @cached_property
    def every(self) -> tuple[Shard, ...]:
        """The shards of all generations, the oldest generation first."""
        return (*(shard for generation, count in self.older for shard in self.of(generation, count)), *self.current)

    @cached_property
    def ever(self) -> tuple[Shard, ...]:
        """Also those that were removed: what was done there is remembered for a while."""
        return (*(shard for generation, count in self.removed for shard in self.of(generation, count)), *self.every)

    def of(self, generation: int, count: int) -> tuple[Shard, ...]:
        """The shards of one generation."""
        return tuple(keys.shard(self.namespace, self.name, generation, number, count) for number in range(count))

    def shard(self, key: str | bytes) -> Shard:
        """The one that events of this key are written to."""
        return self.current[keys.number_of(key, self.shards)]

    def places(self, of: Iterable[bytes]) -> list[Shard]:
        """The shard of each of these keys."""
        current, count, hashed = self.current, self.shards, keys.hash_of
        return [current[hashed(key) * count >> 32] for key in of]

    def holding(self, key: str | None) -> list[Shard]:
        """The shards that may hold entries of this key, one a generation; without a key, all."""
        if key is None:
            return list(self.every)
        return [shard for shard in self.every if shard.number == keys.number_of(key, shard.count)]

    def writes(self, shard: Shard) -> bool:
        """Whether a shard of the stream, as anybody knows it, is one that is written to."""
        return shard.generation == self.generation and shard.count == self.shards


COMPARED = 2**31
"""More versions than a stream ever has: the schema is stored whatever is stored already."""


def declare(
    namespace: str,
    name: str,
    shards: int,
    key: str | None,
    schema: Mapping[str, Any],
    compared: int = COMPARED,
    retention: Retention | None = None,
) -> Op[Layout]:
    """Store the declaration, unless there is one; either way, what is stored. One round trip.

    compared: how many versions of the schema the caller has compared with its own. A new one is not stored where there
    are more; the layout then has version 0, and those others as its `schemas`. retention: stored where nobody has
    declared one before.
    """
    text = json.dumps(schema, separators=(",", ":"))  # fields stay in the model's order

    def parse(replies: list[Any]) -> Layout:
        declared, listed = replies
        if isinstance(declared, StoreError):
            raise declared
        generation, stored_key, version, *kinds, others, kept, limited, made = declared
        # A full memory refuses also what is listed already; the next declaration lists the others. And who only reads
        # may not list.
        tolerable = MemoryFull if made else MemoryFull | StoreRefused
        if isinstance(listed, StoreError) and not isinstance(listed, tolerable):
            raise listed
        stored, removed = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in kinds)
        layout = _layout(namespace, name, generation, stored, removed, stored_key, version, schema)
        schemas = {number: json.loads(text) for number, text in zip(others[::2], others[1::2], strict=True)}
        return replace(layout, new=listed == 1, schemas=schemas, retention=_retention(kept), limited=bool(limited))

    meta = keys.stream(namespace, name)
    calls = (
        DECLARE([meta], shards, key or "", text, digest(schema), compared, retention.to_json() if retention else ""),
        ("SADD", keys.streams(namespace), name),
    )
    return Op(calls, parse, partial=True)


def restore(layout: Layout) -> Op[bool]:
    """Give the versions that are known of a stream their numbers again, where Redis lost them; whether they have them.
    One round trip.
    """
    schemas = [schema for _, schema in sorted(layout.schemas.items())]
    texts = [part for each in schemas for part in (digest(each), json.dumps(each, separators=(",", ":")))]
    meta = keys.stream(layout.namespace, layout.name)
    return Op([RESTORE([meta], *texts)], lambda replies: bool(replies[0]))


def load(namespace: str, name: str) -> Op[Layout | None]:
    """What is stored of a stream, with all its schemas, or None. One round trip."""

    def parse(replies: list[Any]) -> Layout | None:
        flat = replies[0]
        stored = dict(zip(flat[::2], flat[1::2], strict=True))
        if b"generation" not in stored:  # also where Redis lost it, and a worker is about to declare it anew
            return None
        generation, version = int(stored[b"generation"]), int(stored[b"versions"])
        schemas = {n: json.loads(stored[b"schema:%d" % n]) for n in range(1, version + 1)}
        generations, removed = _counts(stored, b"shards"), _counts(stored, b"retired", b"gone")
        layout = _layout(namespace, name, generation, generations, removed, stored[b"key"], version, schemas[version])
        return replace(
            layout,
            schemas=schemas,
            retention=_retention(stored.get(b"retention", b"")),
            encrypted=b"encrypted" in stored,
            retired=tuple(sorted(_counts(stored, b"retired").items())),
            counted={
                name.decode(): int(number)
                for field, number in stored.items()
                for kind, _, name in [field.partition(b":")]
                if kind == b"done"
            },
        )

    return Op([("HGETALL", keys.stream(namespace, name))], parse)


def _retention(stored: bytes) -> Retention | None:
    return Retention.from_json(stored.decode()) if stored else None


def retain(namespace: str, name: str, retention: Retention | None) -> Op[None]:
    """Store another retention, or that there is none; it wins over what is declared."""
    text = NONE if retention is None else retention.to_json()
    return Op([("HSET", keys.stream(namespace, name), "retention", text)], lambda replies: None)


def mark_encrypted(namespace: str, name: str) -> Op[None]:
    """Say to whoever has no model that payloads are encrypted. A full memory is no reason not to go on."""

    def parse(replies: list[Any]) -> None:
        if isinstance(replies[0], StoreError) and not isinstance(replies[0], MemoryFull):
            raise replies[0]

    return Op([("HSET", keys.stream(namespace, name), "encrypted", "1")], parse, partial=True)


def retentions(namespace: str, names: Sequence[str]) -> Op[list[Retention | None]]:
    """Of several streams."""
    calls: list[Call] = [("HGET", keys.stream(namespace, name), "retention") for name in names]
    return Op(calls, lambda replies: [_retention(reply or b"") for reply in replies])


def _counts(stored: Mapping[bytes, bytes], *kinds: bytes) -> dict[int, int]:
    """How many shards the generations of these kinds have."""
    parts = [(field.partition(b":"), count) for field, count in stored.items()]
    return {int(number): int(count) for (kind, _, number), count in parts if kind in kinds}


def _layout(
    namespace: str,
    name: str,
    generation: int,
    generations: Mapping[int, int],
    removed: Mapping[int, int],
    key: bytes,
    version: int,
    schema: Mapping[str, Any],
) -> Layout:
    older = tuple(sorted(each for each in generations.items() if each[0] < generation))
    planned = next((each for each in generations.items() if each[0] > generation), None)
    return Layout(
        namespace,
        name,
        generation,
        generations[generation],
        key.decode() or None,
        version,
        older,
        planned,
        tuple(sorted(removed.items())),
        schema,
    )


def owner(namespace: str, name: str) -> Op[str]:
    """The id by which this Redis marks what it has of the stream in a blob store; made when it is first asked for."""
    key = keys.owner(namespace, name)

    def parse(replies: list[Any]) -> str:
        made, id = replies
        for reply in (id, made):
            if isinstance(reply, StoreError) and not isinstance(id, bytes):
                raise reply  # a full memory refuses also what is there already
        return str(id.decode())

    return Op([("SET", key, os.urandom(8).hex(), "NX"), ("GET", key)], parse, partial=True)


def names(namespace: str) -> Op[list[str]]:
    """The names of all streams, sorted."""
    return Op([("SMEMBERS", keys.streams(namespace))], lambda replies: sorted(n.decode() for n in replies[0]))


def groups(shards: Iterable[Shard]) -> Op[list[str]]:
    """The names of all groups that are on any of these, sorted."""

    def parse(replies: list[Any]) -> list[str]:
        names = set()
        for reply in replies:
            if isinstance(reply, GroupMissing):
                continue  # a shard that was never made
            if isinstance(reply, StoreError):
                raise reply
            names |= {dict(zip(flat[::2], flat[1::2], strict=True))[b"name"].decode() for flat in reply}
        return sorted(names)

    return Op([("XINFO", "GROUPS", shard.stream) for shard in shards], parse, partial=True)


def clock() -> Op[int]:
    """Redis's clock in milliseconds: the only one that ages and ids are measured by."""
    return Op([("TIME",)], lambda replies: int(replies[0][0]) * 1000 + int(replies[0][1]) // 1000)


def generations(namespace: str, names: Sequence[str]) -> Op[list[set[int]]]:
    """The numbers of the generations of many streams that are written to, or were; none of a stream that is gone."""
    calls = [GENERATIONS([keys.stream(namespace, name)]) for name in names]
    return Op(calls, lambda replies: [set(reply) for reply in replies])
