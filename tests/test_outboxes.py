"""A producer has two outboxes, for the halves of the keys' hashes: both on their way at once, each exact and in order,
whatever happens to one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from rstream import EntryId, Event, Retention, RStream, Stream
from rstream.errors import MemoryFull, StreamFull
from rstream.store.keys import half_of, number_of, shard
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel, Slip, by_half
from rstream.store.wire import Wire
from tests.fleets import Cluster
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.waiting import eventually, eventually_async

KEYS = [f"d{n}" for n in range(17)]
LOW, HIGH = (next(key for key in KEYS if half_of(key.encode()) == half) for half in (0, 1))


class Seen(Event):
    device: str
    n: int
    pad: bytes = b""


def declare(app: RStream, shards: int = 3, **options: Any) -> Stream[Seen]:
    return app.stream("seen", Seen, key="device", shards=shards, **options)


def events(numbers: range, pad: int = 0) -> list[Seen]:
    return [Seen(device=KEYS[n % 17], n=n, pad=bytes(pad)) for n in numbers]


def check(stream: Stream[Seen], expected: dict[EntryId, int]) -> None:
    """Each is there once, under the id that was told, and in order for every key."""
    entries = list(stream.sync.read())
    assert {entry.id: entry.event.n for entry in entries} == expected and len(entries) == len(expected)
    for key in KEYS:
        own = [entry.event.n for entry in entries if entry.key == key]
        assert own == sorted(own)


async def publish_many(stream: Stream[Any], some: list[Any], face: str) -> list[EntryId]:
    if face == "async":
        return await stream.publish_many(some)
    return await asyncio.to_thread(stream.sync.publish_many, some)


@pytest.fixture
def proxy(server: Server) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.upstream) as proxy:
        yield proxy


faces = pytest.mark.parametrize("face", ["sync", "async"])

# -- which half -----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1), st.integers(1, 1024))
def test_a_shard_belongs_to_the_half_of_all_its_keys(key: bytes, count: int) -> None:
    place = shard("ns", "s", 1, number_of(key, count), count)
    if place.half is None:
        assert count % 2 == 1 and place.number == count // 2
    else:
        assert place.half == half_of(key)


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.binary(max_size=3)), min_size=1), st.integers(1, 5))
def test_what_goes_to_both_outboxes_is_the_same_and_its_ids_come_in_its_order(
    records: list[tuple[str, bytes]], count: int
) -> None:
    flat = [part for key, payload in records for part in (payload, key.encode(), b"i", b"")]
    parcel = Parcel(shard("ns", "s", 1, count // 2, count), flat, Slip(), 0)
    told = {}
    for half, pieces in enumerate(by_half([parcel], 2)):
        for piece in pieces:
            numbered = [(key, half) for key in piece.flat[1::4]]
            assert parcel.shard.half is not None or all(half_of(key) == half for key, _ in numbered)
            told[half] = numbered
            piece.promise.set_result(numbered)
    assert isinstance(parcel.promise, Slip) and parcel.promise.done()
    assert [key for key, _ in parcel.promise.result] == [key.encode() for key, _ in records]
    assert sum(map(len, told.values())) == len(records)


@faces
async def test_a_stream_of_one_shard_keeps_the_order_of_all_its_events(app: RStream, face: str) -> None:
    seen = declare(app, shards=1)
    await publish_many(seen, events(range(2000)), face)
    if face == "async":
        await asyncio.gather(*map(seen.publish, events(range(2000, 2300))))
    else:
        await publish_many(seen, events(range(2000, 2300)), face)
    assert [entry.event.n for entry in seen.sync.read()] == list(range(2300))


# -- both on their way ----------------------------------------------------------------------------------------------


@faces
@pytest.mark.parametrize("shards", [2, 3])
async def test_what_is_cut_off_with_both_writes_on_their_way_is_added_once(
    proxy: ChaosProxy, server: Server, namespace: str, face: str, shards: int
) -> None:
    async with RStream(proxy.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as direct:
        seen, known = declare(app, shards), declare(direct, shards)
        ids = await publish_many(seen, events(range(17)), face)
        ids += await publish_many(seen, events(range(17, 34)), face)  # by now there are two connections
        proxy.delay_replies(60)
        publishing = asyncio.create_task(publish_many(seen, events(range(34, 51)), face))
        # Both halves are in Redis, so the second did not wait for the reply to the first, which nobody has got.
        await eventually_async(lambda: len([*known.sync.read()]) == 51)
        assert not publishing.done()
        proxy.delay_replies(0)
        proxy.cut_all()
        ids += await publishing
    with RStream(server.url, namespace=namespace) as app:
        check(declare(app, shards), {id: n for n, id in enumerate(ids)})


@pytest.mark.parametrize("shards", [2, 3, 8])
async def test_many_cuts_while_all_publish_at_once(proxy: ChaosProxy, namespace: str, shards: int) -> None:
    """Coroutines and threads, singles and many, each with keys of its own in both halves."""
    proxy.cut_after_request(30, random.Random(shards), mean_bytes=15_000)
    async with RStream(proxy.url, namespace=namespace) as app:
        seen = declare(app, shards)
        await seen.layout()
        numbers, lock = iter(range(6_000)), threading.Lock()
        expected: dict[EntryId, int] = {}

        def some(publisher: int, rng: random.Random) -> list[Seen]:
            with lock:
                taken = list(itertools.islice(numbers, rng.choice((1, 1, 1, 40))))
            return [Seen(device=f"p{publisher}-{n % 3}", n=n, pad=bytes(40)) for n in taken]

        async def coroutine(name: int) -> None:
            rng = random.Random(name)
            while batch := some(name, rng):
                ids = await seen.publish_many(batch) if len(batch) > 1 else [await seen.publish(batch[0])]
                expected.update(zip(ids, [event.n for event in batch], strict=True))

        def thread(name: int) -> None:
            rng = random.Random(name)
            while batch := some(name, rng):
                ids = seen.sync.publish_many(batch) if len(batch) > 1 else [seen.sync.publish(batch[0])]
                expected.update(zip(ids, [event.n for event in batch], strict=True))

        await asyncio.gather(*map(coroutine, range(6)), *(asyncio.to_thread(thread, name) for name in range(6, 12)))
        assert proxy.cuts == 30
        proxy.cut_after_request(0, random.Random(0), mean_bytes=1)
        entries = list(seen.sync.read())
    assert {entry.id: entry.event.n for entry in entries} == expected and len(entries) == len(expected) == 6_000
    for key in {entry.key for entry in entries}:
        own = [entry.event.n for entry in entries if entry.key == key]
        assert own == sorted(own)


@faces
async def test_a_resharding_on_the_way_loses_nothing_and_no_order(app: RStream, face: str) -> None:
    """Through numbers of shards of which the middle one is of both halves, and of which none is."""
    seen = declare(app, shards=4)
    await seen.layout()
    numbers, stop = itertools.count(), threading.Event()
    expected: dict[EntryId, int] = {}

    async def go_on() -> None:
        while not stop.is_set():
            first = next(numbers) * 100
            ids = await publish_many(seen, events(range(first, first + 100)), face)
            expected.update(zip(ids, range(first, first + 100), strict=True))

    publishing = asyncio.create_task(go_on())
    for generation, shards in enumerate((3, 8, 5, 1, 6, None), 1):
        await eventually_async(lambda of=generation: publishing.done() or of in {id.generation for id in expected})
        if shards is not None:
            await asyncio.to_thread(seen.sync.reshard, shards)
    stop.set()
    await publishing
    check(seen, expected)
    assert len(expected) > 600


async def test_a_cluster_gets_both_at_once_from_threads(cluster: Cluster, namespace: str) -> None:
    with RStream(cluster.url, namespace=namespace) as app:
        seen = declare(app, shards=7)
        ids = seen.sync.publish_many(events(range(5000)))
        ids += [seen.sync.publish(event) for event in events(range(5000, 5050))]
        ids += seen.sync.publish_many(events(range(5050, 9000)))
        check(seen, {id: n for n, id in enumerate(ids)})


# -- one of them in trouble -----------------------------------------------------------------------------------------


def fill(app: RStream, raw: redis.Redis, **options: Any) -> Stream[Seen]:
    """The shard of LOW is full of what nobody processes; that of HIGH is not."""
    seen = declare(app, shards=2, retention=Retention(entries=100), **options)
    for place in seen.sync.layout().current:
        raw.xgroup_create(place.stream, "group", "0")
    seen.sync.publish_many([Seen(device=LOW, n=n) for n in range(50)])
    return seen


def process(raw: redis.Redis, seen: Stream[Seen]) -> None:
    place = seen.sync.layout().shard(LOW)
    found = raw.xreadgroup("group", "me", {place.stream: ">"}, count=25)
    raw.xack(place.stream, "group", *[id for id, _ in found[0][1]])


@faces
async def test_a_full_half_does_not_hold_back_the_other(app: RStream, raw: redis.Redis, face: str) -> None:
    seen = fill(app, raw, full_wait=60)
    waiting = asyncio.create_task(publish_many(seen, [Seen(device=LOW, n=100)], face))
    (courier,) = [await eventually_async(lambda: low_courier(seen, face))]
    await eventually_async(lambda: courier.outbox._again or courier.outbox._full)
    for n in range(10):
        (id,) = await publish_many(seen, [Seen(device=HIGH, n=n)], face)
        assert id.shard == seen.sync.layout().shard(HIGH).number
    assert not waiting.done()
    process(raw, seen)
    await waiting
    assert [entry.event.n for entry in seen.sync.read(key=LOW)][-1] == 100


def low_courier(seen: Stream[Seen], face: str) -> Any:
    producer: Any = seen.sync._producer if face == "sync" else seen._producers.get(lambda: None)
    return producer and producer.couriers[0]


@faces
async def test_of_a_publish_to_both_halves_one_is_refused_and_the_other_told(
    app: RStream, raw: redis.Redis, face: str
) -> None:
    seen = fill(app, raw)
    with pytest.raises(StreamFull) as caught:
        await publish_many(seen, [Seen(device=key, n=n) for n in range(100, 105) for key in (LOW, HIGH)], face)
    added = [entry.id for entry in seen.sync.read() if entry.event.n >= 100]
    assert sorted(caught.value.published) == added and len(added) == 5
    await publish_many(seen, [Seen(device=HIGH, n=200)], face)


async def test_of_a_middle_shard_the_error_tells_what_was_published(app: RStream) -> None:
    seen = declare(app, shards=3)
    middle = [event for event in events(range(400)) if seen.sync.layout().shard(event.device).half is None]
    ((place, flat),) = seen.preparing.groups(seen.sync.layout(), middle, None, None)[0].__next__().items()
    (parcel,) = Parcel.pack(place, flat, Slip)
    halves = by_half([parcel], 2)
    assert all(halves), "of both"
    for pieces, reply in zip(halves, [b"5-0", MemoryFull("full")], strict=True):
        outbox = Outbox(seen.sync.layout())
        outbox.add(pieces)
        op = outbox.take()
        assert op is not None
        op.parse([reply])
    assert isinstance(parcel.promise, Slip) and isinstance(parcel.promise.error, MemoryFull)
    assert [str(id) for id in parcel.promise.error.published] == [f"5-{n}@1.1" for n in range(halves[0][0].count)]


# -- given up -------------------------------------------------------------------------------------------------------


async def test_who_is_cancelled_in_one_half_leaves_the_other_alone(
    proxy: ChaosProxy, server: Server, namespace: str
) -> None:
    async with RStream(proxy.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as direct:
        seen, known = declare(app), declare(direct)
        await asyncio.gather(*(seen.publish(Seen(device=key, n=0)) for key in (LOW, HIGH)))
        proxy.delay_replies(60)
        sent = {key: asyncio.create_task(seen.publish(Seen(device=key, n=1))) for key in (LOW, HIGH)}
        await eventually_async(lambda: len([*known.sync.read()]) == 4)
        waiting = {key: asyncio.create_task(seen.publish(Seen(device=key, n=2))) for key in (LOW, HIGH)}
        await asyncio.sleep(0)
        sent[LOW].cancel()
        waiting[LOW].cancel()
        proxy.delay_replies(0)
        proxy.cut_all()
        await asyncio.gather(sent[HIGH], waiting[HIGH])
        await asyncio.gather(*(seen.publish(Seen(device=key, n=3)) for key in (LOW, HIGH)))
    with RStream(server.url, namespace=namespace) as app:
        seen = declare(app)
        found = {key: [entry.event.n for entry in seen.sync.read(key=key)] for key in (LOW, HIGH)}
    assert found == {LOW: [0, 1, 3], HIGH: [0, 1, 2, 3]}  # what was on its way when it was cancelled had been added


@pytest.mark.parametrize("read", [1, 2, 3, 4])
def test_a_thread_interrupted_with_both_on_their_way_keeps_no_lock(
    app: RStream, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    seen = declare(app, shards=2)
    for start in (0, 100):
        seen.sync.publish_many(events(range(start, start + 100)))  # by now there are two connections
    with monkeypatch.context() as patch:
        patch.setattr(Wire, "read", interrupted(Wire.read, read))
        with pytest.raises(KeyboardInterrupt):
            seen.sync.publish_many(events(range(200, 5_200)))
    left = threading.Thread(target=lambda: seen.sync.publish_many(events(range(6_000, 6_100))), daemon=True)
    left.start()
    left.join(20)
    assert not left.is_alive(), "a lock was kept"
    found = [entry.event.n for entry in seen.sync.read()]
    assert len(found) == len(set(found)) and {*range(200), *range(6_000, 6_100)} <= set(found)
    for key in KEYS:  # of what was interrupted, a beginning for each key, and nothing came later
        own = [entry.event.n for entry in seen.sync.read(key=key)]
        assert own == sorted(own)
        sent = [n for n in own if 200 <= n < 5_200]
        assert sent == [n for n in range(200, 5_200) if KEYS[n % 17] == key][: len(sent)]


def interrupted(read: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The count-th reading is where a Ctrl-C is felt."""
    calls = itertools.count(1)

    def reading(*args: Any) -> Any:
        if next(calls) == count:
            raise KeyboardInterrupt
        return read(*args)

    return reading


