"""Something that belongs to an event loop, one of it for each loop. Those of closed loops are let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """`get` makes it for the running loop. (A WeakKeyDictionary would not do: its values hold the loop.)"""

    def __init__(self) -> None:
        self._held: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self, make: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        if (mine := self._held.get(loop)) is not None:
            return mine
        # In place: meanwhile, threads with loops of their own put in and take out what is theirs.
        for held in list(self._held):
            if held.is_closed():
                self._held.pop(held, None)
        self._held[loop] = mine = make()
        return mine

    def pop(self) -> T | None:
        """Take out what belongs to the running loop."""
        return self._held.pop(asyncio.get_running_loop(), None)
