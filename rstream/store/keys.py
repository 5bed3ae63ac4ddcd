"""Every key in Redis, and the shard of a key. No other module builds one.

`ns` is the namespace, `S` = `{ns:i/N:xyz}:<stream>:<generation>` the i-th of the N shards of a generation. The part in
braces is the hash tag, so all keys of a shard share a slot, and streams with the same N are co-partitioned. `xyz` has
no meaning: it is chosen so that the N tags lie evenly over the slots of a cluster, see `tag`.

| key                      | type                   | what                                                        |
| ------------------------ | ---------------------- | ----------------------------------------------------------- |
| `S`                      | stream                 | the shard's entries, fields `e` `k` `i` `h`                 |
| `S:sealed`               | string                 | `<next generation> <last id>`: takes nothing more; outlives `S` |
| `S:seq:<producer>`       | string, TTL            | the last flush applied: `seq first-id count`                |
| `S:alive:<group>:<worker>` | string, TTL = lease  | this worker lives, as seen from this shard's slot           |
| `S:owner:<group>`        | string, TTL = lease    | `<worker>|<epoch>`: who may fetch for an ordered group      |
| `S:epoch:<group>`        | string                 | the last epoch that was given                               |
| `S:retry:<group>`        | zset                   | entry id -> due time (ms) of deliveries waiting for a retry |
| `S:parked:<group>`       | set                    | the keys of which entries are put aside                     |
| `S:parked:<group>:<key>` | zset                   | ids that wait, pending for ~parked, until their key's turn  |
| `S:dead:<group>`         | stream                 | dead letters                                                |
| `S:once:<group>:<key>`   | string, TTL            | the entry by which a dedupe key succeeded                   |
| `S:emitted:<event id>`   | string, TTL            | an event that another server's consumer emitted is stored   |
| `S:memo:<group>:<id>`    | hash, TTL              | checkpoint and steps of a delivery, gone with its ack       |
| `S:size`                 | hash                   | what the shard holds and may hold, see limits.lua           |
| `S:marks`                | zset                   | entry id -> bytes counted before it, one each ~64 KiB       |
| `S:lost`                 | hash                   | group -> what it lost, see lose.lua; outlives `S`           |
| `S:done`                 | hash                   | <kind>:<group> -> how many, ever: see totals.py             |
| `S:given:<group>:<name>` | hash, TTL              | `run`, `upto`: how far a replay has given entries to a group |
| `ns:streams`             | set                    | the names of all streams                                    |
| `ns:stream:<name>`       | hash                   | the truth about a stream, see layout.py                     |
| `ns:owner:<stream>`      | string                 | an id: whose the blobs of the stream are, see blobs/owners.py |
| `ns:members:<stream>:<group>` | zset              | worker -> until when (ms) it takes part in an ordered group |
| `ns:seen:<stream>`       | hash                   | who lived when, and is silent since when (ms), see weigh.py |
| `ns:janitor:<stream>`    | string, TTL            | the worker that looks after retention                       |
| `ns:swept:<stream>`      | string, TTL            | the blob store was looked through just now                  |
| `ns:worker:<id>`         | string, TTL            | what a worker says of itself, see workers.py                |
| `ns:workers`             | zset                   | worker -> its last beat (ms), of those that lived lately    |
| `ns:history:<stream>`    | hash                   | what happened, by minutes and hours, see history.py         |
| `ns:bell`                | stream                 | hints to look at something now, see bell.py                 |
| `ns:replay:<stream>:<name>` | hash                | how far a replay has come, see replays.py                   |
| `ns:archiver:<stream>`   | string, TTL            | who archives it, or that nobody shall, see archiving.py     |
"""

from __future__ import annotations

import binascii
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import xxhash

from rstream.event import MAX_PART, EntryId
from rstream.store.scripts import Arg

SLOTS = 16384
"""Hash slots of a Redis Cluster."""

ARCHIVE = "~archive"
"""The group that nobody reads by: what it has behind it is archived. No user's can be called that."""

Rank = tuple[int, int]
"""An id as Redis has it (ms, seq), as numbers: they compare as entries lie in a shard."""

