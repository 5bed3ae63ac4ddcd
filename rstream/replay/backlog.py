"""What was read and waits to be handled, in batches. With `ordered`, no two that are out at once have the same key.

A batch has the oldest entries that may be taken: so little is done beyond the first entry that is not. It may have
several entries of one key, in their order, where none of that key is out or waits before them.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence
from typing import Any

from rstream.event import Entry, EntryId

ENTRIES = 1000
BYTES = 16 * 1024 * 1024

LINGER = 0.5
"""Seconds that a batch which is not full waits for more."""


class _Lane:
    """What waits for a key of which entries are out, or may be taken next.

    out: some are being handled · offers: how many may be taken next · back: what was offered, and was not taken before
    another was · rest: what came after.
    """

    __slots__ = ("back", "offers", "out", "rest")

    def __init__(self) -> None:
        self.out, self.offers = True, 0
        self.back: deque[Entry[Any]] = deque()
        self.rest: deque[Entry[Any]] = deque()

    @property
    def empty(self) -> bool:
        return not (self.offers or self.back or self.rest)


class Backlog:
    """One feeder puts, many slots take; whoever took says when it is done. most: entries that wait, about."""

    def __init__(self, ordered: bool, size: int = 1, most: int | None = None) -> None:
        self._ordered, self._size = ordered, size
        self._limit = max(ENTRIES, 2 * size) if most is None else most
        self._fresh: deque[Entry[Any]] = deque()
        self._offers: list[tuple[EntryId, Entry[Any]]] = []  # a heap
        self._lanes: dict[str, _Lane | None] = {}  # None for a key that is out, and nothing waits for it
        self._count = self._bytes = 0
        self._closed = self._dropped = False
        self._forming = asyncio.Lock()
        self._work, self._room = asyncio.Event(), asyncio.Event()

    @property
    def full(self) -> bool:
        return self._count >= self._limit or self._bytes >= BYTES

    async def room(self) -> None:
        """Wait until something was taken or done."""
        self._room.clear()
        await self._room.wait()

    def put(self, entries: Sequence[Entry[Any]]) -> None:
        """The next ones, in id order."""
        self._count += len(entries)
        self._bytes += sum(len(entry.payload) for entry in entries)
        self._fresh.extend(entries)
        self._work.set()

    async def take(self) -> list[Entry[Any]]:
        """The next batch; empty when there will be none."""
        async with self._forming:  # one after the other: two half ones would be slower
            batch: list[Entry[Any]] = []
            ours: set[str] = set()
            until: float | None = None
            while not self._dropped:
                self._fill(batch, ours)
                if len(batch) == self._size or (batch and (self.full or self._closed)):
                    return batch
                if self._closed and not self._count:
                    break
                if batch:
                    until = until or asyncio.get_running_loop().time() + LINGER
                if not await self._more(until):
                    return batch
            return []

    async def _more(self, until: float | None) -> bool:
        """Wait for work; False where it is too late."""
        self._work.clear()
        if until is None:
            await self._work.wait()
            return True
        try:
            async with asyncio.timeout_at(until):
                await self._work.wait()
        except TimeoutError:
            return False
        return True

    def _fill(self, batch: list[Entry[Any]], ours: set[str]) -> None:
        """ours: the keys that the batch has."""
        offers, fresh, lanes, before, size = self._offers, self._fresh, self._lanes, len(batch), 0
        while len(batch) < self._size:
            if offers and (not fresh or offers[0][0] < fresh[0].id):
                entry = heapq.heappop(offers)[1]
                if not self._takes_offer(entry, ours):
                    continue
            elif fresh:
                entry = fresh.popleft()
                if self._ordered and (key := entry.key) is not None:
                    if key not in lanes:
                        lanes[key] = None
                        ours.add(key)
                    elif not self._takes(entry, key, ours):
                        continue
            else:
                break
            batch.append(entry)
            size += len(entry.payload)
        if len(batch) > before:
            self._count, self._bytes = self._count - len(batch) + before, self._bytes - size
            self._room.set()

    def _takes(self, entry: Entry[Any], key: str, ours: set[str]) -> bool:
        lane = self._lanes[key]
        if key in ours and (lane is None or lane.empty):
            return True
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.rest.append(entry)
        return False

    def _takes_offer(self, entry: Entry[Any], ours: set[str]) -> bool:
        assert entry.key is not None
        lane = self._lanes[entry.key]
        assert lane is not None
        lane.offers -= 1
        if lane.out and entry.key not in ours:
            lane.back.append(entry)
            return False
        lane.out = True
        ours.add(entry.key)
        return True

    def done(self, entries: Sequence[Entry[Any]]) -> None:
        """A batch has been handled: the next of its keys may be taken."""
        self._room.set()
        if self._ordered:
            for key in {entry.key for entry in entries if entry.key is not None}:
                if (lane := self._lanes.get(key)) is not None:
                    self._offer(key, lane)
                else:
                    self._lanes.pop(key, None)

    def _offer(self, key: str, lane: _Lane) -> None:
        lane.out = False
        while lane.offers < self._size and (waiting := lane.back or lane.rest):
            entry = waiting.popleft()
            heapq.heappush(self._offers, (entry.id, entry))
            lane.offers += 1
        if lane.offers:
            self._work.set()
        else:
            del self._lanes[key]

    def close(self, *, drop: bool = False) -> None:
        """Nothing more is put; with `drop`, what waits is not handed out either."""
        self._closed = True
        if drop:
            self._dropped = True
            self._fresh.clear()
            self._offers.clear()
            self._lanes.clear()
            self._count = self._bytes = 0
        self._work.set()
        self._room.set()
