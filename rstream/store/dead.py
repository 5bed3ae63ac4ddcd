"""Dead letters: found, brought, given back to their group, thrown away. docs/dead-letters.md explains them to users.

A letter is an entry of `S:dead:<group>`: its own fields first (`id` of the entry, `reason`, `error`, `traceback`,
`attempts`, `worker`), then the entry's. One may hold a payload of 1 MiB and more, so a search brings heads only,
and payloads are brought by the chunk. Every operation may be sent twice.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from rstream.errors import GroupMissing, StoreError
from rstream.event import MAX_PART, EntryId
from rstream.store.bell import ring
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import DEAD, REDRIVE, Call

PAGE = 500
LOOK = 500
LOOK_BYTES = 4 * 1024 * 1024
"""One call: heads it brings, letters and bytes it looks at. 500 small letters take it about 2.5 ms."""

CHUNK = 64
CHUNK_BYTES = 4 * 1024 * 1024
"""Letters that are brought, redriven or discarded in one write, and their bytes (or one letter, however large)."""

OWN = (b"id", b"reason", b"error", b"traceback", b"attempts", b"worker")


class Head(NamedTuple):
    """A letter without its payload. error: the first 1000 bytes of it · size: of all there is, in bytes."""

    id: EntryId
    entry_id: EntryId
    reason: str
    error: str
    attempts: int
    worker: str
    key: str | None
    size: int
    shard: Shard


class Letter(NamedTuple):
    """A letter in full. own: its own fields by name · flat: the entry's fields, names and values in turn."""

    id: EntryId
    entry_id: EntryId
    own: dict[bytes, bytes]
    flat: Sequence[bytes]


FIRST, LAST = EntryId(0, 0, 0, 0), EntryId(MAX_PART, MAX_PART, MAX_PART, MAX_PART)


@dataclass(frozen=True)
class Match:
    """Which letters: died from `start` to `end` (both included), and all of the others that are given.

    error: text that is in the error, in any case · letters, entries: ids, of which one must be the letter's own or
    its entry's · limit: the oldest so many.
    """

    start: EntryId = FIRST
    end: EntryId = LAST
    reason: str = ""
    key: str | None = None
    error: str = ""
    letters: frozenset[EntryId] = frozenset()
    entries: frozenset[EntryId] = frozenset()
    limit: int | None = None

    @property
    def named(self) -> frozenset[EntryId]:
        return self.letters | self.entries


class DeadOps:
    """The operations on the dead letters of one group of one stream."""

    def __init__(self, layout: Layout, group: str) -> None:
        self.layout, self.group = layout, group

    def letters(self, heads: Sequence[Head]) -> Op[list[Letter]]:
        """Those of a chunk that are still there, in the order of `heads`."""
        calls: list[Call] = [("XRANGE", h.shard.dead(self.group), h.id.redis, h.id.redis) for h in heads]

        def parse(replies: list[Any]) -> list[Letter]:
            return [_letter(head.id, reply[0][1]) for head, reply in zip(heads, replies, strict=True) if reply]

        return Op(calls, parse)

    def ring(self) -> Op[None]:
        """Have the group's workers look now."""
        return ring(self.layout.namespace, self.layout.name, self.group)

    def redrive(self, heads: Sequence[Head], *, dry: bool) -> Op[list[tuple[Head, str]]]:
        """Give a chunk back to the group, one Lua call a shard; what became of each, as redrive.lua says."""
        shards = _by_shard(heads)
        calls = [
            REDRIVE([shard.stream, shard.dead(self.group)], self.group, int(dry), *(head.id.redis for head in batch))
            for shard, batch in shards.items()
        ]

        def parse(replies: list[Any]) -> list[tuple[Head, str]]:
            for reply in replies:
                if isinstance(reply, StoreError):
                    raise self._gone(reply) if isinstance(reply, GroupMissing) else reply
            return [
                (head, verdict.decode())
                for batch, reply in zip(shards.values(), replies, strict=True)
                for head, verdict in zip(batch, reply, strict=True)
            ]

        return Op(calls, parse, partial=True)

    def _gone(self, error: GroupMissing) -> GroupMissing:
        return GroupMissing(
            f"group {self.group!r} of stream {self.layout.name!r} is gone, or was never made: start a worker, which "
            f"makes it, and redrive again ({error})"
        )

    def discard(self, heads: Sequence[Head]) -> Op[int]:
        """Delete a chunk; how many were still there."""
        calls: list[Call] = [
            ("XDEL", shard.dead(self.group), *(head.id.redis for head in batch))
            for shard, batch in _by_shard(heads).items()
        ]
        return Op(calls, sum)

    def look(
        self, shards: Sequence[Shard], starts: dict[Shard, str], ends: dict[Shard, str], match: Match, want: str
    ) -> Op[list[Any]]:
        """A page of each of the shards, as dead.lua gives it."""
        limit = PAGE if match.limit is None else min(PAGE, max(1, match.limit))
        calls = []
        for shard in shards:
            place = shard.generation, shard.number
            ids = [[id.redis for id in some if id[2:] == place] for some in (match.letters, match.entries)]
            # Redis's cmsgpack knows the old raw strings only, hence use_bin_type=False.
            packed = msgpack.packb(
                [match.reason, match.key or "", match.error, *ids], use_bin_type=False, unicode_errors="replace"
            )
            where = starts[shard], ends[shard]
            calls.append(DEAD([shard.dead(self.group)], *where, limit, LOOK, LOOK_BYTES, want, packed))
        return Op(calls, list)


