"""Takes and gives up shards of an ordered group. There is no leader: workers see each other's heartbeats, compute the
same assignment, and Redis decides where their views differ.

A shard moves at once. What its former owner still runs stays there, and only the keys of that wait; what it had not
started is delivered first. Whatever leaves this worker unsure of what is pending in a shard has it take that anew: it
drops what it remembers, gets another token, and learns.

A member is who takes part in these rounds: nobody waits for long for one that has died, or whose loop stands still, to
take what nobody has. (What it has is its own as long as its lease holds.) Cost: one round trip a round, O(shards). A
round comes every lease/4, and when the bell is rung.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence

from rstream.errors import GroupMissing, StoreError
from rstream.store.bell import ring
from rstream.store.deliveries import Tokens
from rstream.store.keys import Shard
from rstream.store.link import backoff
from rstream.store.owners import Heir, Look
from rstream.worker.assign import assign
from rstream.worker.groups import heal
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")


async def own_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    joined, pauses = False, backoff()
    while True:
        run.own.look.clear()
        try:
            await run.lease.held()
            await _round(run)
            if not joined:
                await tell(run)
            joined, pauses = True, backoff()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.own.look.wait(), run.consumer.lease / 4)
        except GroupMissing as error:
            await heal(run, error)
            await asyncio.sleep(next(pauses))
        except StoreError as error:
            log.warning("%s: shards not looked at: %s", run.name, error)
            await asyncio.sleep(next(pauses))


async def _round(run: ConsumerRun) -> None:
    if run.own.term != run.lease.term:
        lose(run, [*run.lease.owned])  # somebody else may have had them meanwhile
        run.own.term = run.lease.term
    term = run.lease.term
    layout = run.layout
    members, looks = await run.link.run(run.owners.look_round(int(run.consumer.lease * 500), layout.every))
    lose(run, [s for s, token in run.lease.owned.items() if s not in looks or looks[s].token != token])
    owners = {shard: look.owner for shard, look in looks.items() if look.owner in members}
    live = [shard for shard in layout.every if shard in owners or _is_open(shard, looks)]
    live = [s for s in live if s.generation == layout.generation or not looks[s].drained]
    wanted = assign(live, members, owners, salt=run.name)
    mine = [shard for shard in live if wanted[shard] == run.ops.worker]
    await give_up(run, [shard for shard in run.lease.owned if shard not in mine])
    # Of what is on its way back to Redis, unstarted, it must be known what has become before all that is pending is.
    unsettled = {shard for shard, _ in run.hand.returning}
    vacant = [s for s in mine if s not in run.lease.owned and looks[s].owner in ("", run.ops.worker)]
    free = [shard for shard in vacant if shard not in unsettled]
    if free and run.lease.holds() and term == run.lease.term:
        # An epoch never falls within a key, nor does it where the key goes on in another generation.
        floors = {s: max((look.epoch for other, look in looks.items() if other.overlaps(s)), default=0) for s in free}
        await _take(run, floors)


def _is_open(shard: Shard, looks: Mapping[Shard, Look]) -> bool:
    """Whether all is done that was published of its keys before."""
    return all(
        look.drained for other, look in looks.items() if other.generation < shard.generation and other.overlaps(shard)
    )


async def _take(run: ConsumerRun, floors: Mapping[Shard, int]) -> None:
    tokens = await run.link.run(run.owners.own(floors, int(run.consumer.lease * 1000)))
    run.lease.owned = {**run.lease.owned, **tokens}
    try:
        for shard in tokens:
            await _inherit(run, shard)
            if run.lease.owned.get(shard) == tokens[shard]:
                run.own.known.add(shard)
                run.crowded.set()
        # Only now that they are ours nobody else reads on.
        for shard, look in (await run.link.run(run.owners.look([*tokens]))).items():
            if run.lease.owned.get(shard) == tokens[shard]:  # it may have been lost meanwhile
                run.own.open[shard] = look.position or b"0-0"
    except BaseException:
        lose(run, [*tokens])
        raise
    if tokens:
        log.info("%s: owns %s now", run.name, ", ".join(map(str, tokens)))
        run.own.has_changed()
        run.look_in(0)  # what waits there comes first


async def _inherit(run: ConsumerRun, shard: Shard) -> None:
    """Learn what is pending in a shard, before anything is taken over or read there."""
    assert run.order is not None
    page: list[Heir]
    start = "-"
    while start:
        page, start = await run.link.run(run.owners.inherit(shard, start))
        for id, holder, key in page:
            if key is not None and not (holder == "~retry" and run.consumer.on_retry == "skip"):
                run.order.learn(shard, id, key)
                if not holder.startswith("~"):
                    run.own.abroad.add((shard, id))
            if holder == run.ops.worker and not run.hand.has((shard, id)):
                run.adopt()
    # Last: what is aside could be brought back at once, past what is pending elsewhere.
    crowded = await run.link.run(run.owners.crowded(shard))
    for key, aside in (await run.link.run(run.owners.parked(shard, crowded))).items():
        run.order.is_aside(shard, key, *aside)


def lose(run: ConsumerRun, shards: Collection[Shard]) -> None:
    """Shards that may be somebody else's already: what was not started of them is not this worker's to hand over."""
    for shard in shards:
        _forget(run, shard)
        for entry in run.drop(shard):
            run.forget(entry)
    if shards:
        log.warning("%s: lost %s", run.name, ", ".join(map(str, shards)))
        run.adopt()
        run.own.look.set()


def doubt(run: ConsumerRun, sent: Tokens) -> None:
    """A call that these tokens fenced has no answer. It may have brought deliveries, unseen; or may still do so, where
    Redis has not come to read it. By other tokens it cannot, and what it did is learned.
    """
    lose(run, [shard for shard, token in sent.items() if run.lease.owned.get(shard) == token])


async def give_up(run: ConsumerRun, shards: Sequence[Shard]) -> None:
    """Let others have these; what was not started of them goes with them, its attempts unchanged."""
    for shard in shards:
        _forget(run, shard)
        run.hand_over(run.drop(shard))
    if shards:
        log.info("%s: gives up %s", run.name, ", ".join(map(str, shards)))
        await run.link.run(run.owners.disown(shards))
        await tell(run)


async def leave(run: ConsumerRun) -> None:
    """Give up everything, for good."""
    try:
        await run.link.run(run.owners.take_part(0))
        await give_up(run, [*run.lease.owned])
        # The answer by which some were this worker's may not have been read any more.
        if await run.link.run(run.owners.disown(run.layout.every)):
            await tell(run)
    except StoreError as error:
        log.warning("%s: shards not given up, others take them after the lease: %s", run.name, error)


def _forget(run: ConsumerRun, shard: Shard) -> None:
    run.lease.owned = {other: token for other, token in run.lease.owned.items() if other is not shard}
    run.own.known.discard(shard)
    run.own.open.pop(shard, None)
    run.own.has_changed()


async def tell(run: ConsumerRun) -> None:
    """Have the group's other workers look now."""
    with contextlib.suppress(StoreError):  # they look by themselves, only later
        await run.link.run(ring(run.layout.namespace, run.layout.name, run.ops.group))
