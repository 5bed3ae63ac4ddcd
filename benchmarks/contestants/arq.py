"""arq.

Choices: `max_jobs` 100, as all have; no results kept; neither jobs nor results are logged; it polls every 10 ms instead
of 500, since it has no blocking read. It is at least once. It publishes by `enqueue_job`; it has no call for many. A
killed worker's jobs run again once their in-progress key has expired: `job_timeout` (300 s) + 10 s after they began.
Its redis-py is older (< 6), so that it has a virtual environment of its own.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, ClassVar

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from benchmarks import side


async def noop(context: dict[Any, Any], event: dict[str, Any]) -> None:
    side.count()


async def wait(context: dict[Any, Any], event: dict[str, Any]) -> None:
    await asyncio.sleep(event["seconds"])
    side.count()


async def stamp(context: dict[Any, Any], event: dict[str, Any]) -> None:
    side.stamp(event["seconds"])


async def mix(context: dict[Any, Any], event: dict[str, Any]) -> None:
    side.begun(event["size"], event["seconds"])
    await asyncio.sleep(event["seconds"])
    side.ended(event["size"], event["seconds"])


LOGGING = {"version": 1, "loggers": {"arq": {"level": "WARNING"}}}


class Worker:
    functions: ClassVar[list[Any]] = [noop, wait, stamp, mix]
    redis_settings = RedisSettings.from_dsn(side.URL or "redis://")
    max_jobs = 100
    keep_result = 0
    log_results = False
    poll_delay = 0.01
    job_timeout = float(os.environ.get("BENCH_TIMEOUT", "300"))


_pool: ArqRedis | None = None


async def publish(handler: str, event: dict[str, Any]) -> None:
    global _pool
    if _pool is None:
        _pool = await create_pool(Worker.redis_settings)
    await _pool.enqueue_job(handler, event)


async def publish_many(handler: str, events: list[dict[str, Any]]) -> None:
    for event in events:
        await publish(handler, event)
