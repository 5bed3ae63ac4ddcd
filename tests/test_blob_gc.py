"""`rstream blobs gc`: what nothing refers to goes, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Blob, Event, Retention, RetryPolicy, RStream
from rstream.archive.archiver import Archiver
from rstream.blobs import Directory, claims, gc
from rstream.blobs import shelf as shelves
from rstream.blobs.gc import Collected, collect
from rstream.errors import ArchiveDamaged, ConfigError, MemoryFull
from rstream.schema import unbase64
from rstream.store import layout as layouts
from rstream.store import references
from rstream.store.steps import drive_sync
from rstream.worker.janitor import Janitor
from tests.commands import Commands
from tests.fleets import Cluster
from tests.handlers import Media
from tests.objects import bucket, moto
from tests.servers import Server
from tests.test_worker import drain
from tests.waiting import eventually_async

LARGE = 100_000
LONG_AGO = date(2026, 1, 10)


class Scan(Event):
    who: str
    n: int = 0
    pixels: bytes = b""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def app(one_server: Server, namespace: str, folder: Path) -> AsyncIterator[RStream]:
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}") as app:
        yield app


@pytest.fixture
def then(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published was published long ago; `now` ends that."""
    monkeypatch.setattr(claims, "today", lambda: LONG_AGO)


@pytest.fixture
def now(then: None, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], None]:
    def turn() -> None:
        monkeypatch.setattr(claims, "today", lambda: datetime.now(UTC).date())
        for path in files(folder):
            os.utime(path, (1_768_000_000,) * 2)

    return turn


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "owners")


def noise(n: int = 0) -> bytes:
    return random.Random(n).randbytes(LARGE)


def lose(app: RStream, stream: Any, number: int) -> None:
    """Drop the oldest entries of a stream of one shard, as a trim does."""
    with redis.Redis.from_url(app.settings.url or "") as client:
        shard = stream.sync.layout().current[0].stream
        for id, _ in client.xrange(shard, count=number):
            client.xdel(shard, id)


async def test_only_what_nothing_refers_to_is_deleted(app: RStream, folder: Path, now: Any) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    others = app.stream("others", Scan, key="who", shards=1)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise(n)) for n in range(6)])
    await others.publish(Scan(who="a", n=9, pixels=noise(9)))
    now()
    lose(app, scans, 2)
    assert collect(scans, dry_run=True) == Collected(looked=6, kept=4, deleted=2, bytes=2 * len_of(scans))
    assert len(files(folder)) == 7
    assert collect(scans).deleted == 2 and len(files(folder)) == 5
    assert collect(scans).deleted == 0
    assert [entry.event.n async for entry in scans.read()] == [2, 3, 4, 5]
    assert [entry.event.n async for entry in others.read()] == [9]


async def test_a_janitor_sweeps_what_retention_has_left(app: RStream, folder: Path, now: Any) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1, retention=Retention(entries=4))
    await scans.publish_many([Scan(who="a", n=n, pixels=noise(n)) for n in range(6)])
    now()
    janitor = Janitor(app, "w")
    await janitor.look()
    await eventually_async(lambda: len(files(folder)) == 4)
    assert [entry.event.n async for entry in scans.read()] == [2, 3, 4, 5]
    lose(app, scans, 2)
    await janitor.look()
    assert len(files(folder)) == 4, "once an hour is enough"


def len_of(stream: Any) -> int:
    return len(stream.codec.encode(Scan(who="a", pixels=noise()), 1))


async def test_dead_letters_and_blobs_within_events_count(app: RStream, folder: Path, now: Any) -> None:
    media = app.stream("media", Media, key="who", shards=1)

    @media.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Media) -> None:
        raise NotImplementedError

    await media.publish_many([
        Media(who="a", audio=Blob(noise(1))), Media(who="a", audio=Blob(noise(2)), note="x" * LARGE)
    ])  # fmt: skip
    await drain(app)
    now()
    lose(app, media, 2)
    assert collect(media).kept == 3  # two blobs, and the event around one of them
    letters = [letter async for letter in media.dead("g").read()]
    assert [await letter.event.audio.read() for letter in letters] == [noise(1), noise(2)]
    await media.dead("g").discard(everything=True)
    assert collect(media).deleted == 3 and files(folder) == []


