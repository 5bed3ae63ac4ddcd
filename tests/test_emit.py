"""Consume, then emit: what a handler returns is published with its ack, or not at all; on another server, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from rstream import Batch, Delivery, Event, RetryPolicy, RStream, Stream
from rstream.event import derived_event_id, new_event_ids
from rstream.store.deliveries import Emit, GroupOps, Outcome
from rstream.store.keys import Shard
from rstream.store.owners import OwnerOps
from rstream.store.record import Record
from rstream.worker import emit
from rstream.worker import worker as worker_module
from rstream.worker.worker import Worker
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.test_worker import dead_letters, drain, working
from tests.waiting import eventually_async


class Photo(Event):
    user: str
    n: int


class Label(Event):
    user: str
    n: int
    label: str = ""


QUICK = RetryPolicy(max_attempts=2, initial_delay=0)


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def streams(app: RStream, target: RStream | None = None) -> tuple[Stream[Photo], Stream[Label]]:
    labels = (target or app).stream("labels", Label, key="user", shards=3)
    return app.stream("photos", Photo, key="user", shards=4), labels


def photos(count: int) -> list[Photo]:
    return [Photo(user=f"u{n % 7}", n=n) for n in range(count)]


async def found(labels: Stream[Label]) -> list[tuple[str, int]]:
    return sorted([(entry.event.user, entry.event.n) async for entry in labels.read()])


@pytest.mark.parametrize("kind", ["loop", "thread", "process"])
async def test_returned_events_are_published_each_to_the_shard_of_its_key(app: RStream, kind: Any) -> None:
    source, labels = streams(app)
    handler = {"loop": on_loop, "thread": in_thread, "process": in_process}[kind]
    source.consumer("label", emits=labels, run_in=kind, concurrency=2)(handler)
    await source.publish_many(photos(50))
    assert (await drain(app)).counts.handled == 50
    wanted = [event for photo in photos(50) for event in in_thread(photo) or []]
    assert await found(labels) == sorted((label.user, label.n) for label in wanted)
    layout = await labels.layout()
    async for entry in labels.read():
        assert entry.key == entry.event.user and layout.shard(entry.key).number == entry.id.shard


def in_thread(event: Photo) -> list[Label] | None:
    if event.n % 5 == 0:
        return None
    return [Label(user=event.user, n=event.n), Label(user=f"{event.user}-again", n=event.n)][: event.n % 3]


async def on_loop(event: Photo) -> list[Label] | None:
    return in_thread(event)


def in_process(event: Photo) -> list[Label] | None:
    return in_thread(event)


async def test_a_batch_emits_what_it_returns_for_each_event(app: RStream) -> None:
    source, labels = streams(app)

    @source.consumer("label", batch=20, max_wait=1, emits=labels, retry=QUICK)
    async def handle(events: list[Photo], batch: Batch) -> list[Label | list[Label] | Exception | None]:
        outcomes: list[Label | list[Label] | Exception | None] = []
        for event in events:
            label = Label(user=event.user, n=event.n)
            outcomes.append([label, [label, label], ValueError("bad"), None][event.n % 4])  # type: ignore[arg-type]
        return outcomes

    await source.publish_many(photos(20))
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (15, 5)
    assert [n for n, _ in sorted((n, user) for user, n in await found(labels))] == sorted(
        n for n in range(20) for _ in range([1, 2, 0, 0][n % 4])
    )


async def test_an_event_that_cannot_be_published_fails_the_delivery_and_emits_nothing(app: RStream) -> None:
    source, labels = streams(app)

    @source.consumer("label", emits=labels, retry=QUICK)
    async def handle(event: Photo) -> Any:
        good = Label(user=event.user, n=event.n)
        return [
            [good, Label(user="", n=0)], [good, 17], "text", {"user": "u", "wrong": 1},
            [good] * (emit.MAX_EVENTS + 1), Label(user="u", n=0, label="x" * 2_000_000), good,
        ][event.n]  # fmt: skip

    await source.publish_many(photos(7))
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (1, 6)
    assert await found(labels) == [("u6", 6)]
    errors = b"\n".join(letter[b"error"] for letter in await dead_letters(app, "label", "photos"))
    for said in (b"KeyMissing", b"EventInvalid", b"EventTooLarge", b"publish them with publish_many"):
        assert said in errors


async def test_who_lost_the_delivery_emits_nothing(app: RStream) -> None:
    """The fence and the events are one Lua call: for every late outcome, neither the ack nor any event."""
    source, labels = streams(app)
    ids = await source.publish_many(photos(40))
    layout, target = await source.layout(), await labels.layout()
    late, owner = GroupOps(layout, "g", "late"), GroupOps(layout, "g", "owner")
    await app.link.run(late.create("0"))
    entries = (await app.link.run(late.fetch(100))).entries
    with redis.Redis.from_url(app.settings.url or "") as raw:
        for entry in entries[:20]:
            raw.xclaim(entry.shard.stream, "g", "owner", 0, [entry.id], retrycount=2, justid=True)

    def outcome(shard: Shard, id: bytes, attempt: int) -> Outcome:
        emits = [Emit(target.current[n % 3], Record(b"%d" % n, b"", new_event_ids(1)[0], b"")) for n in range(3)]
        return Outcome(shard, id, attempt, "ack", emits=tuple(emits))

    refused = await app.link.run(late.settle([outcome(entry.shard, entry.id, 1) for entry in entries]))
    assert {(refusal.outcome.shard, refusal.outcome.id) for refusal in refused} == {e[:2] for e in entries[:20]}
    assert {(refusal.owner, refusal.deliveries) for refusal in refused} == {("owner", 2)}
    assert len(await found_raw(app, labels)) == 20 * 3
    assert await pending(app, owner) == 20
    assert not await app.link.run(owner.settle([outcome(entry.shard, entry.id, 2) for entry in entries[:20]]))
    # The same again, as after a lost answer: all of it is refused, for nobody has it any more.
    again = await app.link.run(owner.settle([outcome(entry.shard, entry.id, 2) for entry in entries[:20]]))
    assert len(again) == 20 and len(await found_raw(app, labels)) == len(ids) * 3


async def pending(app: RStream, ops: GroupOps) -> int:
    looks = await app.link.run(OwnerOps(ops).look(ops.layout.every))
    return sum(look.pending for look in looks.values())


async def found_raw(app: RStream, labels: Stream[Label]) -> list[bytes]:
    layout = await labels.layout()
    with redis.Redis.from_url(app.settings.url or "") as raw:
        return [fields[b"e"] for keys in layout.current for _, fields in raw.xrange(keys.stream)]


async def test_through_a_line_that_breaks_every_event_is_emitted_once(one_server: Server, namespace: str) -> None:
    with ChaosProxy(one_server.upstream) as proxy:
        async with (
            RStream(f"{proxy.url}?socket_timeout=1", namespace=namespace) as app,
            RStream(one_server.url, namespace=namespace) as direct,
        ):
            source, labels = streams(app)
            published, read = streams(direct)

            @source.consumer("label", emits=labels, concurrency=8, lease=5)
            async def handle(event: Photo) -> Label:
                await asyncio.sleep(0)
                return Label(user=event.user, n=event.n)

            await published.publish_many(photos(3000))
            async with working(app) as worker:
                for done in range(200, 3000, 200):
                    await eventually_async(lambda done=done: worker.counts.handled > done, 20)  # type: ignore[misc]
                    proxy.cut_all()
                await eventually_async(lambda: worker.counts.handled >= 3000, 20)
                await eventually_async(lambda: all(run.in_hand == 0 for run in worker.runs), 20)
            # An ack whose answer was lost is looked up, not emitted again; nothing was started twice.
            assert await found(read) == sorted((photo.user, photo.n) for photo in photos(3000))
            assert worker.counts.refused == 0


async def test_while_memory_is_full_what_emits_waits_and_the_rest_is_settled(
    own_server: Server, namespace: str
) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        source, labels = streams(app)
        quiet: list[int] = []

        @source.consumer("label", emits=labels, concurrency=4, ordered=False)
        async def handle(event: Photo) -> Label | None:
            if event.n % 2:
                return Label(user=event.user, n=event.n)
            quiet.append(event.n)
            return None

        await source.publish_many(photos(40))
        with redis.Redis.from_url(own_server.url) as raw:
            raw.config_set("maxmemory", 1)
            raw.config_set("maxmemory-policy", "noeviction")
            async with working(app) as worker:
                (run,) = await eventually_async(lambda: worker.runs)
                # The quiet ones are settled; the others wait with their events.
                await eventually_async(lambda: len(quiet) == 20 and run.in_hand == 20 and not run.running, 10)
                ops = GroupOps(await source.layout(), "label", "x")
                assert await pending(app, ops) == 20 and await found_raw(app, labels) == []
                raw.config_set("maxmemory", 0)
                await eventually_async(lambda: worker.counts.handled == 40 and run.in_hand == 0, 10)
            assert worker.counts.refused == 0
    async with RStream(own_server.url, namespace=namespace) as app:
        _, labels = streams(app)
        assert [n for _, n in sorted(await found(labels), key=lambda each: each[1])] == [*range(1, 40, 2)]


async def test_to_another_server_each_event_arrives_once_although_the_ack_is_lost(
    one_server: Server, other_server: Server, namespace: str
) -> None:
    async with (
        RStream(one_server.url, namespace=namespace) as app,
        RStream(other_server.url, namespace=namespace) as far,
    ):
        source, labels = streams(app, far)
        attempts: list[tuple[int, int]] = []

        @source.consumer("label", emits=labels, lease=0.5)
        async def handle(event: Photo, delivery: Delivery) -> list[Label]:
            attempts.append((event.n, delivery.attempt))
            return [Label(user=event.user, n=event.n), Label(user="x", n=event.n)]

        await source.publish_many(photos(20))
        layout = await source.layout()
        doomed = GroupOps(layout, "label", "doomed")
        await app.link.run(doomed.create("0"))
        # A worker that emitted, and died before its ack.
        for entry in (await app.link.run(doomed.fetch(10))).entries:
            fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
            photo = source.codec.decode(fields[b"e"])
            name = f"photos/label/{fields[b'i'].hex()}"
            events = [Label(user=photo.user, n=photo.n), Label(user="x", n=photo.n)]
            ids = [derived_event_id(fields[b"i"], name, n) for n in range(2)]
            records, _ = labels.prepare(await labels.layout(), events, ids=ids)
            await far.link.run(emit.publish_once(records, 60_000))
        assert len(await found(labels)) == 20
        worker = await drain(app)
        assert worker.counts.handled == 20
        assert len([attempt for _, attempt in attempts if attempt == 2]) == 10
        assert await found(labels) == sorted([(p.user, p.n) for p in photos(20)] + [("x", n) for n in range(20)])


async def test_what_waits_to_be_emitted_when_a_worker_stops_is_no_crash(
    own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LEAVE", 0.2)
    async with RStream(own_server.url, namespace=namespace) as app:
        source, labels = streams(app)

        @source.consumer("label", emits=labels, ordered=False)
        async def handle(event: Photo) -> Label:
            return Label(user=event.user, n=event.n)

        await source.publish_many(photos(8))
        await labels.layout()
        with redis.Redis.from_url(own_server.url) as raw:
            raw.config_set("maxmemory", 1)
            for _ in range(4):
                async with working(app, grace=0.1) as worker:
                    await eventually_async(lambda worker=worker: worker.counts.handled == 8)  # type: ignore[misc]
            raw.config_set("maxmemory", 0)
        await drain(app)
        assert await dead_letters(app, "label", "photos") == []
        assert await found(labels) == sorted((photo.user, photo.n) for photo in photos(8))


async def test_an_event_without_a_key_goes_to_the_same_shard_again(one_app: RStream) -> None:
    notes = one_app.stream("notes", Label, shards=8)
    layout, ids = await notes.layout(), new_event_ids(100)
    events = [Label(user="", n=n) for n in range(100)]
    first, places = notes.prepare(layout, events, ids=ids)
    await notes.publish(events[0])  # others take their turns meanwhile
    again, _ = notes.prepare(layout, events, ids=ids)
    assert first == again and len(set(places)) == 8


async def test_another_server_that_is_away_is_waited_for(
    one_server: Server, other_server: Server, namespace: str
) -> None:
    async with (
        RStream(one_server.url, namespace=namespace) as app,
        RStream(f"{other_server.url}?socket_timeout=0.5", namespace=namespace) as far,
    ):
        source, labels = streams(app, far)

        @source.consumer("label", emits=labels, batch=10, max_wait=0.05, concurrency=2, ordered=False)
        async def handle(events: list[Photo]) -> list[Label]:
            return [Label(user=event.user, n=event.n) for event in events]

        await labels.layout()
        other_server.pause()
        await source.publish_many(photos(30))
        async with working(app) as worker:
            (run,) = await eventually_async(lambda: worker.runs)
            await eventually_async(lambda: run.busy == 2 and not run.running)
            assert worker.counts.handled == 0
            # No handler runs: no time limit is theirs.
            other_server.resume()
            await eventually_async(lambda: worker.counts.handled == 30, 20)
        assert await found(labels) == sorted((photo.user, photo.n) for photo in photos(30))


def test_the_ids_of_emitted_events_are_fixed_by_what_they_come_of() -> None:
    (source,) = new_event_ids(1)
    ids = [derived_event_id(source, name, n) for name in ("a", "b") for n in range(3)]
    assert len(set(ids)) == 6 and ids == [derived_event_id(source, name, n) for name in ("a", "b") for n in range(3)]
    assert {id[:6] for id in ids} == {source[:6]}
    assert {id[6] >> 4 for id in ids} == {8} and {id[8] >> 6 for id in ids} == {2}
    assert len(derived_event_id(b"", "a", 0)) == 16


async def test_a_handlers_result_is_nobodys_business_without_emits(one_app: RStream) -> None:
    source, _ = streams(one_app)

    @source.consumer("g")
    async def handle(event: Photo) -> Any:
        return [object(), ValueError("only returned")]

    await source.publish_many(photos(3))
    assert (await drain(one_app)).counts.handled == 3


async def test_a_burst_ends_when_all_of_a_pipeline_is_drained(app: RStream) -> None:
    source, labels = streams(app)
    again = app.stream("again", Label, key="user", shards=2)
    last: list[int] = []

    @again.consumer("last", batch=7, max_wait=0.3)
    async def third(events: list[Label]) -> None:
        last.extend(event.n for event in events)

    @labels.consumer("second", emits=again)
    async def second(event: Label) -> Label:
        await asyncio.sleep(0.2)
        return event

    @source.consumer("first", emits=labels)
    async def first(event: Photo) -> Label:
        await asyncio.sleep(0.2)
        return Label(user=event.user, n=event.n)

    await source.publish_many(photos(40))
    await drain(app)
    assert sorted(last) == [*range(40)]


async def test_a_process_that_is_recycled_does_not_wait_for_ever_to_emit(
    one_server: Server, other_server: Server, namespace: str
) -> None:
    async with (
        RStream(one_server.url, namespace=namespace) as app,
        RStream(f"{other_server.url}?socket_timeout=0.5", namespace=namespace) as far,
    ):
        source, labels = streams(app, far)

        @source.consumer("label", emits=labels)
        async def handle(event: Photo) -> Label:
            return Label(user=event.user, n=event.n)

        @source.consumer("quick")
        async def quick(event: Photo) -> None: ...

        await labels.layout()
        await source.publish_many(photos(30))
        other_server.pause()
        worker = Worker(app, max_handled=20, grace=0.2)
        async with asyncio.timeout(20):
            await worker.serve(signals=False)
        assert worker.recycled
        other_server.resume()
        await drain(app, "label")
        assert await found(labels) == sorted((photo.user, photo.n) for photo in photos(30))
