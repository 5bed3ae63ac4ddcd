"""Takes over what nobody alive holds, and finds again what is pending for this worker unseen.

A dead worker's alive keys are gone after one lease; looking every lease/4 or oftener has its deliveries running
elsewhere within 1.5 leases. Cost: one Lua call per look and group, O(shards · consumers).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from rstream.errors import GroupMissing, StoreUnavailable
from rstream.store.deliveries import Fetched, Outcome
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

PAGE = 500
INTERVAL_MAX = 1.0
"""Seconds after which at the latest somebody picks up what a worker released when it stopped."""


async def recover_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    term, turn = run.lease.term, 0
    interval = min(run.consumer.lease / 4, INTERVAL_MAX)
    while True:
        await _time_to_look(run)
        run.look_at, turn = asyncio.get_running_loop().time() + interval, turn + 1
        try:
            if run.adoption_due or term != run.lease.term:
                await run.lease.held()
                run.adoption_due, term = False, run.lease.term
                await _adopt(run, term)
            next_due = await _take_over(run, turn)
            if next_due is not None:
                run.look_in(next_due + 0.001)
        except StoreUnavailable as error:
            run.adoption_due = True  # the answer may have carried deliveries
            log.warning("%s: %s", run.name, error)
        except GroupMissing:
            continue  # the fetch loop meets the same error, and heals


async def _time_to_look(run: ConsumerRun) -> None:
    """Wait until `run.look_at`, which may be moved nearer meanwhile."""
    while (wait := run.look_at - asyncio.get_running_loop().time()) > 0:
        run.look.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.look.wait(), wait)


async def _take_over(run: ConsumerRun, turn: int) -> float | None:
    """Claim what there is room for; seconds until the next waiting retry is due, or None."""
    async with run.intake:
        room = await run.wait_for_room()
        if not run.lease.holds():
            return None
        lease_ms = int(run.consumer.lease * 1000)
        term, unsure = run.lease.term, run.unsure
        run.unsure = True  # until the answer is there
        found = await run.link.run(run.ops.recover(room, turn % run.layout.shards, lease_ms))
        run.unsure = unsure
        run.take(found.claimed, term)
    taken = sum(1 for entry in found.claimed if not (entry.source or "~").startswith("~"))
    if taken:
        run.counts.recovered += taken
        log.info("%s: took over %d deliveries of silent workers", run.name, taken)
    for shard, id in found.lost:
        _lost(run, shard, id)
    return found.next_due


async def _adopt(run: ConsumerRun, term: int) -> None:
    """Compare what Redis has pending for this worker with what is in hand.

    After a lost lease the unstarted were dropped, after a broken read the answer was: both are found here.
    """
    source, run.unsure = ("~unsure" if run.unsure else None), False
    run.watch(True)
    try:
        for shard in range(run.layout.shards):
            start = "-"
            while page := await run.link.run(run.ops.mine(shard, start, PAGE)):
                for id, deliveries, flat in page:
                    if run.has(shard, id):
                        continue
                    if flat is None:
                        _lost(run, shard, id)
                        run.settle(Outcome(shard, id, deliveries, "ack"))
                    else:
                        run.take([Fetched(shard, id, flat, deliveries, source)], term)
                start = "(" + page[-1][0].decode()
    finally:
        run.watch(False)


def _lost(run: ConsumerRun, shard: int, id: bytes) -> None:
    run.counts.lost += 1
    log.error("%s: entry %s of shard %d was trimmed before it was processed: it is lost", run.name, id.decode(), shard)
