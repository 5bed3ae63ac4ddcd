"""Workers inside the test process: what handlers see, failures, bad input, starting points (promises 7 to 9)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import redis
from pydantic import field_validator

from rstream import Delivery, Event, Retry, RetryPolicy, RStream
from rstream.errors import ConfigError, StoreUnavailable
from rstream.store.scripts import MINE, RECOVER
from rstream.worker.worker import Worker
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.waiting import eventually_async


class Item(Event):
    n: int
    name: str = ""


class Other(Event):
    name: str


@asynccontextmanager
async def working(app: RStream, *groups: str, **options: Any) -> AsyncIterator[Worker]:
    """A worker in this loop, stopped gracefully at the end."""
    worker = Worker(app, groups or None, **options)
    task = asyncio.create_task(worker.serve(signals=False))
    try:
        await eventually_async(lambda: worker.runs or task.done())
        yield worker
    finally:
        worker.stop()
        async with asyncio.timeout(20):
            await task


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def drain(app: RStream, *groups: str) -> Worker:
    worker = Worker(app, groups or None, burst=True)
    async with asyncio.timeout(30):
        await worker.serve(signals=False)
    return worker


async def test_handlers_get_the_event_and_what_there_is_to_know_of_its_delivery(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=4)
    seen: list[tuple[Item, Delivery]] = []

    @items.consumer("g")
    async def handle(event: Item, delivery: Delivery) -> None:
        seen.append((event, delivery))

    id = await items.publish(Item(n=1, name="k"), headers={"trace": "t"})
    worker = await drain(app)
    ((event, delivery),) = seen
    assert event == Item(n=1, name="k")
    known = Delivery(id, "items", "g", "k", delivery.event_id, {"trace": "t"}, attempt=1, worker=worker.id)
    assert delivery == replace(known, epoch=delivery.fence) and delivery.fence > 1_700_000_000_000
    assert len(delivery.event_id) == 16
    assert worker.counts.handled == 1


async def test_def_runs_in_threads_and_async_def_on_the_loop_and_groups_are_independent(app: RStream) -> None:
    items = app.stream("items", Item, shards=4)
    threads: set[str] = set()
    on_loop: set[int] = set()
    together = threading.Barrier(4, timeout=10)

    @items.consumer("threads", concurrency=4)
    def in_thread(event: Item) -> None:
        if event.n < 4:
            together.wait()  # fails unless four run at the same time
        threads.add(threading.current_thread().name)

    @items.consumer("loop")
    async def handle(event: Item) -> None:
        assert threading.current_thread() is threading.main_thread()
        on_loop.add(event.n)

    await items.publish_many(Item(n=n) for n in range(100))
    worker = await drain(app)
    assert worker.counts.handled == 200
    assert on_loop == set(range(100))
    assert threading.main_thread().name not in threads


async def test_concurrency_is_the_number_of_handlers_that_run_at_once(app: RStream) -> None:
    items = app.stream("items", Item, shards=4)
    running, most = 0, 0
    gate = asyncio.Event()

    @items.consumer("g", concurrency=7)
    async def handle(event: Item) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 7:
            gate.set()
        await gate.wait()
        await asyncio.sleep(0)
        running -= 1

    await items.publish_many(Item(n=n) for n in range(50))
    assert (await drain(app)).counts.handled == 50
    assert most == 7


async def test_a_long_handler_hoards_nothing_and_a_short_one_earns_a_buffer(app: RStream) -> None:
    items = app.stream("items", Item, shards=4)
    gate = asyncio.Event()

    working_on = 0

    @items.consumer("long", concurrency=2)
    async def long(event: Item) -> None:
        nonlocal working_on
        working_on += 1
        await gate.wait()

    @items.consumer("short", concurrency=2)
    async def short(event: Item) -> None: ...

    await items.publish_many(Item(n=n) for n in range(1000))
    async with working(app, "long", grace=0):
        await eventually_async(lambda: working_on == 2)
        shorts = await drain(app, "short")
        assert await pending(app, "long") == 2
        gate.set()
    assert shorts.counts.handled == 1000


async def pending(app: RStream, group: str, stream: str = "items") -> int:
    layout = await app.streams[stream].layout()
    with redis.Redis.from_url(app.settings.url or "") as raw, contextlib.suppress(redis.ResponseError):
        return sum(raw.xpending(keys.stream, group)["pending"] for keys in layout.current)
    return 0  # no such group yet


# -- failures -------------------------------------------------------------------------------------------------------


async def test_a_failure_is_tried_again_and_the_last_one_becomes_a_dead_letter(
    app: RStream, caplog: pytest.LogCaptureFixture
) -> None:
    items = app.stream("items", Item, shards=1)
    attempts: list[tuple[int, int]] = []

    @items.consumer("g", retry=RetryPolicy(max_attempts=3, initial_delay=0.02, factor=1))
    async def handle(event: Item, delivery: Delivery) -> None:
        attempts.append((event.n, delivery.attempt))
        if event.n == 1 or delivery.attempt == 1:
            raise ZeroDivisionError(f"no {event.n}")

    ids = await items.publish_many([Item(n=1), Item(n=2)])
    worker = await drain(app)
    assert sorted(attempts) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert (worker.counts.handled, worker.counts.failed, worker.counts.dead) == (1, 4, 1)
    (letter,) = await dead_letters(app, "g")
    assert letter[b"id"].decode() == ids[0].redis
    assert (letter[b"reason"], letter[b"attempts"]) == (b"failed", b"3")
    assert letter[b"error"] == b"ZeroDivisionError: no 1"
    assert b"in handle" in letter[b"traceback"]
    assert f"entry {ids[0]} failed attempt 3, the last" in caplog.text


async def dead_letters(app: RStream, group: str, stream: str = "items") -> list[dict[bytes, bytes]]:
    layout = await app.streams[stream].layout()
    with redis.Redis.from_url(app.settings.url or "") as raw:
        return [letter for keys in layout.current for _, letter in raw.xrange(keys.dead(group))]


async def test_a_waiting_retry_holds_no_slot(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    done: list[int] = []

    @items.consumer("g", concurrency=1, retry=RetryPolicy(initial_delay=30))
    async def handle(event: Item) -> None:
        if event.n == 0:
            raise ValueError
        done.append(event.n)

    await items.publish_many(Item(n=n) for n in range(20))
    async with working(app):
        await eventually_async(lambda: len(done) == 19)
    assert done == list(range(1, 20))


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_whatever_a_handler_raises_the_worker_lives(app: RStream, error: BaseException) -> None:
    items = app.stream("items", Item, shards=1)

    @items.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Item) -> None:
        if event.n == 0:
            raise error

    await items.publish_many([Item(n=0), Item(n=1)])
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (1, 1)


@pytest.mark.parametrize("lost", range(3))
async def test_a_shard_whose_group_is_gone_takes_no_outcome_of_the_others_with_it(
    app: RStream, server: Server, lost: int
) -> None:
    items = app.stream("items", Item, shards=3)
    seen: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    go_on = asyncio.Event()

    @items.consumer("g", concurrency=30)
    async def handle(event: Item, delivery: Delivery) -> None:
        seen[str(delivery.id), event.n].append(delivery.attempt)
        await go_on.wait()
        if event.n % 4 == 0 and delivery.attempt == 1:
            raise Retry(after=0.01)

    await items.publish_many(Item(n=n) for n in range(30))
    async with working(app) as worker:
        await eventually_async(lambda: len(seen) == 30)
        with redis.Redis.from_url(server.url) as raw:
            shard = worker.runs[0].layout.current[lost]
            raw.xgroup_destroy(shard.stream, "g")
            go_on.set()
            others = [each for each in worker.runs[0].layout.current if each is not shard]
            await eventually_async(lambda: not any(raw.xpending(each.stream, "g")["pending"] for each in others), 10)
            await eventually_async(lambda: worker.counts.resets == 1)
            left = raw.xrange(shard.stream)
        await eventually_async(lambda: worker.counts.handled >= 30)
    ours = {str(shard.entry_id(id)) for id, _ in left}
    again = {n for (id, n), attempts in seen.items() if id not in ours and len(attempts) > 1 + (n % 4 == 0)}
    assert again == set()
    assert worker.counts.refused == 0


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError(), Unprintable()])
async def test_whatever_a_validator_raises_the_worker_lives(
    one_server: Server, namespace: str, error: BaseException, batch: int | None
) -> None:
    strict = False

    class Strict(Event):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            if strict and n == 0:
                raise error
            return n

    async with RStream(one_server.url, namespace=namespace) as app:
        items, seen = app.stream("items", Strict, shards=1), []

        async def handle(events: Any) -> None:
            seen.append(events)

        items.consumer("g", batch=batch)(handle)
        await items.publish_many([Strict(n=0), Strict(n=1)])
        strict = True
        worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (1, 1) and len(seen) == 1


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("undecodable", {"e": b"\xc1\x00garbage", "i": b"i" * 16}, "not msgpack"),
    ("undecodable", {"e": msgpack.packb({"n": 1}), "i": b"i" * 16}, "not msgpack [version, fields]"),
    ("undecodable", {"hello": "world"}, "rstream did not write it"),
    ("undecodable", {"e": msgpack.packb([1, {"n": 1}]), "h": b"\xc1"}, "headers"),
    ("invalid", {"e": msgpack.packb([1, {"n": "many"}]), "i": b"i" * 16}, "Item: n:"),
    ("invalid", {"e": msgpack.packb([1, {}]), "i": b"i" * 16}, "n: Field required"),
]


@pytest.mark.parametrize(("reason", "fields", "says"), BAD)
async def test_bad_input_never_reaches_user_code_and_never_stops_a_worker(
    app: RStream, reason: str, fields: dict[str, Any], says: str
) -> None:
    items = app.stream("items", Item, shards=1)
    seen: list[Any] = []

    @items.consumer("g")
    async def handle(event: Item) -> None:
        seen.append(event)

    await items.publish(Item(n=1))
    with redis.Redis.from_url(app.settings.url or "") as raw:
        raw.xadd((await items.layout()).current[0].stream, fields)
    await items.publish(Item(n=2))

    worker = await drain(app)
    assert seen == [Item(n=1), Item(n=2)]
    assert (worker.counts.handled, worker.counts.dead) == (2, 1)
    (letter,) = await dead_letters(app, "g")
    assert letter[b"reason"].decode() == reason
    assert says in letter[b"error"].decode()
    assert letter.items() >= {key.encode(): value if isinstance(value, bytes) else value.encode()
                              for key, value in fields.items()}.items()  # fmt: skip


# -- where a group begins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", [1, 2, 3, 4]),
        ("latest", [4]),
        ("1h ago", [1, 2, 3, 4]),
        (lambda ids: ids[1], [2, 3, 4]),
        (lambda ids: ids[1].redis, [2, 3, 4]),
    ],
)
async def test_a_new_group_begins_where_its_consumer_says(
    app: RStream, start: str | Callable[[Any], Any], expected: list[int]
) -> None:
    items = app.stream("items", Item, shards=1)
    ids = await items.publish_many(Item(n=n) for n in (1, 2, 3))
    seen: list[int] = []

    @items.consumer("g", start=start(ids) if callable(start) else start)
    async def handle(event: Item) -> None:
        seen.append(event.n)

    await drain(app)  # makes the group
    await items.publish(Item(n=4))
    await drain(app)
    assert seen == expected


async def test_a_group_that_is_gone_is_made_anew_from_the_start_of_what_is_left(
    app: RStream, caplog: pytest.LogCaptureFixture
) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[int] = []

    @items.consumer("g", start="latest", lease=1)
    async def handle(event: Item) -> None:
        seen.append(event.n)

    async with working(app) as worker:
        layout = await items.layout()
        with redis.Redis.from_url(app.settings.url or "") as raw:
            names = [shard.stream for shard in layout.current]
            await eventually_async(lambda: all(raw.exists(name) and raw.xinfo_groups(name) for name in names))
            await items.publish_many([Item(n=1), Item(n=2)])
            await eventually_async(lambda: len(seen) == 2)
            raw.xgroup_destroy(layout.current[0].stream, "g")
            await eventually_async(lambda: worker.counts.resets == 1, 10)
            # What shard 0 still holds is read again rather than skipped: at least once, never silently less.
            await items.publish_many([Item(n=3), Item(n=4)])
            await eventually_async(lambda: {3, 4} <= set(seen))
    assert "Redis lost data" in caplog.text


# -- starting -------------------------------------------------------------------------------------------------------


async def test_starting_without_what_is_needed_is_one_clear_line(app: RStream, namespace: str) -> None:
    with pytest.raises(ConfigError, match="declares no consumer"):
        Worker(app)
    items = app.stream("items", Item)

    @items.consumer("g")
    async def handle(event: Item) -> None: ...

    with pytest.raises(ConfigError, match="no consumer of the app is for group 'h': there are items/g"):
        Worker(app, ["h"])
    assert [consumer.group for consumer in Worker(app, ["items/g", "g"]).consumers] == ["g"]

    lost = RStream("redis://127.0.0.1:1", namespace=namespace, publish_timeout=0.1)

    @lost.stream("items", Item).consumer("g")
    async def handle_too(event: Item) -> None: ...

    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        await Worker(lost).serve(signals=False)


async def test_the_stop_of_a_worker_leaves_nothing_behind(app: RStream, caplog: pytest.LogCaptureFixture) -> None:
    items = app.stream("items", Item, shards=3)

    @items.consumer("g")
    async def handle(event: Item) -> None: ...

    caplog.set_level(logging.INFO, "rstream")
    async with working(app) as worker:
        await items.publish_many(Item(n=n) for n in range(50))
        await eventually_async(lambda: worker.counts.handled == 50)
    layout = await items.layout()
    with redis.Redis.from_url(app.settings.url or "") as raw:
        assert [raw.xinfo_consumers(keys.stream, "g") for keys in layout.current] == [[], [], []]
        assert not raw.keys(f"{{{app.settings.namespace}:*alive*")
    assert "handled 50" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "rstream-lease"]


# -- trouble on the line --------------------------------------------------------------------------------------------


async def test_a_retry_that_is_claimed_before_its_settle_was_answered_is_run(server: Server, namespace: str) -> None:
    with ChaosProxy(server.upstream) as proxy:
        proxy.delay_replies(0.02)
        async with RStream(proxy.url, namespace=namespace) as app:
            items = app.stream("items", Item, shards=4)
            done: list[int] = []

            @items.consumer("g", lease=2.0, retry=RetryPolicy(initial_delay=0, max_attempts=5))
            async def handle(event: Item, delivery: Delivery) -> None:
                if delivery.attempt < 3:
                    raise ValueError
                done.append(event.n)

            await items.publish_many(Item(n=n) for n in range(100))
            worker = await drain(app)
    assert sorted(done) == list(range(100))
    assert worker.counts.refused == 0


@pytest.mark.parametrize("refusal", ["min-replicas-to-write", "maxmemory"])
async def test_what_redis_refuses_for_a_while_ends_no_worker(own_server: Server, namespace: str, refusal: str) -> None:
    with redis.Redis.from_url(own_server.url) as raw:
        async with RStream(own_server.url, namespace=namespace) as app:
            items = app.stream("items", Item, shards=2)
            started, done = set(), set()
            gate = asyncio.Event()

            @items.consumer("g", lease=1.0)
            async def handle(event: Item) -> None:
                started.add(event.n)
                await gate.wait()
                done.add(event.n)

            await items.publish_many(Item(n=n) for n in range(4))
            async with working(app) as worker:
                await eventually_async(lambda: len(started) == 4)
                raw.config_set(refusal, 1)
                if refusal == "maxmemory":  # and the group has to be made anew, which Redis may refuse too
                    raw.delete((await items.layout()).current[0].stream)
                    await eventually_async(lambda: worker.counts.resets >= 1, 10)
                gate.set()
                await eventually_async(lambda: len(done) == 4)
                raw.config_set(refusal, 0)
                await items.publish_many(Item(n=n) for n in range(4, 8))
                await eventually_async(lambda: done == set(range(8)), 10)
            assert worker.counts.failed == 0


async def test_a_worker_that_starts_when_memory_is_full_drains(own_server: Server, namespace: str) -> None:
    with redis.Redis.from_url(own_server.url) as raw:
        async with RStream(own_server.url, namespace=namespace) as app:
            items = app.stream("items", Item, shards=2)

            @items.consumer("g")
            async def handle(event: Item) -> None: ...

            await items.publish_many(Item(n=n) for n in range(100))
            raw.config_set("maxmemory", 1)
            async with RStream(own_server.url, namespace=namespace) as fresh:
                fresh.stream("items", Item, shards=2).consumer("g")(handle)
                assert (await drain(fresh)).counts.handled == 100


async def test_what_lost_answers_carried_is_found_again_under_the_right_attempt(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = app.stream("items", Item, shards=4)
    attempts: dict[bool, list[int]] = {True: [], False: []}
    begun: set[str] = set()

    @items.consumer("g", lease=1.0, concurrency=40)
    async def handle(event: Item, delivery: Delivery) -> None:
        attempts[delivery.id.redis + str(delivery.id.shard) in begun].append(delivery.attempt)

    await items.publish_many(Item(n=n) for n in range(40))
    layout = await items.layout()
    with redis.Redis.from_url(app.settings.url or "") as raw:
        for shard, keys in enumerate(layout.current):  # all were begun once, by a worker that is dead
            raw.xgroup_create(keys.stream, "g", "0")
            found = raw.xreadgroup("g", "dead-worker", {keys.stream: ">"})
            begun |= {id.decode() + str(shard) for _, entries in found for id, _ in entries}

    # The answers to the first take-over and to the second page of the search for it get lost on the way.
    exchange, lost = app.link.exchange, {RECOVER.sha: [1], MINE.sha: [2]}
    seen: dict[Any, int] = {}

    async def lossy(calls: Any, timeout: float | None = None) -> Any:
        replies = await exchange(calls, timeout)
        sha = next(iter(calls[0][1:2]), "")
        if sha in lost and (sha != RECOVER.sha or replies[0][0]):
            seen[sha] = seen.get(sha, 0) + 1
            if seen[sha] in lost[sha]:
                raise app.endpoint.unavailable("lost", sent=True)
        return replies

    monkeypatch.setattr(app.link, "exchange", lossy)
    assert (await drain(app)).counts.handled == 40
    assert seen[RECOVER.sha] >= 1 and seen[MINE.sha] >= 2
    assert attempts == {True: [2] * 40, False: []}
