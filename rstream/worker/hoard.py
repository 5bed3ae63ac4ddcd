"""Hands over what waits here too long: no worker may be idle while another one holds work that it has not started.

The buffer is meant for a fraction of a second (see `ConsumerRun.buffer`). Where the slots got longer work than was
foreseen, it goes back, attempts unchanged, and nothing beyond the slots is read until one of them is free again. While
nothing is in hand there is nothing to look at. No Redis call.
"""

from __future__ import annotations

import asyncio

from rstream.process import clock
from rstream.worker.pace import BUFFER_SECONDS
from rstream.worker.run import ConsumerRun

LOOK = 0.25
"""Seconds: what has not moved for one to two looks goes back."""


async def hoard_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    before = None
    while run.consumer.prefetch is None:
        if not run.in_hand:
            run.pace.slow, before = 0, None
            await run.some_came()
        await asyncio.sleep(LOOK)
        now = clock()
        run.pace.slow = sum(now - began > BUFFER_SECONDS for began in run.running.values())
        head = run.lanes.head
        if head is not None and head is before:
            run.pace.stuck = True
            if run.order is None:  # else nobody else may have it
                run.hand_over(run.lanes.give_back())
        before = head
