"""Publishing more than goes out at once: what is sent first is on its way while the rest is made ready."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from rstream import Event, RStream, Stream
from rstream.errors import EventInvalid, MemoryFull
from tests.proxy import ChaosProxy
from tests.servers import Server

MANY = 3_000


class Seen(Event):
    device: str
    n: int
    text: str = ""


class Note(Event):
    n: int


def declare(app: RStream, shards: int = 2) -> Stream[Seen]:
    return app.stream("seen", Seen, key="device", shards=shards)


def some(count: int = MANY, start: int = 0, keys: int = 7, text: str = "") -> list[Seen]:
    return [Seen(device=f"d{n % keys}", n=n, text=text) for n in range(start, start + count)]


async def publish(stream: Stream[Any], events: Any, face: str) -> list[Any]:
    return stream.sync.publish_many(events) if face == "sync" else await stream.publish_many(events)


faces = pytest.mark.parametrize("face", ["sync", "async"])


@faces
async def test_ids_are_in_the_order_of_the_events(app: RStream, face: str) -> None:
    seen = declare(app)
    ids = await publish(seen, iter(some()), face)
    found = {entry.id: entry.event.n for entry in seen.sync.read()}
    assert found == {id: n for n, id in enumerate(ids)} and len(ids) == MANY
    for key in range(7):
        assert ids[key::7] == sorted(ids[key::7])


@faces
async def test_without_keys_all_shards_get_as_much(app: RStream, face: str) -> None:
    notes = app.stream("notes", Note, shards=3)
    ids = await publish(notes, (Note(n=n) for n in range(3_000)), face)
    assert sorted([id.shard for id in ids].count(shard) for shard in range(3)) == [1000, 1000, 1000]
    assert await publish(notes, [], face) == []


@faces
@pytest.mark.parametrize("bad", [{"device": "a"}, {"device": "", "n": 1}, {"device": "a", "n": 2**70}])
async def test_all_are_checked_before_any_is_sent(app: RStream, face: str, bad: dict[str, Any]) -> None:
    seen = declare(app)
    with pytest.raises(Exception, match=r"n: Field required|no 'device'|cannot be encoded"):
        await publish(seen, [*some(), bad], face)
    with pytest.raises(EventInvalid):
        await publish(seen, [*some(), Seen.model_construct(device="a", n="text")], face)
    assert [*seen.sync.read()] == []


async def test_who_comes_first_is_first(app: RStream) -> None:
    seen = declare(app)
    await asyncio.gather(
        seen.publish_many(some(MANY, 0, keys=1)),
        seen.publish(Seen(device="d0", n=MANY)),
        seen.publish_many(some(MANY, MANY + 1, keys=1)),
        *(seen.publish(Seen(device="d0", n=n)) for n in range(2 * MANY + 1, 2 * MANY + 50)),
    )
    assert [entry.event.n async for entry in seen.read(key="d0")] == list(range(2 * MANY + 50))


async def test_one_that_is_cancelled_is_added_from_its_beginning(app: RStream) -> None:
    seen = declare(app)
    await seen.layout()
    known = 0
    for turns in range(8):
        task = asyncio.create_task(seen.publish_many(some(MANY, known, keys=1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await seen.publish(Seen(device="d0", n=-1))
        found = [entry.event.n async for entry in seen.read(key="d0") if entry.event.n >= 0]
        assert found == list(range(len(found)))
        known = len(found)


@pytest.fixture
def proxy(server: Server) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.upstream) as proxy:
        yield proxy


@faces
async def test_each_is_added_once_through_broken_lines(proxy: ChaosProxy, namespace: str, face: str) -> None:
    proxy.cut_after_request(10, random.Random(11), mean_bytes=60_000)
    async with RStream(proxy.url, namespace=namespace) as app:
        seen = declare(app)
        ids = await publish(seen, some(8 * MANY), face)
        proxy.cut_after_request(0, random.Random(0), mean_bytes=1)
        found = {entry.id: entry.event.n for entry in seen.sync.read()}
    assert proxy.cuts >= 5
    assert found == {id: n for n, id in enumerate(ids)}


@faces
async def test_nothing_is_left_out_where_the_server_is_away_at_first(
    own_server: Server, namespace: str, face: str
) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        seen = declare(app)
        await publish(seen, some(1), face)
        own_server.stop()
        back = threading.Timer(0.3, own_server.start)
        back.start()
        await publish(seen, some(MANY, 1), face)
        back.join()
        assert sorted(entry.event.n for entry in seen.sync.read()) == list(range(MANY + 1))


@faces
async def test_who_fails_on_the_way_learns_what_was_added(own_server: Server, namespace: str, face: str) -> None:
    with redis.Redis.from_url(own_server.url) as raw:
        async with RStream(own_server.url, namespace=namespace) as app:
            seen = declare(app)
            await publish(seen, some(1), face)
            raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 8_000_000)
            with pytest.raises(MemoryFull) as caught:
                await publish(seen, some(10 * MANY, 1, text="x" * 1000), face)
            raw.config_set("maxmemory", 0)
            found = {entry.id for entry in seen.sync.read() if entry.event.n}
            assert found == set(caught.value.published) and found
            await publish(seen, some(1, 10 * MANY + 1), face)
