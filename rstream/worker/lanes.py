"""Deliveries that wait for a slot. Pure: no clock, no I/O.

Unordered groups have one lane, and one for what failed before; lanes per key come with ordered groups. Beside them wait
the suspects: entries that were taken over twice or more, so that any of them may be what killed its workers. They run
one at a time in a process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from rstream.store.deliveries import Fetched


class Gate:
    """Lets one suspect of a whole process through at a time. Its lanes are told when it opens."""

    def __init__(self) -> None:
        self.open = True
        self.lanes: list[Lanes] = []

    def leave(self) -> None:
        self.open = True
        for lanes in self.lanes:
            lanes.wake()


class Lanes:
    """First in, first out; idle slots are woken one for each entry, never all for one.

    admitted: the suspect that runs · forming: the batch that is being filled.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        self._waiting: deque[Fetched] = deque()
        self._failed: deque[Fetched] = deque()
        self._suspects: deque[Fetched] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self.admitted: Fetched | None = None
        self.forming: list[Fetched] = []
        self.gate = gate or Gate()
        self.gate.lanes.append(self)

    def __len__(self) -> int:
        """Entries that a free slot would take; suspects wait for more than that."""
        return len(self._waiting) + len(self._failed)

    @property
    def suspects(self) -> int:
        return len(self._suspects)

    def put(self, entries: Iterable[Fetched]) -> None:
        before = len(self)
        for entry in entries:
            self._lane(entry).append(entry)
        for _ in range(len(self) - before):
            self._wake_one()

    def _lane(self, entry: Fetched) -> deque[Fetched]:
        return self._failed if entry.source == "~retry" else self._waiting

    def put_suspects(self, entries: Iterable[Fetched]) -> None:
        self._suspects.extend(entries)
        self.wake()

    def wake(self) -> None:
        """Wake a slot where a suspect may run now."""
        if self._suspects and self.gate.open:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            slot = self._idle.popleft()
            if not slot.done():
                slot.set_result(None)
                return

    def _next(self, like: Fetched | None) -> Fetched | None:
        if like is None and self._suspects and self.gate.open:
            self.gate.open, self.admitted = False, self._suspects.popleft()
            if len(self):
                self._wake_one()  # what woke this slot may have been one of those
            return self.admitted
        lane = self._lane(like) if like is not None else self._failed or self._waiting
        return lane.popleft() if lane else None

    async def take(self, like: Fetched | None = None) -> Fetched:
        """The next entry, when there is one; with `like`, the next of the lane that this one came from. Whoever takes
        it says when it is `done`.
        """
        while True:
            if (entry := self._next(like)) is not None:
                return entry
            slot = asyncio.get_running_loop().create_future()
            self._idle.append(slot)
            try:
                await slot
            except asyncio.CancelledError:
                if slot.done() and not slot.cancelled():
                    self._wake_one()  # the entry that woke this slot is for another
                raise

    def formed(self) -> list[Fetched]:
        """Take the batch."""
        batch, self.forming = self.forming, []
        return batch

    def done(self, entry: Fetched) -> None:
        """A taken entry has been handled: the next suspect may run."""
        if entry is self.admitted:
            self.admitted = None
            self.gate.leave()

    def drain(self) -> list[Fetched]:
        """Take everything that waits."""
        entries = [*self.formed(), *self._failed, *self._waiting, *self._suspects]
        self._failed.clear()
        self._waiting.clear()
        self._suspects.clear()
        return entries
