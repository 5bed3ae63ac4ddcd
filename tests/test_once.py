"""`once`: what has succeeded in a group is not done again, however often it is published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from rstream import Delivery, Event, RetryPolicy, RStream
from rstream.errors import ConfigError
from rstream.store.deliveries import GroupOps, Outcome
from tests.servers import Server
from tests.test_worker import dead_letters, drain


class Order(Event):
    customer: str
    number: str | None
    fails: int = 0


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def test_a_double_of_what_succeeded_is_skipped_and_of_what_failed_is_not(app: RStream) -> None:
    orders = app.stream("orders", Order, key="customer", shards=4)
    started: list[tuple[str | None, int]] = []

    @orders.consumer("g", once="number", retry=RetryPolicy(max_attempts=2, initial_delay=0))
    async def handle(event: Order, delivery: Delivery) -> None:
        started.append((event.number, delivery.attempt))
        if delivery.attempt <= event.fails:
            raise ValueError

    @orders.consumer("other")
    async def other(event: Order) -> None: ...

    async def publish(number: str | None, fails: int = 0) -> None:
        await orders.publish(Order(customer="ada", number=number, fails=fails))

    await publish("1")
    await publish("2", fails=1)  # succeeds at its second attempt
    await publish("3", fails=2)  # never succeeds
    await drain(app, "g")
    for number in ("1", "2", "3"):
        await publish(number)
    await publish(None)
    worker = await drain(app, "g")
    assert sorted(started, key=str) == [("1", 1), ("2", 1), ("2", 2), ("3", 1), ("3", 1), ("3", 2)]
    assert (worker.counts.handled, worker.counts.skipped, worker.counts.dead) == (1, 2, 1)
    assert {letter[b"reason"] for letter in await dead_letters(app, "g", "orders")} == {b"failed", b"invalid"}
    assert (await drain(app, "other")).counts.handled == 7  # groups do not share what succeeded


async def test_an_entry_that_is_redelivered_on_purpose_is_no_double_of_itself(app: RStream) -> None:
    orders = app.stream("orders", Order, key="customer", shards=1)
    seen: list[str | None] = []

    @orders.consumer("g", once="number")
    async def handle(event: Order) -> None:
        seen.append(event.number)

    id = await orders.publish(Order(customer="ada", number="1"))
    await drain(app)
    stream = (await orders.layout()).current[0].stream
    with redis.Redis.from_url(app.settings.url or "") as raw:
        raw.xclaim(stream, "g", "~again", 0, [id.redis], force=True, retrycount=0, justid=True)
    await drain(app)
    assert seen == ["1", "1"]


async def test_the_marker_is_set_with_the_ack_or_not_at_all(app: RStream) -> None:
    orders = app.stream("orders", Order, key="customer", shards=1)
    await orders.publish(Order(customer="ada", number="1"))
    layout = await orders.layout()
    mine, other = GroupOps(layout, "g", "a"), GroupOps(layout, "g", "b")
    await app.link.run(mine.create("0"))
    (entry,) = (await app.link.run(mine.fetch(10))).entries
    late = await app.link.run(other.settle([Outcome(entry.shard, entry.id, 1, "ack", "key", 60_000)]))
    assert len(late) == 1 and await app.link.run(mine.succeeded(entry.shard, "key")) is None
    assert not await app.link.run(mine.settle([Outcome(entry.shard, entry.id, 1, "ack", "key", 60_000)]))
    assert await app.link.run(mine.succeeded(entry.shard, "key")) == entry.id
    with redis.Redis.from_url(app.settings.url or "") as raw:
        assert 50_000 < raw.pttl(layout.current[0].once("g", "key")) <= 60_000


@pytest.mark.parametrize("once", ["numbr", "", "model_config", 5])
def test_a_field_that_the_events_do_not_have_is_refused(namespace: str, once: Any) -> None:
    orders = RStream("redis://nowhere.invalid", namespace=namespace).stream("orders", Order, key="customer")
    told = f"consumer 'g' of stream 'orders': once={once!r}, but its events have no such field: "
    with pytest.raises(ConfigError, match=told + "their fields are customer, number, fails"):
        orders.consumer("g", once=once)(lambda event: None)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e15, 366 * 86_400.0, 1e-4, 0, -1])
def test_a_marker_lives_for_a_time_that_redis_can_count(namespace: str, seconds: float) -> None:
    orders = RStream("redis://nowhere.invalid", namespace=namespace).stream("orders", Order, key="customer")
    with pytest.raises(ConfigError, match=r"once_for is .* s, it must be between 0\.001 s and a year"):
        orders.consumer("g", once="number", once_for=seconds)(lambda event: None)


def test_doubles_have_to_share_a_shard(namespace: str) -> None:
    notes = RStream("redis://nowhere.invalid", namespace=namespace).stream("notes", Order)
    with pytest.raises(ConfigError, match="needs a stream with a key"):
        notes.consumer("g", once="number")(lambda event: None)
