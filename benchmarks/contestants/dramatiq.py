"""dramatiq on Redis.

Choices: one process; a no-op drains fastest with few threads, so it has its default of 8; I/O has 100 threads. The
prefetch is raised to 1,000 for the drain (`dramatiq_queue_prefetch`), which saves round trips. Of the default
middlewares those stay that a retry and a time limit need; no results. It is at least once. It publishes by `send`, in
a thread for each concurrent caller; it has no call for many. A killed worker's messages are put back once its heartbeat
is 60 s old, by a maintenance that happens by chance (1 in 1,000 calls).
"""

from __future__ import annotations

import os
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks import side

broker = RedisBroker(url=side.URL, heartbeat_timeout=int(os.environ.get("BENCH_HEARTBEAT", "60000")))
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(event: dict[str, Any]) -> None:
    side.count()


@dramatiq.actor
def wait(event: dict[str, Any]) -> None:
    time.sleep(event["seconds"])
    side.count()


@dramatiq.actor
def stamp(event: dict[str, Any]) -> None:
    side.stamp(event["seconds"])


@dramatiq.actor
def mix(event: dict[str, Any]) -> None:
    side.begun(event["size"], event["seconds"])
    time.sleep(event["seconds"])
    side.ended(event["size"], event["seconds"])


ACTORS = {"noop": noop, "wait": wait, "stamp": stamp, "mix": mix}


def publish(handler: str, event: dict[str, Any]) -> None:
    ACTORS[handler].send(event)


def publish_many(handler: str, events: list[dict[str, Any]]) -> None:
    actor = ACTORS[handler]
    for event in events:
        actor.send(event)
