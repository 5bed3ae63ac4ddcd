"""Ends a process that has handled enough or grown too big: for handlers, or libraries under them, that leak.

It only asks for a graceful stop; whoever started the process starts the next one. Two counters are looked at ten times
a second, so a limit is passed by what is handled in that time and by what runs. No Redis call.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rstream.errors import ConfigError

log = logging.getLogger("rstream")

LOOK = 0.1
STAGGER = 0.1
"""Each process draws limits of its own, lower by up to this share: those started together do not end together."""
MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may handle, in deliveries, and hold, in MB. Without either it goes on for ever."""

    handled: int | None = None
    rss: float | None = None

    def passed(self, handled: int, rss: float) -> str | None:
        """Which limit the process has passed, in words. One that has handled nothing has passed none, so that
        a limit below what an idle process needs costs restarts, but not progress."""
        if not handled:
            return None
        if self.handled is not None and handled >= self.handled:
            return f"it has handled {handled:,} deliveries and its share of max_handled is {self.handled:,}"
        if self.rss is not None and rss > self.rss:
            return f"it holds {rss:,.0f} MB of memory and its share of max_rss_mb is {self.rss:,.0f}"
        return None

    def __bool__(self) -> bool:
        return self.handled is not None or self.rss is not None


def draw(max_handled: int | None, max_rss_mb: float | None, share: float | None = None) -> Limits:
    """The limits of this process: at random, 90 to 100 % of what is allowed. Raises `ConfigError`."""
    if max_handled is not None and max_handled < 1:
        raise ConfigError(f"max_handled is {max_handled}, it must be at least 1")
    if max_rss_mb is not None and not max_rss_mb > 0:
        raise ConfigError(f"max_rss_mb is {max_rss_mb}, it must be more than 0")
    if share is None:
        share = random.uniform(1 - STAGGER, 1)
    return Limits(
        None if max_handled is None else math.ceil(max_handled * share),
        None if max_rss_mb is None else max_rss_mb * share,
    )


async def recycle_loop(limits: Limits, handled: Callable[[], int], stop: Callable[[str], None]) -> None:
    """Call `stop` with the reason once a limit is passed. handled: deliveries so far."""
    if limits.rss is not None and resident() > limits.rss:
        log.warning(
            "this process holds %.0f MB before it has handled anything, and its share of max_rss_mb is %.0f: "
            "it will be recycled again and again. Allow more",
            resident(), limits.rss,
        )  # fmt: skip
    while limits:
        await asyncio.sleep(LOOK)
        why = limits.passed(handled(), 0.0 if limits.rss is None else resident())
        if why is not None:
            return stop(why)


def resident() -> float:
    """MB of memory that this process holds now; where there is no /proc (macOS), the most that it ever held."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MB if sys.platform == "darwin" else peak / 1024
