"""The slots: a fixed number of long-lived tasks that take deliveries and run the handler. No task per entry."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import Any

from rstream.codec import unpack_headers
from rstream.delivery import Delivery
from rstream.errors import EntryInvalid, LeaseLost, StoreError
from rstream.store.deliveries import Fetched, Outcome
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

TURN_SECONDS = 0.005
"""A slot whose handlers never wait lets the loop's other tasks run this often."""


async def slot(run: ConsumerRun) -> None:
    """Runs until cancelled, or until nothing waits after `run.stopping`."""
    yielded = time.perf_counter()
    while True:
        entry = await run.lanes.take()
        run.room_made.set()
        outcome = await _deliver(run, entry)
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
        attempt += 1
        if not await _begin(run, entry):
            return None
    try:
        event, delivery = _unpack(run, entry, attempt)
    except EntryInvalid as error:
        run.counts.dead += 1
        where = run.entry_id(entry.shard, entry.id)
        log.error("%s: entry %s set aside as %s: %s", run.name, where, error.reason, error)
        return Outcome(entry.shard, entry.id, attempt, "dead", error.reason, str(error))
    return await _handle(run, entry, event, delivery)


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
    )
    return run.consumer.stream.codec.decode(payload), delivery


async def _handle(run: ConsumerRun, entry: Fetched, event: Any, delivery: Delivery) -> Outcome:
    started = time.perf_counter()
    try:
        await run.call(event, delivery)
    except asyncio.CancelledError:
        if not run.stopping:
            return _failed(run, entry, delivery, asyncio.CancelledError("the handler was cancelled"))
        # The grace is over. The attempt counts, and somebody else may start the next at once.
        run.settle(Outcome(entry.shard, entry.id, delivery.attempt, "retry", 0))
        raise
    except BaseException as error:
        return _failed(run, entry, delivery, error)
    finally:
        run.took(time.perf_counter() - started)
    run.counts.handled += 1
    return Outcome(entry.shard, entry.id, delivery.attempt, "ack")


def _failed(run: ConsumerRun, entry: Fetched, delivery: Delivery, error: BaseException) -> Outcome:
    run.counts.failed += 1
    text = "".join(traceback.format_exception(error))
    delay = run.consumer.retry.delay_after(delivery.attempt)
    if delay is None:
        run.counts.dead += 1
        log.error("%s: entry %s failed attempt %d, the last:\n%s", run.name, delivery.id, delivery.attempt, text)
        return Outcome(entry.shard, entry.id, delivery.attempt, "dead", "failed", text)
    log.warning(
        "%s: entry %s failed attempt %d, next in %.1f s: %s", run.name, delivery.id, delivery.attempt, delay,
        "".join(traceback.format_exception_only(error)).strip(),
    )  # fmt: skip
    return Outcome(entry.shard, entry.id, delivery.attempt, "retry", int(delay * 1000))
