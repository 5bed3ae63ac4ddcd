"""taskiq on the stream broker of taskiq-redis.

Choices: one worker process, 100 async tasks at once (its default), 100 prefetched beyond these; parameters are not
validated (`--no-parse`), which is faster; no results; acked when the task has ended (its default), so it is at least
once. It publishes by `kiq`; it has no call for many. A killed worker's tasks are claimed after `idle_timeout` (default
10 minutes), also those of a live worker that run longer, and only when another message comes in.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from taskiq_redis import RedisStreamBroker

from benchmarks import side

broker = RedisStreamBroker(
    side.URL or "redis://",
    idle_timeout=int(os.environ.get("BENCH_IDLE_MS", "600000")),
    consumer_id="0",
    unacknowledged_lock_timeout=5,
)


@broker.task
async def noop(event: dict[str, Any]) -> None:
    side.count()


@broker.task
async def wait(event: dict[str, Any]) -> None:
    await asyncio.sleep(event["seconds"])
    side.count()


@broker.task
async def stamp(event: dict[str, Any]) -> None:
    side.stamp(event["seconds"])


@broker.task
async def mix(event: dict[str, Any]) -> None:
    side.begun(event["size"], event["seconds"])
    await asyncio.sleep(event["seconds"])
    side.ended(event["size"], event["seconds"])


TASKS = {"noop": noop, "wait": wait, "stamp": stamp, "mix": mix}
_started = False


async def publish(handler: str, event: dict[str, Any]) -> None:
    global _started
    if not _started:
        await broker.startup()
        _started = True
    await TASKS[handler].kiq(event)


async def publish_many(handler: str, events: list[dict[str, Any]]) -> None:
    for event in events:
        await publish(handler, event)
