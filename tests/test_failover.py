"""A master that is killed under load: what it costs, on Sentinel and on a Cluster."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from rstream import Delivery, RStream
from rstream.errors import StoreError
from rstream.settings import Durability
from tests.fleets import DOWN_AFTER, Cluster, Sentinels
from tests.servers import KINDS
from tests.steps import ENDURING, Step, Taken
from tests.test_worker import working
from tests.waiting import eventually_async

KEYS = 8


@pytest.fixture(params=["sentinel", "cluster"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster | Sentinels]:
    kind = Sentinels if request.param == "sentinel" else Cluster
    with kind(KINDS["embedded"], tmp_path) as fleet:
        yield fleet


class Load:
    """Each key's steps are published one after the other, and handled; when what was confirmed."""

    def __init__(self, app: RStream) -> None:
        self.app = app
        self.steps = app.stream("steps", Step, key="key", shards=6)
        self.taken = app.stream("taken", Taken, key="key", shards=6)
        self.confirmed: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self.handled: defaultdict[str, list[float]] = defaultdict(list)
        self.ended = asyncio.Event()

        @self.steps.consumer("g", concurrency=16, lease=5, retry=ENDURING, emits=self.taken)
        async def handle(event: Step, delivery: Delivery) -> Taken:
            self.handled[event.key].append(time.monotonic())
            return Taken(key=event.key, n=event.n, worker="", fence=delivery.fence, attempt=delivery.attempt)

    async def publish(self, key: str) -> None:
        n = 0
        while not self.ended.is_set():
            await self.steps.publish(Step(key=key, n=n))
            self.confirmed[key][n] = time.monotonic()
            n += 1
            await asyncio.sleep(0.002)

    def since(self, time: float, key: str) -> int:
        """How many were confirmed from then on."""
        return sum(at >= time for at in self.confirmed[key].values())

    def quiet(self, key: str, seconds: float) -> bool:
        return max(self.confirmed[key].values()) < time.monotonic() - seconds

    async def stored(self) -> dict[str, list[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        async for entry in self.steps.read():
            found[entry.event.key].append(entry.event.n)
        return found

    def lost(self, stored: dict[str, list[int]]) -> dict[str, list[int]]:
        """What was confirmed, and is not there."""
        return {key: sorted(set(each) - set(stored[key])) for key, each in self.confirmed.items()}

    async def accepted(self) -> dict[str, list[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        async for entry in self.taken.read():
            found[entry.event.key].append(entry.event.n)
        return found


def longest(times: list[float]) -> float:
    return max(two - one for one, two in pairwise(times))


async def kill_the_master(fleet: Cluster | Sentinels, load: Load) -> None:
    slot = (await load.steps.layout()).shard("key0").slot
    old = await asyncio.to_thread(fleet.depose, slot)
    if isinstance(fleet, Cluster):  # without it the new master would have no replica that could confirm
        await asyncio.to_thread(old.start)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("durability", ["local", "replicated"])
async def test_a_killed_master_stops_nothing_for_long_and_turns_nothing_around(
    fleet: Cluster | Sentinels, namespace: str, durability: str, record_property: pytest.RecordProperty
) -> None:
    async with RStream(fleet.url, namespace=namespace, durability=durability) as app:
        load = Load(app)
        async with working(app) as worker:
            publishing = [asyncio.create_task(load.publish(f"key{n}")) for n in range(KEYS)]
            await eventually_async(lambda: len(load.handled) == KEYS and all(map(len, load.handled.values())), 20)
            before = {key: len(times) for key, times in load.handled.items()}
            await asyncio.to_thread(lambda: None)
            killed = time.monotonic()
            await kill_the_master(fleet, load)
            await eventually_async(
                lambda: (
                    all(max(each.values()) > killed + 3 for each in load.confirmed.values())
                    and all(times[-1] > killed + 3 for times in load.handled.values())
                ),
                20,
            )
            load.ended.set()
            await asyncio.gather(*publishing)
            stored = await load.stored()

            async def all_accepted() -> bool:
                return {k: set(v) for k, v in (await load.accepted()).items()} == {k: set(v) for k, v in stored.items()}

            await eventually_async(all_accepted, 20)
            assert all(before.values()) and worker.counts.dead == 0
        limit = DOWN_AFTER / 1000 + 3
        assert max(longest(list(each.values())) for each in load.confirmed.values()) < limit
        assert max(longest(times) for times in load.handled.values()) < limit
        lost = load.lost(stored)
        count = sum(map(len, lost.values()))
        record_property("confirmed and lost", count)
        print(f"{type(fleet).__name__}, {durability}: {count} confirmed events were lost")
        if durability == "replicated":
            assert count == 0, lost
        for key, numbers in stored.items():
            assert numbers == sorted(set(numbers)), f"{key} was published twice or out of order"
        for key, numbers in (await load.accepted()).items():
            assert numbers == sorted(set(numbers)), f"{key} was accepted twice or out of order"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("durability", ["local", "replicated"])
async def test_what_replicas_that_lag_do_not_have_is_lost_only_where_publishing_does_not_wait_for_them(
    fleet: Cluster | Sentinels, namespace: str, durability: Durability, record_property: pytest.RecordProperty
) -> None:
    async with RStream(fleet.url, namespace=namespace, durability=durability) as app:
        load = Load(app)
        publishing = [asyncio.create_task(load.publish(f"key{n}")) for n in range(KEYS)]
        await eventually_async(lambda: len(load.confirmed) == KEYS and min(map(len, load.confirmed.values())) > 20, 20)
        with fleet.lagging():
            began = time.monotonic()
            if durability == "local":
                await eventually_async(lambda: load.since(began, "key0") >= 50, 20)
            else:
                await eventually_async(lambda: all(load.quiet(key, 0.5) for key in load.confirmed), 20)
            await kill_the_master(fleet, load)
        up = time.monotonic()
        await eventually_async(lambda: all(load.since(up, key) >= 20 for key in load.confirmed), 20)
        load.ended.set()
        await asyncio.gather(*publishing)
        stored = await load.stored()
    lost = load.lost(stored)
    count, waited = sum(map(len, lost.values())), max(longest(list(each.values())) for each in load.confirmed.values())
    record_property("confirmed and lost", count)
    name = f"{type(fleet).__name__} whose replicas lag, {durability}"
    print(f"{name}: {count} confirmed events were lost, one waited {waited:.1f} s")
    for key, numbers in stored.items():
        assert numbers == sorted(set(numbers)), f"{key} was published twice or out of order"
    if durability == "local":
        assert lost["key0"]
    else:
        assert count == 0, lost


async def test_what_no_replica_has_is_not_confirmed(tmp_path: Path, namespace: str) -> None:
    with Sentinels(KINDS["embedded"], tmp_path) as fleet:
        async with RStream(fleet.url, namespace=namespace, durability="replicated", publish_timeout=2) as app:
            steps = app.stream("steps", Step, key="key", shards=2)
            await steps.publish(Step(key="ada", n=1))
            for replica in [node for node in fleet.nodes if not node.is_master()]:
                replica.pause()
            with pytest.raises(StoreError, match="0 of 1 replicas"):
                await steps.publish(Step(key="ada", n=2))
