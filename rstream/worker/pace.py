"""How long the calls of a handler take, and so how many deliveries are worth holding beyond those that are being
handled: long handlers must not hoard, short ones must not wait. No clock, no I/O.
"""

from __future__ import annotations

BUFFER_SECONDS = 0.2
"""How much handling time the buffer beyond the running deliveries should hold: a few round trips' worth."""
BUFFER_MAX = 1000


class Pace:
    """slots: calls at once, of `size` deliveries each · slow: how many running calls take long, before they end ·
    stuck: nothing that waits for a slot moves.
    """

    def __init__(self, slots: int, size: int) -> None:
        self.slots, self.size = slots, size
        self.slow = 0
        self.stuck = False
        self._mean = float("inf")
        self._samples = 0

    def took(self, seconds: float) -> None:
        """A call took this long. The mean follows a slower one at once and a faster one by steps."""
        mean = self._mean
        if self._samples and seconds <= 2 * mean:
            seconds = 0.9 * mean + 0.1 * seconds
        self._mean = seconds if seconds > 1e-6 else 1e-6
        self._samples += 1
        self.stuck = False

    @property
    def ahead(self) -> int:
        """Deliveries to hold beyond those being handled."""
        if self.stuck or self._samples < self.slots:
            return 0  # those that end first are the short ones
        calls = int(min(BUFFER_MAX, (self.slots - self.slow) * BUFFER_SECONDS / self._mean))
        return min(max(BUFFER_MAX, self.size), calls * self.size)
