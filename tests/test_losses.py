"""Silence is never the outcome of a loss: each way in which something is lost, refused or given up is done here, and
has to write a line that names it. docs/logs.md lists them.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Event, Reject, Retention, RetryPolicy, RStream
from rstream.errors import StreamFull
from rstream.logs import JsonFormatter
from rstream.process import clock
from rstream.store import room
from rstream.store.steps import drive
from rstream.store.trim import tidy
from rstream.worker.worker import Worker
from tests.orders import member
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually_async

ONCE = RetryPolicy(max_attempts=1)
SECRET = "s3cr3t"


class Item(Event):
    n: int
    name: str = SECRET


class Told:
    """The JSON lines that were logged."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(JsonFormatter())

    def lines(self, part: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self._stream.getvalue().splitlines()) if part in line["message"]]

    def one(self, part: str) -> dict[str, Any]:
        (line,) = self.lines(part)
        assert SECRET not in self._stream.getvalue()
        return line


@pytest.fixture
def told() -> Iterator[Told]:
    told, root = Told(), logging.getLogger()
    before = root.level
    root.addHandler(told.handler)
    root.setLevel(logging.INFO)
    yield told
    root.removeHandler(told.handler)
    root.setLevel(before)


@pytest.fixture
async def app(one_server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(one_server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
def raw(one_server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(one_server.url) as client:
        yield client


def says(line: dict[str, Any], level: str, **fields: object) -> None:
    assert line["level"] == level and line["stream"] == "items", line
    assert {name: line.get(name) for name in fields} == fields, line


async def test_a_delivery_that_failed_for_the_last_time_or_was_rejected(app: RStream, told: Told) -> None:
    items = app.stream("items", Item, key="name", shards=1)

    @items.consumer("g", retry=ONCE)
    async def handle(item: Item) -> None:
        raise Reject("no") if item.n else ValueError("oh")

    ids = [str(await items.publish(Item(n=n))) for n in range(2)]
    worker = await drain(app)
    for id, part, level in [(ids[0], "failed attempt 1, the last", "ERROR"), (ids[1], "rejected on", "WARNING")]:
        says(told.one(part), level, group="g", entry=id, attempt=1, worker=worker.id)
        assert told.one(part)["duration_ms"] >= 0 and len(told.one(part)["key_hash"]) == 16


async def test_what_a_retry_waits_for(app: RStream, told: Told) -> None:
    items = app.stream("items", Item, shards=1)

    @items.consumer("g", batch=10, retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
    async def handle(batch: list[Item]) -> None:
        if any(item.n == 1 for item in batch):
            raise ValueError("oh")

    ids = await items.publish_many([Item(n=n) for n in range(3)])
    await drain(app)
    says(told.one("failed attempt 1, next in"), "WARNING", group="g", entry=str(ids[1]), attempt=1)
    says(told.one("failed attempt 2, the last"), "ERROR", group="g", entry=str(ids[1]), attempt=2)


async def test_bad_input(app: RStream, raw: redis.Redis, told: Told) -> None:
    items = app.stream("items", Item, shards=1)

    @items.consumer("g")
    async def handle(item: Item) -> None: ...

    shard = (await items.layout()).current[0]
    id = raw.xadd(shard.stream, {"e": SECRET})
    await drain(app)
    says(told.one("set aside as undecodable"), "ERROR", group="g", entry=str(shard.entry_id(id)), attempt=1)


async def test_a_payload_that_is_not_in_the_blob_store(
    one_server: Server, namespace: str, tmp_path: Path, told: Told
) -> None:
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path}/blobs") as app:
        items = app.stream("items", Item, shards=1)

        @items.consumer("g")
        async def handle(item: Item) -> None: ...

        id = await items.publish(Item(n=1, name=SECRET * 20_000))
        for path in (tmp_path / "blobs").rglob("*"):
            if path.is_file():
                path.unlink()
        await drain(app)
    says(told.one("set aside as blob missing"), "ERROR", group="g", entry=str(id))


async def test_an_entry_that_was_trimmed_before_it_was_processed(app: RStream, raw: redis.Redis, told: Told) -> None:
    items = app.stream("items", Item, shards=1)

    @items.consumer("g", lease=1)
    async def handle(item: Item) -> None: ...

    id = await items.publish(Item(n=1))
    app.sync_link.run(member(items, "g", "gone").fetch(2))  # type: ignore[arg-type]
    raw.xdel((await items.layout()).current[0].stream, id.redis)
    await drain(app)
    says(told.one("it is lost"), "ERROR", group="g", entry=str(id))


async def test_what_retention_drops_is_summed_up_by_group(app: RStream, told: Told) -> None:
    retention = Retention(entries=100, unprocessed="drop")
    items = app.stream("items", Item, shards=4, retention=retention)
    member(items, "g")  # type: ignore[arg-type]
    member(items, "h")  # type: ignore[arg-type]
    await items.publish_many([Item(n=n) for n in range(90)])
    await drive(app.link, tidy(await items.layout(fresh=True), Retention(entries=4, unprocessed="drop")), 5.0)
    lines = told.lines("were dropped before they were processed")
    assert {line["group"] for line in lines} == {"g", "h"} and len(lines) == 2
    for line in lines:
        says(line, "WARNING")
        assert sum(map(int, line["message"].split()[1:2])) >= 80


async def test_a_publish_that_found_no_room(app: RStream, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_voices", {})
    items = app.stream("items", Item, shards=1, retention=Retention(entries=10))
    member(items, "g")  # type: ignore[arg-type]
    await items.publish_many([Item(n=n) for n in range(10)])
    for _ in range(3):
        with pytest.raises(StreamFull):
            await items.publish(Item(n=11))
    says(told.one("is full, nothing was added"), "WARNING")
    room._voices["items"].rest()
    assert "2 more writes were refused" in told.one("more writes were refused")["message"]


async def test_an_outcome_that_is_refused(app: RStream, told: Told) -> None:
    items = app.stream("items", Item, shards=1)
    taken = asyncio.Event()

    @items.consumer("g", lease=30)
    async def handle(item: Item) -> None:
        await taken.wait()

    async with working(app) as worker:
        id = await items.publish(Item(n=1))
        await eventually_async(lambda: worker.runs[0].running)
        shard = (await items.layout()).current[0]
        with redis.Redis.from_url(app.settings.url or "") as raw:
            raw.xclaim(shard.stream, "g", "thief", 0, [id.redis])
        taken.set()
        await eventually_async(lambda: worker.counts.refused)
        says(told.one("was refused and changed nothing"), "WARNING", group="g", entry=str(id), attempt=1)


async def test_an_event_that_expired_and_a_double(app: RStream, told: Told) -> None:
    items = app.stream("items", Item, key="name", shards=1)

    @items.consumer("late", expires=0.001)
    async def handle(item: Item) -> None: ...

    @items.consumer("once", once="n")
    async def handle_once(item: Item) -> None: ...

    first, second = [str(await items.publish(Item(n=1))) for _ in range(2)]
    await drain(app, "once")
    await drain(app, "late")
    assert {line["entry"] for line in told.lines("is older than 0.001 s and was not started")} == {first, second}
    says(told.one("has succeeded already"), "INFO", group="once", entry=second)


async def test_a_group_that_redis_lost(app: RStream, raw: redis.Redis, told: Told) -> None:
    items = app.stream("items", Item, shards=1)

    @items.consumer("g", lease=1)
    async def handle(item: Item) -> None: ...

    async with working(app) as worker:
        stream = (await items.layout()).current[0].stream
        await eventually_async(lambda: raw.exists(stream) and raw.xinfo_groups(stream))
        raw.delete(stream)
        await eventually_async(lambda: worker.counts.resets)
        says(told.one("Redis lost data"), "ERROR", group="g", worker=worker.id)


async def test_a_lease_that_ran_out(own_server: Server, namespace: str, told: Told) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        items = app.stream("items", Item, shards=1)

        @items.consumer("g", lease=0.5)
        async def handle(item: Item) -> None: ...

        async with working(app) as worker:
            await eventually_async(lambda: told.lines(" ready: "))
            own_server.pause()
            await eventually_async(lambda: told.lines("the lease ran out and could not be renewed"))
            began = clock()
            await eventually_async(lambda: clock() > began + 1.5)  # it is tried many times meanwhile
            own_server.resume()
            await eventually_async(lambda: told.lines("the lease was lost and is taken anew"))
            assert len(told.lines("could not be renewed")) == 1
            assert told.one("taken anew")["level"] == "WARNING" and worker.runs[0].name in told.one("anew")["message"]


async def test_outcomes_that_redis_could_not_be_told_of(own_server: Server, namespace: str, told: Told) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        items = app.stream("items", Item, shards=1)
        go = asyncio.Event()

        @items.consumer("g", lease=30)
        async def handle(item: Item) -> None:
            await go.wait()

        worker = Worker(app, grace=0.5)
        task = asyncio.create_task(worker.serve(signals=False))
        await items.publish(Item(n=1))
        await eventually_async(lambda: worker.runs and worker.runs[0].running)
        own_server.pause()
        go.set()
        worker.stop()
        async with asyncio.timeout(30):
            await task
        own_server.resume()
    says(told.one("outcomes were not settled"), "WARNING", group="g", worker=worker.id)
    assert "1 outcomes" in told.one("outcomes were not settled")["message"]


async def test_a_shard_that_another_worker_took(app: RStream, raw: redis.Redis, told: Told) -> None:
    items = app.stream("items", Item, key="name", shards=1)

    @items.consumer("g", lease=1)
    async def handle(item: Item) -> None: ...

    async with working(app) as worker:
        shard = (await items.layout()).current[0]
        await eventually_async(lambda: worker.runs[0].own.open)
        raw.set(shard.owner("g"), "thief|99999999999999", px=1500)
        await eventually_async(lambda: told.lines(": lost "))
        says(told.lines(": lost ")[0], "WARNING", group="g", worker=worker.id)


async def test_a_group_without_a_worker_for_too_long(app: RStream, told: Told) -> None:
    from rstream.store.trim import Standing
    from rstream.worker.janitor import Janitor

    janitor, retention = Janitor(app, "w"), Retention(entries=10, group_ttl="60s")
    alarms: list[tuple[Any, str, str]] = [
        ("soon", "WARNING", "no worker for 40s"),
        ("ignored", "ERROR", "longer than"),
    ]
    for alarm, level, part in alarms:
        for _ in range(2):
            janitor._tell("items", Standing("g", 40.0, alarm), retention)
        says(told.one(part), level, group="g")
