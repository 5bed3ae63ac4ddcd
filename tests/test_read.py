"""Reading real shards while they are written: nothing skipped, repeated or out of order, and no more than asked for."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
import redis

from rstream import EntryId, Event, RStream
from tests.servers import Server


class Item(Event):
    n: int
    pad: bytes = b""


def test_who_goes_on_after_the_last_id_misses_nothing(app: RStream) -> None:
    items = app.stream("items", Item, shards=16)
    items.sync.layout()

    def publish(first: int) -> None:
        for n in range(first, first + 500):
            items.sync.publish(Item(n=n))

    threads = [threading.Thread(target=publish, args=(first,)) for first in (0, 500, 1000, 1500)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    at: EntryId | None = None
    running = True
    while running:
        running = any(thread.is_alive() for thread in threads)
        for entry in items.sync.read(at and at._replace(shard=at.shard + 1)):
            assert at is None or entry.id > at
            seen.append(entry.event.n)
            at = entry.id
    assert sorted(seen) == list(range(2000))


def test_a_reader_sees_what_it_just_published(app: RStream) -> None:
    items = app.stream("items", Item, shards=4)
    for n in range(50):
        id = items.sync.publish(Item(n=n))
        assert [entry.id for entry in items.sync.read(id)] == [id]


def test_ids_that_run_ahead_of_redis_clock_are_read_all_the_same(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=2)
    items.sync.publish(Item(n=0))
    payload = next(iter(items.sync.read())).payload
    ahead = raw.time()[0] * 1000 + 3_600_000  # the clock was set back by an hour
    for keys in items.sync.layout().current:
        raw.xadd(keys.stream, {"e": payload, "i": bytes(16)}, id=f"{ahead}-0")
    items.sync.publish(Item(n=1))
    assert len(list(items.sync.read())) == 4


def test_large_entries_are_read_in_small_pages(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=4)
    items.sync.publish_many(Item(n=n, pad=bytes(500_000)) for n in range(120))
    before = raw.info("stats")["total_net_output_bytes"]
    assert len(list(items.sync.read(limit=1))) == 1
    assert raw.info("stats")["total_net_output_bytes"] - before < 5_000_000  # one a shard to choose from, and ends
    assert [entry.event.n for entry in items.sync.read()].__len__() == 120


@pytest.mark.parametrize("limit", [0, 1, 7, 600, 5000])
def test_limit(app: RStream, limit: int) -> None:
    items = app.stream("items", Item, shards=3)
    ids = sorted(items.sync.publish_many(Item(n=n) for n in range(2000)))
    assert [entry.id for entry in items.sync.read(limit=limit)] == ids[:limit]


async def test_windows(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        items = app.stream("items", Item, shards=3)
        ids = sorted(await items.publish_many(Item(n=n) for n in range(100)))
        assert [entry.id async for entry in items.read(ids[10], ids[20])] == ids[10:21]
        assert [entry.id async for entry in items.read(str(ids[10]), str(ids[20]))] == ids[10:21]
        assert [entry.id async for entry in items.read(ids[20], ids[10])] == []
        assert [entry.id async for entry in items.read("1h ago", "now")] == ids
        assert [entry.id async for entry in items.read(None, datetime(2020, 1, 1, tzinfo=UTC))] == []
