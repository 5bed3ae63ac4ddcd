"""Puts aside in Redis what waits behind a key that does not move, and brings it back when its turn comes.

So a key with a long handler, or one that waits for a retry, neither fills this worker's memory nor keeps other keys
from coming in. Cost: nothing while keys move; else one outcome more for each entry that is put aside, and a call for
every `KEEP` that come back.
"""

from __future__ import annotations

import asyncio
import logging

from rstream.errors import StoreError
from rstream.process import clock
from rstream.store.deliveries import Fetched, Outcome
from rstream.store.link import backoff
from rstream.worker.adopt import lost
from rstream.worker.hand import from_the_dead
from rstream.worker.order import KEEP, Lane, key_of
from rstream.worker.own import doubt
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

STILL = 0.05
FLUSHES, PATIENCE = 3, 0.5
"""Seconds in which a lane of which too much is in memory has to move; and so often outcomes have to be accepted
meanwhile, unless there are none for a longer time.
"""


async def park_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    assert run.order is not None
    pauses = backoff()
    while True:
        await run.crowded.wait()
        run.crowded.clear()
        for lane in run.order.ask_back():
            try:
                await _bring_back(run, lane)
                pauses = backoff()
            except StoreError as error:
                log.warning("%s: %s", run.name, error)
                await asyncio.sleep(next(pauses))
        _park(run, run.order.take_overflow())
        if run.is_full:
            moves = run.order.moves()
            await _long_enough(run)
            _park(run, run.order.put_aside(moves))
        if run.is_crowded:
            run.crowded.set()


async def _long_enough(run: ConsumerRun) -> None:
    """For whatever moves to have moved: also what is in a large batch, or at a server that has much to do."""
    flushes, patience = run.flushes, clock() + PATIENCE
    await asyncio.sleep(STILL)
    while run.flushes < flushes + FLUSHES and clock() < patience:  # noqa: ASYNC110
        await asyncio.sleep(STILL)


def _park(run: ConsumerRun, entries: list[Fetched]) -> None:
    for entry in entries:
        begun = entry.deliveries - 1 if entry.source is None else entry.deliveries
        key = key_of(entry)
        assert key is not None
        mark = "!" if from_the_dead(entry) else ""
        run.give_back(Outcome(entry.shard, entry.id, entry.deliveries, "park", begun, key, mark))


async def _bring_back(run: ConsumerRun, lane: Lane) -> None:
    assert run.order is not None
    if not run.order.knows(lane):
        return  # its shard was lost since, and if it is this worker's again, it is being learned what is aside there
    term, owned = run.lease.term, run.lease.owned
    room = max(1, min(KEEP, run.order.space))
    try:
        back = await run.link.run(run.owners.unpark(lane.shard, owned[lane.shard], lane.key, room))
    except BaseException:
        run.hand.unsure = True  # what it brought back, unseen, may have been begun elsewhere
        doubt(run, {lane.shard: owned[lane.shard]})
        raise
    if back is None:
        doubt(run, {lane.shard: owned[lane.shard]})
        return
    run.take_back(lane, back, term, owned)
    for id in back.lost:
        lost(run, lane.shard, id)
