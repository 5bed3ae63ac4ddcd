"""What a worker knows of the shards that it may read. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from rstream.store.keys import Shard
from rstream.worker.order import Place

T = TypeVar("T")


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
        self._waits: set[asyncio.Timeout] = set()

    def has_changed(self) -> None:
        """Wake those that wait for other shards; each waits for the event that it saw when it looked which they are."""
        self.changed.set()
        self.changed = asyncio.Event()
        while self._waits:
            self._waits.pop().reschedule(0)

    async def unless(self, changed: asyncio.Event, waiting: Coroutine[Any, Any, T]) -> T | None:
        """What is waited for; None, and an end to it, where the shards are others before that. changed: what was seen
        when it was looked which they are.
        """
        if changed.is_set():
            waiting.close()
            return None
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                return await waiting
        except TimeoutError:
            return None
        finally:
            self._waits.discard(wait)
