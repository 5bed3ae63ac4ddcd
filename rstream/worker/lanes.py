"""Deliveries that wait for a slot. Pure but for timers: no I/O.

Unordered groups have one lane, and one for what failed before; lanes per key come with ordered groups. Beside them wait
the suspects: entries that were taken over twice or more, so that any of them may be what killed its workers. They run
one at a time in a process; one that has only its last attempt left while nothing new is begun beside it, or it could be
set aside for what another did.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from rstream.store.deliveries import Fetched

QUIET_WAIT = 10.0
"""Seconds that a suspect waits for what runs in the process to end: what has run for so long is hardly what kills. Also
how long at most others have their turn after a suspect that ran in quiet."""


class Gate:
    """What may be begun in a process. Its lanes are told when it opens, and its listeners when a suspect is done.

    handed: entries that were taken and are not done · suspect: the one that runs · quiet_for: the suspect for which, or
    beside which, nothing else is begun.
    """

    def __init__(self) -> None:
        self.lanes: list[Lanes] = []
        self.listeners: list[Callable[[], None]] = []
        self.handed = 0
        self.suspect: Fetched | None = None
        self.quiet_for: Fetched | None = None
        self._since = self._others_until = float("-inf")

    @property
    def room_for_suspects(self) -> int:
        """A process holds one, that runs or will be the next to run. All others are left to other workers."""
        if self.suspect is not None or asyncio.get_running_loop().time() < self._others_until:
            return 0
        return int(not any(lanes.suspects for lanes in self.lanes))

    def admit(self, suspect: Fetched, alone: bool) -> bool:
        """Whether this suspect may be begun now."""
        if self.suspect is not None or self.quiet_for not in (None, suspect):
            return False
        if alone and not self._quiet_enough(suspect):
            return False
        self.suspect = suspect
        return True

    def _quiet_enough(self, suspect: Fetched) -> bool:
        loop = asyncio.get_running_loop()
        if self.quiet_for is None:
            if loop.time() < self._others_until:
                return False
            self.quiet_for, self._since = suspect, loop.time()
            loop.call_later(QUIET_WAIT + 0.01, self.wake)
            self.wake()  # a batch that is being filled is begun with what it has
        return not self.handed or loop.time() >= self._since + QUIET_WAIT

    def done(self, entry: Fetched) -> None:
        self.handed -= 1
        if entry is self.suspect:
            self.suspect = None
            self.calm(entry)
            self._opened()
        elif self.quiet_for is not None and not self.handed:
            self.wake()

    def calm(self, suspect: Fetched) -> None:
        """This suspect needs no quiet any more: others have their turn, for as long as it had its."""
        if suspect is self.quiet_for:
            self.quiet_for = None
            loop = asyncio.get_running_loop()
            turn = min(QUIET_WAIT, loop.time() - self._since)
            self._others_until = loop.time() + turn
            loop.call_later(turn + 0.01, self._opened)
        self.wake()

    def _opened(self) -> None:
        self.wake()
        for listener in self.listeners:
            listener()

    def wake(self) -> None:
        for lanes in self.lanes:
            lanes.wake()


class Lanes:
    """First in, first out; idle slots are woken one for each entry, never all for one.

    forming: the batch that is being filled.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        self._waiting: deque[Fetched] = deque()
        self._failed: deque[Fetched] = deque()
        self._suspects: deque[tuple[Fetched, bool]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self.forming: list[Fetched] = []
        self.gate = gate or Gate()
        self.gate.lanes.append(self)

    def __len__(self) -> int:
        """Entries that a free slot would take; suspects wait for more than that."""
        return len(self._waiting) + len(self._failed)

    @property
    def suspects(self) -> int:
        return len(self._suspects)

    def put(self, entries: Sequence[Fetched]) -> None:
        if entries and entries[0].source is None:  # a read brings nothing else
            self._waiting.extend(entries)
        else:
            for entry in entries:
                self._lane(entry).append(entry)
        for _ in range(min(len(entries), len(self._idle))):
            self._wake_one()

    def _lane(self, entry: Fetched) -> deque[Fetched]:
        return self._failed if entry.source == "~retry" else self._waiting

    def put_suspects(self, entries: Iterable[tuple[Fetched, bool]]) -> None:
        """(entry, whether it has to be alone)."""
        self._suspects.extend(entries)
        self.wake()

    def wake(self) -> None:
        """Wake the slots that may find something now."""
        for _ in range(len(self) + bool(self._suspects) + bool(self.forming)):
            self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            slot = self._idle.popleft()
            if not slot.done():
                slot.set_result(None)
                return

    def _next(self, like: Fetched | None) -> Fetched | None:
        if like is None and self._suspects and self.gate.admit(*self._suspects[0]):
            if len(self):
                self._wake_one()  # what woke this slot may have been one of those
            return self._suspects.popleft()[0]
        if self.gate.quiet_for is not None:
            return None
        lane = self._lane(like) if like is not None else self._failed or self._waiting
        return lane.popleft() if lane else None

    async def take(self) -> Fetched:
        """The next entry, when there is one. Whoever takes it says when it is `done`."""
        while True:
            if (entry := self._next(None)) is not None:
                self.gate.handed += 1
                return entry
            await self._woken()

    async def take_like(self, first: Fetched) -> Fetched | None:
        """The next entry of the lane that this one came from, when there is one; None when no more may be begun."""
        while self.gate.quiet_for is None:
            if (entry := self._next(first)) is not None:
                self.gate.handed += 1
                return entry
            await self._woken()
        return None

    async def _woken(self) -> None:
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
        """A taken entry has been handled."""
        self.gate.done(entry)

    @property
    def head(self) -> Fetched | None:
        """What a free slot would take next."""
        lane = self._failed or self._waiting
        return lane[0] if lane else None

    def give_back(self) -> list[Fetched]:
        """Take what waits for a slot and for nothing else."""
        entries = [*self._failed, *self._waiting]
        self._failed.clear()
        self._waiting.clear()
        return entries

    def drain(self) -> list[Fetched]:
        """Take everything that waits."""
        forming, suspects = self.formed(), [entry for entry, _ in self._suspects]
        self._suspects.clear()
        self.gate.handed -= len(forming)
        for suspect in suspects:
            self.gate.calm(suspect)
        return [*forming, *self.give_back(), *suspects]
