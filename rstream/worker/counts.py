"""What a worker did, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counts:
    """handled: handlers that returned · failed: that raised · dead: entries dead-lettered · expired: that were
    too old to be started · skipped: doubles of what had succeeded · refused: settles that
    the fence refused (`LeaseLost`) · recovered: deliveries taken over · lost: entries that were trimmed before they
    were processed · resets: times that groups were gone from Redis and made anew.
    """

    handled: int = 0
    failed: int = 0
    dead: int = 0
    expired: int = 0
    skipped: int = 0
    refused: int = 0
    recovered: int = 0
    lost: int = 0
    resets: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {number:,}" for name, number in asdict(self).items())
