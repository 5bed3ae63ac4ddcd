"""The truth about a stream, as stored in `ns:stream:<name>`: generations, shard counts, key field, schemas.

What is stored wins over what a process declares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rstream.errors import MemoryFull, StoreError
from rstream.store import keys
from rstream.store.keys import ShardKeys, shard_keys, shard_of
from rstream.store.link import Op
from rstream.store.scripts import DECLARE

MAX_SHARDS = 1024


@dataclass(frozen=True)
class Layout:
    """namespace, name · generation and its number of shards · key: the key field, or None · version: the schema
    version that this process writes · schema: JSON Schema of that version, where it was loaded.
    """

    namespace: str
    name: str
    generation: int
    shards: int
    key: str | None
    version: int
    schema: Mapping[str, Any] | None = None

    @cached_property
    def keys(self) -> tuple[ShardKeys, ...]:
        """The keys of each shard of the current generation."""
        return tuple(
            shard_keys(self.namespace, self.name, self.generation, shard, self.shards) for shard in range(self.shards)
        )

    def shard(self, key: str) -> int:
        return shard_of(key, self.shards)


def declare(namespace: str, name: str, shards: int, key: str | None, schema: Mapping[str, Any]) -> Op[Layout]:
    """Store the declaration, unless there is one; either way, what is stored. One round trip."""
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def parse(replies: list[Any]) -> Layout:
        declared, listed = replies
        if isinstance(declared, StoreError):
            raise declared
        if isinstance(listed, StoreError) and not isinstance(listed, MemoryFull):
            raise listed  # a full memory refuses also what is listed already; the next declaration lists the others
        generation, stored_shards, stored_key, version = declared
        return Layout(namespace, name, generation, stored_shards, stored_key.decode() or None, version, schema)

    meta = keys.stream(namespace, name)
    calls = (DECLARE([meta], shards, key or "", text, digest), ("SADD", keys.streams(namespace), name))
    return Op(calls, parse, partial=True)


def load(namespace: str, name: str) -> Op[Layout | None]:
    """What is stored of a stream, with its newest schema, or None. One round trip."""

    def parse(replies: list[Any]) -> Layout | None:
        flat = replies[0]
        stored = dict(zip(flat[::2], flat[1::2], strict=True))
        if not stored:
            return None
        generation, version = int(stored[b"generation"]), int(stored[b"versions"])
        shards = int(stored[b"shards:%d" % generation])
        schema = json.loads(stored[b"schema:%d" % version])
        return Layout(namespace, name, generation, shards, stored[b"key"].decode() or None, version, schema)

    return Op([("HGETALL", keys.stream(namespace, name))], parse)


def names(namespace: str) -> Op[list[str]]:
    """The names of all streams, sorted."""
    return Op([("SMEMBERS", keys.streams(namespace))], lambda replies: sorted(n.decode() for n in replies[0]))


def clock() -> Op[int]:
    """Redis's clock in milliseconds: the only one that ages and ids are measured by."""
    return Op([("TIME",)], lambda replies: int(replies[0][0]) * 1000 + int(replies[0][1]) // 1000)
