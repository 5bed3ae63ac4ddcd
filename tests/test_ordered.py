"""Ordered groups in one process: lanes, retries, slow keys, shards that move."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
import redis

from rstream import Delivery, RetryPolicy, RStream, Stream
from rstream.errors import ConfigError
from rstream.store.keys import Shard
from rstream.worker import fetch, order, park
from rstream.worker.worker import Worker
from tests.servers import Server
from tests.steps import Step
from tests.test_worker import drain, working
from tests.waiting import eventually_async


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def stream(app: RStream, shards: int = 4) -> Stream[Step]:
    return app.stream("steps", Step, key="key", shards=shards)


def of_keys(keys: int, each: int, *, first: int = 0) -> list[Step]:
    return [Step(key=f"key{k}", n=n) for n in range(first, first + each) for k in range(keys)]


# -- lanes --------------------------------------------------------------------------------------------------------


async def test_a_key_is_handled_one_at_a_time_and_in_order_while_keys_run_in_parallel(app: RStream) -> None:
    steps = stream(app)
    running: Counter[str] = Counter()
    seen: defaultdict[str, list[int]] = defaultdict(list)
    most = 0

    @steps.consumer("g", concurrency=8)
    async def handle(event: Step) -> None:
        nonlocal most
        running[event.key] += 1
        assert running[event.key] == 1, "two of one key at once"
        most = max(most, running.total())
        await asyncio.sleep(0.001)
        running[event.key] -= 1
        seen[event.key].append(event.n)

    await steps.publish_many(of_keys(20, 30))
    worker = await drain(app)
    assert worker.counts.handled == 600 and worker.counts.failed == 0
    assert seen == {f"key{k}": list(range(30)) for k in range(20)}
    assert most == 8


@pytest.mark.parametrize("on_retry", ["block", "skip"])
async def test_what_waits_for_a_retry_has_its_key_wait_or_not(app: RStream, on_retry: str) -> None:
    steps = stream(app)
    seen: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    @steps.consumer("g", retry=RetryPolicy(initial_delay=0.2, jitter=0), on_retry=on_retry)  # type: ignore[arg-type]
    async def handle(event: Step, delivery: Delivery) -> None:
        seen[event.key].append((event.n, delivery.attempt))
        if event.key == "key0" and event.n == 1 and delivery.attempt < 3:
            raise ValueError

    await steps.publish_many(of_keys(2, 4))
    await drain(app)
    failing = [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
    passed = [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3)]
    assert seen["key0"] == (failing if on_retry == "block" else passed)
    assert seen["key1"] == [(n, 1) for n in range(4)]


async def test_a_dead_letter_lets_its_key_go_on(app: RStream) -> None:
    steps = stream(app)
    seen: list[int] = []

    @steps.consumer("g", retry=RetryPolicy(max_attempts=2, initial_delay=0))
    async def handle(event: Step) -> None:
        seen.append(event.n)
        if event.n == 1:
            raise ValueError

    await steps.publish_many(of_keys(1, 4))
    worker = await drain(app)
    assert seen == [0, 1, 1, 2, 3] and worker.counts.dead == 1


async def test_without_order_workers_compete_for_all_events(app: RStream) -> None:
    steps = stream(app, shards=1)
    at_once, most = 0, 0

    @steps.consumer("g", concurrency=8, ordered=False)
    async def handle(event: Step, delivery: Delivery) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        assert delivery.epoch == 0 and delivery.fence == delivery.attempt
        await asyncio.sleep(0.01)
        at_once -= 1

    await steps.publish_many(of_keys(1, 40))
    assert (await drain(app)).counts.handled == 40
    assert most == 8


async def test_a_stream_without_a_key_field_is_ordered_where_it_is_asked_for(app: RStream) -> None:
    steps = app.stream("loose", Step, shards=2)
    seen: defaultdict[str, list[int]] = defaultdict(list)

    @steps.consumer("g", ordered=True)
    async def handle(event: Step) -> None:
        await asyncio.sleep(0.002 if event.n % 2 else 0)
        seen[event.key].append(event.n)

    for n in range(10):
        await steps.publish_many([Step(key="ada", n=n)], key="ada")
        await steps.publish_many([Step(key="none", n=n)])
    await drain(app)
    assert seen["ada"] == list(range(10)) and sorted(seen["none"]) == list(range(10))


async def test_a_batch_has_one_event_of_a_key_and_does_not_wait_for_more_of_those_it_has(app: RStream) -> None:
    steps = stream(app)
    seen: defaultdict[str, list[int]] = defaultdict(list)
    sizes = []

    @steps.consumer("g", batch=100, max_wait=10.0)
    async def handle(events: list[Step]) -> None:
        sizes.append(len(events))
        assert len({event.key for event in events}) == len(events)
        for event in events:
            seen[event.key].append(event.n)

    await steps.publish_many(of_keys(5, 20))
    async with working(app):
        await eventually_async(lambda: sum(sizes) == 95, 8)
    assert {tuple(sorted(numbers)) == tuple(numbers) for numbers in seen.values()} == {True}


async def test_what_a_retry_does_to_its_key_is_checked(app: RStream) -> None:
    with pytest.raises(ConfigError, match="on_retry is 'wait', it must be 'block' or 'skip'"):
        stream(app).consumer("g", on_retry="wait")(lambda event: None)  # type: ignore[arg-type]


# -- keys that do not move ----------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_key_with_a_handler_of_ten_leases_stops_no_other_and_fills_no_memory(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BACKLOG", 200)
    monkeypatch.setattr(park, "STILL", 0.01)
    steps = stream(app, shards=1)
    slow_since, slow_until = [], []
    seen: defaultdict[str, list[int]] = defaultdict(list)
    others: list[float] = []

    @steps.consumer("g", concurrency=4, lease=0.5)
    async def handle(event: Step) -> None:
        if event.key == "key0" and event.n == 0:
            slow_since.append(time.monotonic())
            await asyncio.sleep(5.0)
            slow_until.append(time.monotonic())
        seen[event.key].append(event.n)
        if event.key != "key0":
            others.append(time.monotonic())

    await steps.publish(Step(key="key0", n=0))
    await steps.publish_many(
        [s for n in range(1, 1500) for s in (Step(key="key0", n=n), Step(key=f"key{n % 9 + 1}", n=n))]
    )
    with redis.Redis.from_url(app.settings.url or "") as raw:
        async with working(app) as worker:
            (work,) = await eventually_async(lambda: worker.runs)
            most = 0

            def all_others() -> bool:
                nonlocal most
                assert work.order is not None
                most = max(most, work.order.backlog)
                return len(others) == 1499

            await eventually_async(all_others, 10)
            assert not slow_until, "they waited for the slow one"
            assert max(others) - slow_since[0] < 4
            shard = steps.sync.layout().current[0]
            assert raw.scard(shard.parked("g")) == 1 and raw.xpending(shard.stream, "g")["pending"] > 1300
            await eventually_async(lambda: len(seen["key0"]) == 1500, 20)
            assert 0 < most <= 200 + 10  # at least one of each key comes back
            await eventually_async(lambda: raw.xpending(shard.stream, "g")["pending"] == 0)
            assert not raw.exists(shard.parked("g"), shard.parked("g") + ":key0")
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert worker.counts.handled == 2999 and worker.counts.refused == 0


async def test_thousands_of_keys_that_wait_for_a_retry_stop_no_other(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BACKLOG", 100)
    monkeypatch.setattr(park, "STILL", 0.01)
    steps = stream(app, shards=2)
    heal = asyncio.Event()
    seen: defaultdict[str, list[int]] = defaultdict(list)

    @steps.consumer("g", concurrency=8, retry=RetryPolicy(initial_delay=0.3, max_delay=0.3, max_attempts=1000))
    async def handle(event: Step) -> None:
        if event.key.startswith("bad") and not heal.is_set():
            raise ConnectionError("away")
        seen[event.key].append(event.n)

    await steps.publish_many([Step(key=f"bad{k}", n=n) for n in range(3) for k in range(300)])
    await steps.publish_many(of_keys(10, 10))
    async with working(app) as worker:
        await eventually_async(lambda: len(seen) == 10 and all(len(each) == 10 for each in seen.values()), 15)
        heal.set()
        await eventually_async(lambda: worker.counts.handled == 1000, 30)
    assert all(numbers == sorted(numbers) for numbers in seen.values()) and len(seen) == 310


@pytest.mark.long
async def test_no_more_than_so_many_are_put_aside_of_a_shard(app: RStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BACKLOG", 100)
    monkeypatch.setattr(park, "STILL", 0.01)
    monkeypatch.setattr(fetch, "PARKED_MAX", 300)
    steps = stream(app, shards=1)
    finish = asyncio.Event()
    seen: list[int] = []

    @steps.consumer("g", concurrency=4)
    async def handle(event: Step) -> None:
        if event.n == 0:
            await finish.wait()
        seen.append(event.n)

    await steps.publish_many(of_keys(1, 2000))
    with redis.Redis.from_url(app.settings.url or "") as raw:
        async with working(app):
            shard = steps.sync.layout().current[0]
            await eventually_async(lambda: raw.zcard(shard.parked("g") + ":key0") >= 300, 10)
            finish.set()
            await eventually_async(lambda: len(seen) == 2000, 20)
            assert seen == list(range(2000))
        assert raw.xpending(shard.stream, "g")["pending"] == 0


async def test_what_was_put_aside_is_there_for_the_next_worker_and_without_order(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BACKLOG", 100)
    monkeypatch.setattr(park, "STILL", 0.01)
    steps = stream(app, shards=1)
    finish = asyncio.Event()
    seen: list[int] = []

    @steps.consumer("g", concurrency=4, retry=RetryPolicy(initial_delay=0))
    async def handle(event: Step) -> None:
        if event.n == 0:
            await finish.wait()
        seen.append(event.n)

    await steps.publish_many(of_keys(1, 400))
    shard = (await steps.layout()).current[0]
    with redis.Redis.from_url(app.settings.url or "") as raw:
        for _ in range(2):
            async with working(app, grace=0.05):
                await eventually_async(lambda: raw.zcard(shard.parked("g") + ":key0") >= 300, 10)
            assert raw.xpending(shard.stream, "g")["pending"] >= 301
        finish.set()
        async with RStream(app.settings.url, namespace=app.settings.namespace) as other:
            again = stream(other, shards=1)
            again.consumer("g", ordered=False)(handle)
            await drain(other)
        assert sorted(seen) == list(range(400))
        assert not raw.exists(shard.parked("g"), shard.parked("g") + ":key0")


@pytest.mark.long
async def test_what_is_still_put_aside_after_a_while_without_order_is_found_when_there_is_order_again(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(park, "STILL", 0.01)
    steps = stream(app, shards=1)
    hold, seen = asyncio.Event(), list[int]()

    @steps.consumer("g", concurrency=4, lease=2)
    async def handle(event: Step) -> None:
        if event.n == 0:
            await hold.wait()
        seen.append(event.n)

    await steps.publish_many([*of_keys(1, 3000), *(Step(key="other", n=n) for n in range(3000, 4000))])
    shard = (await steps.layout()).current[0]

    async def few(event: Step) -> None:
        if len(seen) >= 1200:
            await asyncio.Event().wait()
        seen.append(event.n)

    with redis.Redis.from_url(app.settings.url or "") as raw:
        async with working(app, grace=0.05):
            await eventually_async(lambda: raw.zcard(shard.parked("g") + ":key0") >= 2900, 20)
            await eventually_async(lambda: len(seen) == 1000, 20)
        async with RStream(app.settings.url, namespace=app.settings.namespace) as other:
            stream(other, shards=1).consumer("g", ordered=False, concurrency=4, lease=2)(few)
            async with working(other, grace=0.05):
                await eventually_async(lambda: len(seen) == 1200)
        aside = raw.xpending_range(shard.stream, "g", "-", "+", 4000, consumername="~parked")
        assert 1000 < len(aside) < raw.zcard(shard.parked("g") + ":key0")
        hold.set()
        await drain(app)
        assert sorted(seen) == list(range(4000))
        assert seen[1200:] == sorted(seen[1200:])
        assert raw.xpending(shard.stream, "g")["pending"] == 0
        assert not raw.exists(shard.parked("g"), shard.parked("g") + ":key0")


# -- shards that move ---------------------------------------------------------------------------------------------


def owners(raw: redis.Redis, shards: tuple[Shard, ...]) -> dict[Shard, str]:
    """worker|epoch of each."""
    return {shard: (raw.get(shard.owner("g")) or b"").decode() for shard in shards}


def balanced(tokens: dict[Shard, str], workers: int) -> bool:
    counts = Counter(token.partition("|")[0] for token in tokens.values())
    return "" not in counts and len(counts) == workers and max(counts.values()) - min(counts.values()) <= 1


async def test_as_few_shards_move_as_can_be_and_the_others_notice_nothing(app: RStream) -> None:
    steps = stream(app, shards=16)
    handled: defaultdict[int, list[float]] = defaultdict(list)

    @steps.consumer("g", concurrency=8, lease=2)
    async def handle(event: Step, delivery: Delivery) -> None:
        handled[delivery.id.shard].append(time.monotonic())

    shards = (await steps.layout()).current
    keys = {shard: f"k{n}" for n in range(500) if (shard := steps.sync.layout().shard(f"k{n}"))}
    ended = asyncio.Event()

    async def load() -> None:
        n = 0
        while not ended.is_set():
            await steps.publish_many([Step(key=key, n=n) for key in keys.values()])
            n += 1
            await asyncio.sleep(0.01)

    async def settles(workers: int) -> tuple[dict[Shard, str], float]:
        since = time.monotonic()
        await eventually_async(lambda: balanced(owners(raw, shards), workers), 10)
        took = time.monotonic() - since
        await eventually_async(lambda: time.monotonic() > since + took + 0.3)
        now = owners(raw, shards)
        assert balanced(now, workers)
        return now, took

    def moved(before: dict[Shard, str], after: dict[Shard, str], since: float) -> int:
        stayed = [shard for shard in shards if before[shard] == after[shard]]
        for shard in stayed:
            times = [at for at in handled[shard.number] if at > since - 0.1]
            # Whoever took it anew would have another token. A pause of the machine is none of the shard's.
            assert max(two - one for one, two in pairwise(times)) < 2, "an unmoved shard paused for a lease"
        return 16 - len(stayed)

    publishing = asyncio.create_task(load())
    with redis.Redis.from_url(app.settings.url or "") as raw:
        async with AsyncExitStack() as first, AsyncExitStack() as others:
            await first.enter_async_context(working(app))
            one, _ = await settles(1)
            await eventually_async(lambda: len(handled) == 16)
            since = time.monotonic()
            await first.enter_async_context(working(app))
            for _ in range(2):
                await others.enter_async_context(working(app))
            four, took = await settles(4)
            assert (
                moved(one, four, since) == 12 and took < 5
            )  # the bell is rung, and nobody waits for a lease to run out
            since = time.monotonic()
            await others.aclose()
            two, took = await settles(2)
            assert (
                moved(four, two, since) == 8 and took < 5
            )  # the bell is rung, and nobody waits for a lease to run out
        ended.set()
        await publishing
        assert owners(raw, shards) == dict.fromkeys(shards, "")


@pytest.mark.long
async def test_a_shard_moves_at_once_and_only_the_key_that_runs_waits(app: RStream) -> None:
    steps = stream(app, shards=2)
    seen: list[tuple[str, int, str]] = []
    finish = asyncio.Event()

    @steps.consumer("g", concurrency=4, lease=0.5)
    async def handle(event: Step, delivery: Delivery) -> None:
        if event.n == 0:
            await finish.wait()
        seen.append((event.key, event.n, delivery.worker))

    layout = await steps.layout()
    slow = {layout.shard(f"slow{n}"): f"slow{n}" for n in range(50)}  # one in each shard
    fast = {layout.shard(f"fast{n}"): f"fast{n}" for n in range(50)}
    async with working(app) as old:
        await steps.publish_many([Step(key=key, n=0) for key in slow.values()])
        await eventually_async(lambda: old.runs and len(old.runs[0].running) == 2)
        # Unstarted: they wait for the slow ones.
        await steps.publish_many([Step(key=key, n=n) for key in slow.values() for n in range(1, 20)])
        await eventually_async(lambda: old.runs[0].in_hand == 40)
        began = time.monotonic()
        async with working(app) as new:
            await eventually_async(lambda: new.runs and new.runs[0].lease.owned)
            (shard,) = new.runs[0].lease.owned
            await steps.publish_many([Step(key=fast[shard], n=n) for n in range(1, 100)])
            await eventually_async(lambda: len(seen) == 99)
            assert {each[2] for each in seen} == {new.id}
            await eventually_async(lambda: time.monotonic() - began > 5.0, 10)  # ten leases
            assert len(seen) == 99 and len(old.runs[0].running) == 2
            finish.set()
            await eventually_async(lambda: len(seen) == 99 + 40)
            key = slow[shard]
            assert [(n, worker) for k, n, worker in seen if k == key] == [
                (n, new.id if n else old.id) for n in range(20)
            ]
            assert [n for k, n, _ in seen if k == slow[layout.current[1 - shard.number]]] == list(range(20))
            assert old.counts.refused == new.counts.refused == 0
        assert {worker.counts.recovered for worker in (old, new)} == {0}  # nothing was taken from the dead


async def test_a_fence_never_falls_and_a_new_owner_has_a_higher_one(app: RStream) -> None:
    steps = stream(app, shards=1)
    fences: list[int] = []

    @steps.consumer("g")
    async def handle(event: Step, delivery: Delivery) -> None:
        fences.append(delivery.fence)
        assert delivery.fence == delivery.epoch

    with redis.Redis.from_url(app.settings.url or "") as raw:
        for n in range(3):
            await steps.publish_many(of_keys(1, 2, first=2 * n))
            await drain(app)
            raw.set((await steps.layout()).current[0].epoch("g"), fences[-1] + 10**9)  # a clock that was ahead
    assert fences == sorted(fences) and len(set(fences)) == 3
    assert fences[-1] > fences[0] + 10**9


async def test_a_worker_that_does_not_own_a_shard_cannot_read_it(app: RStream) -> None:
    steps = stream(app, shards=1)
    seen: list[int] = []

    @steps.consumer("g", lease=1)
    async def handle(event: Step) -> None:
        seen.append(event.n)

    shard = (await steps.layout()).current[0]
    with redis.Redis.from_url(app.settings.url or "") as raw:
        async with working(app) as worker:
            await eventually_async(lambda: worker.runs and worker.runs[0].own.open)
            raw.set(shard.owner("g"), "another|9999999999999", px=1500)
            await steps.publish(Step(key="ada", n=1))
            await eventually_async(lambda: not worker.runs[0].lease.owned)
            assert not seen
            await eventually_async(lambda: seen == [1], 10)  # once the other's lease has run out


NUMBER = 7_000


async def test_ordered_costs_little_more_than_unordered(one_server: Server, namespace: str) -> None:
    """CPU time of the worker per handler that does nothing, in one run; many keys, so that there is always one that may
    run. (Order takes about 3 us an event; all else, 15.)
    """

    async def seconds(ordered: bool, turn: int) -> float:
        async with RStream(one_server.url, namespace=f"{namespace}-{ordered}-{turn}") as app:
            steps = stream(app, shards=8)

            @steps.consumer("g", concurrency=100, ordered=ordered)
            async def handle(event: Step) -> None: ...

            await steps.publish_many([Step(key=f"key{n % 1000}", n=n) for n in range(NUMBER)])
            worker = Worker(app)
            task = asyncio.create_task(worker.serve(signals=False))
            await eventually_async(lambda: worker.counts.handled >= 1_000, 20)
            since, done = time.process_time(), worker.counts.handled
            await eventually_async(lambda: worker.counts.handled == NUMBER, 20)
            cost = (time.process_time() - since) / (NUMBER - done)
            worker.stop()
            await task
            return cost

    costs = [(await seconds(True, turn), await seconds(False, turn)) for turn in range(3)]
    ratios = sorted(ordered / unordered for ordered, unordered in costs)
    assert ratios[0] <= 1.3, ratios
