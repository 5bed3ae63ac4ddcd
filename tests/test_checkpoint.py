"""Checkpoints and steps: an attempt goes on where the one before it was, and who lost the entry stores nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from rstream import Delivery, EntryId, Event, RetryPolicy, RStream
from rstream.errors import ConfigError, LeaseLost, MemoInvalid, MemoTooLarge
from rstream.memo import MAX_BYTES
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.link import Op
from rstream.store.memo import MAX_TOTAL, TTL, Place, StoredMemo
from rstream.worker.worker import Worker
from tests.servers import Server
from tests.waiting import eventually
from tests.workload import FREEZE, THAW, History, Job, Spawner, workers


class Item(Event):
    n: int


# -- in handlers ----------------------------------------------------------------------------------------------------


async def drain(app: RStream) -> Worker:
    worker = Worker(app, burst=True)
    async with asyncio.timeout(30):
        await worker.serve(signals=False)
    return worker


def memos(raw: redis.Redis, app: RStream) -> list[bytes]:
    return list(raw.scan_iter(f"{{{app.settings.namespace}:*:memo:*", count=10_000))


QUICK = RetryPolicy(initial_delay=0, max_attempts=3)


async def test_an_attempt_finds_what_the_one_before_it_stored(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[Any] = []
    kept: list[int] = []

    @items.consumer("g", retry=QUICK)
    async def handle(event: Item, delivery: Delivery) -> None:
        seen.append(delivery.checkpoint_value)
        await delivery.checkpoint({"at": delivery.attempt, "pair": (1, b"\x00")})
        seen.append(await delivery.step("sync", lambda: seen.append("ran sync") or delivery.attempt))
        seen.append(await delivery.step(f"new in {delivery.attempt}", asyncio.sleep, 0, "slept"))
        kept.append(len(memos(raw, app)))
        if delivery.attempt < 3:
            raise ValueError

    await items.publish(Item(n=1))
    assert (await drain(app)).counts.handled == 1
    first = {"at": 1, "pair": [1, b"\x00"]}
    assert seen == [None, "ran sync", 1, "slept", first, 1, "slept", first | {"at": 2}, 1, "slept"]
    assert kept == [1, 1, 1]
    assert memos(raw, app) == []


async def test_def_handlers_have_the_same_in_their_threads(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[Any] = []

    @items.consumer("g", retry=QUICK)
    def handle(event: Item, delivery: Delivery) -> None:
        seen.append(delivery.checkpoint_value)
        seen.append(delivery.sync.step("one", lambda: delivery.attempt))
        delivery.sync.checkpoint(delivery.attempt)
        with pytest.raises(ConfigError, match="sync"):
            delivery.checkpoint(7)
        with pytest.raises(ConfigError, match="sync"):
            delivery.step("two", print)
        with pytest.raises(ConfigError, match="async"):
            delivery.sync.step("two", asyncio.sleep, 0)
        if delivery.attempt < 3:
            raise ValueError

    await items.publish(Item(n=1))
    assert (await drain(app)).counts.handled == 1
    assert seen == [None, 1, 1, 1, 2, 1]
    assert memos(raw, app) == []


async def test_a_dead_letter_takes_the_memo_with_it_and_groups_have_their_own(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[Any] = []

    @items.consumer("failing", retry=RetryPolicy(initial_delay=0, max_attempts=2))
    async def fail(event: Item, delivery: Delivery) -> None:
        seen.append(delivery.checkpoint_value)
        await delivery.checkpoint(["failing", event.n])
        raise ValueError

    @items.consumer("fine")
    async def fine(event: Item, delivery: Delivery) -> None:
        assert delivery.checkpoint_value is None
        await delivery.checkpoint(["fine", event.n])

    await items.publish_many(Item(n=n) for n in range(3))
    worker = await drain(app)
    assert worker.counts.dead == 3
    assert sorted(seen, key=str) == sorted([None, None, None, *(["failing", n] for n in range(3))], key=str)
    assert memos(raw, app) == []


async def test_a_first_attempt_asks_redis_for_nothing(app: RStream, monkeypatch: pytest.MonkeyPatch) -> None:
    items = app.stream("items", Item, shards=2)
    loaded: list[int] = []
    load = Place.load

    def counted(place: Place) -> Op[dict[str, bytes]]:
        loaded.append(place.attempt)
        return load(place)

    monkeypatch.setattr(Place, "load", counted)

    @items.consumer("g", retry=QUICK)
    async def handle(event: Item, delivery: Delivery) -> None:
        if event.n == 0 and delivery.attempt < 3:
            raise ValueError

    await items.publish_many(Item(n=n) for n in range(20))
    await drain(app)
    assert loaded == [2, 3]


async def test_what_cannot_be_kept_is_told_and_leaves_what_was_kept(app: RStream) -> None:
    items = app.stream("items", Item, shards=2)
    wrong: list[str] = []

    @items.consumer("g")
    async def handle(event: Item, delivery: Delivery) -> None:
        await delivery.checkpoint("small")
        for value, kind in [(bytes(MAX_BYTES), MemoTooLarge), (object(), MemoInvalid), (2**70, MemoInvalid)]:
            with pytest.raises(kind) as told:
                await delivery.checkpoint(value)
            wrong.append(str(told.value))
            with pytest.raises(kind) as told:
                await delivery.step("big", lambda value=value: value)  # type: ignore[misc]
            wrong.append(str(told.value))
        assert delivery.checkpoint_value == "small"
        for n in range(17):
            try:
                await delivery.step(f"step {n}", bytes, MAX_BYTES - 100)
            except MemoTooLarge as error:
                wrong.append(f"{n}: {error}")

    await items.publish(Item(n=1))
    assert (await drain(app)).counts.handled == 1
    assert "the checkpoint is 1,048," in wrong[0] and "keep its name" in wrong[0]
    assert "the result of step 'big' is" in wrong[1]
    assert all("cannot be encoded" in text for text in wrong[2:6])
    assert wrong[6:] and wrong[6].startswith("16: ") and "together" in wrong[6]


async def test_a_step_has_a_name_of_its_own() -> None:
    delivery = by_hand()

    async def twice() -> None:
        with pytest.raises(ConfigError, match="running already"):
            await delivery.step("a", print)

    await delivery.step("a", twice)
    assert await delivery.step("a", lambda: 1) is None  # the memo
    for name in ("", "x" * 201, 7):
        with pytest.raises(ConfigError, match="name"):
            await delivery.step(name, print)  # type: ignore[arg-type]


async def test_a_step_that_raises_is_not_kept() -> None:
    delivery = by_hand()
    with pytest.raises(ZeroDivisionError):
        await delivery.step("a", lambda: 1 / 0)
    assert await delivery.step("a", lambda: 5) == 5


# -- made by hand, named, sent away ---------------------------------------------------------------------------------


def by_hand(**other: Any) -> Delivery:
    given: dict[str, Any] = {
        "id": EntryId(5, 0, 1, 3), "stream": "orders", "group": "g", "key": None, "event_id": bytes(range(16)),
        "headers": {}, "attempt": 1, "worker": "w",
    }  # fmt: skip
    return Delivery(**given | other)


async def test_a_delivery_made_by_hand_keeps_things_in_memory() -> None:
    first = by_hand()
    assert first.checkpoint_value is None
    await first.checkpoint({"when": datetime(2026, 1, 1, tzinfo=UTC)})
    assert first.sync.step("double", lambda x: (x, x), 4) == [4, 4]
    second = dataclasses.replace(first, attempt=2)
    assert second.checkpoint_value == {"when": "2026-01-01T00:00:00Z"}
    assert await second.step("double", pytest.fail) == [4, 4]
    assert by_hand() == first and by_hand().checkpoint_value is None
    assert "memo" not in repr(first)
    second.checkpoint_value.clear()
    assert second.checkpoint_value != {}


def test_the_idempotency_key_says_which_entry_and_group_and_the_fence_grows() -> None:
    key = by_hand().idempotency_key
    assert key == "orders/g/000102030405060708090a0b0c0d0e0f"
    assert by_hand(attempt=2, worker="other").idempotency_key == key
    others = [by_hand(group="h"), by_hand(stream="items"), by_hand(event_id=bytes(16)), by_hand(event_id=b"")]
    assert len({key, *(other.idempotency_key for other in others)}) == 5
    assert by_hand(event_id=b"").idempotency_key == "orders/g/5-0@1.3"
    assert by_hand(attempt=2).fence > by_hand().fence


async def test_a_delivery_can_be_sent_to_another_process(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=2)
    seen: list[Any] = []

    @items.consumer("g", retry=QUICK)
    async def handle(event: Item, delivery: Delivery) -> None:
        await delivery.checkpoint("by the worker")
        sent = pickle.loads(pickle.dumps(delivery))
        assert sent == delivery
        seen.append(sent.checkpoint_value)
        await asyncio.to_thread(sent.sync.checkpoint, "by the other process")
        seen.append(await sent.step("s", lambda: delivery.attempt))
        await sent._memo._links.link.aclose()
        if delivery.attempt == 1:
            raise ValueError
        raw.xclaim((await items.layout()).current[delivery.id.shard].stream, "g", "thief", 0, [delivery.id.redis])
        with pytest.raises(LeaseLost):
            await sent.step("t", seen.append, "never")
        await sent._memo._links.link.aclose()

    await items.publish(Item(n=1))
    worker = Worker(app, burst=False)
    task = asyncio.create_task(worker.serve(signals=False))
    async with asyncio.timeout(20):
        while worker.counts.refused == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        worker.stop()
        await task
    assert seen == ["by the worker", 1] * 2


# -- the fence, in Redis --------------------------------------------------------------------------------------------


class Bench:
    """One entry, fetched by worker "a" of group "g"."""

    def __init__(self, app: RStream, raw: redis.Redis) -> None:
        self.app, self.raw, self.run = app, raw, app.sync_link.run
        stream = app.stream("items", Item, shards=1)
        stream.sync.publish(Item(n=1))
        self.layout = stream.sync.layout()
        self.run(self.ops("a").create("0"))
        (entry,) = self.run(self.ops("a").fetch(10)).entries
        self.id, self.keys = entry.id, self.layout.current[0]
        self.key = self.keys.memo("g", self.id.decode())

    def ops(self, worker: str) -> GroupOps:
        return GroupOps(self.layout, "g", worker)

    def place(self, worker: str = "a", attempt: int = 1) -> Place:
        return Place(self.ops(worker), self.keys, self.id, attempt)

    def settle(self, *how: Any, attempt: int = 1) -> None:
        assert self.run(self.ops("a").settle([Outcome(self.keys, self.id, attempt, *how)])) == []

    def rerun(self, worker: str, attempt: int) -> None:
        self.raw.execute_command("XCLAIM", self.keys.stream, "g", worker, 0, self.id, "RETRYCOUNT", attempt)

    def loaded(self, attempt: int) -> dict[str, bytes]:
        return self.run(self.place(attempt=attempt).load())


@pytest.fixture
def bench(app: RStream, raw: redis.Redis) -> Bench:
    return Bench(app, raw)


@pytest.mark.parametrize("taken", ["worker", "attempt", "settled"])
@pytest.mark.parametrize("field", ["c", "s:one", ""])
def test_who_lost_the_delivery_stores_nothing(bench: Bench, taken: str, field: str) -> None:
    bench.run(bench.place().keep("c", b"first", 1))
    if taken == "settled":
        bench.raw.xack(bench.keys.stream, "g", bench.id)
    else:
        bench.rerun("b" if taken == "worker" else "a", 2)
    before = bench.raw.hgetall(bench.key)
    with pytest.raises(LeaseLost, match="changed nothing"):
        bench.run(bench.place().keep(field, b"late", 2))
    assert bench.raw.hgetall(bench.key) == before


def test_a_memo_lives_until_the_entry_is_settled_and_not_for_ever(bench: Bench) -> None:
    bench.run(bench.place().keep("c", b"first", 1))
    assert 0 < TTL - bench.raw.ttl(bench.key) < 60 or bench.raw.ttl(bench.key) == TTL
    bench.raw.expire(bench.key, 50)
    bench.run(bench.place().keep("s:one", b"1", 2))
    assert bench.raw.ttl(bench.key) > 50  # renewed
    bench.settle("retry", 0)
    assert bench.loaded(2) == {"c": b"first", "s:one": b"1"}
    bench.rerun("a", 2)
    bench.settle("release", 1, "~released", attempt=2)
    assert bench.raw.exists(bench.key)
    bench.rerun("a", 2)
    bench.settle("ack", attempt=2)
    assert not bench.raw.exists(bench.key)


def test_a_refused_settle_leaves_the_memo(bench: Bench) -> None:
    bench.run(bench.place().keep("c", b"first", 1))
    outcomes = [Outcome(bench.keys, bench.id, 1, "ack"), Outcome(bench.keys, bench.id, 1, "dead", "failed", "x")]
    assert len(bench.run(bench.ops("b").settle(outcomes))) == 2
    assert bench.raw.exists(bench.key)
    bench.settle("dead", "failed", "x")
    assert not bench.raw.exists(bench.key)


def test_a_checkpoint_that_arrives_late_leaves_a_newer_one_alone(bench: Bench) -> None:
    place = bench.place()
    for number, value in [(2, b"newer"), (1, b"older"), (2, b"resent")]:
        bench.run(place.keep("c", value, number))
    bench.run(place.keep("s:one", b"step", 1))  # of steps, each has a field of its own
    assert bench.loaded(2) == {"c": b"newer", "s:one": b"step"}
    bench.rerun("b", 2)
    bench.run(bench.place("b", 2).keep("c", b"next attempt", 1))
    assert bench.loaded(3)["c"] == b"next attempt"


def test_what_an_earlier_life_of_the_group_left_is_not_taken_up(bench: Bench) -> None:
    bench.rerun("a", 3)
    bench.run(bench.place(attempt=3).keep("c", b"old", 1))
    assert bench.loaded(3) == {}
    bench.raw.xgroup_destroy(bench.keys.stream, "g")
    bench.run(bench.ops("b").create("0"))
    bench.run(bench.ops("b").fetch(10))
    bench.run(bench.place("b").keep("s:one", b"new", 1))
    assert bench.loaded(2) == {"s:one": b"new"}
    assert int(bench.raw.hget(bench.key, "bytes") or 0) == 3


def test_all_values_together_are_bounded_and_replaced_ones_do_not_count(bench: Bench) -> None:
    half = bytes(MAX_TOTAL // 2)
    for number in range(1, 4):
        bench.run(bench.place().keep("c", half, number))
    bench.run(bench.place().keep("s:one", half, 4))
    with pytest.raises(MemoTooLarge):
        bench.run(bench.place().keep("s:two", b"x", 5))
    assert set(bench.loaded(2)) == {"c", "s:one"}


def test_work_under_way_goes_on_when_memory_is_full(bench: Bench) -> None:
    try:
        bench.raw.config_set("maxmemory", 1)
        bench.run(bench.place().keep("c", b"first", 1))
        assert bench.loaded(2) == {"c": b"first"}
    finally:
        bench.raw.config_set("maxmemory", 0)


def test_a_stored_value_of_another_form_is_told(bench: Bench) -> None:
    memo = StoredMemo(bench.app, NoLease(), 1, bench.ops("a"), bench.keys, bench.id, 1)
    memo.kept = {"c": msgpack.packb([2, {"blob": "x"}]), "s:one": b"\xc1"}
    with pytest.raises(MemoInvalid, match="form 2"):
        _ = memo.checkpoint
    with pytest.raises(MemoInvalid, match="'one' that was stored cannot be decoded"):
        memo.step_sync("one", print, ())


class NoLease:
    seconds, term = 1.0, 1

    def holds(self) -> bool:
        return False


def test_who_is_not_sure_of_the_lease_asks_before_a_step(bench: Bench) -> None:
    memo = StoredMemo(bench.app, NoLease(), 1, bench.ops("a"), bench.keys, bench.id, 1)
    ran: list[int] = []
    memo.step_sync("one", ran.append, [1])
    bench.rerun("b", 2)
    with pytest.raises(LeaseLost):
        memo.step_sync("two", ran.append, [2])
    assert ran == [1]


# -- workers killed and frozen --------------------------------------------------------------------------------------


class Fleet:
    def __init__(self, server: Server, namespace: str, spawn: Spawner) -> None:
        self.spawn, self.namespace = spawn, namespace
        spawn.target = "tests.longwork:app"
        self.raw = redis.Redis.from_url(server.url)
        self.app = RStream(server.url, namespace=namespace)
        self.jobs = self.app.stream("jobs", Job, shards=4)
        self.history = History(self.raw, namespace)

    def count(self, what: str) -> int:
        return self.history.counts(what).total()

    def memos(self) -> dict[bytes, dict[bytes, bytes]]:
        found = self.raw.scan_iter(f"{{{self.namespace}:*:memo:*", count=10_000)
        return {key: self.raw.hgetall(key) for key in found}

    def flag(self, name: str) -> None:
        self.raw.set(f"flag:{self.namespace}:{name}", 1, ex=600)


@pytest.fixture
def fleet(server: Server, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    with workers(server, namespace, tmp_path) as spawn:
        fleet = Fleet(server, namespace, spawn)
        yield fleet
        fleet.raw.close()
        fleet.app.close()


@pytest.mark.parametrize("group", ["steps", "steps-thread"])
@pytest.mark.long
def test_a_killed_workers_work_goes_on_from_its_last_step(fleet: Fleet, group: str) -> None:
    victim = fleet.spawn(group=group, lease=1, concurrency=5).ready()
    fleet.jobs.sync.publish_many(Job(n=n) for n in range(5))
    eventually(lambda: fleet.count("held") == 5, 10)
    victim.signal(signal.SIGKILL)
    fleet.spawn(group=group, lease=1, concurrency=5).ready()
    eventually(lambda: fleet.count("end") == 5, 15)
    eventually(lambda: fleet.memos() == {})

    lines = fleet.history.lines()
    assert {line.what for line in lines if line.attempt == 2} == {"from-1", "part-2", "part-3", "end"}
    for what in ("from-None", "from-1", "part-0", "part-1", "part-2", "part-3", "end"):
        assert fleet.history.counts(what) == dict.fromkeys(range(5), 1), what


@pytest.mark.long
def test_a_frozen_workers_checkpoints_and_steps_are_refused_and_change_nothing(fleet: Fleet) -> None:
    frozen = fleet.spawn(group="steps", lease=1, concurrency=10).ready()
    fleet.jobs.sync.publish_many(Job(n=n, kind="late") for n in range(10))
    eventually(lambda: fleet.count("held") == 10, 10)
    frozen.signal(FREEZE)
    fleet.spawn(group="steps", lease=1, concurrency=10).ready()
    eventually(lambda: fleet.count("taken") == 10, 15)
    before = fleet.memos()
    assert len(before) == 10

    frozen.signal(THAW)
    fleet.flag("thawed")
    refused = ("refused-running-step", "refused-checkpoint", "refused-step", "refused-second")
    for what in refused:
        eventually(lambda what=what: fleet.count(what) == 10, 15)  # type: ignore[misc]
    assert fleet.memos() == before
    assert fleet.count("part-0") == 0  # no further step was begun
    fleet.flag("finish")
    eventually(lambda: fleet.memos() == {}, 10)
    assert all(fleet.history.counts(what) == dict.fromkeys(range(10), 1) for what in refused)
