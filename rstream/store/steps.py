"""Procedures of several operations: generators that yield an operation, and are sent its result, or seconds to wait.
They are written once, and driven from an event loop or from a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any, TypeVar

from rstream.store.link import Link, Op, SyncLink

R = TypeVar("R")
Steps = Generator[Op[Any] | float, Any, R]


async def drive(link: Link, steps: Steps[R], within: float) -> R:
    """Go through the steps; Redis may be away for `within` seconds in all. Raises what the operations raise."""
    deadline, result = time.monotonic() + within, None
    while True:
        try:
            step = steps.send(result)
        except StopIteration as end:
            value: R = end.value
            return value
        if isinstance(step, Op):
            result = await link.run(step, within=deadline - time.monotonic())
        else:
            result = None
            await asyncio.sleep(step)


def drive_sync(link: SyncLink, steps: Steps[R], within: float) -> R:
    """As `drive`, in a thread."""
    deadline, result = time.monotonic() + within, None
    while True:
        try:
            step = steps.send(result)
        except StopIteration as end:
            value: R = end.value
            return value
        if isinstance(step, Op):
            result = link.run(step, within=deadline - time.monotonic())
        else:
            result = None
            time.sleep(step)
