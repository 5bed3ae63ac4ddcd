"""Every key in Redis, and the shard of a key. No other module builds one.

`ns` is the namespace, `i` one of `N` shards, `S` = `{ns:i/N}:<stream>:<generation>`; the part in braces is the
hash tag, so all keys of a shard share a slot, and streams with the same N are co-partitioned.

| key                      | type                   | what                                                        |
| ------------------------ | ---------------------- | ----------------------------------------------------------- |
| `S`                      | stream                 | the shard's entries, fields `e` `k` `i` `h`                 |
| `S:seq:<producer>`       | string, TTL            | the last flush applied: `seq first-id count`                |
| `S:alive:<group>:<worker>` | string, TTL = lease  | this worker lives, as seen from this shard's slot           |
| `S:retry:<group>`        | zset                   | entry id -> due time (ms) of deliveries waiting for a retry |
| `S:dead:<group>`         | stream                 | dead letters                                                |
| `S:once:<group>:<key>`   | string, TTL            | the entry by which a dedupe key succeeded                   |
| `S:emitted:<event id>`   | string, TTL            | an event that another server's consumer emitted is stored   |
| `S:memo:<group>:<id>`    | hash, TTL              | checkpoint and steps of a delivery, gone with its ack       |
| `ns:streams`             | set                    | the names of all streams                                    |
| `ns:stream:<name>`       | hash                   | the truth about a stream, see layout.py                     |
| `ns:replay:<stream>:<name>` | hash                | how far a replay has come, see replays.py                   |
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash


def shard_of(key: str, shards: int) -> int:
    """The shard of a key: contiguous ranges of a 32-bit xxHash, so a new layout's shard has few parents."""
    return int(xxhash.xxh32_intdigest(key.encode())) * shards >> 32


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """The keys of one shard."""

    stream: str

    def seq(self, producer: str) -> str:
        return f"{self.stream}:seq:{producer}"

    def alive(self, group: str, worker: str) -> str:
        return f"{self.stream}:alive:{group}:{worker}"

    def retry(self, group: str) -> str:
        return f"{self.stream}:retry:{group}"

    def dead(self, group: str) -> str:
        return f"{self.stream}:dead:{group}"

    def once(self, group: str, key: str) -> str:
        return f"{self.stream}:once:{group}:{key}"

    def emitted(self, event_id: bytes) -> str:
        return f"{self.stream}:emitted:{event_id.hex()}"

    def memo(self, group: str, id: str) -> str:
        return f"{self.stream}:memo:{group}:{id}"


def shard_keys(namespace: str, stream: str, generation: int, shard: int, shards: int) -> ShardKeys:
    return ShardKeys(f"{{{namespace}:{shard}/{shards}}}:{stream}:{generation}")


def streams(namespace: str) -> str:
    return f"{namespace}:streams"


def stream(namespace: str, name: str) -> str:
    return f"{namespace}:stream:{name}"


def replay(namespace: str, stream: str, name: str) -> str:
    return f"{namespace}:replay:{stream}:{name}"