async def test_every_generation_is_looked_through(app: RStream, folder: Path, now: Any) -> None:
    scans = app.stream("scans", Scan, key="who", shards=2)
    await scans.publish_many([Scan(who=f"w{n}", n=n, pixels=noise(n)) for n in range(10)])
    await scans.reshard(3)
    await scans.publish_many([Scan(who=f"w{n}", n=n, pixels=noise(n)) for n in range(10, 20)])
    now()
    assert collect(scans) == Collected(looked=20, kept=20)


async def test_what_is_young_is_spared(app: RStream, folder: Path) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    await scans.publish(Scan(who="a", pixels=noise()))
    lose(app, scans, 1)
    today = datetime.now(UTC)
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC) + timedelta(days=1)
    assert collect(scans) == Collected(looked=1, young=1)
    assert collect(scans, now=midnight + timedelta(hours=23)).young == 1
    assert collect(scans, now=midnight + timedelta(hours=25)).deleted == 1


async def test_what_an_old_day_holds_is_spared_while_its_own_time_is_young(app: RStream, then: None) -> None:
    """A producer whose clock is far behind."""
    scans = app.stream("scans", Scan, key="who", shards=1)
    await scans.publish(Scan(who="a", pixels=noise()))
    lose(app, scans, 1)
    assert collect(scans) == Collected(looked=1, young=1)


async def test_files_of_others_are_left_alone(app: RStream, folder: Path, namespace: str, now: Any) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    await scans.layout()
    store = Directory(folder)
    mine = f"{namespace}/scans/blobs/"
    for key in (mine + "20260110/readme.txt", mine + "x/" + "0" * 64, f"{namespace}/scans/archive/1", "z"):
        store.put(key, b"x")
    now()
    assert collect(scans) == Collected() and len(files(folder)) == 4


STEPS = ["listed", "looked", "delete"]


