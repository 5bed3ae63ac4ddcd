"""How fast a replay goes, and what it is about: rates, speeds, conditions, and the plan that says so before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from pydantic import Field

from rstream import Delivery, EntryId, Event, RStream, Stream
from rstream.errors import ConfigError
from rstream.replay import Giving, Replay, ReplayPlan, ReplayResult, replay
from rstream.replay.pace import RATE_SLACK, SPEED_SLACK
from rstream.store.deliveries import GroupOps, Outcome
from tests.servers import Server
from tests.waiting import eventually_async


class Seen(Event):
    device: str
    n: int
    kind: str = "a"
    size: dict[str, int] = Field(default_factory=dict)
    media: bytes = b""


class Bench:
    def __init__(self, app: RStream, raw: redis.Redis) -> None:
        self.app, self.raw = app, raw
        self.stream: Stream[Seen] = app.stream("seen", Seen, key="device", shards=4)
        self.ids: list[EntryId] = []
        self.handled: list[EntryId] = []

    def publish(self, count: int, **fields: Any) -> list[EntryId]:
        first = len(self.ids)
        events = [
            Seen(device=f"d{n % 7}", n=n, kind="abc"[n % 3], size={"x": n % 2}, **fields)
            for n in range(first, first + count)
        ]
        new = sorted(self.stream.sync.publish_many(events))
        self.ids = sorted(self.ids + new)
        return new

    def publish_at(self, times: list[int]) -> None:
        """One entry at each of these times, in ms since 1970-01-12."""
        shards = self.stream.sync.layout().current
        for n, ms in enumerate(times):
            payload = msgpack.packb([1, {"device": "d", "n": n}])
            shard = shards[n % 4]
            self.raw.xadd(shard.stream, {"e": payload, "k": f"d{n}", "i": bytes(16)}, id=f"{10**9 + ms}-{n}")

    def matching(self, kind: str) -> list[EntryId]:
        return [entry.id for entry in self.stream.sync.read() if entry.event.kind == kind]

    async def handle(self, event: Seen, delivery: Delivery) -> None:
        self.handled.append(delivery.id)

    def run(self, replay: Any, work: str = "run") -> Any:
        async def main() -> Any:
            async with self.app:
                return await getattr(replay() if callable(replay) else replay, work)()

        return asyncio.run(main())

    def play(self, **options: Any) -> ReplayResult:
        found: ReplayResult = self.run(lambda: Replay(self.stream, self.handle, None, None, **options))
        return found

    def plan(self, **options: Any) -> ReplayPlan:
        found: ReplayPlan = self.run(lambda: Replay(self.stream, self.handle, None, None, **options), "plan")
        return found


@pytest.fixture
def bench(app: RStream, raw: redis.Redis) -> Bench:
    return Bench(app, raw)


@pytest.fixture
def one(one_server: Server, namespace: str) -> Iterator[Bench]:
    with RStream(one_server.url, namespace=namespace) as app, redis.Redis.from_url(one_server.url) as raw:
        yield Bench(app, raw)


# -- the pace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 20])
def test_a_rate_is_kept(one: Bench, batch: int | None) -> None:
    one.publish(300)

    async def handler(event: Any) -> None: ...

    async def main() -> ReplayResult:
        async with one.app:
            return await replay(one.stream, handler, None, None, rate="400/s", batch=batch)

    result = asyncio.run(main())
    assert result.handled == 300
    assert 299 / 400 - RATE_SLACK <= result.seconds < 3 * 299 / 400 + 1  # late only as far as the machine is busy


def test_a_rate_is_kept_when_giving_to_a_group(one: Bench) -> None:
    one.publish(200)
    ops = GroupOps(one.stream.sync.layout(), "g", "w")
    one.app.sync_link.run(ops.create("0"))
    read = one.app.sync_link.run(ops.fetch(1000)).entries
    one.app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in read]))
    result = one.run(lambda: Giving(one.stream, "g", None, None, rate=400))
    assert (result.given, result.finished) == (200, True)
    assert 199 / 400 - RATE_SLACK <= result.seconds < 3 * 199 / 400 + 1


def test_slow_handlers_leave_no_burst_behind_them(one: Bench) -> None:
    """What waits meanwhile is not handled all at once afterwards."""
    one.publish(100)
    times: list[float] = []

    async def stalls(event: Seen) -> None:
        times.append(time.monotonic())
        if len(times) == 10:
            await asyncio.sleep(0.6)

    async def main() -> ReplayResult:
        async with one.app:
            return await replay(one.stream, stalls, None, None, rate=100, concurrency=1)

    assert asyncio.run(main()).handled == 100
    for n in range(len(times)):  # its share, what is made up for, and what had its turn when this process stood still
        assert sum(1 for at in times if times[n] <= at < times[n] + 0.1) <= 10 + 2 * 100 * RATE_SLACK + 3


def test_a_multiple_of_the_original_pace(one: Bench) -> None:
    gaps = [0, 0, 500, 500, 4000, 4010, 9000]
    one.publish_at(gaps)
    times: list[float] = []

    async def handler(event: Seen) -> None:
        times.append(time.monotonic())

    async def main() -> ReplayResult:
        async with one.app:
            return await replay(one.stream, handler, None, None, speed="10x")

    began = time.monotonic()
    result = asyncio.run(main())
    assert (result.handled, result.invalid) == (7, 0)
    for at, ms in zip(times, gaps, strict=True):
        assert began + ms / 10_000 <= at < began + ms / 10_000 + SPEED_SLACK + 3
    assert one.plan(speed="10x").basis == "speed"
    assert one.plan(speed="10x").seconds == pytest.approx(0.9)


@pytest.mark.parametrize("batch", [None, 10])
def test_asked_to_stop_while_it_waits_it_does_at_once(one: Bench, batch: int | None) -> None:
    one.publish(20)

    async def main() -> ReplayResult:
        async def handler(event: Any) -> None:
            one.handled.extend([one.ids[0]])

        async with one.app:
            run = Replay(one.stream, handler, None, None, rate="1/h", batch=batch)
            task = asyncio.create_task(run.run())
            await eventually_async(lambda: one.handled)
            began = time.monotonic()
            run.stop()
            result = await task
            assert time.monotonic() - began < 60  # the next entry's turn comes in an hour
            return result

    result = asyncio.run(main())
    assert (result.handled, result.finished) == (1, False)


def test_stopped_and_gone_on_with_at_another_pace(one: Bench) -> None:
    one.publish(60)

    async def main() -> None:
        async with one.app:
            run = Replay(one.stream, one.handle, None, None, rate="100/s")
            task = asyncio.create_task(run.run())
            await eventually_async(lambda: len(one.handled) > 10)
            run.stop()
            assert not (await task).finished

    asyncio.run(main())
    result = one.play()
    assert result.finished and result.handled == 60 and result.earlier > 10
    assert sorted(one.handled) == one.ids


# -- conditions -----------------------------------------------------------------------------------------------------


def test_only_what_all_conditions_hold_of_is_handled(bench: Bench) -> None:
    bench.publish(120)
    result = bench.play(where=["kind=b", "size.x=1"])
    wanted = [entry.id for entry in bench.stream.sync.read() if entry.event.kind == "b" and entry.event.size["x"] == 1]
    assert sorted(bench.handled) == wanted and len(wanted) == 20
    assert (result.handled, result.skipped, result.done, result.finished) == (20, 100, 120, True)


def test_what_cannot_be_decoded_matches_nothing_and_is_told(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    one.publish(9)
    bad = one.raw.xadd(one.stream.sync.layout().current[0].stream, {"e": b"\xc1"}).decode()
    result = one.play(where=["kind=a"])
    assert (result.handled, result.skipped, result.invalid) == (3, 6, 1)
    assert [id.redis for id in result.invalid_ids] == [bad] and bad in caplog.text


def test_conditions_are_part_of_what_a_replay_is(one: Bench) -> None:
    one.publish(30)

    async def stops(event: Seen, delivery: Delivery) -> None:
        one.handled.append(delivery.id)
        run.stop()

    async def main() -> ReplayResult:
        nonlocal run
        async with one.app:
            run = Replay(
                one.stream, stops, None, None, where=["kind=c"], handler_name="same", name="mine", concurrency=1
            )
            return await run.run()

    run: Any = None
    first = asyncio.run(main())
    assert not first.finished and first.handled == 1
    with pytest.raises(ConfigError, match="begun with where 'kind=c' and has not ended; now it is where ''"):
        one.play(handler_name="same", name="mine")
    second = one.play(where=["kind=c"], handler_name="same", name="mine")
    assert (second.handled, second.skipped, second.finished) == (10, 20, True)
    assert sorted(one.handled) == one.matching("c")


def test_conditions_look_into_large_payloads(one_server: Server, namespace: str, tmp_path: Path) -> None:
    """Which are in the blob store."""
    with (
        RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path}", blob_threshold=500) as app,
        redis.Redis.from_url(one_server.url) as raw,
    ):
        bench = Bench(app, raw)
        bench.publish(30, media=bytes(2000))
        result = bench.play(where=["kind=a"])
        assert (result.handled, result.skipped) == (10, 20)
        assert sorted(bench.handled) == bench.matching("a")


@pytest.mark.parametrize(
    ("where", "says"), [("kindd=a", "no field 'kindd': they have device, n, kind"), ("kind", "is no condition")]
)
def test_a_condition_that_cannot_hold_is_refused(one: Bench, where: str, says: str) -> None:
    one.publish(3)
    for work in ("run", "plan"):
        with pytest.raises(ConfigError, match=says):
            one.run(lambda: Replay(one.stream, one.handle, None, None, where=[where]), work)
    assert one.handled == []


# -- the plan -------------------------------------------------------------------------------------------------------


def test_a_plan_tells_what_matches_and_how_long_it_takes(bench: Bench) -> None:
    bench.publish(90)
    plan = bench.plan(where=["kind=b"], rate="2/s")
    assert (plan.entries, plan.matching, plan.left, plan.archived) == (90, 30, 90, 0)
    assert (plan.seconds, plan.basis) == (29 / 2, "rate")
    plan = bench.plan()
    assert plan.basis == "reading" and 0 < plan.seconds < 10
    assert bench.handled == []


def test_killed_while_it_passes_over_most_it_goes_on_and_misses_nothing(one: Bench) -> None:
    """What was skipped counts once, and what matches is handled at least once, in order."""
    one.publish(600)
    order: list[int] = []

    class Killed(Replay):
        async def _leave(self) -> None:
            """Who is killed stores nothing more."""
            await asyncio.to_thread(self._keeper.stop)

    async def handler(event: Seen) -> None:
        order.append(event.n)

    async def main() -> ReplayResult:
        async with one.app:
            wishes: Any = {"where": ["kind=b", "device=d3"], "handler_name": "same", "lease": 0.5, "concurrency": 1}
            task = asyncio.create_task(Killed(one.stream, handler, None, None, rate="30/s", **wishes).run())
            await eventually_async(lambda: int(one.raw.hget(stored(one), "skipped") or 0))
            task.cancel()
            await asyncio.wait([task])
            return await Replay(one.stream, handler, None, None, **wishes).run()

    result = asyncio.run(main())
    events = [entry.event for entry in one.stream.sync.read()]
    wanted = [event.n for event in events if (event.kind, event.device) == ("b", "d3")]
    assert (result.finished, result.handled, result.skipped) == (True, len(wanted), 600 - len(wanted))
    assert sorted(set(order)) == sorted(wanted) and len(order) < 2 * len(wanted)


def stored(bench: Bench) -> bytes:
    """The key of the only replay there is."""
    return next(iter(bench.raw.scan_iter(f"{bench.app.settings.namespace}:replay:*")), b"none")
