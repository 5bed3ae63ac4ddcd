"""Retention, archive and replay together: what the janitor trims was archived, and every way of replay knows of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rstream import Delivery, EntryId, Event, Retention, RStream
from rstream.errors import ArchiveDamaged
from rstream.replay import Fork, Giving, Replay, replay
from rstream.store.link import Op
from rstream.worker.worker import Worker
from tests.archives import Bits, Log, Reading
from tests.servers import Server


@pytest.fixture
async def half(tmp_path: Path, one_server: Server, namespace: str) -> AsyncIterator[Log]:
    """600 entries: the first 500 archived, and most of these trimmed; a group has settled all."""
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        log = await asyncio.to_thread(made, app)

        @log.stream.consumer("live")
        async def live(event: Reading) -> None: ...

        await Worker(app, burst=True).serve(signals=False)
        yield log


def made(app: RStream) -> Log:
    log = Log(app)
    log.publish(500)
    log.archive()
    log.trim(0.8)
    log.publish(100)
    return log


async def test_batches_of_what_is_archived_and_what_is_not(half: Log) -> None:
    keys: dict[str, list[int]] = defaultdict(list)

    async def handle(events: list[Reading]) -> None:
        for event in events:
            keys[event.device].append(event.n)

    plan = await Replay(half.stream, handle, None, None, batch=64).plan()
    assert (plan.entries, plan.archived) == (600, 600 - half.in_redis())
    result = await replay(half.stream, handle, None, None, batch=64)
    assert result.finished and result.handled == 600
    assert {key: sorted(n) for key, n in keys.items()} == keys
    assert sum(map(len, keys.values())) == 600


async def test_the_archive_alone_has_all_of_a_window(half: Log) -> None:
    """Redis has nothing in it."""
    last = half.ids[99]
    seen: list[EntryId] = []

    async def handle(event: Reading, delivery: Delivery) -> None:
        seen.append(delivery.id)

    result = await replay(half.stream, handle, half.ids[0], last, concurrency=1)
    assert result.finished and seen == half.ids[:100]
    seen.clear()
    one = half.stream.sync.read(None, last)
    key, n = next((entry.key, entry.event.n) for entry in one)  # shards are published to in any order
    result = await replay(half.stream, handle, None, last, key=key, where=[f"n={n}"], concurrency=1)
    assert (result.handled, result.skipped) == (1, len(half.read(None, last, key=key)) - 1)


async def test_what_redis_has_no_more_cannot_be_given_to_a_group(half: Log) -> None:
    plan = await Giving(half.stream, "live", None, None).plan()
    gone = 600 - half.in_redis()
    assert (plan.entries, plan.archived, plan.gone, plan.given) == (600, gone, gone, 600 - gone)
    result = await Giving(half.stream, "live", None, None).run()
    assert (result.gone, result.given) == (gone, 600 - gone)
    plan = await Fork(half.stream, "shadow", "earliest").plan()
    assert plan.left + plan.gone == 600 and plan.gone == gone


async def test_a_replay_ends_where_the_archive_is_damaged_and_goes_on_once_it_is_whole(
    half: Log, tmp_path: Path
) -> None:
    bits, seen = Bits(tmp_path / "blobs"), list[EntryId]()
    key = bits.keys(".segment")[1]
    whole = bits.get(key)
    middle = len(whole) // 2
    bits.put(key, whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])

    async def handle(event: Reading, delivery: Delivery) -> None:
        seen.append(delivery.id)

    with pytest.raises(ArchiveDamaged, match=key.rpartition("/")[2]):
        await replay(half.stream, handle, None, None, concurrency=1)
    bits.put(key, whole)
    result = await replay(half.stream, handle, None, None, concurrency=1)
    assert result.finished and seen == half.ids


class Tick(Event):
    device: str
    n: int
    pad: bytes = bytes(200)


async def test_a_stream_of_little_memory_is_read_from_its_beginning(
    tmp_path: Path, one_server: Server, namespace: str
) -> None:
    """Four times of what may be kept goes through a worker, which archives and trims; all of it is replayed."""
    blobs = f"file://{tmp_path / 'blobs'}"
    async with RStream(one_server.url, namespace=namespace, blobs=blobs, full_wait=30.0) as app:
        ticks = app.stream(
            "ticks", Tick, key="device", shards=2, archive=0.05, retention=Retention(entries=500, unprocessed="keep")
        )
        seen: list[EntryId] = []

        @ticks.consumer("live")
        async def live(event: Tick) -> None: ...

        async def handle(event: Tick, delivery: Delivery) -> None:
            seen.append(delivery.id)

        worker = Worker(app)
        serving = asyncio.create_task(worker.serve(signals=False))
        ids = list[EntryId]()
        for first in range(0, 2000, 100):
            ids += await ticks.publish_many([Tick(device=f"d{n % 9}", n=n) for n in range(first, first + 100)])
        lengths = Op([("XLEN", shard.stream) for shard in (await ticks.layout()).every], sum)
        assert await app.link.run(lengths) <= 500
        result = await replay(ticks, handle, None, None, concurrency=1)
        worker.stop()
        await serving
        assert result.handled == 2000 and seen == sorted(ids)
        assert [entry.id async for entry in ticks.read()] == sorted(ids)
        by_key = [entry.event.n async for entry in ticks.read(key="d4")]
        assert by_key == list(range(4, 2000, 9))
