"""Reads what is archived of one shard, in order: a block at a time, the next segment being fetched meanwhile.

Everything is checked by its digest before any of it is given. Memory: a window of this segment and one of the next, and
a block. With a key, only the indexes of the segments are read (`AHEAD` at once), and the blocks that may have it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from rstream.archive.manifest import Manifest, Row
from rstream.archive.segment import Block, Columns
from rstream.archive.vault import Vault
from rstream.codec import unpack_headers
from rstream.errors import EntryInvalid
from rstream.event import Decode, Entry, EntryId, Key
from rstream.logs import about
from rstream.store.keys import Rank, Shard, rank_of
from rstream.store.log import make_entry

log = logging.getLogger("rstream")

T = TypeVar("T")

AHEAD = 8
GAP = "stream %s, shard %s: of what came before %s, some is missing in %s: it was archived elsewhere, or lost"

SMALL = 256 * 1024
"""A segment of up to so many bytes is read as a whole, also where only a key is wanted."""


class SegmentReader:
    """See `rstream.store.past.Reading`."""

    def __init__(
        self,
        vault: Vault,
        shard: Shard,
        manifest: Manifest,
        start: EntryId,
        end: EntryId,
        before: Rank,
        key: str | None,
        decode: Decode[Any],
        window: int,
    ) -> None:
        self._vault, self._shard, self._manifest = vault, shard, manifest
        self._start, self._end, self._before = start, end, before
        self._key = None if key is None else key.encode()
        self._decode, self._window = decode, window
        self._left = self.pages()

    def next(self) -> Future[list[Entry[Any]] | None]:
        return self._vault.shelf.submit(lambda: next(self._left, None))

    def pages(self) -> Iterator[list[Entry[Any]]]:
        """A block at a time. Blocks."""
        for columns in self.blocks():
            yield self._between(_entries(self._shard, columns, self._key, self._decode))

    def blocks(self) -> Iterator[Columns]:
        """Those that may have what is wanted, and more."""
        for row, previous, task in self._segments():
            begun, numbers = task.take()
            if numbers == []:
                continue
            buffer = _Buffer(self._vault, row, begun)
            blocks = self._vault.header(row, buffer.get(0, row.head), previous).blocks
            wanted = blocks if numbers is None else [blocks[number] for number in numbers]
            buffer.window = self._window if 2 * len(wanted) > len(blocks) else 0
            for block in wanted:
                if self._overlaps(block):
                    yield self._vault.block(row, block, buffer.get(block.at, block.size))

    def _segments(self) -> Iterator[tuple[Row, str, _Task[tuple[bytes, list[int] | None]]]]:
        waiting = deque[tuple[Row, str, _Task[tuple[bytes, list[int] | None]]]]()
        after = (self._start.ms, self._start.seq - 1)
        for row, previous in self._vault.rows(self._manifest, after):
            if row.gap and rank_of(row.gap.encode()) >= self._start[:2]:
                told, extra = (self._shard, row.first, self._vault.store.label), about({"stream": self._vault.stream})
                log.warning(GAP, self._vault.stream, *told, extra=extra)
            if not self._overlaps(row):
                break
            waiting.append((row, previous, _Task(self._vault, partial(self._begin, row))))
            if len(waiting) > (1 if self._key is None else AHEAD):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _begin(self, row: Row) -> tuple[bytes, list[int] | None]:
        """The first bytes of a segment; with a key, its blocks that may have it, and all or none of its bytes."""
        if self._key is None:
            return self._vault.part(row, 0, min(self._window, row.size)), None
        begun = self._vault.part(row, 0, row.size) if row.size <= SMALL else b""
        return begun, self._vault.index(row, begun[row.tail :] or None).blocks_of(self._key)

    def _overlaps(self, part: Row | Block) -> bool:
        first, last = rank_of(part.first.encode()), rank_of(part.last.encode())
        return first < self._before and first <= self._end[:2] and last >= self._start[:2]

    def _between(self, entries: list[Entry[Any]]) -> list[Entry[Any]]:
        if not entries or (
            self._start <= entries[0].id and entries[-1].id <= self._end and entries[-1].id[:2] < self._before
        ):
            return entries
        return [each for each in entries if self._start <= each.id <= self._end and each.id[:2] < self._before]


class _Task(Generic[T]):
    """A call that is done ahead where a thread is free, and else when its result is wanted: a thread of the pool must
    not wait for another that has not begun.
    """

    def __init__(self, vault: Vault, call: Callable[[], T]) -> None:
        self._call = call
        self._future = vault.shelf.submit(call)

    def take(self) -> T:
        return self._call() if self._future.cancel() else self._future.result()


class _Buffer:
    """A segment, read front to back. window: how much is fetched where less is asked for."""

    def __init__(self, vault: Vault, row: Row, begun: bytes) -> None:
        self._vault, self._row, self._held, self._at = vault, row, begun, 0
        self.window = 0

    def get(self, start: int, size: int) -> memoryview | bytes:
        at = start - self._at
        if at < 0 or at + size > len(self._held):
            wanted = min(max(size, self.window), self._row.size - start)
            self._held, self._at, at = self._vault.part(self._row, start, wanted), start, 0
        return memoryview(self._held)[at : at + size]


def _entries(shard: Shard, columns: Columns, key: bytes | None, decode: Decode[Any]) -> list[Entry[Any]]:
    """Those of a key, or all."""
    if columns.others:
        made = (make_entry(EntryId(*id, shard.generation, shard.number), flat, decode) for id, flat in columns.raw())
        return [entry for entry in made if key is None or entry.key == key.decode()]
    new, id, where = tuple.__new__, EntryId, (shard.generation, shard.number)
    entries = []
    for ms, seq, payload, text, event_id, headers in zip(*columns[:6], strict=True):
        if key is not None and text != key:
            continue
        told, read = dict[str, str](), decode
        if headers is not None:
            told, read = _headers(headers, decode)
        name = None if text is None else text.decode(errors="replace")
        entries.append(Entry(new(id, (ms, seq, *where)), payload, name, event_id, told, read))
    return entries


def _headers(packed: bytes, decode: Decode[Any]) -> tuple[dict[str, str], Decode[Any]]:
    try:
        return unpack_headers(packed), decode
    except EntryInvalid as error:
        wrong = error

        def raising(payload: bytes, key: Key) -> Any:
            raise wrong

        return {}, raising
