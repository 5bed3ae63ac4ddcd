"""streaQ.

Choices: concurrency 100, as all have; a prefetch of 500; no results (`ttl=0`) and no line in the log for each task
(`silent`); pickle, its default; uvloop is not used, since none of the others has it. It is at least once. It publishes
by `enqueue` and, many, by `enqueue_many`, a pipeline. A killed worker's tasks run again after `idle_timeout` (default
60 s), which a live worker renews.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from streaq import Worker

from benchmarks import side

worker = Worker(
    redis_url=side.URL or "redis://",
    concurrency=100,
    prefetch=500,
    idle_timeout=float(os.environ.get("BENCH_IDLE", "60")),
)


@worker.task(ttl=0, silent=True)
async def noop(event: dict[str, Any]) -> None:
    side.count()


@worker.task(ttl=0, silent=True)
async def wait(event: dict[str, Any]) -> None:
    await asyncio.sleep(event["seconds"])
    side.count()


@worker.task(ttl=0, silent=True)
async def stamp(event: dict[str, Any]) -> None:
    side.stamp(event["seconds"])


@worker.task(ttl=0, silent=True)
async def mix(event: dict[str, Any]) -> None:
    side.begun(event["size"], event["seconds"])
    await asyncio.sleep(event["seconds"])
    side.ended(event["size"], event["seconds"])


TASKS = {"noop": noop, "wait": wait, "stamp": stamp, "mix": mix}
_entered = False


async def enter() -> None:
    global _entered
    if not _entered:
        _entered = True
        await worker.__aenter__()


async def publish(handler: str, event: dict[str, Any]) -> None:
    await enter()
    await TASKS[handler].enqueue(event)


async def publish_many(handler: str, events: list[dict[str, Any]]) -> None:
    await enter()
    for at in range(0, len(events), 1000):
        await worker.enqueue_many([TASKS[handler].enqueue(event) for event in events[at : at + 1000]])
