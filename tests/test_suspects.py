"""Entries that kill their process, and the innocent ones beside them (promise 7)."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rstream import Delivery, RetryPolicy, RStream, Stream
from rstream.store.deliveries import Fetched, GroupOps, Outcome
from rstream.store.keys import shard
from rstream.worker import gate as gate_module
from rstream.worker.gate import Gate
from rstream.worker.lanes import Lanes
from tests.servers import Server
from tests.test_worker import working
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job, Spawner, WorkerProcess, workers

SHARD = shard("ns", "s", 1, 0, 1)


class Fleet:
    """Workers that are started again when they die, as a supervisor does."""

    def __init__(self, server: Server, namespace: str, spawn: Spawner, group: str) -> None:
        self.spawn, self.group = spawn, group
        self.raw = redis.Redis.from_url(server.url)
        self.app = RStream(server.url, namespace=namespace)
        self.jobs: Stream[Job] = self.app.stream("jobs", Job, shards=4)
        self.history = History(self.raw, namespace)
        self.live: list[WorkerProcess] = []

    def start(self, count: int, concurrency: int = 16) -> None:
        self.live = [self._worker(concurrency) for _ in range(count)]

    def _worker(self, concurrency: int) -> WorkerProcess:
        return self.spawn(group=self.group, lease=0.5, concurrency=concurrency)

    def keep_alive(self) -> None:
        for worker in list(self.live):
            if worker.process.poll() is not None:
                self.live.remove(worker)
                self.live.append(self._worker(16))

    def pending(self) -> int:
        return sum(self.raw.xpending(keys.stream, self.group)["pending"] for keys in self.jobs.sync.layout().current)

    def letters(self) -> dict[int, str]:
        return {letter.event.n: letter.reason for letter in self.jobs.sync.dead(self.group).read()}

    def settled_all(self) -> bool:
        self.keep_alive()
        return self.pending() == 0

    def settled(self, ended: int) -> bool:
        self.keep_alive()
        return len(self.history.counts("end")) == ended and self.pending() == 0

    def stop(self) -> None:
        for worker in self.live:
            worker.ready().signal(signal.SIGTERM)
        assert [worker.wait() for worker in self.live] == [0] * len(self.live)

    def close(self) -> None:
        self.raw.close()
        self.app.close()


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fleet(own_server: Server, namespace: str, tmp_path: Path, group: str) -> Iterator[Fleet]:
    with workers(own_server, namespace, tmp_path) as spawn:
        fleet = Fleet(own_server, namespace, spawn, group)
        yield fleet
        fleet.close()


@pytest.mark.parametrize("group", ["async"], indirect=True)
def test_an_entry_that_kills_the_process_is_found_and_no_innocent_beside_it(fleet: Fleet) -> None:
    kinds = ["die" if n == 250 else "wait" for n in range(501)]
    fleet.jobs.sync.publish_many(Job(n=n, kind=kind, seconds=0.002) for n, kind in enumerate(kinds))
    fleet.start(2)
    eventually(lambda: fleet.settled(500), 60)
    assert fleet.letters() == {250: "crashed"}
    assert fleet.history.counts("start")[250] == 3
    assert max(line.attempt for line in fleet.history.lines() if line.n != 250) <= 3  # none lost more than two
    assert set(fleet.history.counts("end")) == set(range(501)) - {250}
    fleet.stop()


@pytest.mark.parametrize("group", ["async"], indirect=True)
def test_an_innocent_entry_is_not_set_aside_for_what_two_others_did(fleet: Fleet) -> None:
    """It was beside the first killer twice; its last attempt is begun with nothing beside it, nor anything after it."""
    fleet.jobs.sync.publish_many([Job(n=1, seconds=2), Job(n=2, kind="die", seconds=0.3)])
    fleet.start(1)

    def third_time() -> bool:
        fleet.keep_alive()
        return fleet.history.counts("start")[1] == 3

    eventually(third_time, 60)
    fleet.jobs.sync.publish(Job(n=3, kind="die", seconds=0.1))
    eventually(lambda: fleet.settled(1), 60)
    assert fleet.letters() == {2: "crashed", 3: "crashed"}
    assert fleet.history.counts("end") == {1: 1}


@pytest.mark.parametrize("group", ["single"], indirect=True)
def test_with_a_single_attempt_only_what_ran_in_a_killed_worker_is_set_aside(fleet: Fleet) -> None:
    fleet.jobs.sync.publish_many(Job(n=n, seconds=0.02) for n in range(500))
    fleet.start(1, concurrency=4)
    eventually(lambda: len(fleet.history.counts("end")) >= 100, 30)
    fleet.live[0].signal(signal.SIGKILL)
    fleet.live[0].wait()
    # One that had ended and was not acked yet is among them: that it ended nobody was told.
    eventually(lambda: fleet.settled_all() and {*fleet.history.counts("end"), *fleet.letters()} == {*range(500)}, 60)
    assert set(fleet.letters().values()) <= {"crashed"} and len(fleet.letters()) <= 4
    assert set(fleet.history.counts("start").values()) == {1}
    fleet.stop()


# -- the gate ---------------------------------------------------------------------------------------------------------


def entry(number: int, source: str | None = None) -> Fetched:
    return Fetched(SHARD, b"%d-0" % number, (), 1, source)


async def took(lanes: Lanes) -> Fetched | None:
    """What a slot gets that asks now."""
    slot = asyncio.create_task(lanes.take())
    for _ in range(5):
        await asyncio.sleep(0)
    if slot.done():
        return slot.result()
    slot.cancel()
    await asyncio.wait([slot])
    return None


async def test_one_suspect_of_a_process_runs_at_a_time_and_others_run_beside_it() -> None:
    gate = Gate()
    one, two = Lanes(gate), Lanes(gate)
    suspects = [entry(n, "dead") for n in range(3)]
    one.put_suspects([(suspects[0], False), (suspects[1], False)])
    two.put_suspects([(suspects[2], False)])
    assert await took(one) == suspects[0]
    assert await took(one) is None and await took(two) is None
    two.put([entry(9)])
    assert await took(two) == entry(9)
    one.done(suspects[0])
    assert await took(two) == suspects[2]
    two.done(suspects[2])
    assert await took(one) == suspects[1]


async def test_a_suspect_at_its_last_attempt_waits_for_quiet_and_keeps_it() -> None:
    gate = Gate()
    one, two = Lanes(gate), Lanes(gate)
    one.put([entry(1), entry(2)])
    running = await took(one)
    assert running == entry(1)
    suspect = entry(5, "dead")
    two.put_suspects([(suspect, True)])
    assert await took(two) is None
    assert await took(one) is None, "nothing new is begun while it waits"
    one.done(running)
    assert await took(two) is suspect
    assert await took(one) is None, "nor while it runs"
    two.done(suspect)
    assert await took(one) == entry(2)


async def test_between_two_suspects_that_want_quiet_others_have_their_turn() -> None:
    gate = Gate()
    one, two = Lanes(gate), Lanes(gate)
    suspects = [entry(5, "dead"), entry(6, "dead")]
    one.put_suspects([(each, True) for each in suspects])
    two.put([entry(1), entry(2)])
    assert await took(one) is suspects[0]
    loop = asyncio.get_running_loop()
    began = loop.time()
    await eventually_async(lambda: loop.time() > began + 0.3)
    assert await took(two) is None
    one.done(suspects[0])
    assert await took(one) is None, "it is the others' turn"
    assert [await took(two), await took(two)] == [entry(1), entry(2)]
    for number in (1, 2):
        two.done(entry(number))
    slot = asyncio.create_task(one.take())
    await eventually_async(slot.done)
    assert slot.result() is suspects[1]


async def test_suspects_are_shared_among_workers(one_server: Server, namespace: str) -> None:
    async with RStream(one_server.url, namespace=namespace) as app:
        jobs = app.stream("jobs", Job, shards=2)
        begun: Counter[str] = Counter()

        @jobs.consumer("g", lease=1, concurrency=4)
        async def handle(event: Job, delivery: Delivery) -> None:
            begun[delivery.worker] += 1
            await asyncio.sleep(0.1)

        await jobs.publish_many(Job(n=n) for n in range(30))
        doomed = GroupOps(await jobs.layout(), "g", "dead")
        await app.link.run(doomed.create("0"))
        with redis.Redis.from_url(one_server.url) as raw:
            for each in (await app.link.run(doomed.fetch(30))).entries:
                stream = each.shard.stream
                raw.xclaim(stream, "g", "dead", 0, [each.id], retrycount=2, justid=True)
        async with working(app), working(app), working(app):
            await eventually_async(lambda: begun.total() == 30, 30)
        assert len(begun) == 3 and min(begun.values()) >= 5


async def test_what_has_no_attempt_left_is_set_aside_at_once(one_server: Server, namespace: str) -> None:
    async with RStream(one_server.url, namespace=namespace) as app:
        jobs = app.stream("jobs", Job, shards=2)
        finish = asyncio.Event()

        @jobs.consumer("single", lease=1, retry=RetryPolicy(max_attempts=1))
        async def single(event: Job) -> None: ...

        @jobs.consumer("long", lease=1)
        async def long(event: Job) -> None:
            await finish.wait()

        await jobs.publish_many(Job(n=n) for n in range(20))
        doomed = GroupOps(await jobs.layout(), "single", "dead")
        await app.link.run(doomed.create("0"))
        await app.link.run(doomed.fetch(20))
        async with working(app) as worker:
            await eventually_async(lambda: worker.counts.dead == 20)
            finish.set()


async def test_a_suspect_does_not_wait_for_ever_for_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "QUIET_WAIT", 0.05)
    lanes = Lanes()
    lanes.put([entry(1)])
    assert await took(lanes) == entry(1)
    suspect = entry(5, "dead")
    lanes.put_suspects([(suspect, True)])
    slot = asyncio.create_task(lanes.take())
    await eventually_async(slot.done)
    assert slot.result() is suspect


async def test_quiet_ends_with_the_suspect_that_wanted_it() -> None:
    gate = Gate()
    one, two = Lanes(gate), Lanes(gate)
    one.put([entry(1), entry(2)])
    assert await took(one) == entry(1)
    two.put_suspects([(entry(5, "dead"), True)])
    assert await took(two) is None and await took(one) is None
    assert two.drain() == [entry(5, "dead")]
    assert await took(one) == entry(2)


async def test_a_batch_that_is_being_filled_gives_way_to_quiet() -> None:
    lanes = Lanes()
    lanes.put([entry(1)])
    first = await lanes.take()
    lanes.forming.append(first)
    filler = asyncio.create_task(lanes.take_like(first))
    await asyncio.sleep(0)
    lanes.put_suspects([(entry(5, "dead"), True)])
    assert await took(lanes) is None
    await eventually_async(filler.done)
    assert filler.result() is None
    for each in lanes.formed():
        lanes.done(each)
    assert await took(lanes) == entry(5, "dead")


async def test_a_suspect_that_was_handed_over_unstarted_is_one_still(
    one_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RStream(one_server.url, namespace=namespace) as app:
        jobs = app.stream("jobs", Job, shards=1)

        @jobs.consumer("g", lease=1, concurrency=2)
        async def handle(event: Job) -> None: ...

        await jobs.publish_many(Job(n=n) for n in range(3))
        doomed = GroupOps(await jobs.layout(), "g", "dead")
        await app.link.run(doomed.create("0"))
        fetched = (await app.link.run(doomed.fetch(10))).entries
        with redis.Redis.from_url(one_server.url) as raw:
            for each, count in zip(fetched, (0, 2, 3), strict=True):  # never begun, begun twice, begun three times
                raw.xclaim(doomed.layout.current[0].stream, "g", "dead", 0, [each.id], retrycount=count, justid=True)
        over = [
            Outcome(each.shard, each.id, count, "release", count, "~released")
            for each, count in zip(fetched, (0, 2, 3), strict=True)
        ]
        assert not await app.link.run(doomed.settle(over))
        seen: list[tuple[int, bool]] = []
        put = Lanes.put_suspects

        def watched(lanes: Lanes, found: list[tuple[Fetched, bool]]) -> None:
            seen.extend((each.deliveries, alone) for each, alone in found)
            put(lanes, found)

        monkeypatch.setattr(Lanes, "put_suspects", watched)
        async with working(app) as worker:
            await eventually_async(lambda: worker.counts.handled == 2 and worker.counts.dead == 1)
        assert seen == [(2, True)]  # and the one with no attempt left needs no quiet to be set aside
