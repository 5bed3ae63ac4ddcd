"""How far a replay has come: everything up to a position, and some entries above it. Pure."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping

from rstream.event import EntryId
from rstream.store.replays import Outcome, Progress

ASIDE = 100
"""Ids of failed and invalid entries that are kept; more are only counted."""

BAD: frozenset[Outcome] = frozenset(("failed", "invalid"))


class Mark:
    """Changed by the loop, read by the keeper's thread: what that stores always fits together."""

    def __init__(self, was: Progress) -> None:
        self._lock = threading.Lock()
        self._position, self._next = was.position, was.next
        self._open: deque[EntryId] = deque()
        self._done: dict[EntryId, Outcome] = dict(was.beyond)
        self._earlier = frozenset(was.beyond)
        self._counts = dict(was.counts)
        self._aside = dict(was.aside)

    @property
    def open(self) -> int:
        """How many entries were begun from the first that is not done."""
        return len(self._open)

    def begin(self, ids: Iterable[EntryId]) -> frozenset[EntryId]:
        """The next entries, in id order. Those of them that an earlier run has done."""
        ids = list(ids)
        with self._lock:
            self._open.extend(ids)
            if not self._earlier:
                return self._earlier
            known = self._earlier.intersection(ids)
            self._advance()
            return known

    def end(self, outcomes: Mapping[EntryId, Outcome]) -> None:
        """Entries that were begun are done."""
        with self._lock:
            self._done.update(outcomes)
            self._set_aside(outcomes)
            self._advance()

    def pass_over(self, position: EntryId, counts: Mapping[Outcome, int], aside: Mapping[EntryId, Outcome]) -> None:
        """Everything up to a position is done: for who does one after the other, and begins none here."""
        with self._lock:
            self._position, self._next = position, None
            for outcome, count in counts.items():
                self._counts[outcome] += count
            self._set_aside(aside)

    def expect(self, id: EntryId) -> None:
        """The entry that comes after the position: for the same."""
        with self._lock:
            self._next = id

    def _set_aside(self, outcomes: Mapping[EntryId, Outcome]) -> None:
        if len(self._aside) < ASIDE and not BAD.isdisjoint(outcomes.values()):
            bad = [pair for pair in outcomes.items() if pair[1] in BAD]
            self._aside.update(bad[: ASIDE - len(self._aside)])

    def _advance(self) -> None:
        opened, done, counts = self._open, self._done, self._counts
        while opened and (outcome := done.pop(opened[0], None)):
            self._position, self._next = opened.popleft(), None
            counts[outcome] += 1

    def progress(self) -> Progress:
        with self._lock:
            next = self._open[0] if self._open else self._next
            return Progress(self._position, dict(self._done), dict(self._counts), dict(self._aside), next)
