"""Finds what is pending for this worker, and not in hand.

After a lost lease the unstarted were dropped, after a broken read the answer was: somebody asks for them (`adopt`).
And a call that was given up may be done later all the same, when Redis comes to read it. Nobody knows of that, so now
and then the two lists are compared without a reason (`audit_loop`). Cost: one round trip for all shards, with a call
for each; one more for every further `PAGE` of entries in a shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from rstream.errors import StoreError
from rstream.store.deliveries import READ_BYTES, Fetched, Outcome, Tokens
from rstream.store.keys import Shard
from rstream.store.link import together
from rstream.worker.order import Place
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

PAGE = 500
EVERY = 15.0
"""Seconds between two audits: longer than any answer is waited for, so what both see is not on its way."""


async def adopt(run: ConsumerRun) -> None:
    """Take in hand what is not. Raises `StoreError`."""
    term, owned = run.lease.term, run.lease.owned
    unsure, run.hand.unsure = run.hand.unsure, False
    try:
        async for entry in _unseen(run):
            source = "~unsure" if unsure else run.hand.source((entry.shard, entry.id), entry.deliveries)
            _take(run, entry._replace(source=source), term, owned)
    except BaseException:
        run.hand.unsure = run.hand.unsure or unsure
        raise


async def audit_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    before: set[Place] = set()
    while True:
        await asyncio.sleep(EVERY)
        term, owned = run.lease.term, run.lease.owned
        try:
            found = [entry async for entry in _unseen(run)]
        except StoreError:
            continue  # the loops that do the work say so
        strays = [entry for entry in found if (entry.shard, entry.id) in before]
        before = {(entry.shard, entry.id) for entry in found}
        if strays:
            log.warning("%s: found %d deliveries that came after they were given up", run.name, len(strays))
        for entry in strays:
            _take(run, entry._replace(source="~unsure"), term, owned)


async def _unseen(run: ConsumerRun) -> AsyncIterator[Fetched]:
    """What is pending for this worker and not in hand, nor was at any time since it was asked for."""
    async with run.reading:
        run.hand.watch(True)
        try:
            shards = run.layout.every
            budget = READ_BYTES // len(shards)
            first = await run.link.run(together([run.ops.mine(shard, "-", PAGE, budget) for shard in shards]))
            for shard, page in zip(shards, first, strict=True):
                while page:
                    for id, deliveries, flat in page:
                        if not run.hand.has((shard, id)):
                            yield Fetched(shard, id, flat or (), deliveries, None)
                    page = await run.link.run(run.ops.mine(shard, "(" + page[-1][0].decode(), PAGE))
        finally:
            run.hand.watch(False)


def _take(run: ConsumerRun, entry: Fetched, term: int, owned: Tokens) -> None:
    if entry.flat:
        run.take([entry], term, owned)
    else:
        lost(run, entry.shard, entry.id)
        run.settle(Outcome(entry.shard, entry.id, entry.deliveries, "lost"))


def lost(run: ConsumerRun, shard: Shard, id: bytes) -> None:
    run.tally.lost += 1
    text, where = "%s: entry %s was trimmed before it was processed: it is lost", shard.entry_id(id)
    run.voice.say("lost", logging.ERROR, text, run.name, where, extra=run.about.place(shard, id))
