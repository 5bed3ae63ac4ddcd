"""Pausing a group under live workers: nothing new is begun, nothing is lost, nobody takes what is theirs."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Event, Retention, RetryPolicy, RStream, Stream
from rstream.errors import ConfigError
from rstream.operate import pause, paused, pending, resume, streams_of
from rstream.store import keys
from rstream.store.deliveries import GroupOps
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.remove import remove
from rstream.store.stats import find, group_stats
from rstream.store.steps import drive
from rstream.store.trim import standings, tidy
from rstream.store.weigh import survey
from rstream.worker.worker import Worker
from tests.fleets import Cluster
from tests.servers import Server
from tests.test_worker import working
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job, WorkerProcess, workers


class Item(Event):
    n: int
    name: str = ""


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def fresh(items: Stream[Item], group: str = "g") -> None:
    await items.app.link.run(GroupOps(await items.layout(), group, "maker").create("0"))


def is_paused(worker: Worker) -> bool:
    return all(run.lanes.paused for run in worker.runs)


async def test_what_runs_ends_and_nothing_new_is_begun_until_it_is_resumed(app: RStream) -> None:
    items = app.stream("items", Item, shards=4)
    begun: list[int] = []
    go_on = asyncio.Event()

    @items.consumer("g", concurrency=2)
    async def handle(event: Item) -> None:
        begun.append(event.n)
        await go_on.wait()

    async with working(app) as worker:
        await items.publish_many(Item(n=n) for n in range(20))
        await eventually_async(lambda: len(begun) == 2)
        new, told = await pause(items, "g", why="the bank is down", by="kim@desk")
        assert new and (told.by, told.why) == ("kim@desk", "the bank is down")
        await eventually_async(lambda: is_paused(worker))
        go_on.set()
        await eventually_async(lambda: worker.counts.handled == 2)
        await items.publish_many(Item(n=n) for n in range(20, 40))
        # Whatever is in hand unbegun goes back; all that others would do by now is done.
        await eventually_async(lambda: worker.runs[0].in_hand == 0)
        assert len(begun) == 2
        (stats,) = await app.link.run(group_stats(await items.layout()))
        assert stats.pending + (stats.lag or 0) == 38
        assert [each.alive for each in stats.workers] == [True]
        assert await pause(items, "g", why="again") == (False, told)
        assert await resume(items, "g") == told
        await eventually_async(lambda: len(begun) == 40)
        assert sorted(begun) == [*range(40)]
        assert await resume(items, "g") is None


async def test_of_an_ordered_group_shards_are_kept_and_the_order_is(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=4)
    seen: dict[str, list[int]] = {}

    @items.consumer("g", concurrency=3)
    async def handle(event: Item) -> None:
        seen.setdefault(event.name, []).append(event.n)
        await asyncio.sleep(0.001)

    async with working(app) as worker:
        run = worker.runs[0]
        await eventually_async(lambda: len(run.lease.owned) == 4)
        owned, rng = dict(run.lease.owned), random.Random(7)
        published = 0
        for _ in range(6):
            await items.publish_many(Item(n=published + n, name=f"k{n % 7}") for n in range(50))
            published += 50
            if rng.random() < 0.5:
                await eventually_async(lambda enough=published - 40: sum(map(len, seen.values())) > enough)
            await pause(items, "g")
            await eventually_async(lambda: run.lanes.paused)
            await eventually_async(lambda: not run.running)
            before = sum(map(len, seen.values()))
            assert run.lease.owned == owned
            assert sum(map(len, seen.values())) == before
            await resume(items, "g")
        await eventually_async(lambda: sum(map(len, seen.values())) == published)
        assert all(each == sorted(each) for each in seen.values())
        assert run.lease.owned == owned


async def test_a_worker_that_starts_while_its_group_is_paused_reads_nothing(app: RStream) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[int] = []

    @items.consumer("g")
    async def handle(event: Item) -> None:
        seen.append(event.n)

    other: list[int] = []

    @items.consumer("h")
    async def handle_too(event: Item) -> None:
        other.append(event.n)

    await fresh(items)
    await fresh(items, "h")
    await items.publish_many(Item(n=n) for n in range(10))
    await pause(items, "g")
    async with working(app):
        await eventually_async(lambda: len(other) == 10)
        stats = find(await app.link.run(group_stats(await items.layout())), "g", await items.layout())
        assert (stats.pending, stats.lag, seen) == (0, 10, [])
        await resume(items, "g")
        await eventually_async(lambda: len(seen) == 10)


@pytest.mark.long
async def test_a_ring_that_is_lost_is_made_up_for(app: RStream, raw: redis.Redis, namespace: str) -> None:
    items = app.stream("items", Item, shards=2)

    @items.consumer("g")
    async def handle(event: Item) -> None: ...

    async with working(app) as worker:
        raw.hset(f"{namespace}:stream:items", "paused:g", "not by us")
        await eventually_async(lambda: is_paused(worker), 12)
        assert (await paused(items))["g"].why == "not by us"
        raw.hdel(f"{namespace}:stream:items", "paused:g")
        await eventually_async(lambda: not is_paused(worker), 12)


async def test_retries_that_are_due_wait_and_a_batch_that_fills_is_not_begun(app: RStream) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[list[int]] = []

    @items.consumer("g", batch=100, max_wait=60.0, retry=RetryPolicy(initial_delay=0.01, jitter=0))
    async def handle(events: list[Item]) -> None:
        seen.append([event.n for event in events])
        if len(seen) == 1:
            raise ValueError("no")

    async with working(app) as worker:
        run = worker.runs[0]
        await items.publish_many(Item(n=n) for n in range(100))
        await eventually_async(lambda: len(seen) >= 1)
        await pause(items, "g")
        await eventually_async(lambda: run.lanes.paused and not run.running and not run.in_hand)
        calls = len(seen)
        await items.publish_many(Item(n=n) for n in range(100, 150))
        due = (await pending(items, "g", state="retry", limit=1)).entries
        if due:
            await eventually_async(lambda: overdue(items))
        assert len(seen) == calls
        await resume(items, "g")
        await eventually_async(lambda: run.lanes.forming or run.in_hand == 0)
        # 50 wait for 50 more, or for a minute; paused they go back, and nobody is called with them
        await eventually_async(lambda: {n for call in seen[1:] for n in call} >= set(range(100)))
        await eventually_async(lambda: len(run.lanes.forming) == 50)
        calls = len(seen)
        await pause(items, "g")
        await eventually_async(lambda: run.lanes.paused and not run.in_hand)
        assert len(seen) == calls and not run.lanes.forming
        await resume(items, "g")
        await items.publish_many(Item(n=n) for n in range(150, 200))
        await eventually_async(lambda: {n for call in seen[1:] for n in call} == set(range(200)))


async def overdue(items: Stream[Item]) -> bool:
    found = (await pending(items, "g", state="retry", limit=100)).entries
    return bool(found) and all(one.due is not None and one.due < 0 for one in found)


async def test_pauses_race_with_fetches_and_nothing_begins_behind_one(app: RStream) -> None:
    """Level, not edges: many pauses and resumes in a row, and what the last one says counts."""
    items = app.stream("items", Item, shards=4)
    seen: list[int] = []

    @items.consumer("g", concurrency=4)
    async def handle(event: Item) -> None:
        await asyncio.sleep(0)
        seen.append(event.n)

    rng, published = random.Random(20261129), 0
    async with working(app) as worker:
        run = worker.runs[0]
        for _ in range(25):
            await items.publish_many(Item(n=published + n) for n in range(30))
            published += 30
            await asyncio.sleep(rng.random() / 100)
            for _ in range(rng.randrange(3)):
                await asyncio.gather(pause(items, "g"), resume(items, "g"))
            await pause(items, "g")
            await eventually_async(lambda: run.lanes.paused and not run.running)
            before = len(seen)
            await items.publish(Item(n=published))
            published += 1
            # a round trip that everything before it has passed
            await eventually_async(lambda: run.in_hand == 0)
            assert len(seen) == before
            await resume(items, "g")
        await eventually_async(lambda: len(seen) == published)
        assert sorted(seen) == [*range(published)]


def act(server: Server, namespace: str, deed: Callable[[Stream[Any]], Awaitable[object]]) -> None:
    async def run() -> None:
        async with RStream(server.url, namespace=namespace) as app:
            await deed(await asyncio.to_thread(app.open, "jobs"))

    asyncio.run(run())


@pytest.mark.timeout(120)
def test_a_frozen_and_a_killed_worker_of_a_paused_group(one_server: Server, namespace: str, tmp_path: Path) -> None:
    """What a dead one held waits for the resume; one that wakes up begins nothing new; then all is done."""
    with (
        workers(one_server, namespace, tmp_path) as spawn,
        RStream(one_server.url, namespace=namespace) as app,
        redis.Redis.from_url(one_server.url) as raw,
    ):
        jobs, history = app.stream("jobs", Job, shards=4), History(raw, namespace)

        def begun_by(worker: WorkerProcess) -> int:
            return sum(line.what == "start" and line.pid == worker.pid for line in history.lines())

        first, second = (spawn(lease=1, concurrency=4).ready() for _ in range(2))
        jobs.sync.publish_many(Job(n=n, seconds=1.5) for n in range(24))
        eventually(lambda: begun_by(first) == 4 and begun_by(second) == 4)
        act(one_server, namespace, lambda jobs: pause(jobs, "async"))
        first.signal(signal.SIGSTOP)
        second.signal(signal.SIGKILL)
        third = spawn(lease=1, concurrency=4).ready()
        since = raw.time()[0]
        eventually(lambda: raw.time()[0] > since + 3)  # two leases: what is free would have been taken over
        assert begun_by(third) == 0
        first.signal(signal.SIGCONT)
        eventually(lambda: not history.running(first.pid))  # what ran ends
        since = raw.time()[0]
        eventually(lambda: raw.time()[0] > since + 2)
        assert (begun_by(first), begun_by(third)) == (4, 0)
        act(one_server, namespace, lambda jobs: resume(jobs, "async"))
        eventually(lambda: set(history.counts("end")) == set(range(24)), 40)
        assert {n for n, times in history.counts("start").items() if times > 1} <= history.running(second.pid)


async def test_a_paused_group_is_waited_for_however_long_it_has_no_worker(app: RStream) -> None:
    retention = Retention(age=timedelta(seconds=1), group_ttl=timedelta(seconds=20))
    items = app.stream("items", Item, shards=1, retention=retention)
    await fresh(items)
    await items.publish(Item(n=1))
    layout, within = await items.layout(), 5.0
    await drive(app.link, tidy(layout, retention), within)
    weights, seen = await app.link.run(survey(layout, layout.every))
    later = max(weight.now for weight in weights) + 15_000
    assert standings(weights, seen, retention, later)[0].alarm == "soon"
    # as if that time had passed
    await app.link.run(_seen_before(layout, 15_000))
    (before,) = (await drive(app.link, tidy(layout, retention, dry=True), within)).groups
    assert before.alarm == "soon" and before.idle >= 15
    await pause(items, "g")
    (held,) = (await drive(app.link, tidy(layout, retention), within)).groups
    assert held.alarm == ""
    await resume(items, "g")
    (after,) = (await drive(app.link, tidy(layout, retention), within)).groups
    assert (after.alarm, after.idle < 5) == ("", True)


def _seen_before(layout: Layout, ms: int) -> Op[None]:
    key = keys.seen(layout.namespace, layout.name)
    return Op([("HINCRBY", key, "g", -ms)], lambda replies: None)


async def test_who_is_not_there_is_not_paused_and_a_removed_group_is_forgotten(app: RStream) -> None:
    items = app.stream("items", Item, shards=2)
    other = app.stream("others", Item, shards=2)
    await fresh(items)
    await other.layout()
    for call in (pause, resume):
        with pytest.raises(ConfigError, match="no group 'h' reads stream 'items': there are g"):
            await call(items, "h")
    with pytest.raises(ConfigError, match="rstream archive stop items"):
        await pause(items, "~archive")
    assert await streams_of(app, "g") == ["items"]
    await pause(items, "g")
    assert [*await paused(items)] == ["g"] and await paused(other) == {}
    await drive(app.link, remove(await items.layout(), "g"), 5.0)
    await fresh(items)
    assert await paused(items) == {}


async def test_on_a_cluster(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="name", shards=6)
        seen: list[int] = []

        @items.consumer("g")
        async def handle(event: Item) -> None:
            seen.append(event.n)

        async with working(app) as worker:
            await items.publish_many(Item(n=n, name=f"k{n}") for n in range(30))
            await eventually_async(lambda: len(seen) == 30)
            await pause(items, "g")
            await eventually_async(lambda: is_paused(worker))
            await items.publish_many(Item(n=n, name=f"k{n}") for n in range(30, 60))
            assert len(seen) == 30
            await resume(items, "g")
            await eventually_async(lambda: len(seen) == 60)
