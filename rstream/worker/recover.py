"""Takes over what nobody alive holds, and finds again what is pending for this worker unseen.

A dead worker's alive keys are gone after one lease; looking every lease/4 or oftener has its deliveries running
elsewhere within 1.5 leases. Cost: one Lua call per look and group, O(shards); every lease/4 also O(consumers).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

from rstream.errors import GroupMissing, StoreError
from rstream.store.deliveries import Fetched, Outcome, Recovered, Tokens
from rstream.store.keys import Shard, rotated
from rstream.store.owners import OwnerOps
from rstream.worker.run import ConsumerRun, from_the_dead

log = logging.getLogger("rstream")

PAGE = 500
ASKED = 1000
"""Entries that one look asks about."""
INTERVAL_MAX = 1.0
"""Seconds after which at the latest somebody picks up what a worker released when it stopped."""


async def recover_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    term, turn, search_at = run.lease.term, 0, float("-inf")
    search_every = run.consumer.lease / 4
    interval = min(search_every, INTERVAL_MAX)
    while True:
        await _time_to_look(run)
        now = asyncio.get_running_loop().time()
        run.look_at, turn = now + interval, turn + 1
        search = now >= search_at
        try:
            if term != run.lease.term or not run.adopted.is_set():
                await run.lease.held()
                term, asked = run.lease.term, run.adoptions_asked
                await _adopt(run, term)
                if asked == run.adoptions_asked:
                    run.adopted.set()
            if run.order is not None:
                await _ask_elsewhere(run)
            found = await _take_over(run, turn, search=search)
            if found is None:
                continue
            if found.next_due is not None:
                run.look_in(found.next_due + 0.001)
            if found.claimed:
                run.look_in(0)  # there may be more than there was room for
            if search and not (found.left or any(from_the_dead(entry) for entry in found.claimed)):
                search_at = now + search_every
        except GroupMissing:
            continue  # the fetch loop meets the same error, and heals
        except StoreError as error:
            run.ask_adoption()  # the answer may have carried deliveries
            log.warning("%s: %s", run.name, error)


async def _time_to_look(run: ConsumerRun) -> None:
    """Wait until `run.look_at`, which may be moved nearer meanwhile."""
    while (wait := run.look_at - asyncio.get_running_loop().time()) > 0:
        run.look.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.look.wait(), wait)


async def _take_over(run: ConsumerRun, turn: int, *, search: bool) -> Recovered | None:
    """Claim what there is room for; None where the lease was lost meanwhile.

    `search`: also among the deliveries of silent workers, which costs Redis more.
    """
    async with run.intake:
        room = await run.wait_for_room()
        if not run.lease.holds():
            return None
        term, owned = run.lease.term, run.lease.owned
        lease_ms = int(run.consumer.lease * 1000) if search else 0
        shards = run.readable()
        if not shards:
            return None
        op = run.ops.recover(
            room,
            lease_ms,
            rotated(shards, turn),
            owned,
            doubt=run.doubt,
            used_up=run.consumer.policy.max_attempts,
            suspects=run.lanes.gate.room_for_suspects,
        )
        try:
            found = await run.link.run(op)
        except BaseException:
            run.unsure = True  # what it claimed, unseen, may have been begun elsewhere
            raise
        run.take(found.claimed, term, owned)
    taken = sum(1 for entry in found.claimed if not (entry.source or "~").startswith("~"))
    if taken:
        run.counts.recovered += taken
        log.info("%s: took over %d deliveries of silent workers", run.name, taken)
    for shard, id in found.lost:
        lost(run, shard, id)
    return found


async def _adopt(run: ConsumerRun, term: int) -> None:
    """Compare what Redis has pending for this worker with what is in hand.

    After a lost lease the unstarted were dropped, after a broken read the answer was: both are found here.
    """
    unsure, run.unsure = run.unsure, False
    owned = run.lease.owned
    run.watch(True)
    try:
        for shard in run.layout.every:
            start = "-"
            while page := await run.link.run(run.ops.mine(shard, start, PAGE)):
                for id, deliveries, flat in page:
                    _adopt_one(
                        run, Fetched(shard, id, flat or (), deliveries, "~unsure" if unsure else None), term, owned
                    )
                start = "(" + page[-1][0].decode()
    except BaseException:
        run.unsure = run.unsure or unsure
        raise
    finally:
        run.watch(False)


def _adopt_one(run: ConsumerRun, entry: Fetched, term: int, owned: Tokens) -> None:
    if run.has(entry.shard, entry.id):
        return
    if entry.flat:
        run.take([entry], term, owned)
    else:
        lost(run, entry.shard, entry.id)
        run.settle(Outcome(entry.shard, entry.id, entry.deliveries, "ack"))


async def _ask_elsewhere(run: ConsumerRun) -> None:
    """Find out which entries, that others of their key wait for, were settled meanwhile: by a former owner of their
    shard, which still ran them.
    """
    assert run.order is not None
    places = list(run.order.elsewhere)
    if len(places) > ASKED:
        places = random.sample(places, ASKED)
    if not places:
        return
    holders = await run.link.run(OwnerOps(run.ops).holders(places))
    for place, holder in zip(places, holders, strict=True):
        if place not in run.order.elsewhere:
            continue  # it came in while Redis was asked
        if not holder:
            run.now_is(*place, "ended")
        elif holder == "~parked":
            run.now_is(*place, "aside")
        elif holder == run.ops.worker and not run.has(*place):
            run.ask_adoption()


def lost(run: ConsumerRun, shard: Shard, id: bytes) -> None:
    run.counts.lost += 1
    log.error("%s: entry %s was trimmed before it was processed: it is lost", run.name, shard.entry_id(id))
