"""Batch handlers: every event has an outcome of its own, and one that spoils a batch is found."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rstream import Batch, Delivery, EntryId, Reject, Retry, RetryPolicy, RStream, Stream
from rstream.batch import answers
from rstream.errors import ConfigError, LeaseLost
from tests import batches
from tests.batches import Item, calls
from tests.servers import Server
from tests.test_worker import dead_letters, drain, working
from tests.waiting import eventually_async

SIZE = 500
BAD = 387
NEEDED = 1 + math.ceil(math.log2(SIZE))
"""Calls that bisection needs at most to tell one bad event from each of the others."""


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def publish(app: RStream, folder: Path, *, kind: str, bad: int = BAD, count: int = SIZE) -> Stream[Item]:
    items = app.stream("items", Item, shards=4)
    await items.publish_many(Item(n=n, kind=kind if n == bad else "ok", folder=str(folder)) for n in range(count))
    return items


@pytest.mark.parametrize("handler", [batches.on_loop, batches.in_thread, batches.in_process], ids=lambda h: h.__name__)
@pytest.mark.parametrize("kind", ["raise", "fail", "return"])
@pytest.mark.long
async def test_of_500_events_the_bad_one_is_set_aside_and_499_are_acked_once(
    app: RStream, tmp_path: Path, handler: Any, kind: str
) -> None:
    items = await publish(app, tmp_path, kind=kind)
    run_in: Any = "process" if handler is batches.in_process else None
    policy = RetryPolicy(max_attempts=3, initial_delay=0.01)
    items.consumer("g", batch=SIZE, max_wait=0.7, run_in=run_in, concurrency=1, retry=policy)(handler)
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.failed, worker.counts.dead) == (SIZE - 1, 3, 1)
    (letter,) = await dead_letters(app, "g", "items")
    assert (letter[b"reason"], letter[b"attempts"]) == (b"failed", b"3")
    assert f"event {BAD} is bad".encode() in letter[b"error"]
    made = calls(tmp_path)
    assert len(made[0]) == SIZE, "one full batch"
    asked = Counter(n for call in made for n in call)
    assert set(asked) == set(range(SIZE))
    good = max(count for n, count in asked.items() if n != BAD)
    assert good == 1 if kind != "raise" else good <= NEEDED
    assert [len(call) for call in made[-2:]] == [1, 1], "when it is tried again, no other event is with it"


async def test_a_batch_handler_is_called_with_what_there_is_when_the_first_has_waited(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=2)
    sizes: list[int] = []

    @items.consumer("g", batch=100, max_wait=0.2)
    async def handle(events: list[Item], batch: Batch) -> None:
        assert [type(event) for event in events] == [Item] * len(events)
        assert [delivery.attempt for delivery in batch.deliveries] == [1] * len(batch)
        sizes.append(len(events))

    await items.publish_many(Item(n=n) for n in range(250))
    async with working(one_app) as worker:
        await eventually_async(lambda: worker.counts.handled == 250)
        await items.publish(Item(n=250))
        await eventually_async(lambda: worker.counts.handled == 251)
    assert sizes == [100, 100, 50, 1]


async def test_a_handler_that_takes_the_events_alone_may_return_outcomes(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=1)
    attempts: list[list[int]] = []

    @items.consumer("g", batch=10, max_wait=0.1, retry=RetryPolicy(max_attempts=2, initial_delay=0))
    def handle(events: list[Item]) -> list[Exception | None]:
        attempts.append([event.n for event in events])
        return [Reject("no") if event.n == 1 else Retry(after=0) if event.n == 2 else None for event in events]

    await items.publish_many(Item(n=n) for n in range(5))
    worker = await drain(one_app)
    assert attempts == [[0, 1, 2, 3, 4], [2]]
    assert worker.counts.handled == 3
    assert sorted(letter[b"reason"] for letter in await dead_letters(one_app, "g", "items")) == [b"failed", b"rejected"]


async def test_a_lone_retry_holds_nothing_up(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=1)
    sizes: list[tuple[int, int]] = []

    @items.consumer("g", batch=10, max_wait=3600, retry=RetryPolicy(initial_delay=0.05, jitter=0))
    async def handle(events: list[Item], batch: Batch) -> None:
        sizes.append((len(events), batch.deliveries[0].attempt))
        for index, event in enumerate(events):
            if event.kind == "fail" and batch.deliveries[index].attempt == 1:
                batch.fail(index, ValueError("later"))

    await items.publish_many(Item(n=n, kind="fail" if n == 3 else "ok") for n in range(10))
    async with working(one_app) as worker:
        await eventually_async(lambda: worker.counts.handled == 10)
        await items.publish_many(Item(n=n) for n in range(10, 40))
        await eventually_async(lambda: worker.counts.handled == 40)
    assert sizes == [(10, 1), (1, 2), (10, 1), (10, 1), (10, 1)]


async def test_several_bad_events_are_found_in_one_go(one_app: RStream, tmp_path: Path) -> None:
    items = one_app.stream("items", Item, shards=4)
    bad = {3, 4, 200, 499}
    await items.publish_many(Item(n=n, kind="raise" if n in bad else "ok", folder=str(tmp_path)) for n in range(SIZE))
    items.consumer("g", batch=SIZE, max_wait=0.7, retry=RetryPolicy(max_attempts=1))(batches.on_loop)
    worker = await drain(one_app)
    assert (worker.counts.handled, worker.counts.dead) == (SIZE - len(bad), len(bad))
    asked = Counter(n for call in calls(tmp_path) for n in call)
    assert max(asked.values()) <= NEEDED


async def test_when_it_is_not_the_events_the_handler_is_not_called_for_each_of_them(one_app: RStream) -> None:
    """A database that is away: bisection sees that all halves fail, and leaves the rest to the next attempt."""
    items = one_app.stream("items", Item, shards=4)
    made: list[int] = []
    away = True

    @items.consumer("g", batch=SIZE, max_wait=0.7, retry=RetryPolicy(max_attempts=3, initial_delay=0.5, jitter=0))
    async def handle(events: list[Item], batch: Batch) -> None:
        nonlocal away
        made.append(len(events))
        if batch.deliveries[0].attempt == 1:
            raise ConnectionError("the database is away")

    await items.publish_many(Item(n=n) for n in range(SIZE))
    worker = await drain(one_app)
    assert (worker.counts.handled, worker.counts.dead) == (SIZE, 0)
    assert made.index(1) <= 2 * NEEDED and len([size for size in made if size == 1]) <= 4
    assert sum(made) < 5 * SIZE


async def test_nobody_loses_his_last_attempt_to_a_batch(one_app: RStream, tmp_path: Path) -> None:
    """With bad events in every half, on the last attempt each is still tried alone."""
    items = one_app.stream("items", Item, shards=1)
    await items.publish_many(Item(n=n, kind="raise" if n < 30 else "ok", folder=str(tmp_path)) for n in range(32))
    items.consumer("g", batch=32, max_wait=5, retry=RetryPolicy(max_attempts=2, initial_delay=0))(batches.on_loop)
    worker = await drain(one_app)
    assert (worker.counts.handled, worker.counts.dead) == (2, 30)


async def test_an_event_that_kills_its_process_is_found_among_the_others(one_app: RStream, tmp_path: Path) -> None:
    items = await publish(one_app, tmp_path, kind="die", bad=7, count=40)
    items.consumer("g", batch=40, max_wait=5, concurrency=1, run_in="process", retry=RetryPolicy(max_attempts=1))(
        batches.in_process
    )
    worker = await drain(one_app)
    assert (worker.counts.handled, worker.counts.dead) == (39, 1)
    (letter,) = await dead_letters(one_app, "g", "items")
    assert b"died" in letter[b"error"]


async def test_a_batch_that_asks_for_later_is_not_bisected(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=1)
    made: list[int] = []

    @items.consumer("g", batch=20, max_wait=1)
    async def handle(events: list[Item], batch: Batch) -> None:
        made.append(len(events))
        if batch.deliveries[0].attempt == 1:
            raise Retry(after=0.01)

    await items.publish_many(Item(n=n) for n in range(20))
    assert (await drain(one_app)).counts.handled == 20
    assert made == [20, 20]


async def test_what_was_told_before_a_raise_counts_and_the_rest_is_bisected(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=1)
    made: list[list[int]] = []

    @items.consumer("g", batch=8, max_wait=1)
    async def handle(events: list[Item], batch: Batch) -> None:
        made.append([event.n for event in events])
        for index, event in enumerate(events):
            if event.n == 2:
                batch.fail(index, Reject("told"))
            if event.n == 5:
                raise Reject("raised")

    await items.publish_many(Item(n=n) for n in range(8))
    worker = await drain(one_app)
    assert (worker.counts.handled, worker.counts.dead) == (6, 2)
    assert made[0] == [*range(8)] and all(2 not in call for call in made[1:])


async def test_a_worker_that_stops_hands_a_half_filled_batch_over_with_its_attempts(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=2)
    seen: list[int] = []

    @items.consumer("g", batch=100, max_wait=3600)
    async def handle(events: list[Item], batch: Batch) -> None:
        seen.extend(delivery.attempt for delivery in batch.deliveries)

    async with working(one_app) as first:
        await items.publish_many(Item(n=n) for n in range(60))
        (run,) = await eventually_async(lambda: first.runs)
        await eventually_async(lambda: run.in_hand == 60)
    assert seen == []
    await items.publish_many(Item(n=n) for n in range(40))
    worker = await drain(one_app)
    assert worker.counts.handled == 100 and seen == [1] * 100


async def test_a_batch_that_outlives_the_grace_runs_elsewhere_as_the_next_attempt(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=1)
    attempts: list[int] = []
    hang = asyncio.Event()

    @items.consumer("g", batch=10, max_wait=0.1)
    async def handle(events: list[Item], batch: Batch) -> None:
        attempts.extend(delivery.attempt for delivery in batch.deliveries)
        if not hang.is_set():
            hang.set()
            await asyncio.sleep(3600)

    await items.publish_many(Item(n=n) for n in range(10))
    async with working(one_app, grace=0.05):
        await hang.wait()
    assert (await drain(one_app)).counts.handled == 10
    assert attempts == [1] * 10 + [2] * 10


async def test_steps_and_checkpoints_of_a_batch_belong_to_its_deliveries(one_app: RStream) -> None:
    items = one_app.stream("items", Item, shards=1)
    work: list[int] = []

    @items.consumer("g", batch=4, max_wait=0.1, retry=RetryPolicy(initial_delay=0))
    async def handle(events: list[Item], batch: Batch) -> None:
        for event, delivery in zip(events, batch.deliveries, strict=True):
            await delivery.step("work", work.append, event.n)
        if batch.deliveries[0].attempt == 1 and len(events) > 1:
            raise ValueError("bisected: what is done is not done again")

    await items.publish_many(Item(n=n) for n in range(4))
    assert (await drain(one_app)).counts.handled == 4
    assert sorted(work) == [0, 1, 2, 3]


def test_the_outcomes_of_a_batch_from_what_its_handler_gave() -> None:
    bad = ValueError()
    assert answers(None, {}, 2, wanted=False) == [None, None]
    assert answers([None, bad], {}, 2, wanted=False) == [None, bad]
    assert answers("a report", {1: bad}, 2, wanted=False) == [None, bad]
    assert answers([1, 2, 3], {}, 2, wanted=False) == [None, None]
    assert answers([1, 2], {0: bad}, 2, wanted=True) == [bad, 2]
    for result, wanted in [([bad], False), ([1, 2, 3], True), ("a report", True)]:
        with pytest.raises(ConfigError, match="the handler returned"):
            answers(result, {}, 2, wanted=wanted)


def test_a_batch_refuses_what_it_cannot_tell_apart() -> None:
    batch = Batch([Delivery(EntryId(1, n, 1, 0), "items", "g", None, bytes(16), {}, 1, "w") for n in range(3)])
    batch.fail(2, LeaseLost("x"))
    assert len(batch) == 3 and [*batch.failures] == [2]
    with pytest.raises(ConfigError, match=r"^batch.fail\(3\): this batch has the events 0 to 2$"):
        batch.fail(3, ValueError())
    with pytest.raises(ConfigError, match="name the exception"):
        batch.fail(0, "text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"batch": 0}, "batch is 0"), ({"batch": 10_001}, "batch is 10001"), ({"max_wait": -1}, "max_wait is -1")],
)
def test_a_batch_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    items = RStream("redis://nowhere.invalid").stream("items", Item)
    with pytest.raises(ConfigError, match=says):
        items.consumer("g", **options)(batches.on_loop)
