"""The slots: a fixed number of long-lived tasks that take deliveries and run the handler. No task per entry."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from rstream.codec import key_text, unpack_headers
from rstream.delivery import Delivery
from rstream.errors import EntryInvalid, KeyMissing, LeaseLost, StoreError
from rstream.process import clock
from rstream.store.deliveries import Fetched, Outcome
from rstream.store.memo import StoredMemo
from rstream.worker import failures
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

TURN_SECONDS = 0.005
"""A slot whose handlers never wait lets the loop's other tasks run this often."""


async def slot(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    yielded = time.perf_counter()
    while True:
        entry = await run.lanes.take()
        run.room_made.set()
        try:
            outcome = await _deliver(run, entry)
        finally:
            run.lanes.done(entry)
        if outcome is None:
            run.give_up(entry)
        else:
            run.settle(outcome)
        now = time.perf_counter()
        if now - yielded > TURN_SECONDS:
            await asyncio.sleep(0)
            yielded = time.perf_counter()


async def _deliver(run: ConsumerRun, entry: Fetched) -> Outcome | None:
    """Run one delivery; None where this worker may not start it."""
    if not run.may_start(entry):
        return None
    attempt = entry.deliveries
    if entry.source is not None:
        if failures.used_up(run, entry):
            why = f"every worker that ran it died, {attempt} of them" if attempt > 1 else "the worker that had it died"
            return failures.set_aside(run, entry, attempt, "crashed", why)
        attempt += 1
        if not await _begin(run, entry):
            return None
    try:
        event, delivery = _unpack(run, entry, attempt)
        marker = _marker(run, event)
    except EntryInvalid as error:
        return failures.set_aside(run, entry, attempt, error.reason, str(error))
    if run.consumer.expires is not None and run.age(entry.id) > run.consumer.expires:
        return failures.expired(run, entry, attempt)
    try:
        if attempt > 1:
            await delivery._memo.load()
        double = bool(marker) and await run.link.run(
            run.ops.succeeded(entry.shard, marker), within=run.consumer.lease
        ) not in (None, entry.id)
    except StoreError as error:
        log.warning("%s: entry %s not started: %s", run.name, delivery.id, error)
        return None
    if double:
        run.counts.skipped += 1
        return Outcome(entry.shard, entry.id, attempt, "ack")
    if not run.may_start(entry):  # looking things up takes time
        return None
    return await _handle(run, entry, event, delivery, marker)


async def _begin(run: ConsumerRun, entry: Fetched) -> bool:
    """Burn the attempt of a taken-over entry before it is run, fenced."""
    where = run.entry_id(entry.shard, entry.id)
    try:
        if await run.link.run(run.ops.begin(entry), within=run.consumer.lease):
            return True
    except StoreError as error:
        log.warning("%s: entry %s not started: %s", run.name, where, error)
        return False
    run.counts.refused += 1
    lost = LeaseLost(f"entry {where} was taken over by another worker before it was started here")
    log.warning("%s: LeaseLost: %s", run.name, lost)
    return False


def _marker(run: ConsumerRun, event: Any) -> str:
    """The event's dedupe key, "" where the consumer has none. Raises `EntryInvalid`."""
    field = run.consumer.once
    if field is None:
        return ""
    try:
        return key_text(run.consumer.stream.codec.key(event, field), field)
    except KeyMissing:
        raise EntryInvalid(
            "invalid", f"it has no usable {field!r}, the dedupe key of group {run.ops.group!r}"
        ) from None


def _unpack(run: ConsumerRun, entry: Fetched, attempt: int) -> tuple[Any, Delivery]:
    """The event, validated, and its delivery. Raises `EntryInvalid`."""
    fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
    payload = fields.get(b"e")
    if payload is None:
        raise EntryInvalid("undecodable", f"it has no field 'e', only {[*fields][:5]}: rstream did not write it")
    key = fields.get(b"k")
    delivery = Delivery(
        run.entry_id(entry.shard, entry.id),
        run.layout.name,
        run.ops.group,
        None if key is None else key.decode(errors="replace"),
        fields.get(b"i", b""),
        unpack_headers(fields.get(b"h")),
        attempt,
        run.ops.worker,
        StoredMemo(run.consumer.stream.app, run.lease, run.ops, entry.shard, entry.id, attempt),
    )
    return run.consumer.stream.codec.decode(payload), delivery


async def _handle(run: ConsumerRun, entry: Fetched, event: Any, delivery: Delivery, marker: str) -> Outcome:
    place = (entry.shard, entry.id)
    started = run.running[place] = clock()
    try:
        await run.call(event, delivery)
    except asyncio.CancelledError:
        if not run.stopping:
            return failures.judge(run, entry, delivery, asyncio.CancelledError("the handler was cancelled"))
        # The grace is over. The attempt counts, and somebody else may start the next at once.
        run.settle(Outcome(entry.shard, entry.id, delivery.attempt, "retry", 0))
        raise
    except BaseException as error:
        return failures.judge(run, entry, delivery, error)
    finally:
        del run.running[place]
        run.took(clock() - started)
    run.counts.handled += 1
    ack = Outcome(entry.shard, entry.id, delivery.attempt, "ack")
    return ack._replace(a=marker, b=int(run.consumer.once_for * 1000)) if marker else ack
