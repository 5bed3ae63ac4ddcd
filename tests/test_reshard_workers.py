"""Another number of shards while workers run: order per key, what is emitted, dead letters, how old shards end."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
import redis

from rstream import Delivery, Event, RetryPolicy, RStream, Stream
from rstream.errors import GroupMissing, ShardSealed
from rstream.event import derived_event_id, new_event_ids
from rstream.store import reshard as resharding
from rstream.store.deliveries import Emit, GroupOps, Outcome
from rstream.store.keys import Shard
from rstream.store.record import Record, new_ones, place_of, publish_once
from rstream.worker import groups
from tests.fleets import Cluster
from tests.servers import Server
from tests.test_reshard import quiet, sealed_at, steps, take
from tests.test_retire import emptied
from tests.test_worker import drain, working
from tests.waiting import eventually_async

SOON = 20.0
"""Seconds. Workers look by themselves every 5 s where they did not hear a bell."""


class Photo(Event):
    user: str
    n: int


class Label(Event):
    user: str
    n: int


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def streams(app: RStream, target: RStream | None = None, shards: int = 3) -> tuple[Stream[Photo], Stream[Label]]:
    labels = (target or app).stream("labels", Label, key="user", shards=shards)
    return app.stream("photos", Photo, key="user", shards=4), labels


def photos(*numbers: int) -> list[Photo]:
    return [Photo(user=f"u{n % 11}", n=n) for n in range(*numbers)]


async def found(labels: Stream[Label]) -> list[tuple[str, int]]:
    return sorted([(entry.event.user, entry.event.n) async for entry in labels.read()])


def as_found(some: list[Photo]) -> list[tuple[str, int]]:
    return sorted((photo.user, photo.n) for photo in some)


# -- consuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
async def test_workers_follow_and_handle_everything_once(server: Server, namespace: str, ordered: bool) -> None:
    async with (
        RStream(server.url, namespace=namespace) as app,
        RStream(server.url, namespace=namespace) as second,
        RStream(server.url, namespace=namespace) as outside,
    ):
        handled: dict[str, list[int]] = defaultdict(list)
        running: set[str] = set()

        def declare(app: RStream) -> Stream[Photo]:
            source, _ = streams(app)

            @source.consumer("g", ordered=ordered, concurrency=8, lease=2)
            async def handle(event: Photo) -> None:
                assert not ordered or event.user not in running
                running.add(event.user)
                handled[event.user].append(event.n)
                await asyncio.sleep(0.001)
                running.discard(event.user)

            return source

        source, _ = declare(app), declare(second)
        producer, _ = streams(outside)
        numbers = itertools.count()

        async def publish() -> None:
            for _ in range(25):
                first = 20 * next(numbers)
                await producer.publish_many(photos(first, first + 20))
                await asyncio.sleep(0.005)

        async with working(app) as one, working(second) as two:
            await eventually_async(lambda: one.runs and two.runs)
            for shards in (9, 2, 5):
                publishing = asyncio.create_task(publish())
                await eventually_async(lambda: sum(map(len, handled.values())) > 100)
                await source.reshard(shards, progress=quiet)
                await publishing
            total = 20 * next(numbers)
            await eventually_async(lambda: sum(map(len, handled.values())) >= total, 30)
            await eventually_async(lambda: not any(run.in_hand for worker in (one, two) for run in worker.runs))
            assert one.counts.resets == two.counts.resets == 0
        everything = [n for some in handled.values() for n in some]
        assert sorted(everything) == list(range(total))
        if ordered:
            assert all(some == sorted(some) for some in handled.values())


async def test_a_worker_that_starts_later_reads_the_generations_one_after_the_other(app: RStream) -> None:
    source, _ = streams(app)
    handled: dict[str, list[int]] = defaultdict(list)

    @source.consumer("g")
    async def handle(event: Photo) -> None:
        handled[event.user].append(event.n)

    @source.consumer("new", start="latest")
    async def new(event: Photo) -> None:
        raise AssertionError("it begins later")

    for n, shards in enumerate((9, 2, 5)):
        await source.publish_many(photos(n * 200, n * 200 + 200))
        await source.reshard(shards, progress=quiet)
    await source.publish_many(photos(600, 800))
    worker = await drain(app)
    assert worker.counts.handled == 800
    assert handled == {f"u{user}": [n for n in range(800) if n % 11 == user] for user in range(11)}


async def test_what_died_in_an_older_generation_is_found_and_redriven(app: RStream) -> None:
    source, _ = streams(app)
    good: list[int] = []
    fixed = False

    @source.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Photo) -> None:
        if not fixed and event.n % 10 == 0:
            raise ValueError(event.n)
        good.append(event.n)

    for n, shards in enumerate((7, 2)):
        await source.publish_many(photos(n * 100, n * 100 + 100))
        await drain(app)
        await source.reshard(shards, progress=quiet)
    letters = [letter async for letter in source.dead("g").read()]
    assert sorted(letter.event.n for letter in letters) == list(range(0, 200, 10))
    assert {letter.entry_id.generation for letter in letters} == {1, 2}
    assert take(app, resharding.retire(app.settings.namespace, "photos", quiet)) == []
    fixed = True
    assert (await source.dead("g").redrive(everything=True)).done == 20
    await drain(app)
    assert sorted(good) == list(range(200)) and await source.dead("g").count() == {}


async def test_a_double_of_what_succeeded_before_is_known_after(app: RStream) -> None:
    source = app.stream("photos", Photo, key="user", shards=4)
    handled: list[int] = []

    @source.consumer("g", once="user")
    async def handle(event: Photo) -> None:
        handled.append(event.n)

    await source.publish_many(Photo(user=f"u{n}", n=n) for n in range(20))
    await drain(app)
    for shards in (3, 7):
        await source.reshard(shards, progress=quiet)
        await source.publish_many(Photo(user=f"u{n % 20}", n=100 + n) for n in range(25))
        await drain(app)
    assert sorted(handled) == list(range(20))


# -- old shards that go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
async def test_workers_do_not_mind_that_an_old_generation_is_removed(
    app: RStream, raw: redis.Redis, ordered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = streams(app)
    handled: list[int] = []

    @source.consumer("g", ordered=ordered, lease=2)
    async def handle(event: Photo) -> None:
        handled.append(event.n)

    async with working(app) as worker:
        await source.publish_many(photos(50))
        await source.reshard(5, progress=quiet)
        await source.publish_many(photos(50, 100))
        await eventually_async(lambda: len(handled) == 100, SOON)
        (run,) = worker.runs
        await eventually_async(lambda: run.in_hand == 0)
        emptied(raw, source)
        assert (await source.reshard(5, progress=quiet)).removed == (1,)
        await source.publish_many(photos(100, 200))
        await eventually_async(lambda: len(handled) == 200, SOON)
        await eventually_async(lambda: run.layout.older == (), SOON)
        run.adopt()
        await eventually_async(run.adopted.is_set)
        assert worker.counts.resets == 0
    assert "lost data" not in caplog.text


async def test_a_worker_that_meets_a_removed_shard_looks_what_the_stream_is_now(app: RStream, raw: redis.Redis) -> None:
    source, _ = streams(app)

    @source.consumer("g")
    async def handle(event: Photo) -> None: ...

    await source.publish_many(photos(10))
    await source.reshard(5, progress=quiet)
    async with working(app) as worker:
        await eventually_async(lambda: worker.counts.handled == 10, SOON)
        (run,) = worker.runs
        await eventually_async(lambda: run.in_hand == 0)
    old = emptied(raw, source)
    assert (await source.reshard(5, progress=quiet)).removed == (1,)
    assert run.layout.older == ((1, 4),)  # nobody told it
    assert await groups.heal(run, GroupMissing("gone"))
    assert (run.layout.older, run.tally.resets) == ((), 0)
    assert not raw.exists(*(shard.stream for shard in old))
    raw.xgroup_destroy(run.layout.current[1].stream, "g")  # this is another thing
    assert await groups.heal(run, GroupMissing("gone"))
    assert run.tally.resets == 1 and raw.xinfo_groups(run.layout.current[1].stream)


async def test_an_old_shard_that_was_lost_is_told_and_left_out(
    app: RStream, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = streams(app)
    handled: list[int] = []
    gate = asyncio.Event()

    @source.consumer("g", ordered=False, concurrency=1, prefetch=0, lease=2)
    async def handle(event: Photo) -> None:
        handled.append(event.n)
        await gate.wait()

    await source.publish_many(photos(40))
    await source.reshard(5, progress=quiet)
    old = [shard for shard in (await source.layout()).every if shard.generation == 1]
    async with working(app) as worker:
        await eventually_async(lambda: len(handled) == 1)
        raw.delete(*(shard.stream for shard in old))  # by hand
        gate.set()
        await source.publish_many(photos(100, 120))
        await eventually_async(lambda: len([n for n in handled if n >= 100]) == 20, SOON)
        assert 1 <= worker.counts.resets <= 3
    assert not raw.exists(*(shard.stream for shard in old))
    assert await source.publish(Photo(user="x", n=1))


async def test_groups_of_older_generations_are_made_only_where_there_is_a_shard(app: RStream, raw: redis.Redis) -> None:
    source, _ = streams(app)
    await source.publish_many(photos(30))
    await source.reshard(5, progress=quiet)
    layout = await source.layout()
    first, *others = [shard for shard in layout.every if shard.generation == 1]
    raw.delete(first.stream)
    await app.link.run(GroupOps(layout, "g", "w").create("0"))
    assert not raw.exists(first.stream)
    assert all(raw.xinfo_groups(shard.stream) for shard in (*others, *layout.current))


# -- emitting ---------------------------------------------------------------------------------------------------------


async def test_a_target_that_is_sealed_changes_nothing_at_all(app: RStream, raw: redis.Redis) -> None:
    source, labels = streams(app)
    await source.publish_many(photos(20))
    layout, target = await source.layout(), await labels.layout()
    ops = GroupOps(layout, "g", "w")
    await app.link.run(ops.create("0"))
    entries = (await app.link.run(ops.fetch(100, layout.current[:1]))).entries
    take(app, steps(labels, 5), 2)
    app.sync_link.exchange(resharding._seal(target.current[2:], 2).calls)  # one of three

    def outcome(shard: int) -> list[Outcome]:
        record = Record(b"x", b"", new_event_ids(1)[0], b"")
        emits = tuple(Emit(target.current[n], record) for n in range(shard + 1))
        return [Outcome(entry.shard, entry.id, 1, "ack", emits=emits) for entry in entries]

    with pytest.raises(ShardSealed):
        await app.link.run(ops.settle(outcome(2)))
    assert [raw.xlen(shard.stream) for shard in target.current] == [0, 0, 0]
    assert raw.xpending(entries[0].shard.stream, "g")["pending"] == len(entries) > 1
    assert await app.link.run(ops.settle(outcome(1))) == []
    assert [raw.xlen(shard.stream) for shard in target.current] == [len(entries)] * 2 + [0]
    raw.delete(target.current[0].stream)  # nor is one made that is not there
    with pytest.raises(ShardSealed):
        await app.link.run(ops.settle(outcome(0)))
    assert not raw.exists(target.current[0].stream)


@pytest.mark.parametrize("batch", [None, 20])
async def test_what_is_emitted_goes_to_the_new_shards_of_its_target(
    server: Server, namespace: str, batch: int | None
) -> None:
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as other:
        source, labels = streams(app)
        _, elsewhere = streams(other)

        @source.consumer("label", emits=labels, concurrency=8, batch=batch, max_wait=0.01)
        async def handle(given: Photo | list[Photo]) -> list[Label]:
            await asyncio.sleep(0.001)
            some = given if isinstance(given, list) else [given]
            return [Label(user=photo.user, n=photo.n) for photo in some]

        async with working(app) as worker:
            for n, shards in enumerate((7, 2, 5)):
                await source.publish_many(photos(n * 300, n * 300 + 300))
                await eventually_async(lambda n=n: worker.counts.handled > n * 300 + 50, 20)  # type: ignore[misc]
                await elsewhere.reshard(shards, progress=quiet)
            await eventually_async(lambda: worker.counts.handled == 900, 20)
            await eventually_async(lambda: worker.runs[0].in_hand == 0)
            assert worker.counts.refused == worker.counts.failed == 0
        assert await found(elsewhere) == as_found(photos(900))
        by_user: dict[str, list[int]] = defaultdict(list)
        async for entry in elsewhere.read():
            by_user[entry.event.user].append(entry.event.n)
        assert all(numbers == sorted(numbers) for numbers in by_user.values())  # the group is ordered
        assert {entry.id.generation async for entry in elsewhere.read()} == {1, 2, 3, 4}


async def test_a_worker_that_emits_ends_a_resharding_that_stands_still(app: RStream, raw: redis.Redis) -> None:
    source, labels = streams(app)

    @source.consumer("label", emits=labels)
    async def handle(event: Photo) -> Label:
        return Label(user=event.user, n=event.n)

    await labels.layout()
    sealed_at(app, labels, raw, half=False)
    await source.publish_many(photos(30))
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.refused) == (30, 0)
    assert (await labels.layout(fresh=True)).generation == 2 and await found(labels) == as_found(photos(30))


async def test_to_another_server_each_event_arrives_once_although_it_was_resharded(
    one_server: Server, other_server: Server, namespace: str
) -> None:
    async with (
        RStream(one_server.url, namespace=namespace) as app,
        RStream(other_server.url, namespace=namespace) as far,
        RStream(other_server.url, namespace=namespace) as outside,
    ):
        source, labels = streams(app, far)
        elsewhere = outside.stream("labels", Label, key="user")
        attempts: list[int] = []

        @source.consumer("label", emits=labels, lease=0.5, concurrency=8)
        async def handle(event: Photo, delivery: Delivery) -> list[Label]:
            attempts.append(delivery.attempt)
            await asyncio.sleep(0.001)
            return [Label(user=event.user, n=event.n), Label(user="x", n=event.n)]

        await source.publish_many(photos(20))
        layout = await source.layout()
        doomed = GroupOps(layout, "label", "doomed")
        await app.link.run(doomed.create("0"))
        # A worker that emitted, and died before its ack; then the stream was resharded, twice.
        for entry in (await app.link.run(doomed.fetch(10, layout.current))).entries:
            fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
            photo = source.codec.decode(fields[b"e"])
            made = [Label(user=photo.user, n=photo.n), Label(user="x", n=photo.n)]
            ids = [derived_event_id(fields[b"i"], f"photos/label/{fields[b'i'].hex()}", n) for n in range(2)]
            records, _ = labels.prepare(await labels.layout(), made, ids=ids)
            assert await far.link.run(publish_once(records, 60_000)) == []
        assert len(await found(labels)) == 20
        for shards in (5, 2):
            await elsewhere.reshard(shards, progress=quiet)
        async with working(app, "label") as worker:
            await eventually_async(lambda: worker.counts.handled == 20, SOON)
            await source.publish_many(photos(20, 200))
            await eventually_async(lambda: worker.counts.handled > 80, SOON)
            await elsewhere.reshard(7, progress=quiet)
            await eventually_async(lambda: worker.counts.handled == 200, SOON)
            await eventually_async(lambda: worker.runs[0].in_hand == 0)
        assert attempts.count(2) == 10
        assert await found(elsewhere) == sorted(as_found(photos(200)) + [("x", n) for n in range(200)])


async def test_what_an_older_generation_has_is_not_emitted_again(app: RStream) -> None:
    _, labels = streams(app)
    layout = await labels.layout()
    records = [Record(b"x", b"k%d" % n, id, b"") for n, id in enumerate(new_event_ids(12))]
    records[0] = records[0]._replace(key=b"")

    def placed(some: list[Record]) -> dict[Shard, list[Record]]:
        by_shard: dict[Shard, list[Record]] = defaultdict(list)
        for record in some:
            by_shard[place_of(layout, record)].append(record)
        return by_shard

    assert await app.link.run(publish_once(placed(records[:4]), 60_000)) == []
    await labels.reshard(5, progress=quiet)
    left = await app.link.run(publish_once(placed(records[:8]), 60_000))
    assert sorted(left) == sorted(records[4:8])
    layout = await labels.layout(fresh=True)
    assert await app.link.run(new_ones(layout, records)) == records[4:]
    assert await app.link.run(publish_once(placed(records[4:8]), 60_000)) == []
    await labels.reshard(2, progress=quiet)
    assert await app.link.run(new_ones(await labels.layout(fresh=True), records)) == records[8:]


async def test_on_a_cluster_a_delivery_is_atomic_where_its_events_share_its_slot(
    cluster: Cluster, namespace: str
) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        source, labels = streams(app, shards=4)  # as many as the source has: the same slots

        @source.consumer("label", emits=labels, lease=2)
        async def handle(event: Photo) -> Label:
            return Label(user=event.user if event.n % 2 else f"{event.user}-other", n=event.n)

        def markers() -> int:
            """One for each event that did not go with its ack."""
            masters = [node for node in cluster.nodes if node.is_master()]
            return sum(len(node.ask("KEYS", f"*{namespace}:*:emitted:*")) for node in masters)

        async with working(app) as worker:
            await source.publish_many(photos(60))
            await eventually_async(lambda: worker.counts.handled == 60, SOON)
            (run,) = worker.runs
            await eventually_async(lambda: run.in_hand == 0)
            assert 0 < markers() <= 30  # only those of another key, and of another slot
            before = markers()
            await labels.reshard(5, progress=quiet)
            await source.publish_many(photos(60, 120))
            await eventually_async(lambda: worker.counts.handled == 120, SOON)
            await eventually_async(lambda: run.in_hand == 0)
            assert markers() == before + 60  # no slot of the new shards is one of the source
            assert worker.counts.refused == 0
        assert sorted(n for _, n in await found(labels)) == list(range(120))
