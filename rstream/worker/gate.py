"""What may be begun in a process: an entry that is suspected of having killed its workers runs as the only such one,
and one that has only its last attempt left while nothing new is begun beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from rstream.store.deliveries import Fetched


class Waiting(Protocol):
    """Lanes."""

    @property
    def suspects(self) -> int: ...
    def wake(self) -> None: ...


QUIET_WAIT = 10.0
"""Seconds that a suspect waits for what runs in the process to end: what has run for so long is hardly what kills. Also
how long at most others have their turn after a suspect that ran in quiet."""


class Gate:
    """What may be begun in a process. Its lanes are told when it opens, and its listeners when a suspect is done.

    handed: entries that were taken and are not done · suspect: the one that runs · quiet_for: the suspect for which, or
    beside which, nothing else is begun.
    """

    def __init__(self) -> None:
        self.lanes: list[Waiting] = []
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

    def all_done(self, entries: Sequence[Fetched]) -> None:
        """As `done`, of many."""
        if self.suspect is None and self.quiet_for is None:
            self.handed -= len(entries)
            return
        for entry in entries:
            self.done(entry)

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
