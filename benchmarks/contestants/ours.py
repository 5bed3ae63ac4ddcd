"""rstream, as its documentation has it: validated events, fenced settles, leases, exact publishes. Nothing is off."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from benchmarks import side
from rstream import Event, RStream

SHARDS = int(os.environ.get("BENCH_SHARDS", "8"))
LEASE = float(os.environ.get("BENCH_LEASE", "30"))
SLOTS = int(os.environ.get("BENCH_SLOTS", "100"))
GROUPS = int(os.environ.get("BENCH_GROUPS", "0"))


class Sample(Event):
    user: str = "user-000123"
    session: str = "b3f1c2d4e5f60718"
    kind: str = "page_view"
    path: str = "/products/42/reviews?sort=recent"
    status: int = 200
    seconds: float = 0.0421
    size: int = 18_231
    cached: bool = False
    agent: str = "Mozilla/5.0 (X11; Linux x86_64)"
    region: str = "eu-central-1"


app = RStream(side.URL or None)
events = app.stream("events", Sample, key="user", shards=SHARDS)


def make(n: int, seconds: float = 0.0421) -> Sample:
    return Sample.model_validate(side.event(n, seconds))


async def publish(handler: str, event: Sample) -> None:
    await events.publish(event)


def publish_sync(handler: str, event: Sample) -> None:
    events.sync.publish(event)


async def publish_many(handler: str, several: Sequence[Sample]) -> None:
    await events.publish_many(several)


def publish_many_sync(handler: str, several: Sequence[Sample]) -> None:
    events.sync.publish_many(several)


@events.consumer("async", concurrency=SLOTS, lease=LEASE, ordered=False)
async def noop(event: Sample) -> None:
    side.count()


@events.consumer("ordered", concurrency=SLOTS, lease=LEASE)
async def noop_ordered(event: Sample) -> None:
    side.count()


@events.consumer("thread", concurrency=16, lease=LEASE, ordered=False)
def noop_in_thread(event: Sample) -> None:
    side.count()


@events.consumer("batch", batch=500, lease=LEASE, ordered=False)
async def noop_batch(several: list[Sample]) -> None:
    side.count(len(several))


@events.consumer("wait", concurrency=SLOTS, lease=LEASE, ordered=False)
async def wait(event: Sample) -> None:
    await asyncio.sleep(event.seconds)
    side.count()


@events.consumer("stamp", concurrency=SLOTS, lease=LEASE, ordered=False)
async def stamp(event: Sample) -> None:
    side.stamp(event.seconds)


@events.consumer("stamp-ordered", concurrency=SLOTS, lease=LEASE)
async def stamp_ordered(event: Sample) -> None:
    side.stamp(event.seconds)


@events.consumer("mix", concurrency=SLOTS, lease=LEASE, ordered=False)
async def mix(event: Sample) -> None:
    side.begun(event.size, event.seconds)
    await asyncio.sleep(event.seconds)
    side.ended(event.size, event.seconds)


async def idle(event: Sample) -> None:
    side.count()


for number in range(GROUPS):
    events.consumer(f"idle{number}", lease=LEASE)(idle)
