"""Large payloads: published, read, handled, set aside, replayed; with the blob store there, away, and wrong."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from rstream import Batch, Blob, Delivery, Event, RetryPolicy, RStream
from rstream.blobs import Directory
from rstream.errors import BlobError, BlobMissing, BlobUnavailable, EntryInvalid, EventInvalid, EventTooLarge
from rstream.replay import Replay, replay
from rstream.store.record import Record
from tests.handlers import Media, sizes
from tests.objects import Objects
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually_async

LARGE = 200_000


class Scan(Event):
    who: str
    n: int = 0
    pixels: bytes = b""


def noise(size: int = LARGE) -> bytes:
    return random.randbytes(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def app(one_server: Server, namespace: str, folder: Path) -> AsyncIterator[RStream]:
    """Its blobs are in a directory."""
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}") as app:
        yield app


@pytest.fixture
def objects() -> Iterator[Objects]:
    objects = Objects()
    yield objects
    objects.stop()


@pytest.fixture
async def far(one_server: Server, namespace: str, objects: Objects) -> AsyncIterator[RStream]:
    """Its blobs are in S3, behind a proxy."""
    async with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
        yield app


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "owners")


async def stored(app: RStream, stream: Any) -> list[dict[bytes, bytes]]:
    """The entries as they are in Redis."""
    with redis.Redis.from_url(app.settings.url or "") as client:
        found: list[Any] = []
        for shard in (await stream.layout()).every:
            found += [fields for _, fields in client.xrange(shard.stream)]
        return found


# -- publishing


async def test_what_is_large_is_referred_to_as_documented(app: RStream, folder: Path, namespace: str) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    event = Scan(who="ada", pixels=noise())
    await scans.publish(event)
    (entry,) = await stored(app, scans)
    version, extension, inner = msgpack.unpackb(entry[b"e"])
    assert entry[b"e"][:1] == b"\x93" and (version, extension.code, inner) == (1, 66, []) and len(entry[b"e"]) < 64
    (file,) = files(folder)
    payload, day = file.read_bytes(), file.parent.name
    assert extension.data == hashlib.sha256(payload).digest() + len(payload).to_bytes(8, "big") + int(day).to_bytes(4)
    assert file == folder / namespace / "scans" / "blobs" / day / hashlib.sha256(payload).hexdigest()
    assert msgpack.unpackb(payload) == [1, event.model_dump()]
    assert [found.event async for found in scans.read()] == [event]


async def test_the_threshold_is_of_the_encoded_event(one_server: Server, namespace: str, folder: Path) -> None:
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}", blob_threshold=1000) as app:
        scans = app.stream("scans", Scan, key="who", shards=1)
        rest = len(scans.codec.encode(Scan(who="a", pixels=b"x" * 900), 1)) - 900
        await scans.publish(Scan(who="a", pixels=b"x" * (1000 - rest)))
        assert files(folder) == []
        await scans.publish(Scan(who="a", pixels=b"x" * (1001 - rest)))
        assert len(files(folder)) == 1


async def test_equal_payloads_are_kept_once(app: RStream, folder: Path) -> None:
    scans = app.stream("scans", Scan, key="who", shards=2)
    event = Scan(who="ada", pixels=noise())
    await scans.publish_many([event] * 5)
    assert len(files(folder)) == 1
    assert [found.event async for found in scans.read()] == [event] * 5


async def test_without_a_store_the_error_says_what_to_set(one_app: RStream) -> None:
    scans = one_app.stream("scans", Scan, key="who")
    with pytest.raises(EventTooLarge, match="blobs='s3://bucket/prefix'") as caught:
        await scans.publish(Scan(who="a", pixels=bytes(2_000_000)))
    assert "\n" not in str(caught.value)


async def test_who_reads_without_a_store_is_told_so(app: RStream, namespace: str) -> None:
    await app.stream("scans", Scan, key="who").publish(Scan(who="a", pixels=noise()))
    async with RStream(app.settings.url, namespace=namespace) as poor:
        entries = [entry async for entry in poor.stream("scans", Scan, key="who").read()]
        with pytest.raises(EntryInvalid, match="RSTREAM_BLOBS"):
            _ = entries[0].event


async def test_nothing_is_appended_when_the_upload_fails(far: RStream, objects: Objects) -> None:
    scans = far.stream("scans", Scan, key="who", shards=1)
    objects.fail("PUT", "503")
    with pytest.raises(BlobUnavailable, match="could not put"):
        await scans.publish_many([Scan(who="a"), Scan(who="a", pixels=noise())])
    with pytest.raises(BlobError):
        await asyncio.to_thread(scans.sync.publish, Scan(who="a", pixels=noise()))
    assert [entry async for entry in scans.read()] == []
    objects.heal()
    await scans.publish(Scan(who="a", n=7, pixels=noise()))
    assert [entry.event.n async for entry in scans.read()] == [7]


async def test_uploads_come_first_and_in_parallel(far: RStream, objects: Objects) -> None:
    scans = far.stream("scans", Scan, key="who", shards=1)
    await scans.publish(Scan(who="c", n=9, pixels=noise()))
    objects.fail("PUT", "hang", times=4)
    publishing = asyncio.create_task(scans.publish_many([Scan(who="a", n=n, pixels=noise()) for n in range(4)]))
    await eventually_async(lambda: objects.hanging >= 3)
    assert len(await stored(far, scans)) == 1
    objects.heal()
    assert len(await publishing) == 4
    assert [entry.event.n async for entry in scans.read()] == [9, 0, 1, 2, 3]


async def test_events_of_a_key_stay_in_order_and_others_do_not_wait(far: RStream, objects: Objects) -> None:
    scans = far.stream("scans", Scan, key="who", shards=1)
    await scans.publish(Scan(who="c", pixels=noise()))
    objects.fail("PUT", "hang", times=1)
    first = asyncio.create_task(scans.publish(Scan(who="a", n=1, pixels=noise())))
    await eventually_async(lambda: objects.hanging)
    second = asyncio.create_task(scans.publish(Scan(who="a", n=2)))
    third = asyncio.create_task(scans.publish(Scan(who="a", n=3, pixels=noise(LARGE + 1))))
    await scans.publish(Scan(who="b", n=4))
    assert not first.done() and not second.done()
    objects.heal()
    await asyncio.gather(first, second, third)
    assert [entry.event.n async for entry in scans.read(key="a")] == [1, 2, 3]
    assert [entry.event.n async for entry in scans.read(limit=2)] == [0, 4]


async def test_an_upload_that_fails_lets_the_next_of_its_key_pass_in_turn(far: RStream, objects: Objects) -> None:
    scans = far.stream("scans", Scan, key="who", shards=1)
    await scans.publish(Scan(who="a", n=0, pixels=noise(LARGE + 2)))
    objects.fail("PUT", "hang", times=1)
    first = asyncio.create_task(scans.publish(Scan(who="a", n=1, pixels=noise())))
    await eventually_async(lambda: objects.hanging)
    objects.fail("PUT", "403", times=1)
    second = asyncio.create_task(scans.publish(Scan(who="a", n=2, pixels=noise(LARGE + 1))))
    with pytest.raises(BlobError):
        await second
    third = asyncio.create_task(scans.publish(Scan(who="a", n=3)))
    await asyncio.sleep(0)
    objects.heal()
    await asyncio.gather(first, third)
    assert [entry.event.n async for entry in scans.read()] == [0, 1, 3]


def test_the_same_for_threads(one_server: Server, namespace: str, folder: Path) -> None:
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}") as app:
        scans = app.stream("scans", Scan, key="who", shards=2)
        events = [Scan(who=f"w{n}", n=n, pixels=noise(1_000_000)) for n in range(40)]
        scans.sync.publish_many(events)
        found = {entry.event.n: entry.event for entry in scans.sync.read()}
        assert [found[n] for n in range(40)] == events


# -- handling


def consumers(app: RStream, **options: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """A stream, and what its handler has got: n, size, attempt."""
    scans = app.stream("scans", Scan, key="who", shards=2)
    got: list[tuple[Any, ...]] = []

    @scans.consumer("g", **options)
    async def handle(event: Scan, delivery: Delivery) -> None:
        got.append((event.n, len(event.pixels), delivery.attempt))

    return scans, got


@pytest.mark.parametrize("ordered", [True, False])
async def test_handlers_get_what_was_published(app: RStream, ordered: bool) -> None:
    scans, got = consumers(app, ordered=ordered, concurrency=4)
    await scans.publish_many([Scan(who=f"w{n % 5}", n=n, pixels=noise(n % 2 * LARGE)) for n in range(60)])
    await drain(app)
    assert sorted(got) == [(n, n % 2 * LARGE, 1) for n in range(60)]
    if ordered:
        for key in range(5):
            mine = [n for n, _, _ in got if n % 5 == key]
            assert mine == sorted(mine)


async def test_batches(app: RStream) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    got: list[list[tuple[int, int]]] = []

    @scans.consumer("g", batch=10, max_wait=5.0, ordered=False)
    async def handle(events: list[Scan], batch: Batch) -> None:
        got.append(sorted((event.n, len(event.pixels)) for event in events))

    await scans.publish_many([Scan(who="w", n=n, pixels=noise(n % 2 * LARGE)) for n in range(10)])
    async with working(app):
        await eventually_async(lambda: sum(map(len, got)) == 10)
    assert sorted(pair for batch in got for pair in batch) == [(n, n % 2 * LARGE) for n in range(10)]


async def test_what_handlers_return_may_be_large(app: RStream) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    copies = app.stream("copies", Scan, key="who", shards=1)

    @scans.consumer("g", emits=copies)
    async def handle(event: Scan) -> Scan:
        return event.model_copy(update={"n": event.n + 1})

    event = Scan(who="a", n=1, pixels=noise())
    await scans.publish(event)
    await drain(app)
    assert [entry.event async for entry in copies.read()] == [event.model_copy(update={"n": 2})]


def lose(file: Path) -> None:
    file.unlink()


def alter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01"[file.read_bytes()[-1:] == b"\x00" :][:1])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(lose, "blob missing"), (alter, "blob altered"), (cut, "blob altered"), (lengthen, "blob altered")],
)
async def test_what_is_not_there_is_set_aside_by_its_reason_and_can_be_redriven(
    app: RStream, folder: Path, harm: Callable[[Path], None], reason: str
) -> None:
    scans, got = consumers(app)
    await scans.publish_many([Scan(who="a", n=1, pixels=noise()), Scan(who="a", n=2)])
    (file,) = files(folder)
    whole = file.read_bytes()
    harm(file)
    assert file.exists() == (harm is not lose)
    await drain(app)
    assert got == [(2, 0, 1)]
    (letter,) = [letter async for letter in scans.dead("g").read()]
    assert (letter.reason, letter.key) == (reason, "a") and file.name in letter.error
    with pytest.raises(EntryInvalid):
        _ = letter.event
    (entry, _) = [entry async for entry in scans.read()]
    with pytest.raises(EntryInvalid) as caught:
        _ = entry.event
    assert caught.value.reason == reason
    file.write_bytes(whole)
    assert (await scans.dead("g").redrive(reason=reason)).done == 1
    await drain(app)
    assert got == [(2, 0, 1), (1, LARGE, 1)]


async def test_a_dead_letter_of_another_reason_brings_its_event(app: RStream) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)

    @scans.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Scan) -> None:
        raise ValueError("no")

    events = [Scan(who="a", n=n, pixels=noise(n * LARGE)) for n in range(3)]
    await scans.publish_many(events)
    await drain(app)
    assert [letter.event async for letter in scans.dead("g").read()] == events
    letters = await asyncio.to_thread(lambda: [letter.event for letter in scans.sync.dead("g").read()])
    assert letters == events


async def test_a_broken_reference_is_undecodable(app: RStream) -> None:
    scans, got = consumers(app)
    layout = await scans.layout()
    for payload in (b"\x93", b"\x93\x01\x02\x03", b"\x93\x01\xc7\x02\x42ab\x90"):
        records = {layout.current[0]: Record(payload, b"a", b"", b"")}
        await scans.publish(Scan(who="a"))
        await scans._producers.get(None).send([records])
    await drain(app)
    assert len(got) == 3
    assert [letter.reason async for letter in scans.dead("g").read()] == ["undecodable"] * 3


@pytest.mark.parametrize(("kind", "ordered"), [("503", True), ("hang", False), ("cut", True), ("stray", True)])
async def test_a_store_that_is_away_costs_no_attempt_and_holds_up_nobody_else(
    far: RStream, objects: Objects, kind: str, ordered: bool
) -> None:
    scans, got = consumers(far, ordered=ordered, concurrency=2, lease=5.0, retry=RetryPolicy(max_attempts=1))
    large = [Scan(who=f"big{n}", n=n, pixels=noise()) for n in range(20)]
    await scans.publish_many(large)
    objects.fail("GET", kind)
    async with working(far) as worker:
        await eventually_async(lambda: objects.requests["GET"] >= 3, 10)
        await scans.publish_many([Scan(who=f"small{n}", n=100 + n) for n in range(50)])
        await eventually_async(lambda: len(got) == 50, 10)
        before = objects.requests["GET"]
        await asyncio.sleep(1.0)
        # 20 deliveries and 8 loaders that did not wait would ask hundreds of times.
        assert objects.requests["GET"] - before < 60
        objects.heal()
        await eventually_async(lambda: len(got) == 70, 60)
    assert sorted(got) == [(n, LARGE, 1) for n in range(20)] + [(100 + n, 0, 1) for n in range(50)]
    assert worker.counts.dead == worker.counts.failed == 0


async def test_the_order_of_a_key_holds_while_the_store_is_away(far: RStream, objects: Objects) -> None:
    scans, got = consumers(far)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise((n == 0) * LARGE)) for n in range(5)])
    objects.fail("GET", "503")
    async with working(far):
        await eventually_async(lambda: objects.requests["GET"] >= 4, 10)
        assert got == []
        objects.heal()
        await eventually_async(lambda: len(got) == 5, 30)
    assert [n for n, _, _ in got] == [0, 1, 2, 3, 4]


async def test_a_stop_hands_over_what_waits_for_the_store(far: RStream, objects: Objects) -> None:
    scans, got = consumers(far, ordered=False, retry=RetryPolicy(max_attempts=1))
    await scans.publish_many([Scan(who=f"w{n}", n=n, pixels=noise()) for n in range(20)])
    objects.fail("GET", "hang")
    async with working(far):
        await eventually_async(lambda: objects.hanging)
    objects.heal()
    async with asyncio.timeout(30):
        await drain(far)
    assert sorted(got) == [(n, LARGE, 1) for n in range(20)]


async def test_payloads_in_memory_are_bounded(app: RStream, monkeypatch: pytest.MonkeyPatch) -> None:
    from rstream.worker import loads

    monkeypatch.setattr(loads, "BYTES", 5 * LARGE)
    scans, got = consumers(app, ordered=False, concurrency=50)
    await scans.publish_many([Scan(who=f"w{n}", n=n, pixels=noise()) for n in range(50)])
    most = 0
    queue = loads.Loads.hold

    async def hold(self: Any, place: Any, size: int) -> None:
        nonlocal most
        await queue(self, place, size)
        most = max(most, self._bytes)

    monkeypatch.setattr(loads.Loads, "hold", hold)
    await drain(app)
    assert len(got) == 50
    assert 2 * LARGE < most <= 5 * LARGE


async def test_a_worker_without_the_store_burns_no_attempt(app: RStream, namespace: str) -> None:
    scans, got = consumers(app, retry=RetryPolicy(max_attempts=1))
    await scans.publish(Scan(who="a", n=1, pixels=noise()))
    async with RStream(app.settings.url, namespace=namespace) as poor:
        _, nothing = consumers(poor, retry=RetryPolicy(max_attempts=1))
        async with working(poor) as worker:
            await eventually_async(lambda: worker.runs and worker.runs[0].loads.tries, 10)
    await drain(app)
    assert (got, nothing) == ([(1, LARGE, 1)], [])


async def test_what_may_have_killed_a_worker_is_not_forgotten_while_the_store_is_away(
    far: RStream, objects: Objects
) -> None:
    scans, got = consumers(far, ordered=False, lease=0.5, retry=RetryPolicy(max_attempts=2))
    await scans.publish(Scan(who="a", n=1, pixels=noise()))
    shard = (await scans.layout()).shard("a")
    with redis.Redis.from_url(far.settings.url or "") as client:
        client.xgroup_create(shard.stream, "g", "0")
        client.xreadgroup("g", "a-worker-that-died", {shard.stream: ">"})
        objects.fail("GET", "503")
        async with working(far) as worker:
            await eventually_async(lambda: worker.runs and sum(worker.runs[0].loads.tries.values()) >= 2, 20)
            (pending,) = client.xpending_range(shard.stream, "g", "-", "+", 10)
            assert pending["consumer"] == worker.id.encode()
            objects.heal()
            await eventually_async(lambda: got, 30)
    assert got == [(1, LARGE, 2)]


async def test_what_cannot_be_uploaded_by_an_emit_costs_no_attempt(far: RStream, objects: Objects) -> None:
    scans = far.stream("scans", Scan, key="who", shards=1)
    copies = far.stream("copies", Scan, key="who", shards=1)
    attempts: list[int] = []

    @scans.consumer("g", emits=copies, retry=RetryPolicy(max_attempts=1))
    async def handle(event: Scan, delivery: Delivery) -> Scan:
        attempts.append(delivery.attempt)
        return Scan(who="a", n=2, pixels=noise())

    await scans.publish(Scan(who="a"))
    objects.fail("PUT", "503")
    async with working(far):
        await eventually_async(lambda: len(attempts) >= 2, 20)
        assert await stored(far, copies) == []
        objects.heal()
        await eventually_async(lambda: stored(far, copies), 20)
    assert set(attempts) == {1}
    assert [len(entry.event.pixels) async for entry in copies.read()] == [LARGE]


# -- replay


async def test_replay_waits_for_the_store(far: RStream, objects: Objects) -> None:
    scans, got = consumers(far)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise()) for n in range(3)])
    objects.fail("GET", "503", times=12)
    result = await replay(scans, scans.consumers[0].handler, None, None, concurrency=2)
    assert (result.handled, result.invalid, result.finished) == (3, 0, True)
    assert [n for n, _, _ in got] == [0, 1, 2]


async def test_replay_counts_what_is_missing_as_invalid(app: RStream, folder: Path) -> None:
    scans, got = consumers(app)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise()) for n in range(3)])
    files(folder)[0].unlink()
    result = await replay(scans, scans.consumers[0].handler, None, None)
    assert (result.handled, result.invalid, len(got)) == (2, 1, 2)


# -- blobs as fields


async def test_a_blob_is_fetched_when_it_is_asked_for(far: RStream, objects: Objects, tmp_path: Path) -> None:
    media = far.stream("media", Media, key="who", shards=1)
    data = noise(3_000_000)
    (tmp_path / "audio").write_bytes(data)
    await media.publish_many([
        Media(who="a", audio=Blob(data)), Media(who="a", audio=Blob.file(tmp_path / "audio")), Media(who="a")
    ])  # fmt: skip
    assert len(objects.keys()) == 1
    events = [entry.event async for entry in media.read()]
    assert objects.requests["GET"] == 0 and [event.audio.size for event in events] == [3_000_000, 3_000_000, 0]
    assert events[0].audio == events[1].audio == Blob(data) != events[2].audio
    assert await events[0].audio.read() == data and await events[2].audio.read() == b""
    async with events[1].audio.open() as file:
        assert file.read(1000) == data[:1000] and file.read() == data[1000:]
    async with events[1].audio.path() as path:
        assert path.read_bytes() == data
    assert not path.exists()
    with events[1].audio.sync.open() as file, events[2].audio.sync.path() as path:
        assert file.read() == data and path.read_bytes() == b""


async def test_a_large_event_keeps_its_blobs(app: RStream, folder: Path) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    event = Media(who="a", audio=Blob(noise()), note="x" * LARGE)
    await media.publish(event)
    assert len(files(folder)) == 2
    ((entry),) = await stored(app, media)
    _, _, (inner,) = msgpack.unpackb(entry[b"e"])
    assert inner.data[:32].hex() == event.audio.digest  # for who collects garbage
    assert [found.event async for found in media.read()] == [event]


async def test_blobs_in_threads_and_processes(app: RStream) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    sums = app.stream("sums", Scan, key="who", shards=1)
    media.consumer("threads", emits=sums)(sizes)
    media.consumer("processes", emits=sums, run_in="process", concurrency=1)(sizes)
    await media.publish(Media(who="a", audio=Blob(noise())))
    await drain(app)
    assert [entry.event.n async for entry in sums.read()] == [LARGE, LARGE]


async def test_a_blob_may_be_handed_on(app: RStream, folder: Path) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    copies = app.stream("copies", Media, key="who", shards=1)

    @media.consumer("g", emits=copies)
    async def handle(event: Media) -> Media:
        return event

    data = noise()
    await media.publish(Media(who="a", audio=Blob(data)))
    await drain(app)
    for file in files(folder):
        if "media" in file.parts:
            file.unlink()
    (entry,) = [entry async for entry in copies.read()]
    assert await entry.event.audio.read() == data


@pytest.mark.parametrize("harm", [lose, alter])
async def test_a_handler_that_meets_a_bad_blob_need_not_know(
    app: RStream, folder: Path, harm: Callable[[Path], None]
) -> None:
    media = app.stream("media", Media, key="who", shards=1)

    @media.consumer("g")
    async def handle(event: Media) -> None:
        await event.audio.read()

    await media.publish(Media(who="a", audio=Blob(noise())))
    harm(files(folder)[0])
    await drain(app)
    assert await media.dead("g").count() == {"blob missing" if harm is lose else "blob altered": 1}


async def test_a_store_that_is_away_in_mid_handler_costs_no_attempt(far: RStream, objects: Objects) -> None:
    media = far.stream("media", Media, key="who", shards=1)
    attempts: list[int] = []
    done: list[int] = []

    @media.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Media, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        done.append(len(await event.audio.read()))

    await media.publish(Media(who="a", audio=Blob(noise())))
    objects.fail("GET", "503")
    async with working(far):
        await eventually_async(lambda: len(attempts) >= 2, 10)
        objects.heal()
        await eventually_async(lambda: done == [LARGE], 20)
    assert set(attempts) == {1}


async def test_small_blobs_need_no_store(one_app: RStream) -> None:
    media = one_app.stream("media", Media, key="who", shards=1)
    await media.publish({"who": "a", "audio": b"tiny"})
    (entry,) = [entry async for entry in media.read()]
    assert await entry.event.audio.read() == b"tiny"
    assert Media.model_validate_json(entry.event.model_dump_json()) == entry.event
    with pytest.raises(EventInvalid, match="made of bytes"):
        await media.publish({"who": "a", "audio": 5})


async def test_a_blob_that_is_gone_says_which(app: RStream, folder: Path) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    await media.publish(Media(who="a", audio=Blob(noise())))
    (file,) = files(folder)
    Directory(folder).delete([file.relative_to(folder).as_posix()])
    (entry,) = [entry async for entry in media.read()]
    with pytest.raises(BlobMissing, match=file.name):
        async with entry.event.audio.open():
            pass
    assert files(folder) == []


async def test_a_replay_can_be_stopped_while_it_waits_for_the_store(far: RStream, objects: Objects) -> None:
    scans, got = consumers(far)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise()) for n in range(3)])
    objects.fail("GET", "503")
    run = Replay(scans, scans.consumers[0].handler, None, None)
    running = asyncio.create_task(run.run())
    await eventually_async(lambda: objects.requests["GET"] >= 2)
    run.stop()
    result = await running
    assert (result.finished, result.done, got) == (False, 0, [])
    objects.heal()
    assert (await replay(scans, scans.consumers[0].handler, None, None)).handled == 3
