"""What large payloads must not do: block the loop, end a worker, leave threads behind, tell secrets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rstream import Blob, Event, RetryPolicy, RStream
from rstream.blobs import S3, claims, open_store
from rstream.blobs.s3 import LARGE
from rstream.blobs.shelf import Shelf, shelf
from rstream.errors import BlobUnavailable, ConfigError
from rstream.reference import Reference
from rstream.store.record import Record
from tests.handlers import Media
from tests.objects import Objects
from tests.servers import Server
from tests.test_claims import Scan, files, noise
from tests.test_worker import drain
from tests.waiting import eventually

LONG = 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def app(one_server: Server, namespace: str, folder: Path) -> AsyncIterator[RStream]:
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}") as app:
        yield app


@pytest.fixture
def objects() -> Iterator[Objects]:
    objects = Objects()
    yield objects
    objects.stop()


SOUND = os.urandom(LONG)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "audio"
    path.write_bytes(SOUND)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    path.write_bytes(SOUND[::-1])
    return path


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """The threads that have read files of blobs."""
    seen: set[threading.Thread] = set()
    opened = Blob._local

    def local(self: Blob) -> Any:
        if self._path is not None:
            seen.add(threading.current_thread())
        return opened(self)

    monkeypatch.setattr(Blob, "_local", local)
    return seen


# -- files are read in threads: the SHA-256 of 1.5 GB takes seconds


async def test_a_publish_does_not_read_files_in_the_loop(
    app: RStream, audio: Path, other: Path, readers: set[Any]
) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    made = (Media(who="a", audio=Blob.file(path), note=path.name) for path in (audio, other, audio))
    assert len(await media.publish_many(made)) == 3
    assert readers and threading.main_thread() not in readers
    found = [entry.event async for entry in media.read()]
    assert [event.note for event in found] == ["audio", "other", "audio"]
    assert [await event.audio.read() for event in found] == [SOUND, SOUND[::-1], SOUND]


async def test_the_order_of_a_key_holds_while_its_file_is_read(
    app: RStream, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    await media.layout()
    go_on, opened = threading.Event(), Blob._local

    def slow(self: Blob) -> Any:
        assert self._path is None or go_on.wait(20)
        return opened(self)

    monkeypatch.setattr(Blob, "_local", slow)
    first = asyncio.create_task(media.publish(Media(who="a", audio=Blob.file(audio), note="1")))
    await asyncio.sleep(0)
    second = asyncio.create_task(media.publish(Media(who="a", audio=Blob(b""), note="2")))
    await media.publish(Media(who="b", audio=Blob(b""), note="3"))
    assert not first.done() and not second.done()
    go_on.set()
    await asyncio.gather(first, second)
    assert [entry.event.note async for entry in media.read()] == ["3", "1", "2"]


@pytest.mark.parametrize("batch", [None, 3])
async def test_a_worker_does_not_read_what_handlers_return_in_its_loop(
    app: RStream, audio: Path, readers: set[Any], batch: int | None
) -> None:
    scans, media = app.stream("scans", Scan, key="who", shards=1), app.stream("media", Media, key="who", shards=1)

    def heard(event: Scan) -> Media:
        return Media(who=event.who, audio=Blob.file(audio), note=str(event.n))

    if batch is None:

        @scans.consumer("g", emits=media)
        async def handle(event: Scan) -> Media:
            return heard(event)
    else:

        @scans.consumer("g", emits=media, batch=batch, max_wait=0.1, ordered=False)
        async def handle_all(events: list[Scan]) -> list[Media]:
            return [heard(event) for event in events]

    await scans.publish_many([Scan(who="a", n=n) for n in range(4)])
    await drain(app)
    assert readers and threading.main_thread() not in readers
    found = [entry.event async for entry in media.read()]
    assert sorted(event.note for event in found) == ["0", "1", "2", "3"]
    assert {await event.audio.read() for event in found} == {SOUND}


async def test_a_file_that_is_not_there(app: RStream, tmp_path: Path) -> None:
    media = app.stream("media", Media, key="who", shards=1)
    with pytest.raises(Exception, match="no-such-file"):
        await media.publish(Media(who="a", audio=Blob.file(tmp_path / "no-such-file")))
    assert [entry async for entry in media.read()] == []


async def test_what_is_in_a_store_is_not_fetched_in_the_loop(
    app: RStream, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be published again where the threshold is higher: it is copied from store to store."""
    media = app.stream("media", Media, key="who", shards=1)
    await media.publish(Media(who="a", audio=Blob(SOUND)))
    (entry,) = [entry async for entry in media.read()]
    threads: set[threading.Thread] = set()
    for name in ("fetch", "download"):
        called = getattr(Shelf, name)

        def seen(*arguments: Any, called: Any = called) -> Any:
            threads.add(threading.current_thread())
            return called(*arguments)

        monkeypatch.setattr(Shelf, name, seen)
    blobs = app.settings.blobs
    async with RStream(app.settings.url, namespace=f"{namespace}x", blobs=blobs, blob_threshold=1_000_000) as other:
        copies = other.stream("media", Media, key="who", shards=1)
        await copies.publish(entry.event)
        (copy,) = [entry async for entry in copies.read()]
        assert await copy.event.audio.read() == SOUND
    assert threads and threading.main_thread() not in threads