END: Rank = (MAX_PART + 1, 0)
"""After all ids."""


hash_of: Callable[[bytes], int] = xxhash.xxh32_intdigest
"""Of a key: 32 bits, which are its place among the shards."""


def number_of(key: str | bytes, shards: int) -> int:
    """Which of so many shards a key belongs to: contiguous ranges of its hash, so that a shard of a new generation has
    few parents.
    """
    return hash_of(key if isinstance(key, bytes) else key.encode()) * shards >> 32


def half_of(key: bytes) -> int:
    """Whether its hash is in the lower (0) or the upper half (1), which no resharding changes. b"" is in the lower."""
    return hash_of(key) >> 31 if key else 0


def slot_of(key: Arg) -> int:
    """The slot of a key in a Redis Cluster, as CLUSTER KEYSLOT: CRC16 (XMODEM) of its hash tag, if it has one."""
    raw = key if isinstance(key, bytes) else str(key).encode()
    start = raw.find(b"{")
    end = raw.find(b"}", start + 1)
    return binascii.crc_hqx(raw[start + 1 : end] if start >= 0 and end > start + 1 else raw, 0) % SLOTS


def rank_of(id: bytes) -> Rank:
    ms, _, seq = id.partition(b"-")
    return int(ms), int(seq)


_LETTERS = [letter.encode() for letter in string.ascii_letters]
_LAST = {binascii.crc_hqx(letter, 0) % SLOTS: letter for letter in reversed(_LETTERS)}


@cache
def _ending(crc: int) -> str:
    """The first three letters (a to z before A to Z) whose CRC16, begun at 0, has these low 14 bits: there are some for
    every slot. Every 300th pair of letters has a third, so that few are looked at.
    """
    for two in (first + second for first in _LETTERS for second in _LETTERS):
        last = _LAST.get(binascii.crc_hqx(b"\0", binascii.crc_hqx(two, 0)) % SLOTS ^ crc)
        if last is not None:
            return (two + last).decode()
    raise AssertionError(f"no ending for {crc}")


