"""Deliveries that wait for a slot. Pure: no clock, no I/O.

Unordered groups have one lane; lanes per key come with ordered groups.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from rstream.store.deliveries import Fetched


class Lanes:
    """First in, first out; idle slots are woken one for each entry, never all for one."""

    def __init__(self) -> None:
        self._waiting: deque[Fetched] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, entries: Iterable[Fetched]) -> None:
        before = len(self._waiting)
        self._waiting.extend(entries)
        for _ in range(len(self._waiting) - before):
            self._wake()

    def _wake(self) -> None:
        while self._idle:
            slot = self._idle.popleft()
            if not slot.done():
                slot.set_result(None)
                return

    async def take(self) -> Fetched:
        """The next entry, when there is one."""
        while not self._waiting:
            slot = asyncio.get_running_loop().create_future()
            self._idle.append(slot)
            try:
                await slot
            except asyncio.CancelledError:
                if slot.done() and not slot.cancelled():
                    self._wake()  # the entry that woke this slot is for another
                raise
        return self._waiting.popleft()

    def drain(self) -> list[Fetched]:
        """Take everything that waits."""
        entries = list(self._waiting)
        self._waiting.clear()
        return entries