# -- what somebody wrote into Redis does not end a worker


@pytest.mark.parametrize("size", [2**40, 2**63 - 1, 2**64 - 1])
async def test_a_reference_of_an_impossible_size(app: RStream, folder: Path, size: int) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    got: list[int] = []

    @scans.consumer("g")
    async def handle(event: Scan) -> None:
        got.append(event.n)

    await scans.publish(Scan(who="a", n=1, pixels=noise()))
    (file,) = files(folder)
    wrong = msgpack.packb([1, Reference(file.name, size, int(file.parent.name)).packed, []])
    await scans._producers.get(None).send([{(await scans.layout()).current[0]: Record(wrong, b"a", b"", b"")}])
    await scans.publish(Scan(who="a", n=2, pixels=noise()))
    await drain(app)
    assert got == [1, 2]
    assert [letter.reason async for letter in scans.dead("g").read()] == ["undecodable"]


# -- threads


def test_threads_end_with_their_loop_and_are_few(one_server: Server, namespace: str, tmp_path: Path) -> None:
    before, most = threading.active_count(), []

    async def use(number: int) -> None:
        async with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path}/{number}") as app:
            scans = app.stream(f"scans{number}", Scan, key="who", shards=1)
            await scans.publish_many([Scan(who=f"w{n}", pixels=noise()) for n in range(20)])
            assert len([entry.event async for entry in scans.read()]) == 20
            most.append(threading.active_count())

    async def all_in_turn() -> None:
        for number in range(5):
            await use(number)

    asyncio.run(all_in_turn())
    assert max(most) <= before + 20  # a pool for each store would be five times that
    _eventually_only(before)


def test_threads_of_blocking_calls_end_with_them(one_server: Server, namespace: str, folder: Path) -> None:
    before = threading.active_count()
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}") as app:
        scans = app.stream("scans", Scan, key="who", shards=1)
        scans.sync.publish_many([Scan(who=f"w{n}", pixels=noise()) for n in range(20)])
        assert len([entry.event for entry in scans.sync.read()]) == 20
        _eventually_only(before)


