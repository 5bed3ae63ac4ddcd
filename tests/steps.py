"""An app whose handlers work on the steps of keys, which have to be taken in order. What is accepted of them is in a
stream of its own: the ack of a step and the event that says so are one call, so its order is that of the outcomes.

Run as a real worker process: `rstream worker tests.steps:app`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rstream import Delivery, Event, RetryPolicy, RStream

LEASE = float(os.environ.get("WORKLOAD_LEASE", "1"))
CONCURRENCY = int(os.environ.get("WORKLOAD_CONCURRENCY", "16"))
DIARY = os.environ.get("STEPS_DIARY", "")
"""A folder, where wanted: what handlers began and ended is written there, out of the reach of a Redis that fails."""
ENDURING = RetryPolicy(initial_delay=0.02, max_delay=0.1, max_attempts=100)


class Step(Event):
    """seconds: to work on it · fails: in so many attempts, each by a throw of dice, it fails."""

    key: str
    n: int
    seconds: float = 0.0
    fails: float = 0.0


class Taken(Event):
    key: str
    n: int
    worker: str
    fence: int
    attempt: int


app = RStream()
steps = app.stream("steps", Step, key="key", shards=4)
taken = app.stream("taken", Taken, key="key", shards=4)


@steps.consumer("ordered", concurrency=CONCURRENCY, lease=LEASE, retry=ENDURING, emits=taken)
async def take(event: Step, delivery: Delivery) -> Taken:
    note("start", event, delivery)
    await asyncio.sleep(event.seconds)
    if random.random() < event.fails:
        raise ValueError(f"step {event.n} of {event.key} fails")
    note("end", event, delivery)
    return Taken(key=event.key, n=event.n, worker=delivery.worker, fence=delivery.fence, attempt=delivery.attempt)


def note(what: str, event: Step, delivery: Delivery) -> None:
    if DIARY:  # one write to a file: what is killed after it cannot take it along
        with Path(DIARY, f"diary-{os.getpid()}").open("ab", buffering=0) as out:
            out.write(f"{what} {event.key} {event.n} {delivery.attempt} {time.time()}\n".encode())


class Line(NamedTuple):
    what: str
    key: str
    n: int
    attempt: int
    at: float


def diary(folder: Path) -> list[Line]:
    """What was begun and ended, by all workers, in that order."""
    lines = [line.split() for file in folder.glob("diary-*") for line in file.read_text().splitlines()]
    found = [Line(what, key, int(n), int(attempt), float(at)) for what, key, n, attempt, at in lines]
    return sorted(found, key=lambda line: line.at)


@steps.consumer("once", concurrency=CONCURRENCY, lease=LEASE, retry=RetryPolicy(max_attempts=1))
async def once(event: Step) -> None:
    await asyncio.sleep(event.seconds)


def many(keys: int, each: int, rng: random.Random, *, seconds: float = 0.0, fails: float = 0.0) -> list[Step]:
    """`each` steps of each key, the keys mixed."""
    left = {f"key{n}": iter(range(each)) for n in range(keys)}
    order = [key for key in left for _ in range(each)]
    rng.shuffle(order)
    return [Step(key=key, n=next(left[key]), seconds=rng.uniform(0, seconds), fails=fails) for key in order]


def faults(found: Iterable[Taken], keys: int, each: int) -> dict[str, list[str]]:
    """What is wrong with what was accepted, in the order of acceptance: lost, accepted twice, out of order."""
    by_key: defaultdict[str, list[Taken]] = defaultdict(list)
    for step in found:
        by_key[step.key].append(step)
    wrong: dict[str, list[str]] = {"lost": [], "twice": [], "inversions": [], "fence fell": []}
    for key in (f"key{n}" for n in range(keys)):
        numbers = [step.n for step in by_key[key]]
        wrong["lost"] += [f"{key}/{n}" for n in sorted(set(range(each)) - set(numbers))]
        wrong["twice"] += [f"{key}/{n}" for n in sorted(set(numbers)) if numbers.count(n) > 1]
        pairs = list(zip(by_key[key], by_key[key][1:], strict=False))
        wrong["inversions"] += [f"{key}: {one.n} before {two.n}" for one, two in pairs if one.n > two.n]
        wrong["fence fell"] += [f"{key}: {one} then {two}" for one, two in pairs if one.fence > two.fence]
    return {what: where for what, where in wrong.items() if where}
