"""Celery on Redis.

Choices: `acks_late`, for at-least-once as the others give it; `ignore_result`, nobody reads any; JSON, its default.
Drain: pool `solo` (no hand-over to another process or thread, the fastest for a handler that does nothing), prefetch
of 128 as the optimizing guide says of short tasks; gossip, mingle and heartbeats off, as for a single worker. I/O: pool
`threads` of 100. Mix and recovery: `threads`, prefetch multiplier 1, as the guide says of long tasks. It publishes by
`delay`, in a thread for each concurrent caller; it has no call for many. A killed worker's messages are visible again
after `visibility_timeout` (default: an hour); that must be longer than the longest task, or this runs twice.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from benchmarks import side

app = Celery("bench", broker=side.URL)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "128")),
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=100,
    broker_transport_options={"visibility_timeout": int(os.environ.get("BENCH_VISIBILITY", "3600"))},
)


@app.task
def noop(event: dict[str, Any]) -> None:
    side.count()


@app.task
def wait(event: dict[str, Any]) -> None:
    time.sleep(event["seconds"])
    side.count()


@app.task
def stamp(event: dict[str, Any]) -> None:
    side.stamp(event["seconds"])


@app.task
def mix(event: dict[str, Any]) -> None:
    side.begun(event["size"], event["seconds"])
    time.sleep(event["seconds"])
    side.ended(event["size"], event["seconds"])


TASKS = {"noop": noop, "wait": wait, "stamp": stamp, "mix": mix}


def publish(handler: str, event: dict[str, Any]) -> None:
    TASKS[handler].delay(event)


def publish_many(handler: str, events: list[dict[str, Any]]) -> None:
    task = TASKS[handler]
    for event in events:
        task.delay(event)
