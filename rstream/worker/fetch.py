"""Brings new entries in: as many as there is room for, and never more.

Cost: one round trip for hundreds of entries under load; one blocked read per `BLOCK_MS` when idle.
"""

from __future__ import annotations

import asyncio
import logging

from rstream.errors import GroupMissing, StoreError
from rstream.store.link import backoff
from rstream.worker.groups import heal
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

BLOCK_MS = 5000
BURST_BLOCK_MS = 100
WAKE = 8


async def fetch_loop(run: ConsumerRun, burst: bool) -> None:
    """Runs until cancelled; with `burst`, sets `run.drained` when the group has nothing left."""
    turn = 0
    pauses = backoff()
    while True:
        turn += 1
        try:
            await _fetch(run, turn, burst)
            pauses = backoff()
        except GroupMissing as error:
            if not await heal(run, error):
                await asyncio.sleep(next(pauses))
        except StoreError as error:
            # The answer may have been on its way: what it carried is pending for us, unseen.
            run.adopt()
            log.warning("%s: %s", run.name, error)
            await asyncio.sleep(next(pauses))


async def _fetch(run: ConsumerRun, turn: int, burst: bool) -> None:
    # What a broken read stranded comes first: it is not in hand, and so would not be counted.
    await run.adopted.wait()
    # The lock is fair, so fetching and recovering take turns: a long backlog cannot starve a dead worker's deliveries.
    async with run.intake:
        room = await run.wait_for_room()
        await run.lease.held()  # what came in without it could not be started
        term = run.lease.term
        found = await run.link.run(run.ops.fetch(room, turn % run.layout.shards))
        run.take(found, term)
    if found:
        return
    if burst:
        await _check_drained(run)
    block = BURST_BLOCK_MS if burst else BLOCK_MS
    # COUNT is per shard here, and entries may be large: this only wakes, the next fetch brings the rest.
    count = max(1, min(WAKE, room // run.layout.shards))
    term = run.lease.term
    found = await run.link.run(run.ops.wait(count, block), timeout=block / 1000 + 5)
    run.take(found, term)


async def _check_drained(run: ConsumerRun) -> None:
    """Nothing unread (the fetch just found out), and nothing pending for anybody in the group."""
    if run.in_hand == 0 and await run.link.run(run.ops.pending()) == 0:
        run.drained.set()
