"""What a worker knows of the shards that it may read. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from rstream.store.keys import Shard
from rstream.worker.order import Place


def epoch_of(token: str | None) -> int:
    """By which a worker owns a shard; 0 where it does not, or nobody does."""
    return int(token.rpartition("|")[2]) if token else 0


class Own:
    """What a worker knows of its shards in one ordered group; the tokens by which it owns them are its lease's.

    known: shards of which all that is pending has been learned; before that, nothing of them may be started · open:
    those that may be read, and the id that was delivered last in each · changed: which they are · look: a
    round is wanted now · term: the lease's when they were taken · abroad: entries that other workers had.
    """

    def __init__(self) -> None:
        self.known: set[Shard] = set()
        self.open: dict[Shard, bytes] = {}
        self.changed = asyncio.Event()
        self.look = asyncio.Event()
        self.term = -1
        self.abroad: set[Place] = set()
        self._waits: set[anyio.CancelScope] = set()

    def has_changed(self) -> None:
        """Wake those that wait for other shards; each waits for the event that it saw when it looked which they are."""
        self.changed.set()
        self.changed = asyncio.Event()
        for scope in self._waits:
            scope.cancel()

    @contextmanager
    def unless_changed(self) -> Iterator[None]:
        """Leave this block when they change."""
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.remove(scope)
