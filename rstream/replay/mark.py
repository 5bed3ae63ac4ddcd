"""How far a replay has come: everything up to a position, and some entries above it. Pure."""

from __future__ import annotations

import threading
from collections import deque

from rstream.event import EntryId
from rstream.store.replays import Outcome, Progress

ASIDE = 100
"""Ids of failed and invalid entries that are kept; more are only counted."""


class Mark:
    """Changed by the loop, read by the keeper's thread: what that stores always fits together."""

    def __init__(self, was: Progress) -> None:
        self._lock = threading.Lock()
        self._position = was.position
        self._open: deque[EntryId] = deque()
        self._done: dict[EntryId, Outcome] = dict(was.beyond)
        self._counts = dict(was.counts)
        self._aside = dict(was.aside)

    @property
    def open(self) -> int:
        """How many entries were begun from the first that is not done."""
        return len(self._open)

    def begin(self, id: EntryId) -> bool:
        """The next entry, in id order. False where an earlier run has done it."""
        with self._lock:
            self._open.append(id)
            known = id in self._done
            if known:
                self._advance()
            return not known

    def end(self, id: EntryId, outcome: Outcome) -> None:
        """An entry that was begun is done."""
        with self._lock:
            self._done[id] = outcome
            if outcome != "handled" and len(self._aside) < ASIDE:
                self._aside[id] = outcome
            self._advance()

    def _advance(self) -> None:
        while self._open and (outcome := self._done.pop(self._open[0], None)):
            self._position = self._open.popleft()
            self._counts[outcome] += 1

    def progress(self) -> Progress:
        with self._lock:
            return Progress(self._position, dict(self._done), dict(self._counts), dict(self._aside))