@pytest.mark.parametrize("step", STEPS)
async def test_what_is_published_meanwhile_stays_readable(
    app: RStream, folder: Path, now: Any, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same payload again, of which there is an old blob that nothing refers to: the one about to be deleted."""
    scans = app.stream("scans", Scan, key="who", shards=1)
    event = Scan(who="a", pixels=noise())
    await scans.publish(event)
    now()
    lose(app, scans, 1)
    published: list[str] = []

    def publish(at: str) -> None:
        if at == step and not published:
            published.append(at)
            scans.sync.publish(event)

    listed, looked, deleted = gc._old, gc._spare, Directory.delete

    def old(*arguments: Any) -> Any:
        yield from listed(*arguments)
        publish("listed")

    def spare(*arguments: Any) -> None:
        looked(*arguments)
        publish("looked")

    def delete(self: Directory, keys: Iterable[str]) -> None:
        publish("delete")
        deleted(self, keys)

    monkeypatch.setattr(gc, "_old", old)
    monkeypatch.setattr(gc, "_spare", spare)
    monkeypatch.setattr(Directory, "delete", delete)
    assert collect(scans).deleted == 1
    assert published == [step]
    assert [entry.event async for entry in scans.read()] == [event]


async def test_an_entry_that_dies_while_we_look_is_not_lost(app: RStream, now: Any, monkeypatch: Any) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)

    @scans.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Scan) -> None:
        raise NotImplementedError

    await scans.publish(Scan(who="a", pixels=noise()))
    now()
    await drain(app)
    with redis.Redis.from_url(app.settings.url or "") as client:
        shard = scans.sync.layout().current[0]
        ((_, letter),) = client.xrange(shard.dead("g"))
        client.delete(shard.dead("g"))
        looked = references._of

        def dies(names: list[str]) -> Any:
            yield from looked(names)
            if client.xlen(shard.stream):  # after the first half, whichever that is
                client.xadd(shard.dead("g"), letter)
                client.xtrim(shard.stream, maxlen=0)

        monkeypatch.setattr(references, "_of", dies)
        assert collect(scans) == Collected(looked=1, kept=1)


async def test_many_are_worked_off_some_at_a_time(app: RStream, folder: Path, now: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(gc, "MANY", 7)
    monkeypatch.setattr(references, "LOOK", 16)
    scans = app.stream("scans", Scan, key="who", shards=1)
    await scans.publish_many([Scan(who="a", n=n, pixels=bytes([n]) * LARGE) for n in range(60)])
    now()
    lose(app, scans, 25)
    rounds: list[int] = []
    done = collect(scans, progress=lambda so_far: rounds.append(so_far.looked))
    assert (done.looked, done.kept, done.deleted) == (60, 35, 25) and len(rounds) == 9
    assert len([entry.event async for entry in scans.read()]) == 35 == len(files(folder))


async def test_in_a_bucket(one_server: Server, namespace: str, then: None) -> None:
    url = f"s3://{bucket(moto())}?endpoint={moto()}"
    async with RStream(one_server.url, namespace=namespace, blobs=url) as app:
        scans = app.stream("scans", Scan, key="who", shards=1)
        await scans.publish_many([Scan(who="a", n=n, pixels=noise(n)) for n in range(3)])
        lose(app, scans, 1)
        later = datetime.now(UTC) + timedelta(days=3)
        assert collect(scans, now=later) == Collected(3, 0, 2, 1, len_of(scans))
        assert len([*shelves.shelf(url).store.list(f"{namespace}/scans/blobs/")]) == 2


async def test_on_a_cluster(cluster: Cluster, namespace: str, folder: Path, now: Any) -> None:
    async with RStream(cluster.url, namespace=namespace, blobs=f"file://{folder}") as app:
        scans = app.stream("scans", Scan, key="who", shards=5)
        await scans.publish_many([Scan(who=f"w{n}", n=n, pixels=noise(n)) for n in range(20)])
        now()
        Directory(folder).put(f"{namespace}/scans/blobs/20260110/{'0' * 64}", b"an orphan")
        now()
        assert collect(scans) == Collected(looked=21, kept=20, deleted=1, bytes=9)


async def test_a_grace_that_is_too_short_and_a_store_that_is_not_there(app: RStream, one_app: RStream) -> None:
    with pytest.raises(ConfigError, match="at least an hour"):
        collect(app.stream("scans", Scan), timedelta(minutes=59))
    with pytest.raises(ConfigError, match="RSTREAM_BLOBS"):
        collect(one_app.stream("scans", Scan))


# -- one store, and several Redis


def marks(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("owners/*")}


@pytest.fixture
async def staging(own_server: Server, namespace: str, folder: Path) -> AsyncIterator[RStream]:
    """Another Redis, with the blob store and the namespace of the first."""
    async with RStream(own_server.url, namespace=namespace, blobs=f"file://{folder}") as app:
        yield app


async def test_what_another_redis_refers_to_is_not_deleted(
    app: RStream, staging: RStream, folder: Path, now: Any
) -> None:
    ours, theirs = (each.stream("scans", Scan, key="who", shards=1) for each in (app, staging))
    await ours.publish_many([Scan(who="a", n=n, pixels=noise(n)) for n in range(6)])
    now()
    with pytest.raises(ConfigError, match=r"also those of another Redis.*redis://.*nothing was deleted.*--forget "):
        collect(theirs)  # it has published nothing yet
    await asyncio.to_thread(theirs.sync.publish, Scan(who="a", pixels=noise(100)))
    for stream in (ours, theirs):
        with pytest.raises(ConfigError, match="another Redis"):
            collect(stream, dry_run=True)
    assert len([entry.event async for entry in ours.read()]) == 6 and len(files(folder)) == 7


async def test_an_emptied_redis_deletes_nothing_before_somebody_says_so(
    app: RStream, folder: Path, namespace: str, now: Any
) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise(n)) for n in range(6)])
    now()
    (before,) = marks(folder)
    with redis.Redis.from_url(app.settings.url or "") as client:
        backup = {key: client.dump(key) for key in client.keys(f"*{namespace}*")}
        client.delete(*backup)
        async with RStream(app.settings.url, namespace=namespace, blobs=app.settings.blobs) as restarted:
            again = restarted.stream("scans", Scan, key="who", shards=1)
            await again.publish(Scan(who="a", pixels=noise(100)))
            with pytest.raises(ConfigError, match=f"--forget {before}"):
                collect(again)
        for key, kept in backup.items():
            client.restore(key, 0, kept, replace=True)  # type: ignore[arg-type]
    assert len([entry.event async for entry in scans.read()]) == 6
    (after,) = marks(folder) - {before}
    with pytest.raises(ConfigError, match=f"no other Redis has the mark 'x': there are {after}"):
        collect(scans, forget="x")
    lose(app, scans, 2)
    assert collect(scans, forget=after, dry_run=True).deleted == 2
    assert collect(scans, forget=after).deleted == 2
    assert collect(scans).kept == 4


async def test_a_full_memory_does_not_keep_the_owner_from_being_known(own_server: Server, namespace: str) -> None:
    with redis.Redis.from_url(own_server.url) as client, RStream(own_server.url, namespace=namespace) as app:
        first = app.sync_link.run(layouts.owner(namespace, "scans"))
        client.config_set("maxmemory", "1mb")
        try:
            assert app.sync_link.run(layouts.owner(namespace, "scans")) == first
            with pytest.raises(MemoryFull):
                app.sync_link.run(layouts.owner(namespace, "others"))
        finally:
            client.config_set("maxmemory", "0")


# -- the command line


def test_the_command_line(rs: Commands, tmp_path: Path) -> None:
    folder, scan = tmp_path / "blobs", noise()
    rs.env["RSTREAM_BLOBS"] = f"file://{folder}"
    line = json.dumps({"customer": "ada", "total": 1, "scan": base64.b64encode(scan).decode()})
    done = rs.run("publish", "orders", "--app", "shop:app", "--file", "-", stdin=line)
    assert done.returncode == 0, done.stderr
    assert len(files(folder)) == 1
    shown = json.loads(rs.run("read", "orders", "--json").stdout)
    assert unbase64(shown["event"]["scan"]) == scan
    told = rs.run("blobs", "gc", "--dry-run").stdout
    assert "orders: would delete 0 of 1 blobs" in told and "1 are within the grace" in told
    assert rs.run("blobs", "gc", "orders", "--grace", "7d").returncode == 0
    assert "no span" in rs.run("blobs", "gc", "--grace", "soon").stderr
    del rs.env["RSTREAM_BLOBS"]
    error = json.loads(rs.run("read", "orders", "--json").stdout)["error"]
    assert "RSTREAM_BLOBS" in error
    assert "--blobs" in rs.run("blobs", "gc").stderr
    assert rs.run("blobs", "gc", "--blobs", f"file://{folder}").returncode == 0


async def test_what_only_the_archive_refers_to_is_spared(app: RStream, folder: Path, now: Any) -> None:
    scans = app.stream("scans", Scan, key="who", shards=1, archive=True)
    await scans.publish_many([Scan(who="a", n=n, pixels=noise(n)) for n in range(4)])
    now()
    assert scans.past is not None
    archiver = Archiver(scans.past, 60)
    assert drive_sync(app.sync_link, archiver.cycle(scans.sync.layout(), everything=True), 5) == 4
    lose(app, scans, 4)
    assert (collect(scans).kept, collect(scans).deleted) == (4, 0)
    assert [entry.event.pixels async for entry in scans.read()] == [noise(n) for n in range(4)]
    (manifest,) = (path for path in files(folder) if path.parent.name == "manifests" and path.suffix != ".lock")
    stored = manifest.read_bytes()
    manifest.write_bytes(stored.replace(b"references", b"referencez"))
    with pytest.raises(ArchiveDamaged):
        collect(scans)
    manifest.unlink()
    with pytest.raises(ArchiveDamaged, match="Redis was told"):
        collect(scans)
    manifest.write_bytes(stored)
    assert collect(scans).deleted == 0
