"""What rstream costs where nothing happens, and where much lies: round trips of an idle worker, and memory in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from rstream import Event, Retention, RetryPolicy, RStream
from rstream.store.lines import Lines
from rstream.store.scripts import BY_SHA, Call
from rstream.store.sync_lines import SyncLines
from rstream.worker import fetch, recover
from rstream.worker.worker import Worker
from tests.servers import Server
from tests.test_worker import working
from tests.waiting import eventually_async


class Seen(Event):
    user: str
    session: str
    page: str = "/products/lamp"
    action: str = "click"
    ms: int
    ok: bool = True
    score: float
    country: str = "DE"
    device: str = "android"
    version: int = 3


def seen(n: int) -> Seen:
    return Seen(user=f"user-{n % 5000:06d}", session=f"s{n:012d}", ms=n % 100_000, score=n / 7)


BUDGET = {
    "beat+present+enrol": 10.0,  # all groups at once, every lease/3
    "recover+others": 7.5,  # a group: every lease/4
    "members+look": 7.5,  # an ordered group: every lease/4
    "mine": 15.0,  # a group: the audit
    "fetch": 20.0,  # an ordered group
    "knock": 5.0,  # an ordered group, blocked meanwhile
    "XREADGROUP": 5.0,  # another group, blocked meanwhile
    "listen": 5.0,  # blocked meanwhile
    "generations+HGET": 5.0,  # resharded, or paused?
    "HGET+peek": 15.0,  # the janitor: which retentions there are, and whether it is time to add to the history
    "office+HGETALL": 15.0,  # of a stream with one
    "weigh+HGETALL": 15.0,  # of which this worker looks after
    "HSET": 15.0,  # and writes down that it did
    "HGETALL": 60.0,  # then, of a stream: where it is,
    "totals": 60.0,  # what was counted,
    "sample": 60.0,  # and what that adds
}
"""Seconds between two round trips of a kind, at the least: docs/performance.md says the same."""

PER_GROUP = ("recover+others", "members+look", "mine", "fetch", "knock", "XREADGROUP")


def kind(calls: Sequence[Call]) -> str:
    names = dict.fromkeys(BY_SHA[str(call[1])].name if call[0] == "EVALSHA" else str(call[0]) for call in calls)
    if [*names] == ["XREAD"]:
        return "listen" if ":bell" in str(calls[0][-2]) else "knock"
    return "+".join(names)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The round trips of this process, by what is asked."""
    counter: Counter[str] = Counter()
    send, exchange = Lines.send, SyncLines.exchange

    async def counting(self: Lines, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        counter[kind(calls)] += 1
        return await send(self, calls, timeout)

    def counting_too(self: SyncLines, calls: Sequence[Call]) -> list[Any]:
        counter[kind(calls)] += 1
        return exchange(self, calls)

    monkeypatch.setattr(Lines, "send", counting)
    monkeypatch.setattr(SyncLines, "exchange", counting_too)
    return counter


def test_an_idle_worker_of_two_groups_is_allowed_two_round_trips_a_second() -> None:
    both_ordered = [(2 if name in PER_GROUP else 1) / BUDGET[name] for name in BUDGET if name != "XREADGROUP"]
    assert sum(both_ordered) <= 2


async def test_an_idle_worker_asks_no_more_than_that(one_app: RStream, counted: Counter[str]) -> None:
    stream = one_app.stream("seen", Seen, key="user", shards=16, retention=Retention(age="7d"))

    @stream.consumer("ordered")
    async def one(event: Seen) -> None: ...

    @stream.consumer("unordered", ordered=False)
    async def other(event: Seen) -> None: ...

    worker = Worker(one_app)
    serving = asyncio.create_task(worker.serve(signals=False))
    await stream.publish_many([seen(n) for n in range(200)])
    await eventually_async(lambda: worker.counts.handled == 400)
    loop = asyncio.get_running_loop()
    # Each of them has looked since, and found that there is nothing to do.
    await eventually_async(lambda: all(run.look_at > loop.time() + 2 for run in worker.runs), 15)
    counted.clear()
    began = loop.time()
    await asyncio.sleep(10)  # nothing happens: that is what is looked at
    passed = loop.time() - began
    found = dict(counted)
    worker.stop()
    await serving
    assert found["listen"] and found["knock"] and found["XREADGROUP"], "it is not listened any more"
    for name, number in found.items():
        groups = 1  # of the two, one is ordered
        if name in ("recover+others", "mine"):
            groups = 2
        assert name in BUDGET, f"{name} is not in the budget: {found}"
        assert number <= groups * (passed / BUDGET[name] + 1), f"{name}: {number} in {passed:.1f} s"


@pytest.mark.parametrize(("ordered", "read"), [(True, "knock"), (False, "XREADGROUP")])
async def test_a_lone_entry_is_begun_before_the_next_read_is_written(
    one_app: RStream, counted: Counter[str], monkeypatch: pytest.MonkeyPatch, ordered: bool, read: str
) -> None:
    monkeypatch.setattr(fetch, "BLOCK_MS", 60_000)  # no wait ends by itself
    stream = one_app.stream("seen", Seen, key="user", shards=4)
    reads_at_start: list[int] = []

    @stream.consumer("g", ordered=ordered, concurrency=1, prefetch=10)  # so there is room for the next ones
    async def handle(event: Seen) -> None:
        reads_at_start.append(counted[read])

    async with working(one_app):
        await eventually_async(lambda: counted[read] > 0)
        await stream.publish(seen(0))  # it may meet a worker that still begins
        await eventually_async(lambda: len(reads_at_start) == 1)
        for n in range(1, 6):
            await eventually_async(lambda: counted[read] > reads_at_start[-1])
            waiting = counted[read]
            await stream.publish(seen(n))
            await eventually_async(lambda n=n: len(reads_at_start) == n + 1)  # type: ignore[misc]
            assert reads_at_start[-1] == waiting


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for what others left before an hour is over, unless it is told to."""
    monkeypatch.setattr(recover, "IDLE_MAX", 3600.0)


async def idle(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    await eventually_async(lambda: worker.runs and all(run.look_at > loop.time() + 60 for run in worker.runs))


@pytest.mark.usefixtures("patient")
async def test_what_a_worker_that_stops_has_not_begun_is_rung_for(one_app: RStream, one_server: Server) -> None:
    held, finish, handled = list[int](), asyncio.Event(), list[int]()

    async def hold(event: Seen) -> None:
        held.append(event.ms)
        await finish.wait()

    async def handle(event: Seen) -> None:
        handled.append(event.ms)

    stream = one_app.stream("seen", Seen, shards=2)
    stream.consumer("g", ordered=False, lease=14_400, concurrency=1, prefetch=10)(hold)
    async with RStream(one_server.url, namespace=one_app.settings.namespace) as other:
        other.stream("seen", Seen, shards=2).consumer("g", ordered=False, lease=14_400)(handle)
        async with working(one_app) as first:
            await stream.publish_many([seen(n) for n in range(5)])
            await eventually_async(lambda: held and first.runs[0].in_hand == 5)
            async with working(other) as second:
                await idle(second)
                first.stop()
                await eventually_async(lambda: len(handled) == 4)
                assert len(held) == 1  # it still runs, and has an end
                finish.set()


@pytest.mark.usefixtures("patient")
async def test_what_is_redriven_is_rung_for(one_app: RStream) -> None:
    broken, handled = True, list[int]()
    stream = one_app.stream("seen", Seen, shards=2)

    @stream.consumer("g", ordered=False, lease=14_400, retry=RetryPolicy(max_attempts=1))
    async def handle(event: Seen) -> None:
        if broken:
            raise ValueError
        handled.append(event.ms)

    async with working(one_app) as worker:
        await stream.publish(seen(1))
        await eventually_async(lambda: worker.counts.dead == 1)
        await idle(worker)
        broken = False
        await stream.dead("g").redrive(everything=True)
        await eventually_async(lambda: handled == [1])


def test_an_entry_takes_40_bytes_more_than_a_bare_one(server: Server, raw: Any, app: RStream) -> None:
    """The bare one: a field, with the same payload. Of these bytes 18 are the event's id, and 2 beyond its own length
    go to the key; the rest is that fewer entries fit into a node.
    """
    stream = app.stream("seen", Seen, key="user", shards=8)
    number = 20_000
    stream.sync.publish_many([seen(n) for n in range(number)])
    more = 0
    for shard in stream.sync.layout().current:
        bare = shard.stream + ":bare"
        with raw.pipeline(transaction=False) as pipe:
            for _, fields in raw.xrange(shard.stream):
                pipe.xadd(bare, {"e": fields[b"e"]})
            pipe.execute()
        more += raw.memory_usage(shard.stream, samples=0) - raw.memory_usage(bare, samples=0)
    assert more / number <= 40
