"""Fetches payloads from the blob store, several at once, for deliveries that may be started.

A store that is away, or slow, holds up only what needs it: such a delivery goes back to Redis as a retry that burns no
attempt, due after a pause that doubles. When several fetches in a row have failed, the next ones are put off unasked
until the pause is over.
"""

from __future__ import annotations

import asyncio
import logging

from rstream.errors import BlobError, EntryInvalid, one_line
from rstream.process import clock
from rstream.reference import whole
from rstream.store.deliveries import Fetched, Outcome
from rstream.worker import failures
from rstream.worker.hand import from_the_dead
from rstream.worker.loads import pause, payload, with_payload
from rstream.worker.run import ConsumerRun

LOADERS = 8
IN_A_ROW = 3
LONGEST_CLOSED = 5.0


async def load_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    loads = run.loads
    while True:
        entry = await loads.take()
        try:
            if loads.closed:
                run.hand_over([entry])
            elif run.may_start(entry, clock()):
                await _load(run, entry)
            else:
                run.give_up(entry)
        finally:
            loads.done()
            run.room_made.set()


async def _load(run: ConsumerRun, entry: Fetched) -> None:
    loads, place, began = run.loads, (entry.shard, entry.id), clock()
    try:
        reference = whole(payload(entry.flat))
        assert reference is not None
        await loads.hold(place, reference.size)
        began = clock()
        if began < loads.open_at:
            return _put_off(run, entry, None)
        data = await run.consumer.stream.claims.fetch(reference)
    except EntryInvalid as error:
        _answered(run, entry)
        run.settle(failures.set_aside(run, entry, entry.deliveries, error.reason, str(error)))
    except BlobError as error:
        if began >= loads.open_at:  # those that were asked together are one failure
            loads.failures += 1
            if loads.failures >= IN_A_ROW:
                loads.open_at = clock() + min(LONGEST_CLOSED, pause(loads.failures - IN_A_ROW))
        _put_off(run, entry, error)
    else:
        _answered(run, entry)
        if loads.closed:
            run.hand_over([entry])
        elif not run.may_start(entry, clock()):
            run.give_up(entry)
        else:
            run.queue([with_payload(entry, data)])


def _answered(run: ConsumerRun, entry: Fetched) -> None:
    run.loads.failures, run.loads.open_at = 0, float("-inf")
    run.loads.tries.pop((entry.shard, entry.id), None)


def _put_off(run: ConsumerRun, entry: Fetched, error: BlobError | None) -> None:
    delay = run.loads.pause((entry.shard, entry.id))
    _tell(run, entry, delay, error)
    run.loads.let_go((entry.shard, entry.id))
    if from_the_dead(entry):
        # What it may have done to its worker would be forgotten in Redis: it waits here.
        asyncio.get_running_loop().call_later(delay, run.loads.put, [entry])
        return
    begun = entry.deliveries - 1 if entry.source is None else entry.deliveries
    run.give_back(Outcome(entry.shard, entry.id, entry.deliveries, "retry", int(delay * 1000), begun))


def _tell(run: ConsumerRun, entry: Fetched, delay: float, error: BlobError | None) -> None:
    if error is not None:
        where = entry.shard.entry_id(entry.id)
        text, told = "%s: entry %s waits %.1f s for its payload: %s", {"rstream": run.about(entry)}
        run.voice.say("blob", logging.WARNING, text, run.name, where, delay, one_line(error), extra=told)
