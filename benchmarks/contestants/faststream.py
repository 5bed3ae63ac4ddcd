"""FastStream on Redis Streams, with a consumer group.

Choices: a handler that does nothing, one message after the other, which is faster than its concurrent workers; one
that waits, with 100 workers; in its batch mode 500 a call. It reads 500 at a time. Handlers take a plain dict, and
dependency injection and validation are off (`apply_types=False`), which is faster; one line of the batch table has them
on, as rstream always has. Acked after the handler (its default), so it is at least once. It publishes by `publish`;
many, through a pipeline of 1,000. A killed worker's messages are claimed only by another subscriber that was written
for it (`min_idle_time`).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel

from benchmarks import side

VALIDATED = os.environ.get("BENCH_VALIDATE") == "1"


class Sample(BaseModel):
    user: str
    session: str
    kind: str
    path: str
    status: int
    seconds: float
    size: int
    cached: bool
    agent: str
    region: str


Event: Any = Sample if VALIDATED else dict[str, Any]

broker = RedisBroker(side.URL or "redis://", apply_types=VALIDATED, logger=None)
app = FastStream(broker)


def source(name: str, **options: Any) -> StreamSub[Any]:
    return StreamSub(name, group="g", consumer="c", last_id="0", polling_interval=1000, max_records=500, **options)


@broker.subscriber(stream=source("noop"))
async def noop(event: Event) -> None:
    side.count()


@broker.subscriber(stream=source("batch", batch=True))
async def batch(events: list[Event]) -> None:
    side.count(len(events))


@broker.subscriber(stream=source("wait"), max_workers=100)
async def wait(event: dict[str, Any]) -> None:
    await asyncio.sleep(event["seconds"])
    side.count()


@broker.subscriber(stream=source("stamp"))
async def stamp(event: dict[str, Any]) -> None:
    side.stamp(event["seconds"])


_connected = False


async def connect() -> None:
    global _connected
    if not _connected:
        _connected = True
        await broker.connect()


async def publish(handler: str, event: dict[str, Any]) -> None:
    await connect()
    await broker.publish(event, stream=handler)


async def publish_many(handler: str, events: list[dict[str, Any]]) -> None:
    await connect()
    client = await broker.connect()
    for at in range(0, len(events), 1000):
        async with client.pipeline(transaction=False) as pipe:
            for event in events[at : at + 1000]:
                await broker.publish(event, stream=handler, pipeline=pipe)
            await pipe.execute()
