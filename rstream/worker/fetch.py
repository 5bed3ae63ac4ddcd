"""Brings new entries in: as many as there is room for, and never more. On a cluster there is a reader for every slot,
elsewhere one for all shards.

Cost: one round trip for hundreds of entries under load; when idle one blocked read per `BLOCK_MS`, and beside every
`QUIET`-th of these one that does not block. A group that is not ordered waits in the read itself. An owner waits with a
read that delivers nothing, and then fetches: a blocked read of a frozen worker would swallow entries of shards that are
another one's by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from rstream.errors import GroupMissing, StoreError
from rstream.store.deliveries import Read
from rstream.store.keys import Shard, rotated
from rstream.store.link import backoff
from rstream.worker.groups import heal
from rstream.worker.own import doubt
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

BLOCK_MS = 5000
BURST_BLOCK_MS = 100
QUIET = 4
"""Waits in a row that brought nothing, after which a group is read unasked: somebody may have set it back by hand."""
WAKE = 8
PARKED_MAX = 100_000
"""Entries of a shard that may wait outside of memory for their key's turn; then its other keys have to wait, too."""


async def fetch_loop(run: ConsumerRun, slot: int | None, burst: bool) -> None:
    """Runs until cancelled; with `burst`, sets `run.drained` when the group has nothing left."""
    turn = quiet = 0
    wanted: Sequence[Shard] | None = None
    pauses = backoff()
    while True:
        turn += 1
        some, wanted = wanted, None
        try:
            changed = run.own.changed
            wanted = await _fetch(run, rotated(_readable(run, slot), turn), changed, burst, some)
            quiet = quiet + 1 if wanted is not None and not wanted else 0
            if quiet:
                await asyncio.sleep(0)  # nothing is left: what came is begun before the next read is written
            if quiet == QUIET:
                quiet, wanted = 0, None
            pauses = backoff()
        except GroupMissing as error:
            quiet = 0
            # Nothing but this makes the group: what was cut short is looked for in vain before, and that comes first.
            while not await heal(run, error):  # noqa: ASYNC110
                await asyncio.sleep(next(pauses))
        except StoreError as error:
            quiet = 0
            log.warning("%s: %s", run.name, error)
            await asyncio.sleep(next(pauses))


def _readable(run: ConsumerRun, slot: int | None) -> list[Shard]:
    shards = run.readable(slot)
    if run.order is None:
        return shards
    return [shard for shard in shards if run.order.outside.get(shard, 0) < PARKED_MAX]


async def _fetch(
    run: ConsumerRun, shards: list[Shard], changed: asyncio.Event, burst: bool, wanted: Sequence[Shard] | None
) -> Sequence[Shard] | None:
    """Read from those shards that are wanted (None: from all), or wait where there is nothing. Which are wanted next:
    none where the answer says that nothing was left, and where something was heard, those. Under a light load that is
    half the calls.
    """
    block = BURST_BLOCK_MS if burst else BLOCK_MS
    if not shards:
        if burst:
            await _check_drained(run)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), block / 1000)
        return None
    # What a broken read stranded comes first: it is not in hand, and so would not be counted.
    await run.adopted.wait()
    # The lock is fair, so fetching and recovering take turns: a long backlog cannot starve a dead worker's deliveries.
    async with run.intake:
        room = await run.wait_for_room()
        await run.lease.held()  # what came in without it could not be started
        # A read that waits may bring one of every shard: where that is too much, only after a read that found nothing.
        few = run.order is None and room < len(shards)
        some = shards if wanted is None or burst or few else [shard for shard in shards if shard in wanted]
        if some:
            async with run.reading:
                read = await _read(run, some, room)
            if read.entries or read.more:
                return None if read.more else ()
    if burst:
        await _check_drained(run)
    return await (
        _wait(run, shards, room, changed, block) if run.order is None else _knock(run, shards, changed, block)
    )


async def _read(run: ConsumerRun, shards: list[Shard], room: int) -> Read:
    """What there was; `more`, where it has to be looked again."""
    term, sent = run.lease.term, run.tokens(shards)
    if run.order is not None:
        shards = [*sent]  # some may have been given up meanwhile
    if not shards or run.lanes.paused:  # it may have been, while room was waited for
        return Read([], [], True)
    try:
        read = await run.link.run(run.ops.fetch(room, shards, sent, begun=run.begins_by_reading))
    except StoreError:
        run.adopt()  # what the answer carried is pending for us, unseen
        doubt(run, sent)
        raise
    found, gone, _ = read
    run.take(found, term, sent)
    if run.order is not None:
        last = {entry.shard: entry.id for entry in found}
        run.own.open.update({shard: id for shard, id in last.items() if shard in run.own.open})
    doubt(run, {shard: sent[shard] for shard in gone})
    return read._replace(more=read.more or bool(gone))


async def _wait(
    run: ConsumerRun, shards: list[Shard], room: int, changed: asyncio.Event, block: int
) -> Sequence[Shard] | None:
    # COUNT is per shard here, and entries may be large: this only wakes, the next fetch brings the rest.
    count = max(1, min(WAKE, room // len(run.shards)))
    term = run.lease.term
    waiting = run.link.run(run.ops.wait(count, block, shards), timeout=block / 1000 + 5)
    found = None
    try:
        found = await run.own.unless(changed, waiting)
    finally:
        if found is None:
            run.adopt()  # the answer may have been on its way
    run.take(found or (), term)
    return None if found is None or len(found) >= count else ()


async def _knock(run: ConsumerRun, shards: list[Shard], changed: asyncio.Event, block: int) -> Sequence[Shard] | None:
    """Wait until something is published, or the shards are others; where it was."""
    after = {shard: run.own.open[shard] for shard in shards if shard in run.own.open}
    if not after:
        return None
    heard = await run.own.unless(changed, run.link.run(run.owners.knock(after, block), timeout=block / 1000 + 5))
    run.own.open.update({shard: id for shard, id in (heard or {}).items() if shard in run.own.open})
    return None if heard is None else [*heard]


async def _check_drained(run: ConsumerRun) -> None:
    """Nothing in hand, and in no shard anything that is unread, or pending for anybody in the group."""
    with contextlib.suppress(TimeoutError):  # the last few are about to be settled
        async with asyncio.timeout(BURST_BLOCK_MS / 1000):
            while run.in_hand:
                run.room_made.clear()
                await run.room_made.wait()
    if run.in_hand == 0:
        looks = await run.link.run(run.owners.look(run.layout.every))
        if run.in_hand == 0 and all(look.drained for look in looks.values()):
            run.drained.set()
