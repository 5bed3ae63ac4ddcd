"""The archive: whatever dies, doubles, trims or is resharded meanwhile, a reading has every entry once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rstream import Delivery, RStream
from rstream.archive import manifest as manifests
from rstream.archive import segment as segments
from rstream.archive.archiver import Archiver
from rstream.archive.run import ArchiveRun
from rstream.archive.sweep import sweep
from rstream.archive.verify import verify
from rstream.errors import ArchiveDamaged, BlobUnavailable, ConfigError, MemoryFull
from rstream.replay import replay
from rstream.store import archiving, keys
from rstream.store.replays import find_window
from rstream.store.stats import group_stats
from rstream.worker.worker import Worker
from tests.archives import Bits, Log, Reading, dies_at
from tests.fleets import Cluster
from tests.objects import Objects
from tests.servers import Server
from tests.waiting import eventually_async


@pytest.fixture(params=["directory", "s3"])
def bits(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bits]:
    """A blob store."""
    if request.param == "directory":
        folder = tmp_path / "blobs"
        folder.mkdir()
        yield Bits(folder)
        return
    objects = Objects()
    yield Bits(objects)
    objects.stop()


def url_of(bits: Bits) -> str:
    return f"file://{bits.where}" if isinstance(bits.where, Path) else bits.where.url


@pytest.fixture
def log(bits: Bits, one_server: Server, namespace: str) -> Iterator[Log]:
    with RStream(one_server.url, namespace=namespace, blobs=url_of(bits)) as app:
        yield Log(app, shards=3 if isinstance(bits.where, Path) else 1)  # moto takes its time


@pytest.fixture
def local(tmp_path: Path, one_server: Server, namespace: str) -> Iterator[Log]:
    """In a directory, for what does not depend on the kind of store."""
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        yield Log(app)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "PAGE_ROWS", 3)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BLOCK_ENTRIES", 10)


def check(log: Log) -> None:
    """All that was published is read, and the archive is whole."""
    assert log.read() == log.ids
    assert verify(log.past.vault, {}).problems == []


# -- reading ------------------------------------------------------------------------------------------------------


def test_reading_crosses_from_archive_to_redis(log: Log, small_pages: None, small_blocks: None) -> None:
    rng = random.Random(1)
    for _ in range(4):
        log.publish(200)
        assert log.archive() == 200
        log.trim(rng.random())
    log.publish(100)
    assert 0 < log.in_redis() < 900
    check(log)
    whole = list(log.stream.sync.read())
    assert [entry.event.n for entry in whole if entry.key == "device3"] == list(range(3, 900, 7))
    for _ in range(4):
        low, high = sorted(rng.sample(range(900), 2))
        assert log.read(log.ids[low], log.ids[high]) == log.ids[low : high + 1]
    for key in log.keys[:3]:
        assert log.read(key=key) == [entry.id for entry in whole if entry.key == key]
    assert log.read(log.ids[450], limit=7) == log.ids[450:457]
    log.trim()
    check(log)
    assert log.in_redis() == 100


async def test_async_reading_crosses_too(log: Log) -> None:
    log.publish(300)
    log.archive()
    log.trim(0.5)
    log.publish(50)
    async with RStream(log.app.settings.url, namespace=log.app.settings.namespace, blobs=log.app.settings.blobs) as app:
        stream = Log(app).stream
        assert [entry.id async for entry in stream.read()] == log.ids
        assert [entry.id async for entry in stream.read(key="device1")] == log.read(key="device1")


def test_entries_come_back_as_they_were(local: Log) -> None:
    local.publish(1)
    stream = local.stream.sync
    keyed = local.app.stream("others", type(next(iter(stream.read())).event), shards=1, archive=True)
    with_headers = stream.publish({"device": "a", "n": 1}, headers={"trace": "t", "ü": "ß"})
    shard = local.layout.shard("a").stream
    foreign = [
        ("k", "a", "e", b"\x00\xff", "x", "1"),
        ("nothing", "known"),
        ("e", b"", "k", b"a", "i", b"", "h", b"\xc1"),
    ]
    for fields in foreign:
        local.ask(("XADD", shard, "*", *fields))
    before = [(e.id, e.payload, e.key, e.event_id, dict(e.headers)) for e in stream.read()]
    assert any(id == with_headers and headers == {"trace": "t", "ü": "ß"} for id, *_, headers in before)
    local.archive()
    raw = local.ask(("XRANGE", shard, "-", "+"))[0]
    local.trim()
    assert local.in_redis() == 0
    assert [(e.id, e.payload, e.key, e.event_id, dict(e.headers)) for e in stream.read()] == before
    by_key = [each for each in before if each[2] == "a"]
    assert [(e.id, e.payload, e.key, e.event_id, dict(e.headers)) for e in stream.read(key="a")] == by_key
    vault = local.past.vault
    manifest, _ = vault.load(local.layout.shard("a"))
    kept = []
    for row, previous in vault.rows(manifest):
        data = vault.whole(row)
        for block in vault.header(row, data, previous).blocks:
            kept += vault.block(row, block, data[block.at : block.at + block.size]).raw()
    assert [flat for _, flat in kept] == [flat for _, flat in raw]
    keyless = keyed.sync.publish({"device": "b", "n": 1})
    assert [entry.id for entry in keyed.sync.read()] == [keyless]


def test_a_slow_reader_is_overtaken_by_trims(log: Log, small_pages: None) -> None:
    """It has read a page or two when what it wants next goes, again and again."""
    log.publish(9000, pad=10)
    entries = log.stream.sync.read()
    seen = []
    rng = random.Random(7)
    for n, entry in enumerate(entries):
        seen.append(entry.id)
        if n % 1500 == 700:
            log.archive()
            assert log.trim(rng.choice([0.3, 0.6, 1.0])) or n > 700
    assert seen == log.ids


def test_who_is_overtaken_without_an_archive_goes_on(local: Log) -> None:
    local.publish(6000, pad=10)
    entries = local.stream.sync.read()
    seen = [next(entries).id for _ in range(100)]
    for shard in local.layout.current:
        local.ask(("XTRIM", shard.stream, "MAXLEN", 10))
    seen += [entry.id for entry in entries]
    assert seen == sorted(set(seen)) and seen[-1] == local.ids[-1]


def test_a_stream_that_was_never_archived_costs_nothing_or_one_list(
    tmp_path: Path, one_server: Server, namespace: str
) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app)
            log.stream.archive = None
            log.publish(100)
            assert log.read() == log.ids and log.read(log.ids[50]) == log.ids[50:]
            assert not objects.requests
            for shard in log.layout.current:
                log.ask(("XTRIM", shard.stream, "MAXLEN", 5))
            assert 0 < len(log.read()) <= 15
            assert len(log.read()) <= 15
            assert dict(objects.requests) == {"GET": 1}, "one LIST, for all shards, and for a while"
    finally:
        objects.stop()


def test_who_follows_the_newest_costs_nothing(one_server: Server, namespace: str) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app)
            log.publish(100)
            log.archive()
            log.stream.sync.reshard(2)
            log.trim()
            log.publish(10)
            log.archive()
            log.trim()
            log.stream.sync.reshard(2)
            assert log.layout.removed
            new = log.publish(1)
            objects.requests.clear()
            assert log.read(new[0]) == new
            assert not objects.requests
            assert log.read() == log.ids and objects.requests
    finally:
        objects.stop()


def test_a_key_is_read_by_the_index(one_server: Server, namespace: str, small_blocks: None) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app, shards=1, segment_bytes=600_000)
            for n in range(8):
                noise = random.Random(n)
                log.stream.sync.publish_many(
                    {"device": f"only{n}", "n": m, "pad": noise.randbytes(6000)} for m in range(100)
                )
                log.archive()
            log.trim()
            assert len(Bits(objects).keys(".segment")) == 8
            objects.requests.clear()
            assert len(log.read(key="only5")) == 100
            # the list, the manifest, an index for each segment, and of one the header and its blocks
            assert objects.requests["GET"] <= 2 + 8 + 1 + 10
            objects.requests.clear()
            assert log.read(key="nobody") == []
            assert objects.requests["GET"] == 2 + 8
    finally:
        objects.stop()


async def test_a_replay_crosses_too(local: Log) -> None:
    local.publish(400)
    local.archive()
    local.trim(0.6)
    local.publish(100)
    settings = local.app.settings
    async with RStream(settings.url, namespace=settings.namespace, blobs=settings.blobs) as app:
        seen = []

        async def handle(event: Reading, delivery: Delivery) -> None:
            seen.append(delivery.id)

        stream = Log(app).stream
        result = await replay(stream, handle, None, None, concurrency=1, name="whole")
        assert result.handled == 500 and seen == local.ids
        seen.clear()
        result = await replay(stream, handle, local.ids[50], local.ids[450], concurrency=1, name="part")
        assert seen == local.ids[50:451]


def test_resharding_and_removed_generations(log: Log) -> None:
    log.publish(200)
    log.archive()
    log.trim(0.5)
    log.publish(50)
    log.stream.sync.reshard(5)
    log.publish(100)
    assert log.read() == log.ids
    assert all(position is not None for position in log.positions().values()), "the group is made in new generations"
    log.archive()
    log.trim()
    log.publish(30)
    log.stream.sync.reshard(2)
    layout = log.layout
    assert layout.removed and layout.removed[0] not in layout.older, "the first generation is gone"
    log.publish(20)
    check(log)
    log.archive()
    check(log)
    for key in log.keys[:3]:
        ids = [entry.id for entry in log.stream.sync.read() if entry.key == key]
        assert log.read(key=key) == ids and len({id.generation for id in ids}) > 1


def test_the_window_of_a_replay_holds_what_is_inside(local: Log, small_blocks: None, small_pages: None) -> None:
    local.publish(500)
    local.archive()
    local.trim(0.6)
    local.publish(100)
    everything = list(local.stream.sync.read())
    rng = random.Random(3)
    for key in (None, "device2", "nobody"):
        for _ in range(6):
            low, high = sorted(rng.sample(range(600), 2))
            start, end = local.ids[low], local.ids[high]
            inside = [e for e in everything if start <= e.id <= end and key in (None, e.key)]
            window = local.drive(find_window(local.layout, start, end, key))
            assert not inside or (window.start <= inside[0].id and window.end >= inside[-1].id)


# -- archiving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "done"), [("directory", False), ("directory", True), ("s3", True)], indirect=["bits"])
def test_an_archiver_that_dies_at_any_step_leaves_no_hole_and_no_double(
    log: Log, small_pages: None, done: bool
) -> None:
    rng = random.Random(done)
    log.publish(60)
    log.archive()
    number, died = 0, True
    while died:
        log.publish(60)
        died = dies_at(log, log.cycle(), number, done=done)
        log.trim(rng.choice([0.5, 1.0]))
        if number % 3 == 0:
            assert log.read() == log.ids
        log.publish(20)
        log.archive()
        log.trim(rng.choice([0.0, 0.5, 1.0]))
        assert log.read() == log.ids
        number += 1
    assert number > 6 * len(log.layout.every), "that is what a cycle takes"
    check(log)
    assert verify(log.past.vault, {}).entries == len(log.ids)


def test_two_archivers_at_once(log: Log, small_pages: None) -> None:
    """Without the lease; while a producer publishes and everything archived is trimmed."""
    ended = threading.Event()
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            while not ended.is_set():
                log.drive(Archiver(log.past, 0.001, 2000).cycle(log.layout))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    log.publish(10)
    log.archive()
    for thread in threads:
        thread.start()
    for _ in range(25):
        log.publish(40)
        log.trim()
    ended.set()
    for thread in threads:
        thread.join()
    assert not failed
    log.archive()
    log.trim()
    assert log.in_redis() == 0
    check(log)
    assert verify(log.past.vault, {}).entries == len(log.ids)


def test_little_waits_and_much_does_not(local: Log) -> None:
    archiver = Archiver(local.past, 3600.0, 20_000)
    local.publish(10)

    def cycle() -> int:
        found: int = local.drive(archiver.cycle(local.layout))
        return found

    assert cycle() == 0
    local.publish(10)
    assert cycle() == 0
    local.publish(600, pad=100)
    found = cycle()
    assert 0 < found < 620, "whole segments, and the rest waits"
    assert local.drive(Archiver(local.past, 0.001, 20_000).cycle(local.layout)) == 620 - found


def test_who_is_waited_for_hurries(local: Log) -> None:
    """Where everything archived is trimmed at once, a tenth of the wait is enough."""
    archiver = Archiver(local.past, 100.0)
    shard = local.layout.shard("device1")
    local.publish(3000, pad=1)
    assert local.drive(archiver.cycle(local.layout, everything=True)) == 3000

    def due(seconds: float) -> bool:
        local.publish(20)
        (at,) = local.drive_op(archiving.standings([shard]))
        assert at.following is not None
        return archiver._is_due(shard, replace(at, now=at.following[0] + round(seconds * 1000)), True)

    assert not due(11) and not due(99) and due(100)
    local.trim()
    assert not due(9) and due(11)


def test_what_nobody_names_is_swept_away(log: Log) -> None:
    from datetime import UTC, datetime, timedelta

    log.publish(30)
    log.archive()
    named = set(log_keys(log))
    log.publish(30)
    number = 0
    while not set(log_keys(log)) - named:
        assert dies_at(log, log.cycle(), number, done=True)
        number += 1
    vault = log.past.vault
    assert (sweep(vault).orphans, sweep(vault).deleted) == (1, 0)
    assert sweep(vault, now=datetime.now(UTC) + timedelta(days=2)).deleted == 1
    assert set(log_keys(log)) == named
    log.archive()
    check(log)


def log_keys(log: Log) -> list[str]:
    return [found.key for found in log.past.vault.store.list(log.past.vault.source.prefix)]


@pytest.mark.parametrize("kind", ["503", "cut", "lost", "404"])
def test_a_store_that_fails_now_and_then_loses_nothing(one_server: Server, namespace: str, kind: str) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app)
            log.publish(100)
            log.archive()
            for method in ("GET", "PUT"):
                if (method, kind) in (("PUT", "404"), ("GET", "404"), ("PUT", "cut")):
                    continue
                log.publish(100)
                objects.fail(method, kind, times=2)
                log.archive()
                log.trim()
                objects.fail(method, kind, times=2)
                assert log.read() == log.ids
            objects.heal()
            check(log)
    finally:
        objects.stop()


def test_a_store_that_hangs_holds_up_one_cycle(one_server: Server, namespace: str) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app, shards=1)
            log.publish(50)
            log.archive()
            log.publish(50)
            for method in ("PUT", "GET"):
                objects.fail(method, "hang", times=1)
                with contextlib.suppress(BlobUnavailable):  # the URL has a patience of a second
                    log.archive()
                objects.heal()
            log.archive()
            log.trim()
            check(log)
            assert verify(log.past.vault, {}).entries == 100
    finally:
        objects.stop()


def test_a_store_that_is_away_ends_a_reading_and_not_the_archiving(one_server: Server, namespace: str) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app)
            log.publish(100)
            log.archive()
            log.trim()
            objects.fail("GET", "503")
            with pytest.raises(BlobUnavailable):
                log.read()
            with pytest.raises(BlobUnavailable):
                log.archive()
            log.publish(10)
            objects.heal()
            log.archive()
            check(log)
    finally:
        objects.stop()


# -- Redis loses data -----------------------------------------------------------------------------------------------


def test_after_a_flush_what_is_archived_is_still_read(own_server: Server, tmp_path: Path, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        log = Log(app)
        log.publish(200)
        log.archive()
        log.ask(("FLUSHALL",))
        assert log.read() == log.ids
        log.publish(50)
        log.archive()
        check(log)
        log.trim()
        check(log)
        assert all(log.positions().values())


def test_ids_that_are_given_again_are_pinned_and_told_of(
    own_server: Server, tmp_path: Path, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RStream(own_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        log = Log(app, shards=1)
        log.publish(100)
        log.archive()
        (shard,) = log.layout.current
        log.ask(("DEL", shard.stream))
        early = log.ids[50]
        log.ask(("XADD", shard.stream, f"{early.ms}-{early.seq}", "e", b"new", "i", bytes(16)))
        with caplog.at_level(logging.ERROR, "rstream"):
            log.archive()
        told = caplog.text
        assert "gave ids that are archived already to other entries: 1" in told and "Redis lost data" in told
        assert log.trim() == 0, "it is nowhere else"
        new = log.publish(10)
        assert min(new) > log.ids[99], "new ids come after all that is archived"
        log.archive()
        assert log.trim() == 0 and log.in_redis() == 11
        log.ask(("XDEL", shard.stream, f"{early.ms}-{early.seq}"))
        log.archive()
        assert log.trim() == 10
        check(log)


def test_a_manifest_that_was_lost_is_told_of(log: Log, bits: Bits, caplog: pytest.LogCaptureFixture) -> None:
    log.publish(100)
    log.archive()
    positions = {shard: at for shard, at in log.positions().items() if at}
    key = bits.keys("manifests")[0]
    old = bits.get(key)
    log.publish(100)
    log.archive()
    later = {shard: at for shard, at in log.positions().items() if at}
    assert verify(log.past.vault, later).problems == []
    bits.put(key, old)
    (problem,) = verify(log.past.vault, later).problems
    assert problem.object.endswith(key) and "older one" in problem.what
    bits.delete(key)
    named = verify(log.past.vault, positions).problems
    assert {problem.object for problem in named} >= {log.past.vault.source.prefix + "manifests/" + key.split("/")[-1]}
    assert any("was named, and is not any more" in problem.what for problem in verify(log.past.vault, {}).problems)
    with pytest.raises(ArchiveDamaged, match="Redis was told"):
        log.read()
    with caplog.at_level(logging.ERROR, "rstream"):
        log.archive()
    assert "Is it another blob store" in caplog.text
    assert log.read() == log.ids, "all of it was in Redis still"


# -- in workers -------------------------------------------------------------------------------------------------------


def test_a_stream_is_only_archived_to_a_blob_store(one_server: Server, namespace: str) -> None:
    with RStream(one_server.url, namespace=namespace) as app, pytest.raises(ConfigError, match="blob store"):
        Log(app)


async def test_a_worker_archives(log: Log) -> None:
    settings = log.app.settings
    log.publish(50)
    async with RStream(settings.url, namespace=settings.namespace, blobs=settings.blobs) as app:
        stream = Log(app).stream
        stream.archive = 0.05

        @stream.consumer("g")
        async def handle(event: object) -> None: ...

        worker = Worker(app)
        task = asyncio.create_task(worker.serve(signals=False))
        await eventually_async(lambda: all(log.positions().values()) and verify(log.past.vault, {}).entries == 50, 10)
        worker.stop()
        await task
    log.trim()
    check(log)


async def test_one_archiver_works_and_the_next_takes_over(local: Log) -> None:
    settings = local.app.settings
    local.publish(50)
    async with RStream(settings.url, namespace=settings.namespace, blobs=settings.blobs) as app:
        stream = Log(app).stream
        one, other = ArchiveRun(stream, 0.001), ArchiveRun(stream, 0.001)
        layout = await stream.layout(fresh=True)

        async def behind() -> int:
            stats = await app.link.run(group_stats(layout))
            return next((stat.lag or 0 for stat in stats if stat.name == keys.ARCHIVE), -1)

        async def archived(by: ArchiveRun) -> bool:
            await by._cycle(layout)
            return await behind() == 0

        await eventually_async(lambda: archived(one))
        local.publish(10)
        assert (await other._cycle(layout))[0] == 0 and await behind() == 10, "the first holds the lease"
        await one.leave()
        await eventually_async(lambda: archived(other))
        assert await app.link.run(archiving.hold(layout, "stop")) == archiving.STOPPED
        with pytest.raises(ConfigError, match="switched off"):
            await one.once()
    check(local)


def test_damage_is_not_read_over(local: Log) -> None:
    local.publish(100)
    local.archive()
    local.trim()
    bits = Bits(Path((local.app.settings.blobs or "").removeprefix("file://")))
    key = bits.keys(".segment")[0]
    bits.delete(key)
    with pytest.raises(ArchiveDamaged) as raised:
        local.read()
    assert raised.value.object.endswith(key) and "not there" in str(raised.value)


# -- on every kind of server ------------------------------------------------------------------------------------------


def through_it_all(app: RStream) -> None:
    log = Log(app, shards=4)
    for share in (0.4, 1.0, 0.0):
        log.publish(200)
        assert log.archive() == 200
        log.trim(share)
        check(log)
    log.publish(50)
    check(log)
    log.stream.sync.reshard(2)
    log.publish(50)
    log.archive()
    log.trim()
    check(log)
    assert log.in_redis() == 0


def test_every_server(server: Server, namespace: str, tmp_path: Path) -> None:
    with RStream(server.url, namespace=namespace, blobs=f"file://{tmp_path}") as app:
        through_it_all(app)


def test_a_cluster(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    with RStream(cluster.url, namespace=namespace, blobs=f"file://{tmp_path}") as app:
        through_it_all(app)


def test_a_full_memory_does_not_stop_the_archiving(own_server: Server, namespace: str, tmp_path: Path) -> None:
    with RStream(own_server.url, namespace=namespace, blobs=f"file://{tmp_path}") as app:
        log = Log(app)
        log.publish(100)
        log.archive()
        log.publish(100)
        log.ask(("CONFIG", "SET", "maxmemory", 1))
        with pytest.raises(MemoryFull):
            log.publish(1)
        assert log.archive() == 100 and log.trim() == 200
        log.ask(("CONFIG", "SET", "maxmemory", 0))
        check(log)
