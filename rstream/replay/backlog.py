"""What was read and waits for a slot. With `ordered`, the entries of one key come one at a time, in order.

Of those that may be taken, the oldest comes first: so little is done beyond the first entry that is not.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import Any

from rstream.event import Entry, EntryId

ENTRIES = 1000
BYTES = 16 * 1024 * 1024


class Backlog:
    """One feeder puts, many slots take; whoever took says when it is done."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._ready: list[tuple[EntryId, Entry[Any]]] = []  # a heap
        self._lanes: dict[str, deque[Entry[Any]]] = {}  # the keys in hand, and what waits for them
        self._count = self._bytes = 0
        self._closed = False
        self._work, self._room = asyncio.Event(), asyncio.Event()

    @property
    def full(self) -> bool:
        return self._count >= ENTRIES or self._bytes >= BYTES

    async def room(self) -> None:
        """Wait until something was taken or done."""
        self._room.clear()
        await self._room.wait()

    def put(self, entry: Entry[Any]) -> None:
        self._count, self._bytes = self._count + 1, self._bytes + len(entry.payload)
        if self._ordered and entry.key is not None:
            if entry.key in self._lanes:
                self._lanes[entry.key].append(entry)
                return
            self._lanes[entry.key] = deque()
        self._offer(entry)

    def _offer(self, entry: Entry[Any]) -> None:
        heapq.heappush(self._ready, (entry.id, entry))
        self._work.set()

    async def take(self) -> Entry[Any] | None:
        """The next entry; None when there will be none."""
        while not self._ready:
            if self._closed and not self._count:
                return None
            self._work.clear()
            await self._work.wait()
        entry = heapq.heappop(self._ready)[1]
        self._count, self._bytes = self._count - 1, self._bytes - len(entry.payload)
        if self._closed and not self._count:
            self._work.set()  # for the other slots: nothing comes any more
        self._room.set()
        return entry

    def done(self, entry: Entry[Any]) -> None:
        """A taken entry has been handled: the next of its key may be taken."""
        self._room.set()
        if not self._ordered or entry.key is None or entry.key not in self._lanes:
            return
        if lane := self._lanes[entry.key]:
            self._offer(lane.popleft())
        else:
            del self._lanes[entry.key]

    def close(self, *, drop: bool = False) -> None:
        """Nothing more is put; with `drop`, what waits is not handed out either."""
        self._closed = True
        if drop:
            self._ready.clear()
            self._lanes.clear()
            self._count = self._bytes = 0
        self._work.set()
        self._room.set()
