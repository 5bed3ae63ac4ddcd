"""Failures of every kind: Retry, Reject, policies, expiry, poison that kills the process (promise 7)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
import redis

from rstream import Delivery, EntryId, Event, Reject, Retry, RetryPolicy, RStream, Stream
from rstream.store.deliveries import Fetched, GroupOps, Outcome
from tests.servers import Server
from tests.test_worker import dead_letters, drain, working
from tests.waiting import eventually_async


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

    await too_late(app, await items.publish(Item(n=0)), 0.3)
    await items.publish(Item(n=1))
    worker = await drain(app)
    assert seen == [1]
    assert (worker.counts.handled, worker.counts.expired, worker.counts.dead) == (1, 1, 0)


async def too_late(app: RStream, id: EntryId, expires: float) -> None:
    """Wait until the entry is older than that."""
    with redis.Redis.from_url(app.settings.url or "") as raw:

        def is_late() -> bool:
            seconds, micros = raw.time()
            return seconds * 1000 + micros / 1000 > id.ms + expires * 1000 + 50

        await eventually_async(is_late)


async def doomed(app: RStream, items: Stream[Item], end: Callable[[Fetched], Outcome] | None) -> EntryId:
    """An entry that was delivered to a worker, which settled it so, or died."""
    ops = GroupOps(await items.layout(), "g", "doomed")
    await app.link.run(ops.create("0"))
    id = await items.publish(Item(n=0))
    (entry,) = (await app.link.run(ops.fetch(10))).entries
    if end is not None:
        assert not await app.link.run(ops.settle([end(entry)]))
    return id


TO_RETRY = [
    lambda entry: Outcome(entry.shard, entry.id, 1, "retry", 1),
    None,  # taken over: who knows what it had done
]


@pytest.mark.parametrize("end", TO_RETRY, ids=["retry", "taken over"])
async def test_what_was_started_in_time_is_tried_again_and_ends_as_a_dead_letter(
    app: RStream, end: Callable[[Fetched], Outcome] | None
) -> None:
    items = app.stream("items", Item, shards=1)
    attempts: list[int] = []

    @items.consumer("g", expires=0.2, lease=0.5, retry=RetryPolicy(max_attempts=3, initial_delay=0))
    async def handle(event: Item, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise ValueError("half of it is done")

    await too_late(app, await doomed(app, items, end), 0.2)
    worker = await drain(app)
    assert attempts == [2, 3]
    assert (worker.counts.expired, worker.counts.dead) == (0, 1)
    (letter,) = await dead_letters(app, "g")
    assert (letter[b"reason"], letter[b"attempts"]) == (b"failed", b"3")


async def test_what_is_redriven_runs_whatever_its_age(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    attempts: list[int] = []

    @items.consumer("g", expires=0.2)
    async def handle(event: Item, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)

    id = await doomed(app, items, lambda entry: Outcome(entry.shard, entry.id, 1, "dead", "rejected", "a bug"))
    await too_late(app, id, 0.2)
    assert (await items.dead("g").redrive(reason="rejected")).done == 1
    worker = await drain(app)
    assert attempts == [1]
    assert (worker.counts.handled, worker.counts.expired) == (1, 0)


async def test_what_was_handed_over_unstarted_expires(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    seen: list[int] = []

    @items.consumer("g", expires=0.2)
    async def handle(event: Item) -> None:
        seen.append(event.n)

    id = await doomed(app, items, lambda entry: Outcome(entry.shard, entry.id, 1, "release", 0, "~released"))
    await too_late(app, id, 0.2)
    worker = await drain(app)
    assert (seen, worker.counts.expired) == ([], 1)


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


async def test_what_is_redriven_and_handed_over_unstarted_runs_whatever_its_age(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    handled: list[int] = []
    reject, hold = [True], asyncio.Event()

    @items.consumer("g", concurrency=1, prefetch=20, expires=0.3)
    async def handle(event: Item) -> None:
        if reject[0]:
            raise Reject("not today")
        handled.append(event.n)
        await hold.wait()

    await items.publish_many(Item(n=n) for n in range(20))
    await drain(app)
    reject[0] = False
    published = asyncio.get_running_loop().time()
    await eventually_async(lambda: asyncio.get_running_loop().time() > published + 0.5)
    assert (await items.dead("g").redrive(everything=True)).done == 20
    async with working(app, grace=0.05) as worker:
        (run,) = await eventually_async(lambda: worker.runs)
        await eventually_async(lambda: handled and run.in_hand > 5)
    hold.set()
    worker = await drain(app)
    assert worker.counts.expired == 0 and set(handled) == {*range(20)}
