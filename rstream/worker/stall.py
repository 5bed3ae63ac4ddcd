"""How long the event loop was blocked: a tick of its own, whose lateness is that. Whoever asks, from any thread, also
learns of a block that goes on. Costs ten wake-ups a second, and no Redis call.
"""

from __future__ import annotations

import asyncio
import math

from rstream.process import clock

TICK = 0.1
"""Seconds between two looks: a block is told at most so much too short."""

SPAN, PARTS = 60.0, 12
"""Seconds that are remembered, in so many parts: the longest is forgotten between 55 and 60 s after it was."""


class Stall:
    """Written by the loop, read by anybody."""

    def __init__(self) -> None:
        self._due = math.inf
        self._parts = [(-1, 0.0)] * PARTS

    def now(self) -> float:
        """Seconds for which the loop has been blocked by now; 0 where it turns, or is not watched."""
        return max(0.0, clock() - self._due)

    def longest(self) -> float:
        """The longest block of the last minute, one that goes on included."""
        number = int(clock() // (SPAN / PARTS))
        return max(self.now(), *(longest for part, longest in self._parts if number - part < PARTS), 0.0)

    def add(self, seconds: float, now: float) -> None:
        number = int(now // (SPAN / PARTS))
        part, longest = self._parts[number % PARTS]
        self._parts[number % PARTS] = (number, max(seconds, longest) if part == number else seconds)

    async def watch(self) -> None:
        """Runs until cancelled."""
        try:
            while True:
                self._due = clock() + TICK
                await asyncio.sleep(TICK)
                now = clock()
                self.add(max(0.0, now - self._due), now)
        finally:
            self._due = math.inf
