"""The queue of those whose events are kept in order while they store blobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from rstream.store.keys import Shard
from rstream.store.record import Record

T = TypeVar("T")


class Queue:
    """Keeps the events of a key in the order of their publishes, also where one has to wait for its blobs.

    busy: somebody waits; until then nobody has to pass through.
    """

    def __init__(self) -> None:
        self._ahead: dict[bytes, list[asyncio.Event]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._ahead)

    async def pass_through(self, shards: Mapping[Shard, Sequence[Record]], work: Awaitable[T]) -> T:
        """Do the work, and wait for whoever has one of the same keys and came before. Whoever returns from here goes on
        without waiting, and those behind it come later.
        """
        keys = {record.key for records in shards.values() for record in records if record.key}
        before = {each for key in keys for each in self._ahead.get(key, ())}
        mine = asyncio.Event()
        for key in keys:
            self._ahead.setdefault(key, []).append(mine)
        try:
            done = await work
            for each in before:
                await each.wait()
            return done
        finally:
            # Those that wait are woken in a later turn of the loop than this one goes on in.
            mine.set()
            for key in keys:
                self._ahead[key].remove(mine)
                if not self._ahead[key]:
                    del self._ahead[key]
