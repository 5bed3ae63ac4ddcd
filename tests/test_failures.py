"""Failures of every kind: Retry, Reject, policies, expiry, poison that kills the process (promise 7)."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from rstream import Delivery, Event, Reject, Retry, RetryPolicy, RStream
from tests.servers import Server
from tests.test_worker import dead_letters, drain, working
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job, WorkerProcess, workers


class Item(Event):
    n: int


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def test_reject_sets_aside_at_once_and_retry_names_the_time(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    starts: list[tuple[int, int, float]] = []

    @items.consumer("g", retry=RetryPolicy(initial_delay=60))
    async def handle(event: Item, delivery: Delivery) -> None:
        starts.append((event.n, delivery.attempt, asyncio.get_running_loop().time()))
        if event.n == 0:
            raise Reject("a picture of nothing")
        if delivery.attempt == 1:
            raise Retry(after=0.3)

    await items.publish_many([Item(n=0), Item(n=1)])
    worker = await drain(app)
    assert [(n, attempt) for n, attempt, _ in starts] == [(0, 1), (1, 1), (1, 2)]
    assert 0.29 < starts[2][2] - starts[1][2] < 3
    assert (worker.counts.handled, worker.counts.dead) == (1, 1)
    (letter,) = await dead_letters(app, "g")
    assert (letter[b"reason"], letter[b"attempts"]) == (b"rejected", b"1")
    assert b"a picture of nothing" in letter[b"error"]


async def test_some_exceptions_are_never_tried_again_and_some_events_are_too_old(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    starts: Counter[int] = Counter()

    class Hopeless(Exception):
        pass

    @items.consumer(
        "g",
        retry=RetryPolicy(initial_delay=0.15, factor=1, max_attempts=50, total_timeout=1.0, non_retryable=(Hopeless,)),
    )
    async def handle(event: Item) -> None:
        starts[event.n] += 1
        raise Hopeless if event.n == 0 else ValueError

    await items.publish_many([Item(n=0), Item(n=1)])
    worker = await drain(app)
    assert starts[0] == 1
    assert 2 <= starts[1] <= 9  # an attempt each 0.12 to 0.15 s, none after 1 s
    assert worker.counts.dead == 2


async def test_an_event_that_came_too_late_is_counted_and_not_started(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    seen: list[int] = []

    @items.consumer("g", expires=0.3)
    async def handle(event: Item) -> None:
        seen.append(event.n)

    old = await items.publish(Item(n=0))
    with redis.Redis.from_url(app.settings.url or "") as raw:

        def is_late() -> bool:
            seconds, micros = raw.time()
            return seconds * 1000 + micros / 1000 > old.ms + 400

        await eventually_async(is_late)
    await items.publish(Item(n=1))
    worker = await drain(app)
    assert seen == [1]
    assert (worker.counts.handled, worker.counts.expired, worker.counts.dead) == (1, 1, 0)


class Spiteful(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text from me")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        BaseExceptionGroup("many", [ValueError("a"), KeyboardInterrupt()]),
        asyncio.CancelledError(),
        SystemExit(1),
        Spiteful(),
        StopIteration(),
        Retry(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_raise_of_every_kind_has_the_right_outcome(app: RStream, error: BaseException, kind: str) -> None:
    items = app.stream("items", Item, shards=1)
    attempts: list[int] = []

    def body(event: Item, delivery: Delivery) -> None:
        if event.n == 0:
            attempts.append(delivery.attempt)
            raise error

    async def on_loop(event: Item, delivery: Delivery) -> None:
        body(event, delivery)

    items.consumer("g", retry=RetryPolicy(max_attempts=2, initial_delay=0))(on_loop if kind == "async" else body)
    await items.publish_many([Item(n=0), Item(n=1)])
    worker = await drain(app)
    assert attempts == [1, 2]
    assert (worker.counts.handled, worker.counts.failed, worker.counts.dead) == (1, 2, 1)
    (letter,) = await dead_letters(app, "g")
    assert letter[b"reason"] == b"failed" and letter[b"error"]


async def test_a_waiting_retry_survives_a_restart_with_its_due_time(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    starts: list[float] = []

    @items.consumer("g")
    async def handle(event: Item, delivery: Delivery) -> None:
        starts.append(asyncio.get_running_loop().time())
        if delivery.attempt == 1:
            raise Retry(after=1.0)

    await items.publish(Item(n=0))
    async with working(app):
        await eventually_async(lambda: len(starts) == 1)
    await drain(app)
    assert len(starts) == 2
    assert 0.95 < starts[1] - starts[0] < 4


def test_an_entry_that_kills_the_process_is_found_and_no_innocent_beside_it(
    own_server: Server, namespace: str, tmp_path: Path
) -> None:
    with (
        workers(own_server, namespace, tmp_path) as spawn,
        redis.Redis.from_url(own_server.url) as raw,
        RStream(own_server.url, namespace=namespace) as app,
    ):
        jobs = app.stream("jobs", Job, shards=4)
        kinds = ["die" if n == 250 else "wait" for n in range(501)]
        jobs.sync.publish_many(Job(n=n, kind=kind, seconds=0.002) for n, kind in enumerate(kinds))
        history = History(raw, namespace)
        layout = jobs.sync.layout()

        def letters() -> list[dict[bytes, bytes]]:
            return [letter for keys in layout.keys for _, letter in raw.xrange(keys.dead("async"))]

        def pending() -> int:
            return sum(raw.xpending(keys.stream, "async")["pending"] for keys in layout.keys)

        live: list[WorkerProcess] = [spawn(lease=0.5, concurrency=16) for _ in range(2)]

        def done() -> bool:
            for worker in list(live):
                if worker.process.poll() is not None:  # as a supervisor does
                    live.remove(worker)
                    live.append(spawn(lease=0.5, concurrency=16))
            return len(history.counts("end")) == 500 and pending() == 0

        eventually(done, 60)
        (letter,) = letters()
        assert letter[b"reason"] == b"crashed" and letter[b"attempts"] == b"3"
        assert history.counts("start")[250] == 3
        worst = max(line.attempt for line in history.lines() if line.n != 250)
        assert worst <= 3  # none lost more than two attempts
        assert set(history.counts("end")) == set(range(501)) - {250}
        for worker in live:
            worker.ready().signal(signal.SIGTERM)
        assert [worker.wait() for worker in live] == [0, 0]
