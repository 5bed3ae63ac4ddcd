"""Deliveries whose payload is fetched from the blob store before they wait for a slot. No I/O: load.py has that.

What waits for the store takes no slot from the others, and, up to a number, no room. Payloads that are here are counted
until their delivery is let go; beyond a number of bytes the next ones wait.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Sequence

from rstream.reference import WHOLE
from rstream.store.deliveries import Fetched
from rstream.store.keys import Shard
from rstream.worker.order import Place

ASIDE = 64
"""Deliveries that may wait for the blob store without others being kept out for it."""

BYTES = 64 * 1024 * 1024
"""Payloads of a consumer in memory, in a worker: or one, however large."""

TRIES = 10_000
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


class Loads:
    """closed: the worker ends, and starts nothing more · tries: how often in a row a delivery was put off · failures:
    fetches in a row that failed, of any · open_at: `clock()` until which none is tried.
    """

    def __init__(self) -> None:
        self.closed = False
        self.tries: dict[Place, int] = {}
        self.failures, self.open_at = 0, float("-inf")
        self._waiting: deque[Fetched] = deque()
        self._loading = 0
        self._held: dict[Place, int] = {}
        self._bytes = 0
        self._wanted, self._freed = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        """Deliveries that wait for their payload."""
        return len(self._waiting) + self._loading

    @property
    def aside(self) -> int:
        """Deliveries that count for nobody's room."""
        return min(ASIDE, len(self))

    def sort_out(self, entries: Sequence[Fetched]) -> Sequence[Fetched]:
        """Take those that refer to a payload elsewhere; the others."""
        if not (apart := [entry for entry in entries if _elsewhere(entry)]):
            return entries
        self.put(apart)
        return [entry for entry in entries if not _elsewhere(entry)]

    def put(self, entries: Iterable[Fetched]) -> None:
        self._waiting.extend(entries)
        self._wanted.set()

    async def take(self) -> Fetched:
        """The next one; whoever takes it says when it is `done`."""
        while not self._waiting:
            self._wanted.clear()
            await self._wanted.wait()
        self._loading += 1
        return self._waiting.popleft()

    def done(self) -> None:
        self._loading -= 1

    async def hold(self, place: Place, size: int) -> None:
        """Wait until there is room for a payload; it is held until it is let go."""
        while self._bytes and self._bytes + size > BYTES:
            self._freed.clear()
            await self._freed.wait()
        self._held[place] = size
        self._bytes += size

    def let_go(self, place: Place) -> None:
        if place in self._held:
            self._bytes -= self._held.pop(place)
            self._freed.set()

    def let_all_go(self, places: Iterable[Place]) -> None:
        """As `let_go`, of many."""
        if self._held:
            for place in places:
                self.let_go(place)

    def pause(self, place: Place) -> float:
        """A delivery is put off: for how many seconds."""
        if len(self.tries) >= TRIES:
            self.tries.clear()
        times = self.tries.get(place, 0)
        self.tries[place] = times + 1
        return pause(times)

    def drop(self, shard: Shard) -> list[Fetched]:
        """Take what waits of one shard."""
        dropped = [entry for entry in self._waiting if entry.shard is shard]
        self._waiting = deque(entry for entry in self._waiting if entry.shard is not shard)
        return dropped

    def drain(self) -> list[Fetched]:
        """Take everything that waits."""
        self.closed = True
        drained, self._waiting = [*self._waiting], deque()
        return drained


def pause(times: int) -> float:
    """Seconds, after so many failures before."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(times, 10)) * random.uniform(0.75, 1.0)


def payload(flat: Sequence[bytes]) -> bytes:
    if len(flat) > 1 and flat[0] == b"e":  # as rstream writes them
        return flat[1]
    return dict(zip(flat[::2], flat[1::2], strict=True)).get(b"e", b"")


def with_payload(entry: Fetched, data: bytes) -> Fetched:
    """The same entry, holding its payload itself."""
    fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
    fields[b"e"] = data
    return entry._replace(flat=[part for pair in fields.items() for part in pair])


def _elsewhere(entry: Fetched) -> bool:
    flat = entry.flat
    return (flat[1] if len(flat) > 1 and flat[0] == b"e" else payload(flat))[:1] == WHOLE
