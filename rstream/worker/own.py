"""Takes and gives up shards of an ordered group. There is no leader: workers see each other's heartbeats, compute the
same assignment, and Redis decides where their views differ.

A shard moves at once. What its former owner still runs stays there, and only the keys of that wait; what it had not
started is delivered first. Cost: two small calls a round, which comes every lease/3, and when the bell is rung.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence

from rstream.errors import GroupMissing, StoreError
from rstream.store.bell import ring
from rstream.store.keys import Shard
from rstream.store.owners import Heir, Look, OwnerOps
from rstream.worker.assign import assign
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

RETRY_AFTER = 0.2


async def own_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    ops, joined = OwnerOps(run.ops), False
    while True:
        pause = run.consumer.lease / 3
        run.own.look.clear()
        try:
            await run.lease.held()
            await _round(run, ops)
            if not joined:
                await tell(run)
            joined = True
        except GroupMissing:
            pause = RETRY_AFTER  # the fetch loop meets the same error, and heals
        except StoreError as error:
            log.warning("%s: shards not looked at: %s", run.name, error)
            pause = RETRY_AFTER
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.own.look.wait(), pause)


async def _round(run: ConsumerRun, ops: OwnerOps) -> None:
    if run.own.term != run.lease.term:
        lose(run, [*run.lease.owned])  # somebody else may have had them meanwhile
        run.own.term = run.lease.term
    term = run.lease.term
    layout = run.layout
    members = await run.link.run(ops.take_part(int(run.consumer.lease * 1000)))
    looks = await run.link.run(ops.look(layout.every))
    lose(run, [shard for shard, token in run.lease.owned.items() if _token(run, looks.get(shard)) != token])
    live = [s for s in layout.every if s.generation == layout.generation or not looks[s].drained]
    owners = {shard: look.owner for shard, look in looks.items()}
    wanted = assign(live, members, owners, salt=run.name)
    mine = [shard for shard in live if wanted[shard] == run.ops.worker]
    await give_up(run, ops, [shard for shard in run.lease.owned if shard not in mine])
    free = [s for s in mine if s not in run.lease.owned and looks[s].owner in ("", run.ops.worker)]
    if free and run.lease.holds() and term == run.lease.term:
        await _take(run, ops, free)
    await _open(run, ops, looks)


def _token(run: ConsumerRun, look: Look | None) -> str:
    return f"{look.owner}|{look.epoch}" if look is not None else ""


async def _take(run: ConsumerRun, ops: OwnerOps, shards: Sequence[Shard]) -> None:
    tokens = await run.link.run(ops.own(shards, int(run.consumer.lease * 1000)))
    run.lease.owned = {**run.lease.owned, **tokens}
    try:
        for shard in tokens:
            await _inherit(run, ops, shard)
    except BaseException:
        lose(run, [*tokens])
        raise
    if tokens:
        log.info("%s: owns %s now", run.name, ", ".join(map(str, tokens)))


async def _inherit(run: ConsumerRun, ops: OwnerOps, shard: Shard) -> None:
    """Learn what is pending in a shard, before anything is taken over or read there."""
    assert run.order is not None
    page: list[Heir]
    start = "-"
    while start:
        page, start = await run.link.run(ops.inherit(shard, start))
        for id, holder, key in page:
            if key is not None:
                run.order.learn(shard, id, key)
            if holder == run.ops.worker and not run.has(shard, id):
                run.adopt()
    # Last: what is aside could be brought back at once, past what is pending elsewhere.
    for parked_key, aside in (await run.link.run(ops.parked(shard))).items():
        run.order.is_aside(shard, parked_key, *aside)
    run.own.known.add(shard)
    run.crowded.set()


async def _open(run: ConsumerRun, ops: OwnerOps, looks: dict[Shard, Look]) -> None:
    """Let those shards be read of which all parents are drained: entries of their keys were published there before."""
    shut = [shard for shard in run.own.known if shard not in run.own.open]
    ready = [shard for shard in shut if not any(_before(shard, other, look) for other, look in looks.items())]
    if not ready:
        return
    # Anew: only now that they are ours nobody else reads on.
    for shard, look in (await run.link.run(ops.look(ready))).items():
        if shard in run.own.known:
            run.own.open[shard] = look.position or b"0-0"
    run.own.has_changed()
    run.look_in(0)  # what waits there comes first


def _before(shard: Shard, other: Shard, look: Look) -> bool:
    return other.generation < shard.generation and other.overlaps(shard) and not look.drained


def lose(run: ConsumerRun, shards: Collection[Shard]) -> None:
    """Shards that may be somebody else's already: what was not started of them is not this worker's to hand over."""
    for shard in shards:
        log.warning("%s: lost shard %s", run.name, shard)
        _forget(run, shard)
        for entry in run.drop(shard):
            run.let_go(shard, entry.id)
    if shards:
        run.adopt()


async def give_up(run: ConsumerRun, ops: OwnerOps, shards: Sequence[Shard]) -> None:
    """Let others have these; what was not started of them goes with them, its attempts unchanged."""
    for shard in shards:
        _forget(run, shard)
        run.hand_over(run.drop(shard))
    if shards:
        log.info("%s: gives up %s", run.name, ", ".join(map(str, shards)))
        await run.link.run(ops.disown(shards))
        await tell(run)


async def leave(run: ConsumerRun) -> None:
    """Give up everything, for good."""
    ops = OwnerOps(run.ops)
    run.lease.member = False
    try:
        await run.link.run(ops.take_part(0))
        await give_up(run, ops, [*run.lease.owned])
        # The answer by which some were this worker's may not have been read any more.
        if await run.link.run(ops.disown(run.layout.every)):
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
