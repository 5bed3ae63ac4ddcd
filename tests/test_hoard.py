"""No worker is idle while another one holds work that it has not started."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from rstream import Delivery, Event, Reject, RetryPolicy, RStream
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually_async


class Item(Event):
    n: int
    long: bool = False


class Keyed(Event):
    n: int
    key: str


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def test_what_waits_behind_long_work_goes_to_who_is_free(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    ended: Counter[int] = Counter()
    attempts: set[int] = set()
    finish = asyncio.Event()

    @items.consumer("g", concurrency=2)
    async def handle(event: Item, delivery: Delivery) -> None:
        if event.long:
            await finish.wait()
        attempts.add(delivery.attempt)
        ended[event.n] += 1

    async with working(app) as busy:
        await items.publish_many(Item(n=n) for n in range(200))
        (run,) = await eventually_async(lambda: busy.runs)
        await eventually_async(lambda: len(ended) == 200 and run.in_hand == 0)
        assert run.buffer > 50, "short handlers earn a buffer"
        await items.publish_many(Item(n=n, long=n < 202) for n in range(200, 230))
        await eventually_async(lambda: len(run.running) == 2)
        await eventually_async(lambda: run.in_hand == 2)  # the others went back
        assert run.room == 0, "and nothing more comes in"
        async with working(app) as free:
            await eventually_async(lambda: len(ended) == 228 and free.counts.handled == 28)
            finish.set()
            await eventually_async(lambda: len(ended) == 230)
        await items.publish_many(Item(n=n) for n in range(230, 500))
        await eventually_async(lambda: len(ended) == 500)
    assert set(ended.values()) == {1} and attempts == {1}


async def test_long_work_is_begun_wherever_there_is_a_slot(app: RStream) -> None:
    items = app.stream("items", Item, shards=8)
    begun, finish = Counter[str](), asyncio.Event()

    @items.consumer("g", concurrency=3)
    async def handle(event: Item, delivery: Delivery) -> None:
        begun[delivery.worker] += 1
        await finish.wait()

    async with working(app), working(app), working(app):
        await items.publish_many(Item(n=n) for n in range(20))
        await eventually_async(lambda: begun.total() == 9)
        assert set(begun.values()) == {3}
        finish.set()
        await eventually_async(lambda: begun.total() == 20)


async def test_a_prefetch_that_was_asked_for_is_kept(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    finish = asyncio.Event()

    @items.consumer("g", concurrency=1, prefetch=5)
    async def handle(event: Item) -> None:
        await finish.wait()

    await items.publish_many(Item(n=n) for n in range(20))
    async with working(app) as worker:
        (run,) = await eventually_async(lambda: worker.runs)
        await eventually_async(lambda: run.in_hand == 6)
        loop = asyncio.get_running_loop()
        later = loop.time() + 1
        await eventually_async(lambda: loop.time() > later)
        assert run.in_hand == 6
        finish.set()
        await eventually_async(lambda: worker.counts.handled == 20)


@pytest.mark.parametrize("first", [0, 1])
async def test_what_came_in_all_shards_meanwhile_comes_as_there_is_room(app: RStream, first: int) -> None:
    """Also where the last read said that there is nothing more, and the next one waits for a slot first."""
    items = app.stream("items", Keyed, shards=16, key="key")
    names = {(await items.layout()).shard(name).number: name for name in map(str, range(1000))}
    slots, began = asyncio.Semaphore(0), list[int]()

    # Whoever dies with an only attempt in hand has used it up.
    @items.consumer("g", concurrency=1, prefetch=0, ordered=False, retry=RetryPolicy(max_attempts=1))
    async def handle(event: Keyed) -> None:
        began.append(event.n)
        await slots.acquire()

    await items.publish(Keyed(n=0, key=names[first]))
    async with working(app) as worker:
        (run,) = await eventually_async(lambda: worker.runs)
        await eventually_async(lambda: len(began) == 1)
        await items.publish_many(Keyed(n=n, key=names[n % 16]) for n in range(1, 49))
        for so_many in range(2, 8):
            slots.release()
            await eventually_async(lambda so_many=so_many: len(began) == so_many)  # type: ignore[misc]
            assert run.in_hand == 1
        for _ in range(100):
            slots.release()
        await eventually_async(lambda: worker.counts.handled == 49)


async def test_what_is_redelivered_comes_as_fast_as_there_is_room(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    starts: list[float] = []

    @items.consumer("g", concurrency=4, retry=RetryPolicy(max_attempts=1))
    async def handle(event: Item) -> None:
        starts.append(asyncio.get_running_loop().time())
        if len(starts) <= 100:
            raise Reject("again, please")

    await items.publish_many(Item(n=n) for n in range(100))
    await drain(app)
    assert (await items.dead("g").redrive(everything=True)).done == 100
    await drain(app)
    assert len(starts) == 200
    assert starts[-1] - starts[100] < 3  # four a second would take 25 s


async def test_a_slot_that_is_at_work_takes_nothing_more_into_its_batch(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    finish = asyncio.Event()

    @items.consumer("g", batch=100, max_wait=0.05)
    async def handle(events: list[Item]) -> None:
        if any(event.long for event in events):
            await finish.wait()

    async with working(app) as slow:
        await items.publish(Item(n=0, long=True))
        (run,) = await eventually_async(lambda: slow.runs)
        await eventually_async(lambda: run.busy == 1)
        await items.publish_many(Item(n=n) for n in range(1, 101))
        await eventually_async(
            lambda: run.in_hand == 1
        )  # but for what a read that was under way brought, and gave back
        assert run.room == 0
        async with working(app) as free:
            await eventually_async(lambda: free.counts.handled == 100)
        finish.set()
