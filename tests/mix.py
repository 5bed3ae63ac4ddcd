"""Handlers for `tests/test_promises.py`: the workload's app with two groups and two streams more.

Run as `rstream worker tests.mix:app --group mix/mix`. The streams are for measuring when handlers start: a handler's
clock is its first statement, and its notes go into a file, which unlike Redis has no queue of its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from rstream import Delivery, Event, RetryPolicy
from tests.workload import CONCURRENCY, LEASE, Job, app, jobs, note, on_loop

__all__ = ["app"]

PATIENT = RetryPolicy(initial_delay=0.05, max_attempts=20)


# A worker that is killed over an entry for the third time looks to the default policy as if the entry had done it.
@jobs.consumer("patient", concurrency=CONCURRENCY, lease=LEASE, retry=PATIENT)
async def on_loop_patiently(event: Job, delivery: Delivery) -> None:
    await on_loop(event, delivery)


@jobs.consumer("process", concurrency=CONCURRENCY, lease=LEASE, run_in="process")
def in_process(event: Job, delivery: Delivery) -> None:
    note("start", event, delivery)
    until = time.monotonic() + event.seconds
    while time.monotonic() < until:  # keeps its CPU busy
        pass
    note("end", event, delivery)


class Timed(Event):
    n: int
    seconds: float
    published: float


class Start(NamedTuple):
    n: int
    seconds: float
    delay: float


mix = app.stream("mix", Timed, shards=4)
alone = app.stream("alone", Timed, shards=4)


@cache
def notes(group: str) -> FileIO:
    return Path(os.environ["MIX_FOLDER"], f"starts-{group}-{os.getpid()}").open("ab", buffering=0)


def write_down(group: str, event: Timed, delay: float) -> None:
    notes(group).write(f"{event.n} {event.seconds} {delay}\n".encode())


@mix.consumer("mix", concurrency=CONCURRENCY, lease=LEASE)
async def of_all_lengths(event: Timed) -> None:
    delay = time.time() - event.published
    write_down("mix", event, delay)
    await asyncio.sleep(event.seconds)


@alone.consumer("alone", concurrency=CONCURRENCY, lease=LEASE)
async def short_only(event: Timed) -> None:
    delay = time.time() - event.published
    write_down("alone", event, delay)
    await asyncio.sleep(event.seconds)


def starts(folder: Path, group: str) -> list[Start]:
    """What the workers of a group wrote down."""
    lines = [line for path in folder.glob(f"starts-{group}-*") for line in path.read_text().splitlines()]
    return [Start(int(n), float(seconds), float(delay)) for n, seconds, delay in (line.split() for line in lines)]
