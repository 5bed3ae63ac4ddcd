"""The slots: a fixed number of long-lived tasks that take deliveries and run the handler. No task per entry."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from rstream.process import clock
from rstream.reference import Uploads
from rstream.store.deliveries import Outcome
from rstream.worker import failures
from rstream.worker.emit import Records
from rstream.worker.run import ConsumerRun
from rstream.worker.start import Started, start, start_fresh

TURN_SECONDS = 0.005
"""A slot whose handlers never wait lets the loop's other tasks run this often."""


async def slot(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    yielded = time.perf_counter()
    while True:
        entry = await run.lanes.take()
        run.room_made.set()
        try:
            if entry.source is None and run.consumer.once is None:
                started = start_fresh(run, entry)
            else:
                started = next(iter(await start(run, (entry,))), None)
            if started is not None:
                run.settle(await _handle(run, started))
        finally:
            run.lanes.done(entry)
        now = time.perf_counter()
        if now - yielded > TURN_SECONDS:
            await asyncio.sleep(0)
            yielded = time.perf_counter()


async def _handle(run: ConsumerRun, started: Started) -> Outcome:
    entry, event, delivery, _ = started
    place = (entry.shard, entry.id)
    began = run.running[place] = clock()
    try:
        try:
            result, error = await run.call(event, delivery)
        finally:
            del run.running[place]
            run.took(clock() - began)
        if error is None:
            return await _emitted(run, started, result)
    except asyncio.CancelledError:
        # The grace is over. The attempt counts, and somebody else may start the next at once.
        run.settle(Outcome(entry.shard, entry.id, delivery.attempt, "retry", 0))
        raise
    except Exception as raised:
        error = raised
    return failures.judge(run, entry, delivery, error)


async def _emitted(run: ConsumerRun, started: Started, result: Any) -> Outcome:
    uploads = run.emitter.uploads() if run.emitter is not None else None
    outcome, records = made = acked(run, started, result, uploads)
    if run.emitter is not None:
        outcome, records = await run.emitter.upload(uploads, made, partial(acked, run, started, result))
        if records:
            await run.emitter.before_ack([(started.delivery, records)])
    run.counts.handled += 1
    return outcome


def acked(run: ConsumerRun, started: Started, result: Any, uploads: Uploads | None) -> tuple[Outcome, Records]:
    """The outcome of a delivery that was handled well, and what has to be emitted before it is settled.

    Raises what is wrong with the events that the handler returned.
    """
    entry, _, delivery, marker = started
    ack = Outcome(entry.shard, entry.id, delivery.attempt, "ack")
    if marker:
        ack = ack._replace(a=marker, b=int(run.consumer.once_for * 1000))
    if run.emitter is None or result is None:
        return ack, {}
    records = run.emitter.records(delivery, result, uploads)
    atomic = run.emitter.atomic(entry.shard, delivery, records)
    return (ack._replace(emits=run.emitter.with_ack(records)), {}) if atomic else (ack, records)
