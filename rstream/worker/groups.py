"""Makes a consumer's group, and makes it anew when Redis lost it."""

from __future__ import annotations

import logging

from rstream.errors import GroupMissing, StoreError
from rstream.position import Position, bound
from rstream.store import layout as layouts
from rstream.store.link import Link
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

START_WITHIN = 30.0
"""Seconds that a starting worker waits for Redis."""


async def ensure(run: ConsumerRun) -> None:
    """Make the group where it does not exist; it begins where its consumer says."""
    start = await first_unread(run.link, run.consumer.start)
    if await run.link.run(run.ops.create(start), within=START_WITHIN):
        log.info("%s: new group, reads from %s", run.name, run.consumer.start)


async def first_unread(link: Link, start: Position) -> str:
    """The id after which a group that starts there has to read."""
    if start in ("latest", "+"):
        return "$"
    at = bound(start, "start", await link.run(layouts.clock(), within=START_WITHIN))
    if at.seq:
        return f"{at.ms}-{at.seq - 1}"
    return f"{at.ms - 1}-{2**64 - 1}" if at.ms else "0"


async def heal(run: ConsumerRun, error: GroupMissing) -> bool:
    """Redis lost a shard or the group: say so, count it, and go on from the start of what is left.

    Never from `$`: what was published since would be skipped silently. False where Redis does not let us yet.
    """
    run.counts.resets += 1
    log.error(
        "%s: %s. Redis lost data (FLUSHALL, a stale replica, a deleted key); "
        "the group is made anew and reads everything that is left",
        run.name,
        error,
    )
    try:
        await run.link.run(run.consumer.stream.declaration())
        await run.link.run(run.ops.create("0"))
        return True
    except StoreError as failure:
        log.warning("%s: the group could not be made: %s", run.name, failure)
        return False