def _eventually_only(count: int) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(("rstream-blobs", "AnyIO")):
            thread.join(10)
    assert threading.active_count() <= count


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_connects(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(objects.url)
    assert isinstance(store, S3)
    store.put("a", b"1")
    making, go_on = threading.Event(), threading.Event()
    made = S3._make

    def slow(self: S3, tries: int) -> Any:
        making.set()
        assert go_on.wait(20)
        return made(self, tries)

    monkeypatch.setattr(S3, "_make", slow)
    store._made.clear()
    thread = threading.Thread(target=store.get, args=("a",))
    thread.start()
    assert making.wait(20)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            threading.Timer(20, os._exit, (2,)).start()
            go_on.set()
            code = 0 if store.get("a") == b"1" else 3
        os._exit(code)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- memory


@pytest.fixture
async def hundred(app: RStream, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stream of a hundred entries of 400 KB, each also a dead letter; 2 MB may be fetched at once."""
    monkeypatch.setattr(claims, "WINDOW_BYTES", 2_000_000)
    scans = app.stream("scans", Scan, key="who", shards=1)

    @scans.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Scan) -> None:
        raise ValueError("no")

    for part in range(10):
        await scans.publish_many([Scan(who="a", n=part * 10 + n, pixels=os.urandom(400_000)) for n in range(10)])
    await drain(app)
    return scans


async def test_a_reading_holds_what_it_fetches_at_once_and_no_more(hundred: Any) -> None:
    def bounded(read: Any) -> tuple[int, int]:
        """(entries, the most bytes that were held)."""
        gc.collect()
        tracemalloc.start()
        count = sum(len(each.event.pixels) == 400_000 for each in read())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return count, peak

    async def all_of(read: Any) -> int:
        return len([None async for each in read if len(each.event.pixels) == 400_000])

    for read in (hundred.sync.read, hundred.sync.dead("g").read):
        count, peak = await asyncio.to_thread(bounded, read)
        assert count == 100 and peak < 8_000_000, f"{peak:,}"
        gc.collect()
        tracemalloc.start()
        asynchronous = hundred.read if read == hundred.sync.read else hundred.dead("g").read
        assert await all_of(asynchronous()) == 100
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8_000_000, f"{peak:,}"
    assert [entry.event.n async for entry in hundred.read(limit=60)] == [*range(60)]


@pytest.mark.timeout(30)
def test_event_loops_do_not_wait_for_each_other(one_server: Server, namespace: str, objects: Objects) -> None:
    """Two threads, each with a loop, that publish large events of one key."""
    url = objects.url.replace("patience=1", "patience=20")
    with RStream(one_server.url, namespace=namespace, blobs=url) as app:
        scans = app.stream("scans", Scan, key="who", shards=1)
        scans.sync.publish(Scan(who="a", n=0, pixels=noise()))
        objects.fail("PUT", "hang", times=1)

        def in_a_loop(n: int, size: int) -> None:
            asyncio.run(scans.publish(Scan(who="a", n=n, pixels=noise(size))))  # type: ignore[arg-type]

        first = threading.Thread(target=in_a_loop, args=(1, LONG), daemon=True)
        first.start()
        assert eventually(lambda: objects.hanging)
        second = threading.Thread(target=in_a_loop, args=(2, 0), daemon=True)
        second.start()
        second.join(5)
        objects.heal()
        first.join(20), second.join(5)
        assert not first.is_alive() and not second.is_alive()
        assert sorted(entry.event.n for entry in scans.sync.read()) == [0, 1, 2]


# -- secrets, and parts


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA1:hush@bucket/x",
        "s3://bucket?endpoint=https://me:hush@minio:9000",
        "s3://bucket?endpoint=https%3A%2F%2Fme:hush%40minio:9000",
    ],
)
def test_credentials_in_the_url_are_refused_and_not_told(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials do not belong there") as caught:
        RStream("redis://127.0.0.1:1", blobs=url)
    assert "hush" not in str(caught.value) and "…" in str(caught.value)


def test_one_part_that_fails_is_sent_again_by_itself(objects: Objects, tmp_path: Path) -> None:
    """A transfer of 5 GB meets a 503 now and then, and takes longer than our patience."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(3 * LARGE))
    store, due, parts = open_store(objects.url.replace("patience=1", "patience=3")), objects.due, 0

    def failing(method: str) -> str:
        nonlocal parts
        parts += method == "PUT"
        return due(method) or ("503" if method == "PUT" and parts in (2, 5) else "")

    objects.due = failing  # type: ignore[method-assign]
    store.put("large", path)
    assert store.get("large") == path.read_bytes()
    assert parts == 6 + 2
    objects.fail("PUT", "503")
    with pytest.raises(BlobUnavailable):
        store.put("large", path)


def test_a_store_is_made_once(objects: Objects) -> None:
    assert shelf(objects.url) is shelf(objects.url)


class Nested(Event):
    who: str
    parts: list[Media]


async def test_files_within_events_within_events(app: RStream, audio: Path, readers: set[Any]) -> None:
    stream = app.stream("nested", Nested, key="who", shards=1)
    inner = [Media(who="b", audio=Blob.file(audio), note=str(n)) for n in range(3)]
    await stream.publish({"who": "a", "parts": inner})
    assert readers and threading.main_thread() not in readers
    (entry,) = [entry async for entry in stream.read()]
    assert [await each.audio.read() for each in entry.event.parts] == [SOUND] * 3
