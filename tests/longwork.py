"""Handlers that checkpoint and work in steps, for `tests/test_checkpoint.py`: the workload's app with two groups more.

Run as `rstream worker tests.longwork:app --group jobs/steps`. What a test holds back waits for a flag in Redis.
"""

from __future__ import annotations

import asyncio
import os
import time

import redis

from rstream import Delivery, RetryPolicy
from rstream.errors import LeaseLost
from tests.workload import CONCURRENCY, LEASE, Job, app, jobs, note

__all__ = ["app"]

PARTS = 4
KILLED_AT = 2
"""The first attempt stops before this part, to be killed there."""


def raised(flag: str) -> bool:
    with redis.Redis.from_url(os.environ["WORKLOAD_HISTORY"]) as raw:
        return bool(raw.exists(f"flag:{app.settings.namespace}:{flag}"))


async def until(flag: str) -> None:
    while not await asyncio.to_thread(raised, flag):  # noqa: ASYNC110 (another process raises it)
        await asyncio.sleep(0.01)


def part(number: int, event: Job, delivery: Delivery) -> list[int]:
    note(f"part-{number}", event, delivery)
    return [event.n, number]


async def part_async(number: int, event: Job, delivery: Delivery) -> list[int]:
    return await asyncio.to_thread(part, number, event, delivery)


@jobs.consumer("steps", concurrency=CONCURRENCY, lease=LEASE, retry=RetryPolicy(initial_delay=0.05))
async def on_loop(event: Job, delivery: Delivery) -> None:
    if event.kind == "late":
        return await late(event, delivery)
    await asyncio.to_thread(note, f"from-{delivery.checkpoint_value}", event, delivery)
    for number in range(PARTS):
        if number == KILLED_AT and delivery.attempt == 1:
            await asyncio.to_thread(note, "held", event, delivery)
            await until("never")
        assert await delivery.step(f"part-{number}", part_async, number, event, delivery) == [event.n, number]
        await delivery.checkpoint(number)
    await asyncio.to_thread(note, "end", event, delivery)


@jobs.consumer("steps-thread", concurrency=CONCURRENCY, lease=LEASE)
def in_thread(event: Job, delivery: Delivery) -> None:
    note(f"from-{delivery.checkpoint_value}", event, delivery)
    for number in range(PARTS):
        if number == KILLED_AT and delivery.attempt == 1:
            note("held", event, delivery)
            time.sleep(60)
        assert delivery.sync.step(f"part-{number}", part, number, event, delivery) == [event.n, number]
        delivery.sync.checkpoint(number)
    note("end", event, delivery)


async def late(event: Job, delivery: Delivery) -> None:
    """The first attempt is frozen within a step; the second has the entry meanwhile, and stores its own things."""
    mine = f"attempt {delivery.attempt}"
    if delivery.attempt > 1:
        await delivery.checkpoint(mine)
        await delivery.step("second", str, mine)
        await asyncio.to_thread(note, "taken", event, delivery)
        await until("finish")
        return
    await delivery.checkpoint(mine)
    await asyncio.to_thread(note, "held", event, delivery)
    try:
        await delivery.step("frozen", until, "thawed")
    except LeaseLost:
        await asyncio.to_thread(note, "refused-running-step", event, delivery)
    for what in ("checkpoint", "step", "second"):
        try:
            if what == "checkpoint":
                await delivery.checkpoint("too late")
            else:
                await delivery.step(what, part_async, 0, event, delivery)
        except LeaseLost:
            await asyncio.to_thread(note, f"refused-{what}", event, delivery)
