"""What happens to waiting publishes and to limits when somebody gives up, or dies, or changes their mind half-way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future

import pytest

from rstream import Event, Retention, RStream, Stream
from rstream.errors import StoreError, StreamFull
from rstream.event import EntryId
from rstream.process import clock
from rstream.retention import Limits
from rstream.store import layout as layouts
from rstream.store import reshard
from rstream.store.deliveries import GroupOps
from rstream.store.layout import Layout
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel
from rstream.store.steps import Steps, drive
from rstream.store.trim import retain, tidy
from rstream.store.weigh import Losers, trim
from rstream.worker.janitor import Janitor
from tests.servers import Server
from tests.waiting import eventually, eventually_async


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
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def full(app: RStream, full_wait: float) -> Stream[Item]:
    """One shard of 100 entries that a group has yet to read."""
    kept = Retention(entries=100)
    stream = app.stream("items", Item, key="key", shards=1, retention=kept, full_wait=full_wait)
    await app.link.run(GroupOps(await stream.layout(), "billing", "w").create("0"))
    await stream.publish_many([Item(key="k", n=n) for n in range(100)])
    return stream


async def numbers(stream: Stream[Item]) -> list[int]:
    return [entry.event.n async for entry in stream.read()]


async def stored(app: RStream) -> Layout:
    layout = await app.link.run(layouts.load(app.settings.namespace, "items"))
    assert layout is not None
    return layout


def test_what_was_cancelled_while_it_was_held_back_is_left_out(namespace: str) -> None:
    """Between the answer that the shard is full and the next try."""
    layout = Layout(namespace, "items", generation=1, shards=1, key="key", version=1)
    shard = layout.current[0]
    record = (b"payload", b"k", b"", b"")
    futures: list[Future[list[EntryId]]] = [Future(), Future()]
    gave_up, waits = (Parcel(shard, record, future, 7, clock() + 60) for future in futures)
    outbox = Outbox(layout)
    outbox.add([gave_up])
    for _ in range(2):  # the second time it is held back for a while
        op = outbox.take()
        assert op is not None
        op.parse([StreamFull("full")])
        outbox.resend({})
    futures[0].cancel()
    outbox.add([waits])
    eventually(lambda: outbox.pause() == 0)
    op = outbox.take()
    assert op is not None and len(op.calls) == 1
    op.parse([b"5-0"])
    assert waits.promise.done() and outbox.take() is None


# -- publishes that wait --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
async def test_each_waits_its_own_time(app: RStream, sync: bool) -> None:
    """Though those that wait are sent together, and some of them have waited for long."""
    wait = 0.8
    stream = await full(app, wait)

    async def waited(n: int) -> float:
        began = time.monotonic()
        with pytest.raises(StreamFull):
            if sync:
                await asyncio.to_thread(stream.sync.publish, Item(key="k", n=n))
            else:
                await stream.publish(Item(key="k", n=n))
        return time.monotonic() - began

    tasks = []
    for n in range(8):  # over more than the time that the first of them wait
        tasks.append(asyncio.create_task(waited(n)))
        await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.ALL_COMPLETED)
    times = await asyncio.gather(*tasks)
    assert min(times) >= wait
    assert max(times) < wait + 5


async def test_a_publish_that_was_cancelled_while_it_waited_is_not_added(app: RStream) -> None:
    """A caller that gave up, and tries again, would have it many times when there is room."""
    stream = await full(app, 30)
    for _ in range(5):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stream.publish(Item(key="k", n=100)), 0.2)
    last = asyncio.create_task(stream.publish(Item(key="k", n=101)))
    await asyncio.wait([last], timeout=0.1)
    await app.link.exchange([("XGROUP", "DESTROY", (await stream.layout()).current[0].stream, "billing")])
    assert isinstance(await last, EntryId)
    assert await numbers(stream) == [*range(1, 100), 101]


@pytest.mark.parametrize("sync", [False, True])
async def test_who_waits_for_room_does_not_keep_others_from_following_a_resharding(app: RStream, sync: bool) -> None:
    """A shard is full, another has been sealed by a resharding, and who did that took its time."""
    stream = app.stream("items", Item, key="key", shards=2, retention=Retention(entries=20), full_wait=30)
    layout = await stream.layout()
    await app.link.run(GroupOps(layout, "billing", "w").create("0"))
    full, sealed = (next(f"k{n}" for n in range(99) if layout.shard(f"k{n}") == each) for each in layout.current)
    await stream.publish_many([Item(key=full, n=n) for n in range(10)])

    def publish(key: str, n: int) -> asyncio.Task[EntryId]:
        event = Item(key=key, n=n)
        return asyncio.create_task(asyncio.to_thread(stream.sync.publish, event) if sync else stream.publish(event))

    waiting = [publish(full, 10)]
    await asyncio.wait(waiting, timeout=0.2)
    await app.link.run(reshard._seal([layout.current[1]], 2))
    before = await commands_of(app)
    waiting += [publish(sealed, 11), publish(full, 12)]
    await asyncio.wait(waiting, timeout=1)
    assert await commands_of(app) - before < 500, "nobody asks all the time"
    await drive(app.link, reshard.reshard(app.settings.namespace, "items", 4), 5)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert [n for n in await numbers(stream) if n != 11] == [*range(10), 10, 12]


async def commands_of(app: RStream) -> int:
    (told,) = await app.link.exchange([("INFO", "stats")])
    return int(dict(line.split(":") for line in told.decode().splitlines() if ":" in line)["total_commands_processed"])


# -- limits ---------------------------------------------------------------------------------------------------------


async def part_of(app: RStream, steps: Steps[object], calls: int) -> None:
    """So many calls of a procedure; then whoever was at it was killed."""
    op = next(steps)
    for _ in range(calls):
        op = steps.send(await app.link.run(op))
    steps.close()


@pytest.mark.parametrize("calls", range(1, 7))
async def test_what_was_there_is_counted_though_who_counted_it_was_killed(every_app: RStream, calls: int) -> None:
    app = every_app
    stream = app.stream("items", Item, key="key", shards=1)
    await stream.publish_many([Item(key="k", n=n, pad=bytes(1000)) for n in range(4000)])
    kept = Retention(bytes="1MB")
    await part_of(app, retain(await stream.layout(), kept), calls)
    await drive(app.link, tidy(await stored(app), kept), 5)
    assert 600 <= len(await numbers(stream)) <= 950


@pytest.mark.parametrize("calls", range(1, 5))
async def test_who_brings_limits_up_to_date_does_not_bring_back_those_that_were_taken_away(
    every_app: RStream, calls: int
) -> None:
    app = every_app
    old = Retention(entries=100)
    stream = app.stream("items", Item, key="key", shards=2)
    await stream.publish_many([Item(key=f"k{n}", n=n) for n in range(50)])
    await app.link.run(layouts.retain(app.settings.namespace, "items", old))
    layout = await stored(app)
    looking = tidy(layout, old)
    op = next(looking)
    with contextlib.suppress(StopIteration):
        for n in range(100):
            if n == calls:
                await drive(app.link, retain(layout, None), 5)
            op = looking.send(await app.link.run(op))
    await stream.publish_many([Item(key=f"k{n}", n=n) for n in range(950)])
    assert len(await numbers(stream)) == 1000


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("lost", ["everything", "a shard"])
async def test_limits_are_back_when_redis_has_lost_them(
    own_server: Server, namespace: str, sync: bool, lost: str
) -> None:
    """Also where no worker looks after them."""
    async with RStream(own_server.url, namespace=namespace) as app:
        stream = app.stream("items", Item, key="key", shards=1, retention=Retention(entries=100))
        await stream.publish(Item(key="k", n=-1))
        shard = (await stream.layout()).current[0]
        calls = [("FLUSHALL",)] if lost == "everything" else [("DEL", shard.stream, shard.size, shard.marks)]
        await app.link.exchange(calls)
        for start in range(0, 500, 50):
            batch = [Item(key="k", n=n) for n in range(start, start + 50)]
            await (asyncio.to_thread(stream.sync.publish_many, batch) if sync else stream.publish_many(batch))
        assert await numbers(stream) == list(range(400, 500))


async def test_a_stream_that_cannot_be_looked_at_does_not_keep_the_others_from_it(app: RStream) -> None:
    streams = [app.stream(name, Item, key="key", shards=1, retention=Retention(age="0.001s")) for name in ("a", "b")]
    for stream in streams:
        await stream.publish_many([Item(key="k", n=n) for n in range(10)])
    shard = (await streams[0].layout()).current[0]
    await app.link.exchange([("DEL", shard.stream), ("SET", shard.stream, "what is this?")])

    async def looked_at() -> bool:
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await Janitor(app, "w").look()
        return await numbers(streams[1]) == []

    await eventually_async(looked_at)  # they have to be a millisecond old


# -- large entries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [Retention(bytes="64MB"), Retention(entries=20)])
async def test_a_huge_event_gets_all_the_room_that_it_needs(
    own_server: Server, namespace: str, kept: Retention
) -> None:
    """What is processed goes for it, however much."""
    async with RStream(own_server.url, namespace=namespace, max_event_bytes=64 * 1024 * 1024) as app:
        stream = app.stream("items", Item, key="key", shards=1, retention=kept)
        for n in range(15):
            await stream.publish(Item(key="k", n=n, pad=bytes(4_000_000)))
        await stream.publish(Item(key="k", n=15, pad=bytes(40_000_000)))
        assert (await numbers(stream))[-1] == 15


async def test_many_small_events_get_the_room_of_large_ones(own_server: Server, namespace: str) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        stream = app.stream("items", Item, key="key", shards=1, retention=Retention(entries=100))
        for n in range(100):
            await stream.publish(Item(key="k", n=n, pad=bytes(500_000)))
        await stream.publish_many([Item(key="k", n=n) for n in range(100, 195)])
        assert (await numbers(stream))[-95:] == list(range(100, 195))


async def test_one_call_goes_through_few_bytes(own_server: Server, namespace: str) -> None:
    """It copies what it counts, and the server stands still meanwhile."""
    async with RStream(own_server.url, namespace=namespace) as app:
        stream = app.stream("items", Item, key="key", shards=1)
        for _ in range(8):
            await stream.publish_many([Item(key="k", n=n, pad=bytes(30_000)) for n in range(250)])
        layout, kept = await stream.layout(), Limits(10, None)
        part = await app.link.run(trim(layout.current[0], "", kept, Losers([], {}), dry=False))
        assert part.more
        assert 100 <= part.removed <= 400, "about 8 MB"
        while part.more:
            part = await app.link.run(trim(layout.current[0], "", kept, Losers([], {}), dry=False))
        assert len(await numbers(stream)) == 10