def tag(namespace: str, number: int, count: int) -> str:
    """The hash tag of a shard. The tags of all shards lie at equal distances over the slots, so that masters with equal
    ranges of them hold as equal numbers of shards as can be; where the first one lies depends on namespace and count.

    CRC is linear: crc(a + b) = crc(a + zeros) ^ crc(b), so the ending that leads to a slot is found without trying.
    """
    name = f"{namespace}:{number}/{count}:"
    first = binascii.crc_hqx(f"{namespace}/{count}".encode(), 0)
    wanted = (first + number * SLOTS // count) % SLOTS
    unended = binascii.crc_hqx(bytes(3), binascii.crc_hqx(name.encode(), 0)) % SLOTS
    return name + _ending(unended ^ wanted)


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One of the `count` shards of a generation, and its keys. There is one object for each in a process: `shard` makes
    it, so that `==` and hashing cost nothing. slot: on a cluster · half: see `half_of`; None where it has keys of both.
    """

    generation: int
    number: int
    count: int
    stream: str
    slot: int
    half: int | None

    def __str__(self) -> str:
        return f"{self.generation}.{self.number}"

    def entry_id(self, id: bytes) -> EntryId:
        """The full id of an entry, from Redis's."""
        ms, seq = id.split(b"-")
        return EntryId(int(ms), int(seq), self.generation, self.number)

    def overlaps(self, other: Shard) -> bool:
        """Whether some key may belong to both, in their generations."""
        return (
            self.number * other.count < (other.number + 1) * self.count
            and other.number * self.count < (self.number + 1) * other.count
        )

    @property
    def sealed(self) -> str:
        return f"{self.stream}:sealed"

    @property
    def size(self) -> str:
        return f"{self.stream}:size"

    @property
    def marks(self) -> str:
        return f"{self.stream}:marks"

    @property
    def lost(self) -> str:
        return f"{self.stream}:lost"

    @property
    def done(self) -> str:
        return f"{self.stream}:done"

    def seq(self, producer: str) -> str:
        return f"{self.stream}:seq:{producer}"

    def alive(self, group: str, worker: str) -> str:
        return f"{self.stream}:alive:{group}:{worker}"

    def owner(self, group: str) -> str:
        return f"{self.stream}:owner:{group}"

    def epoch(self, group: str) -> str:
        return f"{self.stream}:epoch:{group}"

    def retry(self, group: str) -> str:
        return f"{self.stream}:retry:{group}"

    def parked(self, group: str) -> str:
        return f"{self.stream}:parked:{group}"

    def aside(self, group: str, key: bytes) -> bytes:
        return self.parked(group).encode() + b":" + key

    def dead(self, group: str) -> str:
        return f"{self.stream}:dead:{group}"

    def once(self, group: str, key: str) -> str:
        return f"{self.stream}:once:{group}:{key}"

    def emitted(self, event_id: bytes) -> str:
        return f"{self.stream}:emitted:{event_id.hex()}"

    def given(self, group: str, name: str) -> str:
        return f"{self.stream}:given:{group}:{name}"

    def memo(self, group: str, id: str) -> str:
        return f"{self.stream}:memo:{group}:{id}"


@cache
def shard(namespace: str, stream: str, generation: int, number: int, count: int) -> Shard:
    name = f"{{{tag(namespace, number, count)}}}:{stream}:{generation}"
    half = None if 2 * number + 1 == count else int(2 * number >= count)
    return Shard(generation, number, count, name, slot_of(name), half)


def by_slot(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Shards that share a slot, together: what one call may touch on a cluster."""
    slots: dict[int, list[Shard]] = {}
    for each in shards:
        slots.setdefault(each.slot, []).append(each)
    return list(slots.values())


def rotated(shards: Sequence[Shard], turn: int) -> list[Shard]:
    """Beginning with another one each turn, so that no shard is always served last."""
    at = turn % max(1, len(shards))
    return [*shards[at:], *shards[:at]]


def streams(namespace: str) -> str:
    return f"{namespace}:streams"


def stream(namespace: str, name: str) -> str:
    return f"{namespace}:stream:{name}"


def owner(namespace: str, stream: str) -> str:
    return f"{namespace}:owner:{stream}"


def members(namespace: str, stream: str, group: str) -> str:
    return f"{namespace}:members:{stream}:{group}"


def seen(namespace: str, stream: str) -> str:
    return f"{namespace}:seen:{stream}"


def janitor(namespace: str, stream: str) -> str:
    return f"{namespace}:janitor:{stream}"


def swept(namespace: str, stream: str) -> str:
    return f"{namespace}:swept:{stream}"


def history(namespace: str, stream: str) -> str:
    return f"{namespace}:history:{stream}"


def bell(namespace: str) -> str:
    return f"{namespace}:bell"


def worker(namespace: str, id: str) -> str:
    return f"{namespace}:worker:{id}"


def workers(namespace: str) -> str:
    return f"{namespace}:workers"


def replay(namespace: str, stream: str, name: str) -> str:
    return f"{namespace}:replay:{stream}:{name}"


def archiver(namespace: str, stream: str) -> str:
    return f"{namespace}:archiver:{stream}"


EXPIRING = frozenset({"seq", "alive", "owner", "once", "emitted", "memo", "given"})
"""The kinds of keys of a shard that always have a TTL: one without stays for good."""


class Part(NamedTuple):
    """What a key of a shard is. kind: "" the entries themselves, else the word behind the generation."""

    stream: str
    generation: int
    kind: str


def of_shards(namespace: str) -> str:
    """What all keys of shards match, as SCAN wants it."""
    return f"{{{namespace}:*"


def part_of(namespace: str, key: bytes) -> Part | None:
    """What a key belongs to; None where it is none of a shard of this namespace."""
    tag, brace, rest = key.decode(errors="replace").partition("}:")
    stream, _, numbered = rest.partition(":")
    generation, _, kind = numbered.partition(":")
    if not brace or not tag.startswith(f"{{{namespace}:") or not generation.isdecimal():
        return None
    return Part(stream, int(generation), kind.partition(":")[0])