class Search:
    """Looks through dead letters in order of death, over all shards. No I/O: whoever drives it runs `op()` until
    it is None, and takes what is `ready()` after each. What dies after a shard was first looked at is not found,
    so that a redrive does not chase letters that come back.

    count: bring no heads but the numbers, in `counts`, by reason.
    """

    def __init__(self, ops: DeadOps, match: Match, *, count: bool = False) -> None:
        self._ops, self._match, self._want = ops, match, "counts" if count else "heads"
        self._left = match.limit
        self._start, self._end = match.start, match.end
        if match.letters and not match.entries:  # then it is known when they died
            self._start = max(self._start, min(match.letters))
            self._end = min(self._end, EntryId(*max(match.letters)[:2], MAX_PART, MAX_PART))
        self._next = dict.fromkeys(self._shards(), self._start.redis)
        self._ends = dict.fromkeys(self._next, self._end.redis)
        self._pages: dict[Shard, list[Head]] = {shard: [] for shard in self._next}
        self.counts: Counter[str] = Counter()

    def _shards(self) -> list[Shard]:
        match, shards = self._match, self._ops.layout.holding(self._match.key)
        named = {id[2:] for id in match.named}
        return [shard for shard in shards if not named or (shard.generation, shard.number) in named]

    def op(self) -> Op[None] | None:
        """The next page of every shard of which nothing is in hand."""
        hungry = [shard for shard in self._next if not self._pages[shard]]
        if not hungry or self._left == 0:
            return None
        found = self._ops.look(hungry, self._next, self._ends, self._match, self._want)
        return Op(found.calls, lambda replies: self._feed(hungry, replies))

    def _feed(self, shards: list[Shard], replies: list[Any]) -> None:
        for shard, (found, last, end) in zip(shards, replies, strict=True):
            self._ends[shard] = end.decode()
            if last:
                self._next[shard] = "(" + last.decode()
            else:
                del self._next[shard]
            if self._want == "counts":
                for reason, count in zip(found[::2], found[1::2], strict=True):
                    self.counts[_text(reason)] += count
                continue
            heads = (_head(shard, raw) for raw in found)
            self._pages[shard] += [head for head in heads if self._start <= head.id <= self._end]

    def ready(self) -> list[Head]:
        """The heads whose turn has come: up to where every shard has been looked through."""
        stop = min((_parts(at.lstrip("(").encode()) for at in self._next.values()), default=(MAX_PART, MAX_PART))
        parts = []
        for shard, page in self._pages.items():
            parts.append([head for head in page if head.id[:2] <= stop])
            self._pages[shard] = page[len(parts[-1]) :]
        heads = list(heapq.merge(*parts))[: self._left]
        if self._left is not None:
            self._left -= len(heads)
        return heads


def chunks(heads: Iterable[Head]) -> Iterator[list[Head]]:
    """Heads cut so that their letters fit in one write."""
    chunk: list[Head] = []
    size = 0
    for head in heads:
        if chunk and (len(chunk) >= CHUNK or size + head.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(head)
        size += head.size
    if chunk:
        yield chunk


def _by_shard(heads: Iterable[Head]) -> dict[Shard, list[Head]]:
    shards: dict[Shard, list[Head]] = {}
    for head in heads:
        shards.setdefault(head.shard, []).append(head)
    return shards


def _head(shard: Shard, raw: Sequence[Any]) -> Head:
    id, entry_id, reason, error, attempts, worker, key, size = raw
    place = shard.generation, shard.number
    return Head(
        EntryId(*_parts(id), *place), EntryId(*_parts(entry_id), *place),
        _text(reason), _text(error), number(attempts), _text(worker), None if key is None else _text(key), size, shard,
    )  # fmt: skip


def _letter(id: EntryId, flat: Sequence[bytes]) -> Letter:
    """The letter's own fields come first and end with `worker`: the entry's may have any name, also one of these."""
    own: dict[bytes, bytes] = {}
    for at in range(0, len(flat), 2):
        own[flat[at]] = flat[at + 1]
        if flat[at] == b"worker":
            break
    entry_id = EntryId(*_parts(own.get(b"id", b"")), id.generation, id.shard)
    return Letter(id, entry_id, {name: own.get(name, b"") for name in OWN}, flat[2 * len(own) :])


def _parts(id: bytes) -> tuple[int, int]:
    """(ms, seq); zeros for what is no id, in a letter that rstream did not write."""
    ms, _, seq = id.partition(b"-")
    return number(ms), number(seq)


def number(raw: bytes) -> int:
    return int(raw) if raw.isdigit() else 0


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
