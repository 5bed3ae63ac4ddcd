"""Makes a consumer's group, and makes it anew when Redis lost it."""

from __future__ import annotations

import logging

from rstream.declaring import declare_again
from rstream.errors import GroupMissing, StoreError, StoreUnavailable
from rstream.position import Position, bound
from rstream.store import layout as layouts
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Link
from rstream.store.steps import drive
from rstream.worker.lease import in_vain
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

START_WITHIN = 30.0
"""Seconds that a starting worker waits for Redis."""


async def ensure(run: ConsumerRun) -> None:
    """Make the group where it does not exist; it begins where its consumer says. Of a group that was there before the
    stream was resharded, nothing of the newer generations may be skipped. Raises `StoreUnavailable` where Redis is away
    for so long.
    """
    try:
        await _ensure(run)
    except StoreUnavailable as error:
        raise in_vain(run.name, "to make the group", START_WITHIN, error) from None


async def _ensure(run: ConsumerRun) -> None:
    start, layout = await first_unread(run.link, run.consumer.start), run.layout
    new = False
    for generation in (*layout.older, (layout.generation, layout.shards)):
        shards = layout.of(*generation)
        # Of an older generation, a shard that is not there any more is drained.
        if await run.link.run(run.ops.create(start, shards), within=START_WITHIN):
            new = new or start != "0"
        else:
            start = "0"
    if new:
        log.info("%s: new group, reads from %s", run.name, run.consumer.start)


async def extend(run: ConsumerRun, layout: Layout) -> None:
    """The stream was resharded: go over to what it is now. All that is in the new shards is unread."""
    new = [shard for shard in layout.every if shard not in run.layout.every]
    if new:
        await run.link.run(run.ops.create("0", new, written=layout.generation))
        # Before the first read there; and the keeper must not find that it did not live in them.
        await run.link.run(run.ops.beat(int(run.consumer.lease * 1000), shards=new))
        log.info("%s: the stream has %d shards now", run.name, layout.shards)
    run.ops.layout = layout
    run.shards = layout.every
    run.resharded.set()
    run.own.has_changed()
    run.own.look.set()


async def first_unread(link: Link, start: Position) -> str:
    """The id after which a group that starts there has to read."""
    if start in ("latest", "+"):
        return "$"
    at = bound(start, "start", await link.run(layouts.clock(), within=START_WITHIN))
    if at.seq:
        return f"{at.ms}-{at.seq - 1}"
    return f"{at.ms - 1}-{2**64 - 1}" if at.ms else "0"


async def heal(run: ConsumerRun, error: GroupMissing) -> bool:
    """A shard or the group is gone. It may be one of an older generation that was removed, for nothing was left in it;
    else Redis lost data: say so, count it, and go on from the start of what is left.

    Never from `$`: what was published since would be skipped silently. False where Redis does not let us yet.
    """
    try:
        layout = await drive(run.link, declare_again(run.consumer.stream), within=0.0)
        if await _is_lost(run, layout):
            run.tally.resets += 1
            log.error(
                "%s: %s. Redis lost data (FLUSHALL, a stale replica, a deleted key); "
                "the group is made anew and reads everything that is left",
                run.name,
                error,
            )
            await run.link.run(run.ops.create("0", layout.every, written=layout.generation))
        await extend(run, layout)
        await _leave_out_missing(run)
        return True
    except StoreError as failure:
        log.warning("%s: the group could not be made: %s", run.name, failure)
        return False


async def _is_lost(run: ConsumerRun, layout: Layout) -> bool:
    """Whether anything is missing that was there, and still belongs to the stream."""
    before = run.layout
    if layout.generation < before.generation or (
        layout.generation == before.generation and layout.shards != before.shards
    ):
        return True
    return bool(await _missing(run, [shard for shard in before.every if shard in layout.every]))


async def _leave_out_missing(run: ConsumerRun) -> None:
    """Read no more from shards of older generations that were lost: they are not made anew."""
    missing = await _missing(run, [shard for shard in run.layout.every if shard.generation < run.layout.generation])
    run.shards = tuple(shard for shard in run.layout.every if shard not in missing)
    for shard in missing:
        run.own.open.pop(shard, None)


async def _missing(run: ConsumerRun, shards: list[Shard]) -> list[Shard]:
    """Those that do not have the group."""
    looks = await run.link.run(run.owners.look(shards)) if shards else {}
    return [shard for shard, look in looks.items() if not look.position]