def test_threads_that_publish_much_and_little_do_not_wait_for_each_other_for_ever(app: RStream) -> None:
    seen = declare(app, shards=3)
    seen.sync.layout()
    expected: dict[EntryId, int] = {}

    def publish(thread: int) -> None:
        for start in range(thread * 10_000, thread * 10_000 + 2_000, 200):
            expected.update(
                zip(seen.sync.publish_many(events(range(start, start + 190))), range(start, start + 190), strict=True)
            )
            for event in events(range(start + 190, start + 200)):
                expected[seen.sync.publish(event)] = event.n

    threads = [threading.Thread(target=publish, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: not any(thread.is_alive() for thread in threads), 60)
    entries = list(seen.sync.read())
    assert {entry.id: entry.event.n for entry in entries} == expected and len(expected) == 16_000
    for key, thread in itertools.product(KEYS, range(8)):
        own = [entry.event.n for entry in entries if entry.key == key and entry.event.n // 10_000 == thread]
        assert own == sorted(own)


@faces
async def test_both_halves_share_the_one_connection_that_there_is(
    own_server: Server, namespace: str, face: str
) -> None:
    """Redis takes no more clients: what is on its way for one half must not keep the connection from the other."""
    async with RStream(own_server.url, namespace=namespace, publish_timeout=4) as app:
        seen = declare(app, shards=2)
        expected = dict(zip(await publish_many(seen, events(range(1)), face), range(1), strict=True))
        raw = redis.Redis.from_url(own_server.url)
        raw.config_set("maxclients", len(raw.client_list()))
        try:
            ids = await publish_many(seen, events(range(1, 10_000)), face)
        finally:
            raw.config_set("maxclients", 10_000)
            raw.close()
        check(seen, expected | dict(zip(ids, range(1, 10_000), strict=True)))


class Struck:
    """A lock whose first taker is interrupted when it has just got it."""

    def __init__(self, lock: Any) -> None:
        self._lock, self._armed = lock, True

    def acquire(self, blocking: bool = True) -> bool:
        got: bool = self._lock.acquire(blocking)
        if got and self._armed:
            self._armed = False
            raise KeyboardInterrupt
        return got

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_thread_interrupted_when_it_has_just_got_the_lock_gives_it_back(app: RStream, many: bool, half: int) -> None:
    seen = declare(app, shards=2)
    seen.sync.publish_many(events(range(17)))
    producer: Any = seen.sync._producer
    courier = producer.couriers[half]
    courier.carrying = Struck(courier.carrying)
    with pytest.raises(KeyboardInterrupt):
        if many:
            seen.sync.publish_many(events(range(17, 34)))
        else:
            seen.sync.publish(Seen(device=(LOW, HIGH)[half], n=-1))
    others = threading.Thread(target=seen.sync.publish_many, args=(events(range(34, 51)),), daemon=True)
    others.start()
    others.join(10)
    assert not others.is_alive(), "it waits for a lock that nobody gives back"
    assert {*range(17), *range(34, 51)} <= {entry.event.n for entry in seen.sync.read()}
