"""Takes over what nobody alive holds, and has found again what is pending for this worker unseen.

A dead worker's alive keys are gone after one lease; looking every lease/4 or oftener has its deliveries running
elsewhere within 1.5 leases. What live workers leave for others they ring for. Cost: one round trip a look, with a Lua
call, O(shards); every lease/4 also O(shards · consumers). A look comes every second while there is something to do, or
waits to be tried again; else every `IDLE_MAX`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from itertools import chain, islice

from rstream.errors import GroupMissing, StoreError
from rstream.store.deliveries import Others, Recovered
from rstream.store.keys import Shard, rotated
from rstream.store.link import Op, both
from rstream.worker.adopt import adopt, lost
from rstream.worker.hand import from_the_dead
from rstream.worker.order import Place
from rstream.worker.own import doubt
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

PAGE = 500
ASKED = 1000
"""Entries that one look asks about."""
BUSY_MAX, IDLE_MAX = 1.0, 7.5
"""Seconds between two looks at most: where there is something to do, for retries of others may be due; and else, for a
ring that was not heard."""


async def recover_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    term, turn, search_at, ask_at = run.lease.term, 0, float("-inf"), float("-inf")
    search_every = run.consumer.lease / 4
    soon = min(search_every, BUSY_MAX)
    others: dict[Shard, Sequence[bytes]] = {}
    waiting, taken = True, run.taken
    while True:
        await _time_to_look(run)
        now = asyncio.get_running_loop().time()
        busy = waiting or run.in_hand > 0 or run.taken != taken or bool(run.order and run.order.elsewhere)
        interval = soon if busy else min(search_every, IDLE_MAX)
        search = now >= search_at
        run.look_at = now + interval if search else min(now + interval, search_at)
        waiting, taken, turn = True, run.taken, turn + 1
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
                ask_at = now + soon if now >= ask_at else ask_at
            found = await _take_over(run, turn, others if search else None)
            if found is None:
                continue
            waiting = found.left or bool(found.claimed)
            if found.next_due is not None:
                run.look_in(found.next_due + 0.001)
                waiting = waiting or found.next_due < IDLE_MAX
            if found.claimed:
                run.look_in(0)  # there may be more than there was room for
            if search and not (found.left or any(from_the_dead(entry) for entry in found.claimed)):
                search_at = now + search_every
        except GroupMissing:
            continue  # the fetch loop meets the same error, and heals
        except StoreError as error:
            run.ask_adoption()  # the answer may have carried deliveries
            log.warning("%s: %s", run.name, error)
        finally:
            if waiting:
                run.look_in(soon)


async def _time_to_look(run: ConsumerRun) -> None:
    """Wait until `run.look_at`, which may be moved nearer meanwhile."""
    while (wait := run.look_at - asyncio.get_running_loop().time()) > 0:
        run.look.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.look.wait(), wait)


async def _take_over(run: ConsumerRun, turn: int, others: dict[Shard, Sequence[bytes]] | None) -> Recovered | None:
    """Claim what there is room for; None where the lease was lost meanwhile.

    `others`: search also among the deliveries of silent workers, which costs Redis more.
    """
    async with run.intake:
        room = await run.wait_for_room()
        if others is not None:
            await _learn(run, others)
        if not run.lease.holds():
            return None
        term, shards = run.lease.term, run.readable()
        lease_ms = 0 if others is None else int(run.consumer.lease * 1000)
        sent = run.tokens(shards)
        if not shards:
            return None
        op = run.ops.recover(
            room,
            lease_ms,
            rotated(shards, turn),
            sent,
            others=others or {},
            doubt=run.doubt,
            used_up=run.consumer.policy.max_attempts,
            suspects=run.lanes.gate.room_for_suspects,
        )
        try:
            found = await run.link.run(op if others is None else _and_learn(run, op, shards, others))
        except BaseException:
            run.hand.unsure = True  # what it claimed, unseen, may have been begun elsewhere
            doubt(run, sent)
            raise
        run.take(found.claimed, term, sent)
    taken = sum(1 for entry in found.claimed if not (entry.source or "~").startswith("~"))
    if taken:
        run.tally.recovered += taken
        log.info("%s: took over %d deliveries of silent workers", run.name, taken)
    for shard, id in found.lost:
        lost(run, shard, id)
    return found


async def _learn(run: ConsumerRun, others: dict[Shard, Sequence[bytes]]) -> None:
    """Who is to be judged has to be known before: the call that judges names to Redis all keys that it looks at."""
    new = [shard for shard in run.readable() if shard not in others]
    if new:
        found = await run.link.run(run.ops.others(new))
        others.update(found)


def _and_learn(
    run: ConsumerRun, op: Op[Recovered], shards: Sequence[Shard], others: dict[Shard, Sequence[bytes]]
) -> Op[Recovered]:
    """The same, and who is to be judged the next time: whoever joins until then is silent for a lease at that time at
    the earliest, and so no later found than if it was known.
    """

    def learn(found: tuple[Recovered, Others]) -> Recovered:
        others.clear()
        others.update(found[1])
        return found[0]

    return both(op, run.ops.others(shards)).then(learn)


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
