"""Publishing: order, ids, refusals, and exactness (promise 5)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator

import msgpack
import pytest
import redis

from rstream import EntryId, Event, RStream, Stream
from rstream.errors import (
    EventInvalid,
    EventTooLarge,
    KeyMissing,
    MemoryFull,
    PublishUncertain,
    StoreUnavailable,
    StreamMismatch,
)
from rstream.store.scripts import PUBLISH
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.waiting import eventually


class Seen(Event):
    device: str | None
    n: int
    pixels: bytes = b""


class Note(Event):
    text: str


def declare(app: RStream, shards: int = 4) -> Stream[Seen]:
    return app.stream("seen", Seen, key="device", shards=shards)


def numbers(stream: Stream[Seen]) -> list[int]:
    return [entry.event.n for entry in stream.sync.read()]


def test_ids_tell_where_an_event_lies_and_follow_the_order_of_the_events(app: RStream) -> None:
    seen = declare(app)
    events = [Seen(device=f"d{n % 7}", n=n) for n in range(1000)]

    ids = seen.sync.publish_many(events)

    assert len(set(ids)) == 1000
    found = {entry.id: entry.event.n for entry in seen.sync.read()}
    assert found == {id: n for n, id in enumerate(ids)}
    for device in range(7):
        own = [id for n, id in enumerate(ids) if n % 7 == device]
        assert own == sorted(own)
        assert len({id.shard for id in own}) == 1


async def test_async_and_sync_faces_share_one_stream(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        seen = declare(app)
        first = await seen.publish(Seen(device="a", n=1), headers={"trace": "x"})
        second = seen.sync.publish({"device": "a", "n": 2})
        entries = [entry async for entry in seen.read()]
    assert [(e.id, e.event.n, e.key, e.headers) for e in entries] == [
        (first, 1, "a", {"trace": "x"}),
        (second, 2, "a", {}),
    ]
    assert len({entry.event_id for entry in entries}) == 2


async def test_concurrent_publishes_are_gathered_into_few_calls(
    server: Server, namespace: str, raw: redis.Redis
) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        seen = declare(app, shards=4)
        await seen.publish(Seen(device="x", n=-1))
        before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
        ids = await asyncio.gather(*(seen.publish(Seen(device=f"d{n}", n=n)) for n in range(500)))
        calls = raw.info("commandstats")["cmdstat_evalsha"]["calls"] - before
        assert len(set(ids)) == 500
        # The first of each half goes out at once, then one flush per shard; other tests of this process share the
        # server, but do not run meanwhile.
        assert calls <= 6


async def test_a_producers_order_per_key_holds_for_concurrent_publishes(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        seen = declare(app)
        await asyncio.gather(*(seen.publish(Seen(device=f"d{n % 3}", n=n)) for n in range(900)))
        for device in range(3):
            got = [entry.event.n async for entry in seen.read(key=f"d{device}")]
            assert got == list(range(device, 900, 3))


def test_threads_share_the_sync_face(app: RStream) -> None:
    seen = declare(app)

    def publish(thread: int) -> None:
        for n in range(100):
            seen.sync.publish(Seen(device=f"t{thread}", n=n))

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in range(8):
        assert [entry.event.n for entry in seen.sync.read(key=f"t{thread}")] == list(range(100))


def test_a_forked_child_is_another_producer(app: RStream) -> None:
    seen = declare(app)
    seen.sync.publish(Seen(device="a", n=0))
    children = []
    for child in (1, 2, 3):
        pid = os.fork()
        if pid == 0:
            try:
                # With the parent's producer id and numbers these would be taken for resends and vanish.
                for n in range(20):
                    seen.sync.publish(Seen(device="a", n=child * 100 + n))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    for n in range(1, 21):
        seen.sync.publish(Seen(device="a", n=n))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    expected = [*range(21), *(child * 100 + n for child in (1, 2, 3) for n in range(20))]
    assert sorted(numbers(seen)) == sorted(expected)


def test_each_event_loop_has_its_own_connections(app: RStream) -> None:
    seen = declare(app)

    async def publish(n: int) -> None:
        await seen.publish(Seen(device="a", n=n))
        await app.link.aclose()

    for n in range(3):
        asyncio.run(publish(n))
    assert numbers(seen) == [0, 1, 2]


def test_events_without_a_key_are_spread_evenly(app: RStream) -> None:
    notes = app.stream("notes", Note, shards=4)
    ids = notes.sync.publish_many(Note(text=str(n)) for n in range(1000))
    assert Counter(id.shard for id in ids) == {0: 250, 1: 250, 2: 250, 3: 250}
    singles = [notes.sync.publish(Note(text="x")).shard for _ in range(8)]
    assert Counter(singles) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert len({notes.sync.publish(Note(text="y"), key="same").shard for _ in range(8)}) == 1


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (Seen(device=None, n=1), KeyMissing, "device"),
        (Seen(device="", n=1), KeyMissing, "device"),
        ({"device": "a"}, EventInvalid, "n: Field required"),
        ({"device": "a", "n": "many"}, EventInvalid, "n: "),
        (Note(text="x"), EventInvalid, "expected a Seen"),
        (7, EventInvalid, "expected a Seen"),
        (Seen(device="a", n=2**70), EventInvalid, "cannot be encoded"),
        (Seen(device="a", n=1, pixels=b"x" * 2_000_000), EventTooLarge, "max_event_bytes"),
    ],
)
def test_a_bad_event_is_refused_and_nothing_of_its_batch_is_published(
    app: RStream, bad: Seen, error: type[Exception], says: str
) -> None:
    seen = declare(app)
    with pytest.raises(error, match=says):
        seen.sync.publish_many([Seen(device="a", n=1), bad])
    assert numbers(seen) == []


def test_a_key_for_a_stream_that_has_a_key_field_is_refused(app: RStream) -> None:
    with pytest.raises(EventInvalid, match="leave out key="):
        declare(app).sync.publish(Seen(device="a", n=1), key="b")


def test_the_stored_layout_wins(app: RStream, server: Server, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    declare(app, shards=4).sync.publish(Seen(device="a", n=1))
    with RStream(server.url, namespace=namespace) as other:
        assert declare(other, shards=16).sync.layout().shards == 4
        assert "4 shards, the declared 16 are ignored" in caplog.text
    with RStream(server.url, namespace=namespace) as third, pytest.raises(StreamMismatch, match="'device'"):
        third.stream("seen", Seen, key="n").sync.layout()


def test_a_schema_keeps_its_version(app: RStream, server: Server, namespace: str) -> None:
    assert declare(app).sync.layout().version == 1

    class Newer(Seen):
        more: str = ""

    for _ in range(2):
        with RStream(server.url, namespace=namespace) as other:
            assert other.stream("seen", Newer, key="device").sync.layout().version == 2
    with RStream(server.url, namespace=namespace) as again:
        assert declare(again).sync.layout().version == 1


# -- exactness ------------------------------------------------------------------------------------------------------


def flush(raw: redis.Redis, stream: str, seq: int, *texts: str) -> bytes:
    if not raw.exists(stream):
        raw.xgroup_create(stream, "made", mkstream=True)
    packed = msgpack.packb([part for t in texts for part in (t.encode(), b"k", b"i" * 16, b"")], use_bin_type=False)
    names = [stream, f"{stream}:seq:p", f"{stream}:size", f"{stream}:marks"]
    answer = raw.eval(PUBLISH.source, 4, *names, seq, 60_000, packed)
    assert isinstance(answer, bytes)
    return answer


def test_a_flush_sent_twice_is_applied_once_and_a_late_packet_not_at_all(raw: redis.Redis, namespace: str) -> None:
    stream = f"{{{namespace}}}:s"
    first = flush(raw, stream, 1, "a", "b")
    assert flush(raw, stream, 1, "a", "b") == first
    second = flush(raw, stream, 2, "c")
    assert second > first
    with pytest.raises(redis.ResponseError, match="STALE"):
        flush(raw, stream, 1, "a", "b")
    assert [fields[b"e"] for _, fields in raw.xrange(stream)] == [b"a", b"b", b"c"]


def test_the_ids_of_a_flush_are_consecutive(raw: redis.Redis, namespace: str) -> None:
    stream = f"{{{namespace}}}:s"
    first = flush(raw, stream, 1, *(str(n) for n in range(5000)))
    ms, seq = map(int, first.split(b"-"))
    assert [id for id, _ in raw.xrange(stream)] == [f"{ms}-{seq + n}".encode() for n in range(5000)]


@pytest.fixture
def proxy(server: Server) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.upstream) as proxy:
        yield proxy


@pytest.mark.long
async def test_200_cut_connections_in_20_000_publishes_add_exactly_20_000_entries(
    proxy: ChaosProxy, server: Server, namespace: str
) -> None:
    proxy.cut_after_request(200, random.Random(20261120), mean_bytes=12_000)
    async with RStream(proxy.url, namespace=namespace) as app:
        seen = declare(app)
        ids: list[EntryId] = []
        numbers = iter(range(20_000))

        async def publisher(name: int) -> None:
            # Singles and batches in turn, each publisher in the order of its own key.
            rng = random.Random(name)
            while batch := list(itertools.islice(numbers, rng.choice((1, 1, 1, 1, 5)))):
                events = [Seen(device=f"p{name}", n=n, pixels=b"." * 60) for n in batch]
                ids.extend(await seen.publish_many(events) if len(events) > 1 else [await seen.publish(events[0])])

        await asyncio.gather(*(publisher(name) for name in range(20)))
        cuts = proxy.cuts
        proxy.cut_after_request(0, random.Random(0), mean_bytes=1)
        entries = [entry async for entry in seen.read()]

    assert cuts == 200
    assert sorted(entry.event.n for entry in entries) == list(range(20_000))
    assert sorted(ids) == [entry.id for entry in entries]
    for name in range(20):
        own = [entry.event.n for entry in entries if entry.key == f"p{name}"]
        assert own == sorted(own)


def test_the_sync_face_is_as_exact(proxy: ChaosProxy, namespace: str) -> None:
    proxy.cut_after_request(50, random.Random(7), mean_bytes=2_000)
    with RStream(proxy.url, namespace=namespace) as app:
        seen = declare(app)
        ids = [seen.sync.publish(Seen(device=f"d{n % 5}", n=n)) for n in range(1000)]
        for batch in range(1000, 3000, 100):
            ids += seen.sync.publish_many([Seen(device=f"d{n % 5}", n=n) for n in range(batch, batch + 100)])
        cuts = proxy.cuts
        proxy.cut_after_request(0, random.Random(0), mean_bytes=1)
        found = {entry.id: entry.event.n for entry in seen.sync.read()}
    assert cuts == 50
    assert found == {id: n for n, id in enumerate(ids)}


async def test_a_black_hole_ends_in_publish_uncertain_and_the_packet_that_comes_late_is_refused(
    proxy: ChaosProxy, namespace: str
) -> None:
    async with RStream(f"{proxy.url}?socket_timeout=1", namespace=namespace, publish_timeout=1.2) as app:
        seen = declare(app)
        await seen.publish(Seen(device="a", n=1))
        proxy.blackhole(True)
        with pytest.raises(PublishUncertain, match="may or may not"):
            await seen.publish(Seen(device="a", n=2))
        proxy.blackhole(False)
        await seen.publish(Seen(device="a", n=3))
        assert [entry.event.n async for entry in seen.read()] == [1, 3]


def test_nobody_listening_is_named(namespace: str) -> None:
    with RStream("redis://127.0.0.1:1/0", namespace=namespace, publish_timeout=0.1) as app:
        with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:1/0") as caught:
            declare(app).sync.publish(Seen(device="a", n=1))
        assert not isinstance(caught.value, PublishUncertain)


def test_publishing_waits_for_a_server_that_restarts(own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace) as app:
        seen = declare(app)
        seen.sync.publish(Seen(device="a", n=1))
        own_server.stop()
        back = threading.Timer(0.3, own_server.start)
        back.start()
        seen.sync.publish(Seen(device="a", n=2))
        back.join()
        assert numbers(seen) == [1, 2]


def test_a_full_redis_is_told_at_once_and_nothing_is_half_written(own_server: Server, namespace: str) -> None:
    with (
        redis.Redis.from_url(own_server.url) as raw,
        RStream(own_server.url, namespace=namespace) as app,
    ):
        seen = declare(app)
        seen.sync.publish(Seen(device="a", n=1))
        raw.config_set("maxmemory", 1)
        with pytest.raises(MemoryFull, match="maxmemory") as caught:
            seen.sync.publish_many([Seen(device=f"d{n}", n=n) for n in range(100)])
        assert caught.value.published == []
        raw.config_set("maxmemory", 0)
        assert numbers(seen) == [1]
        seen.sync.publish(Seen(device="a", n=2))
        assert numbers(seen) == [1, 2]


# -- what a failure says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", ["memory", "password"])
def test_a_resend_that_is_refused_does_not_claim_that_nothing_was_written(
    own_server: Server, namespace: str, refusal: str
) -> None:
    with (
        ChaosProxy(own_server.upstream) as proxy,
        redis.Redis.from_url(own_server.url) as raw,
        RStream(f"{proxy.url}?socket_timeout=0.5", namespace=namespace, publish_timeout=5) as app,
    ):
        seen = declare(app)
        seen.sync.publish(Seen(device="a", n=1))
        proxy.delay_replies(2.0)  # the event arrives, its answer does not
        failed: list[BaseException] = []

        def publish() -> None:
            try:
                seen.sync.publish(Seen(device="a", n=2))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=publish)
        thread.start()
        eventually(lambda: numbers(declare(RStream(own_server.url, namespace=namespace))) == [1, 2])
        if refusal == "memory":
            raw.config_set("maxmemory", 1)
        else:
            raw.config_set("requirepass", "another")
        proxy.delay_replies(0.0)
        thread.join()
        assert [type(error) for error in failed] == [PublishUncertain]


async def test_each_caller_learns_what_of_its_own_was_published(own_server: Server, namespace: str) -> None:
    with redis.Redis.from_url(own_server.url) as raw:
        async with RStream(own_server.url, namespace=namespace) as app:
            seen = declare(app, shards=2)
            await seen.publish(Seen(device="a", n=-1))
            raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 600_000)

            async def publish(caller: int) -> tuple[int, MemoryFull]:
                events = [Seen(device=f"c{caller}", n=n, pixels=bytes(50_000)) for n in range(10)]
                with pytest.raises(MemoryFull) as caught:
                    await seen.publish_many(events)
                return caller, caught.value

            told = await asyncio.gather(*(publish(caller) for caller in range(5)))
            raw.config_set("maxmemory", 0)
            assert len({id(error) for _, error in told}) == 5
            for caller, error in told:
                assert list(error.published) == [entry.id async for entry in seen.read(key=f"c{caller}")]
            assert any(error.published for _, error in told)  # or this showed nothing


def test_loops_that_end_leave_no_connections(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    asyncio.run(_publish_one(seen))
    gc.collect()
    before = raw.info("clients")["connected_clients"]
    for _ in range(30):
        asyncio.run(_publish_one(seen))
    gc.collect()
    eventually(lambda: raw.info("clients")["connected_clients"] <= before + 1)
    assert len(numbers(seen)) == 31


async def _publish_one(stream: Stream[Seen]) -> None:
    await stream.publish(Seen(device="a", n=1))
