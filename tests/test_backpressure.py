"""Producers and limits: refused where what is not processed is in the way, slowed before that, and let on afterwards;
each event exactly once and in the order of its key.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator

import pytest
import redis

from rstream import Delivery, Event, Retention, RStream, Stream
from rstream.errors import MemoryFull, StreamFull
from rstream.retention import slowdown
from rstream.store import layout as layouts
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.lost import losses
from rstream.store.steps import drive
from rstream.store.trim import retain, tidy
from rstream.worker import janitor
from tests.fleets import Cluster
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually_async


class Item(Event):
    key: str
    n: int
    pad: bytes = b""


@pytest.fixture
async def app(one_server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(one_server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
async def every_app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    """On every kind of server: where scripts are new."""
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def items(app: RStream, shards: int = 1, full_wait: float | None = None, **kept: object) -> Stream[Item]:
    retention = Retention(**kept) if kept else None  # type: ignore[arg-type]
    return app.stream("items", Item, key="key", shards=shards, retention=retention, full_wait=full_wait)


def some(count: int, start: int = 0, key: str = "k", pad: int = 0) -> list[Item]:
    return [Item(key=key, n=n, pad=bytes(pad)) for n in range(start, start + count)]


class Group:
    """A group whose one worker is this test."""

    def __init__(self, app: RStream, stream: Stream[Item], name: str = "billing") -> None:
        self.app, self.ops = app, GroupOps(stream.sync.layout(), name, "w")
        app.sync_link.run(self.ops.create("0"))

    def process(self, count: int) -> int:
        """Read and settle so many; how many there were."""
        found = self.app.sync_link.run(self.ops.fetch(count)).entries
        self.app.sync_link.run(self.ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in found]))
        return len(found)


async def numbers(stream: Stream[Item]) -> list[int]:
    return [entry.event.n async for entry in stream.read()]


# -- keep -----------------------------------------------------------------------------------------------------------


async def test_what_all_groups_have_processed_makes_room(every_app: RStream) -> None:
    app = every_app
    stream = items(app, entries=100)
    group = Group(app, stream)
    for start in range(0, 1000, 50):
        await stream.publish_many(some(50, start))
        group.process(50)
    assert await numbers(stream) == list(range(900, 1000)), "the last 100 are kept"


async def test_without_groups_the_newest_are_kept(app: RStream) -> None:
    stream = items(app, entries=100)
    for start in range(0, 1000, 30):
        await stream.publish_many(some(30, start))
    assert (await numbers(stream))[-100:] == list(range(920, 1020))
    assert len(await numbers(stream)) == 100


async def test_a_full_stream_names_the_group_and_takes_nothing(every_app: RStream) -> None:
    app = every_app
    stream = items(app, entries=100)
    group = Group(app, stream)
    first, *_ = await stream.publish_many(some(100))
    for publish in (stream.publish_many, stream.sync.publish_many):
        with pytest.raises(StreamFull) as told:
            done = publish(some(2, 100))
            assert asyncio.iscoroutine(done)
            await done
        assert "group 'billing'" in str(told.value).replace("Group", "group")
        assert first.redis in str(told.value) and "100 are unread" in str(told.value)
        assert "rstream streams retention items" in str(told.value)
        assert not told.value.published
    assert await numbers(stream) == list(range(100))
    group.process(2)
    await stream.publish_many(some(2, 100))
    assert await numbers(stream) == list(range(2, 102))


async def test_a_pending_entry_keeps_what_is_behind_it(every_app: RStream) -> None:
    app = every_app
    stream = items(app, entries=100)
    group = Group(app, stream)
    await stream.publish_many(some(100))
    held, *rest = app.sync_link.run(group.ops.fetch(50)).entries
    app.sync_link.run(group.ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in rest]))
    with pytest.raises(StreamFull, match="1 are pending"):
        await stream.publish(some(1)[0])
    app.sync_link.run(group.ops.settle([Outcome(held.shard, held.id, 1, "ack")]))
    await stream.publish_many(some(50, 100))
    assert await numbers(stream) == list(range(50, 150))


async def test_a_flush_larger_than_the_limit_goes_into_an_empty_shard(app: RStream) -> None:
    stream = items(app, entries=10)
    group = Group(app, stream)
    await stream.publish_many(some(100))
    with pytest.raises(StreamFull):
        await stream.publish_many(some(100, 100))
    group.process(100)
    await stream.publish_many(some(100, 100))
    assert await numbers(stream) == list(range(100, 200))


@pytest.mark.parametrize("sync", [False, True])
async def test_full_wait_waits_for_room(app: RStream, sync: bool) -> None:
    stream = items(app, entries=100, full_wait=20)
    group = Group(app, stream)
    await stream.publish_many(some(100))
    waiting = asyncio.create_task(
        asyncio.to_thread(stream.sync.publish_many, some(80, 100)) if sync else stream.publish_many(some(80, 100))
    )
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    group.process(80)
    assert len(await waiting) == 80
    assert await numbers(stream) == list(range(80, 180))


@pytest.mark.parametrize("sync", [False, True])
async def test_full_wait_ends(app: RStream, sync: bool) -> None:
    stream = items(app, entries=100, full_wait=0.4)
    Group(app, stream)
    await stream.publish_many(some(100))
    began = time.monotonic()
    with pytest.raises(StreamFull):
        if sync:
            await asyncio.to_thread(stream.sync.publish_many, some(1))
        else:
            await stream.publish_many(some(1))
    assert 0.4 <= time.monotonic() - began < 5


async def test_the_order_of_a_key_outlasts_waiting_for_room(app: RStream) -> None:
    """Hundreds of publishes of a few keys wait, while the group makes room bit by bit."""
    stream = items(app, shards=2, entries=60, full_wait=30)
    group = Group(app, stream)
    seen: list[tuple[str, int]] = []

    def consume() -> None:
        while len(seen) < 600:
            found = app.sync_link.run(group.ops.fetch(7)).entries
            app.sync_link.run(group.ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in found]))
            for each in found:
                event = stream.codec.decode(each.flat[1])
                seen.append((event.key, event.n))

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    await asyncio.gather(*(stream.publish(Item(key=f"k{n % 5}", n=n)) for n in range(600)))
    await asyncio.to_thread(thread.join, 30)
    for key in {key for key, _ in seen}:
        assert [n for k, n in seen if k == key] == [n for n in range(600) if f"k{n % 5}" == key]


async def test_other_shards_go_on_while_one_is_full(app: RStream) -> None:
    stream = items(app, shards=4, entries=40, full_wait=30)
    layout = await stream.layout()
    group = Group(app, stream)
    full = next(f"k{n}" for n in range(100) if layout.shard(f"k{n}").number == 0)
    free = next(f"k{n}" for n in range(100) if layout.shard(f"k{n}").number == 1)
    await stream.publish_many(some(10, key=full))
    waiting = [asyncio.create_task(stream.publish(Item(key=full, n=n))) for n in range(3)]
    threads = [asyncio.create_task(asyncio.to_thread(stream.sync.publish, Item(key=full, n=n))) for n in range(2)]
    await asyncio.wait(waiting, timeout=0.2)
    await asyncio.wait_for(stream.publish_many(some(5, key=free)), 5)
    await asyncio.wait_for(asyncio.to_thread(stream.sync.publish_many, some(5, key=free)), 5)
    assert not any(task.done() for task in (*waiting, *threads))
    group.process(100)
    await asyncio.gather(*waiting, *threads)


async def test_two_producers_share_a_limit(app: RStream, one_server: Server, namespace: str) -> None:
    stream = items(app, entries=200, full_wait=30)
    group = Group(app, stream)
    left = 400

    async def consume() -> None:
        nonlocal left
        while left:
            left -= await asyncio.to_thread(group.process, 20)
            shard = stream.sync.layout().current[0]
            (length,) = await app.link.exchange([("XLEN", shard.stream)])
            assert length <= 200

    async with RStream(one_server.url, namespace=namespace) as other:
        theirs = items(other, full_wait=30)
        await theirs.layout()
        publishing = [stream.publish_many(some(10, n * 10, key="a")) for n in range(20)]
        publishing += [asyncio.to_thread(theirs.sync.publish_many, some(10, n * 10, key="b")) for n in range(20)]  # type: ignore[misc]
        await asyncio.gather(consume(), *publishing)


async def test_producers_are_slowed_before_they_are_refused(app: RStream) -> None:
    """The waits between flushes follow from how full the shard is."""
    stream = items(app, entries=100)
    Group(app, stream)
    await stream.publish_many(some(75))
    for n in range(75, 80):
        await stream.publish(Item(key="k", n=n))
    began = time.monotonic()
    for n in range(80, 100):
        await stream.publish(Item(key="k", n=n))
    assert time.monotonic() - began >= sum(slowdown(10 * n, 0.8) for n in range(81, 100))
    with pytest.raises(StreamFull):
        await stream.publish(Item(key="k", n=100))


async def test_a_thread_that_is_slowed_does_not_stop_other_shards(app: RStream) -> None:
    stream = items(app, shards=4, entries=40)
    layout = await stream.layout()
    Group(app, stream)
    full = next(f"k{n}" for n in range(100) if layout.shard(f"k{n}").number == 0)
    began = time.monotonic()
    for n in range(10):
        await asyncio.to_thread(stream.sync.publish, Item(key=full, n=n))
    assert time.monotonic() - began >= slowdown(900, 0.8)


async def test_each_event_is_added_once_though_the_line_breaks_while_it_waits(
    own_server: Server, namespace: str
) -> None:
    dice = random.Random(7)
    with ChaosProxy(own_server.upstream) as proxy:
        async with RStream(proxy.url, namespace=namespace) as app:
            stream = items(app, entries=100, full_wait=30)
            await stream.layout()
            with RStream(own_server.url, namespace=namespace) as near:
                group = Group(near, items(near))
                publishing = [asyncio.create_task(stream.publish(Item(key="k", n=n))) for n in range(400)]
                seen: list[int] = []
                while len(seen) < 400:
                    found = await asyncio.to_thread(near.sync_link.run, group.ops.fetch(9))
                    outcomes = [Outcome(e.shard, e.id, 1, "ack") for e in found.entries]
                    await asyncio.to_thread(near.sync_link.run, group.ops.settle(outcomes))
                    seen += [stream.codec.decode(e.flat[1]).n for e in found.entries]
                    if found.entries and dice.random() < 0.4:
                        proxy.cut_all()
                    await asyncio.sleep(0)
                await asyncio.gather(*publishing)
            assert seen == list(range(400))


# -- drop -----------------------------------------------------------------------------------------------------------


async def test_drop_takes_everything_and_counts(every_app: RStream) -> None:
    app = every_app
    stream = items(app, entries=100, unprocessed="drop")
    group = Group(app, stream)
    await stream.publish_many(some(100))
    group.process(10)
    for start in range(100, 1000, 50):
        await stream.publish_many(some(50, start))
    kept = await numbers(stream)
    assert len(kept) <= 100 and kept[-1] == 999
    (loss,) = app.sync_link.run(losses(await stream.layout()))
    assert (loss.group, loss.count) == ("billing", 1000 - 10 - len(kept))
    (whole,) = loss.ranges  # all of it, without a gap
    assert whole.number == loss.count


async def test_who_drops_slows_nobody(app: RStream) -> None:
    stream = items(app, entries=100, unprocessed="drop")
    Group(app, stream)
    await stream.publish_many(some(90))
    for n in range(90, 150):
        await stream.publish(Item(key="k", n=n))
    assert not any(courier.outbox._hold for courier in stream._producers.get(lambda: pytest.fail("none")).couriers)


async def test_drop_by_bytes_goes_through_flushes_larger_than_its_margin(app: RStream) -> None:
    stream = items(app, bytes=400_000, unprocessed="drop")
    Group(app, stream)
    for start in range(0, 3000, 100):
        await stream.publish_many(some(100, start, pad=1000))
    assert (await numbers(stream))[-1] == 2999


# -- emitting -------------------------------------------------------------------------------------------------------


async def test_what_is_emitted_into_a_full_stream_waits_and_others_go_on(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = items(app, entries=100)
    source = app.stream("source", Item, key="key", shards=1)
    handled: list[int] = []

    @source.consumer("emits", emits=stream, lease=5)
    async def emit(event: Item) -> Item:
        return event

    @source.consumer("other", lease=5)
    async def other(event: Item) -> None:
        handled.append(event.n)

    group = Group(app, stream)
    await stream.publish_many(some(100, 1000))
    await source.publish_many(some(200))
    async with working(app):
        await eventually_async(lambda: len(handled) == 200)
        seen = 0
        while seen < 300:
            seen += await asyncio.to_thread(group.process, 20)
            await asyncio.sleep(0.01)
    assert seen == 300


async def test_what_is_emitted_into_a_full_stream_on_another_server_waits(
    app: RStream, other_server: Server, namespace: str
) -> None:
    async with RStream(other_server.url, namespace=namespace) as there:
        stream = items(there, entries=100)
        source = app.stream("source", Item, key="key", shards=1)

        @source.consumer("emits", emits=stream, lease=5)
        async def emit(event: Item) -> Item:
            return event

        group = Group(there, stream)
        await stream.publish_many(some(100, 1000))
        await source.publish_many(some(150))
        async with working(app):
            seen = 0
            while seen < 250:
                seen += await asyncio.to_thread(group.process, 20)
                await asyncio.sleep(0.01)
        assert group.process(100) == 0 and seen == 250


async def test_a_group_that_emits_to_its_own_stream_does_not_lock_itself_out(app: RStream) -> None:
    stream = items(app, entries=50)
    last: list[int] = []

    @stream.consumer("loop", emits=stream, lease=5)
    async def again(event: Item, delivery: Delivery) -> Item | None:
        if event.n >= 500:
            last.append(event.n)
            return None
        return Item(key=event.key, n=event.n + 100)

    await stream.layout()
    Group(app, stream, "loop")
    await stream.publish_many(some(50))
    async with working(app):
        await eventually_async(lambda: len(last) == 50, 20)


# -- the janitor ----------------------------------------------------------------------------------------------------


async def test_a_worker_trims_by_age_though_nobody_publishes(app: RStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "INTERVAL", 0.05)
    stream = items(app, shards=2, age="0.3s")

    @stream.consumer("g", lease=5)
    async def handle(event: Item) -> None: ...

    await stream.publish_many(some(50))
    async with working(app):

        async def gone() -> bool:
            return await numbers(stream) == []

        await eventually_async(gone)


async def test_of_a_stream_one_janitor_looks_at_a_time(app: RStream, one_server: Server, namespace: str) -> None:
    stream = items(app, entries=10)
    await stream.layout()
    async with RStream(one_server.url, namespace=namespace) as other:
        items(other)
        one, two = janitor.Janitor(app, "one"), janitor.Janitor(other, "two")
        await one.look()
        await two.look()
        with redis.Redis.from_url(one_server.url) as raw:
            assert raw.get(f"{namespace}:janitor:items") == b"one"
            raw.delete(f"{namespace}:janitor:items")
            await two.look()
            await one.look()
            assert raw.get(f"{namespace}:janitor:items") == b"two"


async def test_a_group_without_workers_is_told_of_and_then_not_waited_for(
    app: RStream, one_server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = items(app, entries=20, group_ttl="1h")
    Group(app, stream, "gone")
    await stream.publish_many(some(20))
    looks = janitor.Janitor(app, "w")
    hour = 3600 * 1000
    with redis.Redis.from_url(one_server.url) as raw:

        async def look(idle: float) -> list[str]:
            caplog.clear()
            now = int(raw.time()[0] * 1000)
            raw.hset(f"{namespace}:seen:items", mapping={"gone": int(now - idle * hour), "/": now})
            await looks.look()
            return [record.levelname for record in caplog.records if record.name == "rstream"]

        await looks.look()  # it is seen for the first time
        assert await look(0.4) == []
        assert await look(0.6) == ["WARNING"]
        assert await look(0.7) == [], "once is enough"
        with pytest.raises(StreamFull):
            await stream.publish_many(some(5, 20))
        assert await look(1.1) == ["ERROR"]
        await stream.publish_many(some(5, 20))
    assert (await numbers(stream))[-5:] == [20, 21, 22, 23, 24]
    (loss,) = app.sync_link.run(losses(await stream.layout()))
    assert (loss.group, loss.count) == ("gone", 25 - len(await numbers(stream)))


async def test_time_in_which_nobody_looked_does_not_count(app: RStream, one_server: Server, namespace: str) -> None:
    """Everything stood still over the holidays: nobody could have seen an alarm, or a worker."""
    stream = items(app, entries=20, group_ttl="1h")
    Group(app, stream)
    await stream.publish_many(some(20))
    looks = janitor.Janitor(app, "w")
    await looks.look()
    with redis.Redis.from_url(one_server.url) as raw:
        key = f"{namespace}:seen:items"
        for field in ("billing", "/"):
            raw.hincrby(key, field, -10 * 3600 * 1000)
        await looks.look()
        assert raw.time()[0] * 1000 - int(raw.hget(key, "billing") or 0) < 60_000
    with pytest.raises(StreamFull):
        await stream.publish_many(some(5, 20))


async def test_a_group_with_a_living_worker_is_waited_for_however_slow_it_is(
    app: RStream, one_server: Server, namespace: str
) -> None:
    stream = items(app, entries=20, group_ttl="1s")
    group = Group(app, stream)
    app.sync_link.run(group.ops.beat(60_000))
    await stream.publish_many(some(20))
    with redis.Redis.from_url(one_server.url) as raw:
        raw.hset(f"{namespace}:seen:items", "billing", 1)
        await janitor.Janitor(app, "w").look()
        assert int(raw.hget(f"{namespace}:seen:items", "billing") or 0) > 1
    with pytest.raises(StreamFull):
        await stream.publish_many(some(5, 20))


async def test_the_archive_is_always_waited_for(app: RStream, one_server: Server, namespace: str) -> None:
    stream = items(app, entries=20, group_ttl="1s", unprocessed="drop")
    Group(app, stream, "~archive")
    await stream.publish_many(some(20))
    with redis.Redis.from_url(one_server.url) as raw:
        raw.hset(f"{namespace}:seen:items", "~archive", 1)
    with pytest.raises(StreamFull, match=r"not archived yet.*`rstream archive run items`"):
        await stream.publish_many(some(5, 20))


# -- declaring ------------------------------------------------------------------------------------------------------


async def test_the_retention_that_is_stored_wins(
    app: RStream, one_server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    await items(app, entries=10).layout()
    async with (
        RStream(one_server.url, namespace=namespace) as same,
        RStream(one_server.url, namespace=namespace) as none,
    ):
        assert (await items(same, entries=10).layout()).retention == Retention(entries=10)
        assert (await items(none).layout()).retention == Retention(entries=10)
        assert caplog.messages == []
    async with RStream(one_server.url, namespace=namespace) as different:
        assert (await items(different, bytes="1GB").layout()).retention == Retention(entries=10)
        assert any("the declared one is ignored" in text for text in caplog.messages)


async def test_a_producer_meets_limits_that_are_new(app: RStream) -> None:
    stream = items(app)
    Group(app, stream)
    await stream.publish_many(some(50))
    await asyncio.to_thread(stream.sync.publish_many, some(10, 50))
    await drive(app.link, retain(await stream.layout(), Retention(entries=100)), 5)
    await stream.publish_many(some(20, 60))
    await asyncio.to_thread(stream.sync.publish_many, some(20, 80))
    for publish in (stream.publish_many(some(1)), asyncio.to_thread(stream.sync.publish_many, some(1))):
        with pytest.raises(StreamFull):
            await publish
    assert await numbers(stream) == list(range(100))


async def test_a_producer_that_knows_an_old_retention_goes_by_the_new_one(app: RStream) -> None:
    stream = items(app, entries=50, unprocessed="drop")
    Group(app, stream)
    await stream.publish_many(some(50))
    await drive(app.link, retain(await stream.layout(), Retention(entries=100)), 5)
    await stream.publish_many(some(50, 50))
    for _ in range(2):
        with pytest.raises(StreamFull):
            await stream.publish_many(some(10, 100))
    assert await numbers(stream) == list(range(100))
    assert await app.link.run(losses(await stream.layout())) == []


async def test_what_was_there_before_is_counted(every_app: RStream) -> None:
    app = every_app
    """A retention by bytes for a stream that has entries already."""
    stream = items(app, shards=2)
    await stream.publish_many([Item(key=f"k{n}", n=n, pad=bytes(1000)) for n in range(2000)])
    layout = await stream.layout()
    kept = Retention(bytes="1MB")
    await drive(app.link, retain(layout, kept), 5)
    fresh = await app.link.run(layouts.load(layout.namespace, "items"))
    assert fresh is not None and fresh.retention == kept
    await drive(app.link, tidy(fresh, kept), 5)
    left = len(await numbers(stream))
    assert 600 <= left <= 950, "1 MB of entries of 1 KB"
    await drive(app.link, retain(layout, None), 5)
    await stream.publish_many([Item(key=f"k{n}", n=n, pad=bytes(1000)) for n in range(2000)])
    assert len(await numbers(stream)) == left + 2000


# -- reshardings and fleets -----------------------------------------------------------------------------------------


async def test_a_stream_is_resharded_while_it_is_full(app: RStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "INTERVAL", 0.1)
    stream = items(app, shards=2, entries=200, full_wait=30)
    seen: dict[str, list[int]] = {}

    @stream.consumer("g", lease=5)
    async def handle(event: Item) -> None:
        seen.setdefault(event.key, []).append(event.n)

    Group(app, stream, "g")
    await stream.publish_many([Item(key=f"k{n % 9}", n=n) for n in range(150)])
    publishing = [asyncio.create_task(stream.publish(Item(key=f"k{n % 9}", n=n))) for n in range(150, 1500)]
    couriers = stream._producers.get(lambda: pytest.fail("none")).couriers
    await eventually_async(lambda: all(courier.outbox._hold for courier in couriers))  # both shards are full
    await stream.reshard(4)
    async with working(app):
        await asyncio.gather(*publishing)
        await eventually_async(lambda: sum(map(len, seen.values())) >= 1500)

        async def retired() -> bool:
            return not (await stream.layout(fresh=True)).older

        await stream.publish_many([Item(key=f"z{n}", n=n) for n in range(400)])
        await eventually_async(retired, 15)

        async def trimmed() -> bool:
            return len(await numbers(stream)) <= 200

        await eventually_async(trimmed)
    for key in (f"k{n}" for n in range(9)):
        assert seen[key] == [n for n in range(1500) if f"k{n % 9}" == key]


async def test_a_cluster(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        stream = items(app, shards=6, entries=600, unprocessed="drop")
        Group(app, stream)
        for start in range(0, 6000, 500):
            await stream.publish_many([Item(key=f"k{n}", n=n) for n in range(start, start + 500)])
        kept = await numbers(stream)
        assert len(kept) <= 600
        assert sum(loss.count for loss in app.sync_link.run(losses(await stream.layout()))) == 6000 - len(kept)
        await janitor.Janitor(app, "w").look()
        other = app.stream("full", Item, key="key", shards=6, retention=Retention(entries=60))
        Group(app, other)
        with pytest.raises(StreamFull):
            for start in range(0, 200, 5):
                await other.publish_many([Item(key=f"k{n}", n=n) for n in range(start, start + 5)])
        other.consumer("billing", lease=5)(_nothing)
        await drain(app)


async def _nothing(event: Item) -> None: ...


# -- memory is full -------------------------------------------------------------------------------------------------


async def test_where_redis_is_full_producers_learn_it_at_once_and_draining_goes_on(
    own_server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        stream = items(app, shards=2, age="0.1s")
        handled: list[int] = []

        @stream.consumer("g", lease=5)
        async def handle(event: Item) -> None:
            handled.append(event.n)

        Group(app, stream, "g")
        with redis.Redis.from_url(own_server.url) as raw:
            raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 3_000_000)
            published = 0
            with pytest.raises(MemoryFull) as told:
                while published < 10_000:
                    await stream.publish_many(some(100, published, pad=1000))
                    published += 100
            assert "maxmemory" in str(told.value)
            # What the last, large request took is free again: without this, smaller ones may find room there.
            raw.config_set("maxmemory", raw.info("memory")["used_memory"] - 1_000_000)
            for publish in (stream.publish, lambda event: asyncio.to_thread(stream.sync.publish, event)):
                times = []
                for _ in range(3):
                    began = time.monotonic()
                    with pytest.raises(MemoryFull):
                        await publish(some(1, pad=100_000)[0])
                    times.append(time.monotonic() - began)
                assert min(times) <= 1, times
            caplog.set_level(logging.ERROR, "rstream")
            async with working(app):
                await eventually_async(lambda: len(set(handled)) == published, 20)
                assert sorted(set(handled)) == list(range(published))

                async def goes_on() -> bool:  # the janitor has trimmed what is processed
                    try:
                        await stream.publish(some(1, 10_000)[0])
                    except MemoryFull:
                        return False
                    return True

                await eventually_async(goes_on, 20)
