"""Takes over what nobody alive holds, and has found again what is pending for this worker unseen.

A dead worker's alive keys are gone after one lease; looking every lease/4 or oftener has its deliveries running
elsewhere within 1.5 leases. Cost: one Lua call per look and group, O(shards); every lease/4 another one, to learn whom
to judge, and O(shards · consumers).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import chain, islice

from rstream.errors import GroupMissing, StoreError
from rstream.store.deliveries import Others, Recovered
from rstream.store.keys import rotated
from rstream.worker.adopt import adopt, lost
from rstream.worker.hand import from_the_dead
from rstream.worker.order import Place
from rstream.worker.own import doubt
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

PAGE = 500
ASKED = 1000
"""Entries that one look asks about."""
INTERVAL_MAX = 1.0
"""Seconds after which at the latest somebody picks up what a worker released when it stopped."""


async def recover_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    term, turn, search_at, ask_at = run.lease.term, 0, float("-inf"), float("-inf")
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
                await adopt(run)
                if asked == run.adoptions_asked:
                    run.hand.sources.clear()
                    run.adopted.set()
            if run.order is not None:
                await _ask_elsewhere(run, turn, rest=now >= ask_at)
                ask_at = now + interval if now >= ask_at else ask_at
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
        others = await _others(run) if search else {}
        if not run.lease.holds():
            return None
        term, shards = run.lease.term, run.readable()
        lease_ms = int(run.consumer.lease * 1000) if search else 0
        sent = run.tokens(shards)
        if not shards:
            return None
        op = run.ops.recover(
            room,
            lease_ms,
            rotated(shards, turn),
            sent,
            others=others,
            doubt=run.doubt,
            used_up=run.consumer.policy.max_attempts,
            suspects=run.lanes.gate.room_for_suspects,
        )
        try:
            found = await run.link.run(op)
        except BaseException:
            run.hand.unsure = True  # what it claimed, unseen, may have been begun elsewhere
            doubt(run, sent)
            raise
        run.take(found.claimed, term, sent)
    taken = sum(1 for entry in found.claimed if not (entry.source or "~").startswith("~"))
    if taken:
        run.counts.recovered += taken
        log.info("%s: took over %d deliveries of silent workers", run.name, taken)
    for shard, id in found.lost:
        lost(run, shard, id)
    return found


async def _others(run: ConsumerRun) -> Others:
    """Who is to be judged. Asked before the call that judges, which has to name to Redis all keys that it looks at."""
    shards = run.readable()
    return await run.link.run(run.ops.others(shards)) if shards else {}


def _to_ask(run: ConsumerRun, turn: int, rest: bool) -> list[Place]:
    """First what other workers had: they ring when they settle. The rest comes by being claimed, but somebody may have
    settled it by hand: some of that, in turn; not with every look, of which there are hundreds while much is claimed.
    """
    assert run.order is not None
    elsewhere, known = run.order.elsewhere, run.own.known
    run.own.abroad = {place for place in run.own.abroad if place in elsewhere}
    places = [place for place in run.own.abroad if place[0] in known][:ASKED]
    if rest and len(places) < ASKED and len(elsewhere) > len(places):
        start = turn * ASKED % len(elsewhere)
        others = islice(chain(islice(elsewhere, start, None), elsewhere), ASKED - len(places))
        places += [place for place in others if place[0] in known and place not in run.own.abroad]
    return places


async def _ask_elsewhere(run: ConsumerRun, turn: int, *, rest: bool) -> None:
    """Find out which entries, that others of their key wait for, were settled meanwhile: by a former owner of their
    shard, which still ran them.
    """
    assert run.order is not None
    owned = run.lease.owned
    places = _to_ask(run, turn, rest)
    if not places:
        return
    holders = await run.link.run(run.owners.holders(places))
    for place, holder in zip(places, holders, strict=True):
        if place not in run.order.elsewhere or run.lease.owned.get(place[0]) != owned[place[0]]:
            continue  # it came in while Redis was asked, or its shard is being learned anew
        if not holder:
            run.now_is(*place, "ended")
        elif holder == "~parked":
            run.now_is(*place, "aside")
        elif holder == run.ops.worker and not run.hand.has(place):
            run.ask_adoption()
