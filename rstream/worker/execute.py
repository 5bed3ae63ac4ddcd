"""The slots: a fixed number of long-lived tasks that take deliveries and run the handler. No task per entry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

from rstream.calling import Answer, OnLoop
from rstream.delivery import kept_something
from rstream.logs import subject
from rstream.process import clock
from rstream.reference import Uploads
from rstream.store.deliveries import Fetched, Outcome, bare_ack
from rstream.tracing import Processing
from rstream.worker import failures
from rstream.worker.emit import Records
from rstream.worker.run import ConsumerRun
from rstream.worker.say import tell_each
from rstream.worker.spans import Spans
from rstream.worker.start import Started, delivery_of, start, start_fresh

TURN_SECONDS = 0.002
"""A slot whose handlers never wait lets the loop's other tasks run this often."""


async def slot(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    lanes, now = run.lanes, clock()
    turn = now
    try:
        while True:
            if (entry := lanes.take_now()) is None:
                entry = await lanes.take()
                now = clock()
            run.room_made.set()
            try:
                if (rest := _begin(run, entry, now)) is not None:
                    lanes.waits()
                    await rest
            finally:
                lanes.done(entry)
            now = clock()
            if now - turn > TURN_SECONDS:
                await asyncio.sleep(0)
                now = turn = clock()
    finally:
        lanes.waits()


def _begin(run: ConsumerRun, entry: Fetched, now: float) -> Awaitable[None] | None:
    """Handle a delivery; what has to be waited for: nothing, where nothing has to be asked and the handler does not."""
    subject.set(entry)  # what it logs, and what is logged of it, tells which it is about
    if entry.source is not None or run.consumer.once is not None:
        return _ask_and_call(run, entry)
    started = start_fresh(run, entry, now)
    return None if started is None else _call(run, started)


async def _ask_and_call(run: ConsumerRun, entry: Fetched) -> None:
    for started in await start(run, (entry,)):
        if (rest := _call(run, started)) is not None:
            await rest


def _call(run: ConsumerRun, started: Started) -> Awaitable[None] | None:
    if run.spans is not None:
        return _call_in_span(run, run.spans, started)
    place = started.entry[:2]
    began = run.running[place] = clock()
    run.tally.begins(started.entry, started.attempt, began + run.lease.ahead)
    answer = run.call(started.event, started.given)
    if run.emitter is not None or not isinstance(answer, Answer) or answer.error is not None:
        return _end(run, started, began, answer)
    del run.running[place]
    took = clock() - began
    run.took(took)
    if run.voice.each:
        tell_each(run, f"entry {started.entry.shard.entry_id(started.entry.id)}", took)
    run.tally.handled += 1
    run.settle(ack_of(run, started))
    return None


async def _call_in_span(run: ConsumerRun, spans: Spans, started: Started) -> None:
    with spans.of_one(started.entry, started.attempt) as span:
        began = run.running[started.entry[:2]] = clock()
        run.tally.begins(started.entry, started.attempt, began + run.lease.ahead)
        answer = run.call(started.event, started.given)
        await _end(run, started, began, answer, span)


async def _end(
    run: ConsumerRun,
    started: Started,
    began: float,
    answer: Answer | Awaitable[Answer],
    span: Processing | None = None,
) -> None:
    entry = started.entry
    try:
        try:
            result, error = answer if isinstance(answer, Answer) else await _waited(run, entry, answer)
        finally:
            del run.running[entry[:2]]
            run.took(clock() - began)
            if run.voice.each:
                tell_each(run, f"entry {entry.shard.entry_id(entry.id)}", clock() - began)
        if run.hand.is_cancelled(entry[:2]):
            if span is not None:
                span.ended(outcome="cancelled")
            return run.let_go(entry.shard, entry.id)
        if error is None:
            outcome = await _emitted(run, started, result)
            if span is not None:
                span.ended(outcome=outcome.kind)
            return run.settle(outcome)
    except asyncio.CancelledError:
        # The grace is over. The attempt counts, and somebody else may start the next at once.
        run.settle(Outcome(entry.shard, entry.id, started.attempt, "retry", 0))
        raise
    except Exception as raised:
        error = raised
    outcome = failures.judge(run, entry, delivery_of(run, started), error, clock() - began)
    if span is not None:
        span.failed(error)
        span.ended(outcome=outcome.kind)
    run.settle(outcome)


async def _waited(run: ConsumerRun, entry: Fetched, answer: Awaitable[Answer]) -> Answer:
    """The answer; meanwhile the handler can be cancelled, where it can."""
    if not isinstance(answer, OnLoop):
        return await answer
    run.on_loop[entry[:2]] = answer
    try:
        return await answer
    finally:
        del run.on_loop[entry[:2]]


async def _emitted(run: ConsumerRun, started: Started, result: Any) -> Outcome:
    uploads = run.emitter.uploads() if run.emitter is not None else None
    outcome, records = made = acked(run, started, result, uploads)
    if run.emitter is not None:
        outcome, records = await run.emitter.upload(uploads, made, partial(acked, run, started, result))
        if records:
            await run.emitter.before_ack([(delivery_of(run, started), records)])
    run.tally.handled += 1
    return outcome


def ack_of(run: ConsumerRun, started: Started) -> Outcome:
    """The outcome of a delivery that was handled well."""
    entry, _, given, marker, attempt = started
    if marker:
        return Outcome(entry.shard, entry.id, attempt, "ack", marker, int(run.consumer.once_for * 1000))
    if attempt == 1 and entry.source is None and (given is None or not kept_something(given)):
        return bare_ack(entry)
    return Outcome(entry.shard, entry.id, attempt, "ack")


def acked(run: ConsumerRun, started: Started, result: Any, uploads: Uploads | None) -> tuple[Outcome, Records]:
    """The outcome of a delivery that was handled well, and what has to be emitted before it is settled.

    Raises what is wrong with the events that the handler returned.
    """
    ack = ack_of(run, started)
    if run.emitter is None or result is None:
        return ack, {}
    delivery = delivery_of(run, started)
    records = run.emitter.records(delivery, result, uploads)
    atomic = run.emitter.atomic(started.entry.shard, delivery, records)
    return (ack._replace(c="", emits=run.emitter.with_ack(records)), {}) if atomic else (ack, records)
