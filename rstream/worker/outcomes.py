"""What is to be settled next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rstream.store.deliveries import Outcome


class Outcomes:
    """Put in by whoever ends a delivery, taken all at once."""

    def __init__(self) -> None:
        self.waiting: list[Outcome] = []
        self.wanted = asyncio.Event()

    def add(self, outcome: Outcome) -> None:
        if not self.waiting:
            self.wanted.set()
        self.waiting.append(outcome)

    def add_all(self, outcomes: Sequence[Outcome]) -> None:
        """As `add`, of many."""
        if outcomes:
            self.wanted.set()
        self.waiting.extend(outcomes)

    def take(self) -> list[Outcome]:
        self.wanted.clear()
        taken, self.waiting = self.waiting, []
        return taken
