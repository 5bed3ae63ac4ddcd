"""What a worker of an ordered group that dies or stands still costs the others: shards, keys and attempts."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from rstream import RetryPolicy, RStream, Stream
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.owners import OwnerOps
from rstream.worker import recover
from rstream.worker.worker import Worker
from tests.servers import Server
from tests.steps import Step
from tests.test_worker import working
from tests.waiting import eventually, eventually_async
from tests.workload import workers


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def stream(app: RStream, shards: int = 1) -> Stream[Step]:
    return app.stream("steps", Step, key="key", shards=shards)


def test_with_one_attempt_only_what_ran_is_set_aside(one_server: Server, namespace: str, tmp_path: Path) -> None:
    """What was read and waited for its key was not begun: the next worker handles it."""
    with (
        workers(one_server, namespace, tmp_path) as spawn,
        RStream(one_server.url, namespace=namespace) as app,
        redis.Redis.from_url(one_server.url) as raw,
    ):
        spawn.target = "tests.steps:app"
        steps = stream(app, 4)
        steps.sync.publish_many([Step(key=f"key{n % 4}", n=n, seconds=0.2 if n < 8 else 0) for n in range(400)])
        first = spawn(group="once", lease=1).ready()
        shards = steps.sync.layout().every
        eventually(lambda: sum(raw.xpending(shard.stream, "once")["pending"] for shard in shards) == 400, 20)
        first.signal(signal.SIGKILL)
        spawn(group="once", lease=1).ready()
        eventually(lambda: not any(raw.xpending(shard.stream, "once")["pending"] for shard in shards), 30)
        assert 1 <= sum(raw.xlen(shard.dead("once")) for shard in shards) <= 4


async def test_a_member_whose_loop_stands_still_keeps_no_free_shard_from_others(
    app: RStream, server: Server, namespace: str
) -> None:
    """Its thread keeps its lease, and what it owns; it is two leases before its handler lets the loop go on."""
    standing, go_on = threading.Event(), threading.Event()
    lease = 2.0

    def consumer(app: RStream) -> Stream[Step]:
        steps = stream(app, 8)

        @steps.consumer("g", lease=lease)
        async def handle(event: Step) -> None:
            standing.set()
            go_on.wait(20)

        return steps

    def stand() -> None:
        async def serve() -> None:
            async with RStream(server.url, namespace=namespace) as other:
                consumer(other)
                await Worker(other, burst=True).serve(signals=False)

        asyncio.run(serve())

    steps = consumer(app)
    with redis.Redis.from_url(server.url) as raw:
        shards = (await steps.layout()).every
        await steps.publish(Step(key="a", n=0))
        other = asyncio.create_task(asyncio.to_thread(stand))
        await eventually_async(standing.is_set)
        raw.delete(*(shard.owner("g") for shard in shards[:4]))  # as if some had been given up just now
        async with working(app) as worker:
            await eventually_async(lambda: worker.runs and len(worker.runs[0].own.open) >= 4, 2 * lease)
            assert not go_on.is_set()
            go_on.set()
        await other


async def test_a_key_goes_on_at_once_however_many_others_wait(
    app: RStream, server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler ended at the former owner; thousands of other keys of the shard wait for a retry."""
    monkeypatch.setattr(recover, "ASKED", 5)
    gate = asyncio.Event()
    ends: dict[int, float] = {}

    def consumer(app: RStream) -> Stream[Step]:
        steps = stream(app)

        @steps.consumer("g", lease=20, concurrency=4, retry=RetryPolicy(initial_delay=600))
        async def handle(event: Step) -> None:
            if event.key.startswith("waits"):
                raise ValueError
            if event.n == 0:
                await gate.wait()
            ends[event.n] = time.monotonic()

        return steps

    async with RStream(server.url, namespace=namespace) as other:
        steps, _ = consumer(app), consumer(other)
        await steps.publish_many([Step(key=f"waits{n}", n=n) for n in range(300)])
        await steps.publish_many([Step(key="slow", n=n) for n in range(2)])
        async with working(app) as first:
            await eventually_async(lambda: first.counts.failed == 300 and first.runs and first.runs[0].running, 20)
            async with working(other) as second:
                await eventually_async(lambda: len(second.runs) == 1)
                first.stop()
                await eventually_async(lambda: second.runs[0].own.open, 10)
                gate.set()
                await eventually_async(lambda: len(ends) == 2, 10)
    assert ends[0] < ends[1]


async def test_what_failed_and_was_put_aside_is_not_suspected_of_killing_workers(
    app: RStream,
) -> None:
    layout = await stream(app).layout()
    (shard,) = layout.every
    await app.streams["steps"].publish_many([Step(key="a", n=n) for n in range(2)])
    ops = GroupOps(layout, "g", "me")
    owner, run = OwnerOps(ops), app.link.run
    await run(ops.create("0"))
    token = (await run(owner.own({shard: 0}, 5000)))[shard]
    one, two = (await run(ops.fetch(2, [shard], {shard: token}))).entries
    parks = [Outcome(shard, one.id, 1, "park", 1, b"a"), Outcome(shard, two.id, 1, "park", 1, b"a", "!")]
    assert await run(ops.settle(parks)) == []
    assert (await run(owner.parked(shard, await run(owner.crowded(shard)))))[b"a"] == (one.id, 2)
    back = await run(owner.unpark(shard, token, b"a", 5))
    assert back is not None and [each.source for each in back.entries] == ["~parked", "~suspect"]
