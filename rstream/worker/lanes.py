"""Deliveries that wait for a slot. Pure but for timers: no I/O.

There is one lane, and one for what failed before; in ordered groups `order.py` says what may be in them. Beside them
wait the suspects: entries that were taken over twice or more, so that any of them may be what killed its workers. They
run one at a time in a process; one that has only its last attempt left while nothing new is begun beside it, or it
could be set aside for what another did.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from rstream.store.deliveries import Fetched
from rstream.store.keys import Shard
from rstream.worker.gate import Gate


class Lanes:
    """First in, first out. Handlers that never wait need one slot: an idle one is woken where no other will look for
    what comes in, and the next one when that waits for its handler; never all for one entry.

    forming: the batch that is being filled · paused: nothing is taken.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        self._waiting: deque[Fetched] = deque()
        self._failed: deque[Fetched] = deque()
        self._suspects: deque[tuple[Fetched, bool]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._looking = False  # a slot looks here again before it waits for anything
        self.forming: list[Fetched] = []
        self.paused = False
        self.gate = gate or Gate()
        self.gate.lanes.append(self)

    def __len__(self) -> int:
        """Entries that a free slot would take; suspects wait for more than that."""
        return len(self._waiting) + len(self._failed)

    @property
    def suspects(self) -> int:
        return 0 if self.paused else len(self._suspects)

    def put(self, entries: Sequence[Fetched]) -> None:
        if entries and entries[0].source is None:  # a read brings nothing else
            self._waiting.extend(entries)
        else:
            for entry in entries:
                self._lane(entry).append(entry)
        if entries and not self._looking:
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
                self._looking = True
                return

    def pause(self, on: bool) -> None:
        """Give nothing to slots, or do again. What a batch that is being filled has goes back; no suspect waits for
        quiet.
        """
        self.paused = on
        if on:
            forming = self.formed()
            self.gate.handed -= len(forming)
            for entry in reversed(forming):
                self._lane(entry).appendleft(entry)
            for suspect, _ in self._suspects:
                self.gate.calm(suspect)
            self.gate.wake()
        self.wake()

    def _next(self, like: Fetched | None) -> Fetched | None:
        if self.paused:
            return None
        if like is None and self._suspects and self.gate.admit(*self._suspects[0]):
            if len(self):
                self._wake_one()  # what woke this slot may have been one of those
            return self._suspects.popleft()[0]
        if self.gate.quiet_for is not None:
            return None
        lane = self._lane(like) if like is not None else self._failed or self._waiting
        return lane.popleft() if lane else None

    def take_now(self) -> Fetched | None:
        """The next entry, if there is one. Whoever takes it says when it is `done`; and, before anything else is waited
        for, that it `waits`.
        """
        if (entry := self._next(None)) is not None:
            self.gate.handed += 1
            self._looking = True
        return entry

    async def take(self) -> Fetched:
        """As `take_now`, when there is one."""
        while (entry := self.take_now()) is None:
            await self._woken()
        return entry

    def waits(self) -> None:
        """Who took an entry does not look for the next one now: another slot does, where there is one."""
        self._looking = False
        if self._waiting or self._failed or self._suspects:
            self._wake_one()

    def take_more(self, first: Fetched, most: int) -> list[Fetched]:
        """Up to so many of the lane that this one came from, of those that are there."""
        if self.gate.quiet_for is not None or self.paused:
            return []
        lane = self._lane(first)
        taken = [lane.popleft() for _ in range(min(most, len(lane)))]
        self.gate.handed += len(taken)
        return taken

    async def take_like(self, first: Fetched) -> Fetched | None:
        """The next entry of the lane that this one came from, when there is one; None when no more may be begun."""
        while self.gate.quiet_for is None and not self.paused:
            if (entry := self._next(first)) is not None:
                self.gate.handed += 1
                return entry
            await self._woken()
        return None

    async def _woken(self) -> None:
        slot = asyncio.get_running_loop().create_future()
        self._looking = False
        self._idle.append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():
                self.waits()  # the entry that woke this slot is for another
            raise

    def formed(self) -> list[Fetched]:
        """Take the batch."""
        batch, self.forming = self.forming, []
        return batch

    def done(self, entry: Fetched) -> None:
        """A taken entry has been handled."""
        self.gate.done(entry)

    def all_done(self, entries: Sequence[Fetched]) -> None:
        """As `done`, of many."""
        self.gate.all_done(entries)

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

    def drop(self, shard: Shard) -> list[Fetched]:
        """Take what waits of one shard; what a batch that is being filled has of it stays there."""
        waiting = [*self._failed, *self._waiting, *(suspect for suspect, _ in self._suspects)]
        for suspect, _ in self._suspects:
            if suspect.shard is shard:
                self.gate.calm(suspect)
        self._failed = deque(entry for entry in self._failed if entry.shard is not shard)
        self._waiting = deque(entry for entry in self._waiting if entry.shard is not shard)
        self._suspects = deque(each for each in self._suspects if each[0].shard is not shard)
        return [entry for entry in waiting if entry.shard is shard]

    def drain(self) -> list[Fetched]:
        """Take everything that waits."""
        forming, suspects = self.formed(), [entry for entry, _ in self._suspects]
        self._suspects.clear()
        self.gate.handed -= len(forming)
        for suspect in suspects:
            self.gate.calm(suspect)
        return [*forming, *self.give_back(), *suspects]
