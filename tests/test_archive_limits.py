"""The archive beside retention, other stores and other archivers: nothing is trimmed unarchived, nobody waits for long,
and what is missing is told of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Event, Retention, RStream
from rstream.archive.archiver import Archiver
from rstream.archive.overview import overview
from rstream.archive.run import ArchiveRun
from rstream.archive.verify import verify
from rstream.errors import SchemaIncompatible, StreamFull
from rstream.store import archiving
from rstream.store.steps import Course, drive_sync
from tests.archives import Log, Reading
from tests.servers import Server


@pytest.fixture
def log(tmp_path: Path, one_server: Server, namespace: str) -> Iterator[Log]:
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        yield Log(app)


def some(count: int, first: int = 0) -> list[Reading]:
    return [Reading(device=f"device{n % 7}", n=n) for n in range(first, first + count)]


# -- retention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unprocessed", ["keep", "drop"])
def test_nothing_is_trimmed_before_a_worker_was_there(
    one_server: Server, namespace: str, tmp_path: Path, unprocessed: str
) -> None:
    """Who declares that a stream is archived, and publishes, may be the first of all."""
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        log = Log(app)
        log.stream.retention = Retention(entries=120, unprocessed=unprocessed)  # type: ignore[arg-type]
        with pytest.raises(StreamFull, match="not archived yet"):
            for first in range(0, 1000, 20):
                log.ids += log.stream.sync.publish_many(some(20, first))
        assert len(log.ids) >= 40
        there = log.read()
        assert set(log.ids) <= set(there)
        log.archive()
        log.ids = sorted([*there, *log.stream.sync.publish_many(some(40, 1000))])
        assert log.read() == log.ids


async def test_producers_do_not_wait_for_the_clock(one_server: Server, namespace: str, tmp_path: Path) -> None:
    """What is waited for by producers is archived at once, however seldom it would be else."""
    blobs = f"file://{tmp_path / 'blobs'}"
    async with RStream(one_server.url, namespace=namespace, blobs=blobs) as app:
        stream = app.stream(
            "readings", Reading, key="device", shards=2, archive=3600, retention=Retention(entries=400), full_wait=30
        )
        archiving_it = asyncio.create_task(ArchiveRun(stream).forever())
        ids = [id for first in range(0, 2000, 100) for id in await stream.publish_many(some(100, first))]
        assert [entry.id async for entry in stream.read()] == sorted(ids)
        archiving_it.cancel()


def test_a_quarter_of_what_a_shard_may_hold_is_enough(log: Log) -> None:
    shard = log.layout.shard("device1")
    log.publish(30, pad=100)
    archiver = Archiver(log.past, 3600.0)
    log.drive(archiver.cycle(log.layout, everything=True))
    log.publish(70, pad=100)
    (at,) = log.drive_op(archiving.standings([shard]))
    waiting = at.added - archiver._known[shard].added
    assert waiting > 5 and at.maxlen is None and at.maxbytes is None

    def due(**limits: int) -> bool:
        return archiver._is_due(shard, replace(at, **limits), True)

    assert not due() and not due(maxlen=4 * waiting + 1) and due(maxlen=4 * waiting)
    assert not due(maxbytes=waiting * 1000) and due(maxbytes=waiting * 300)


def test_a_stop_is_not_undone_by_who_is_about_to_begin(log: Log) -> None:
    """At whatever step of that it comes; else producers would wait for an archive that nobody writes."""
    log.publish(10)
    for at in range(10):
        log.drive_op(archiving.hold(log.layout, "start"))
        layout = log.layout
        log.drive_op(archiving.destroy([shard for shard, place in log.positions().items() if place is not None]))
        course = Course(archiving.begin(layout, layout.every))
        for _ in range(at):
            if course.step is not None:
                course.go_on(log.drive_op(course.step))
        ended = course.step is None
        log.drive_op(archiving.hold(layout, "stop"))
        log.drive_op(archiving.destroy([shard for shard, place in log.positions().items() if place is not None]))
        while course.step is not None:
            course.go_on(log.drive_op(course.step))
        assert not any(log.positions().values()), at
        if ended:
            return
    raise AssertionError("so many steps it never takes")


# -- what others do meanwhile -----------------------------------------------------------------------------------------


def test_what_another_archives_meanwhile_is_no_loss(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """Who stood still after it asked Redis sees a manifest that is ahead of that."""
    log.publish(50)
    log.archive()
    layout = log.layout
    frozen = [Course(Archiver(log.past, 60.0, 4096).shard(layout, shard, everything=True)) for shard in layout.every]
    asked = [log.drive_op(course.step) for course in frozen if course.step is not None]
    log.publish(50)
    log.archive()
    for course, came in zip(frozen, asked, strict=True):
        course.go_on(came)
        while course.step is not None:
            course.go_on(log.drive_op(course.step))
    assert caplog.text == ""


@pytest.mark.parametrize("at", range(4))
def test_who_looks_while_it_is_archived_sees_nothing_wrong(log: Log, at: int) -> None:
    log.publish(50)
    log.archive()
    log.publish(10)
    course, number = Course(overview(log.past, log.layout)), 0
    while course.step is not None:
        came = log.drive_op(course.step)
        if number == at:
            log.publish(50)
            log.archive()
        course.go_on(came)
        number += 1
    assert number >= 4
    assert [row.wrong for row in course.result] == ["", "", ""]


def test_a_hole_is_told_of_for_good(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For a time another store was written to: what it has alone is missing in ours."""
    settings = log.app.settings
    log.publish(60)
    log.archive()
    log.trim()
    with RStream(settings.url, namespace=settings.namespace, blobs=f"file://{tmp_path / 'wrong'}") as app:
        log.publish(60)
        wrong = Log(app)
        wrong.archive()
        wrong.trim()
    missing = {*log.ids[60:]}
    log.publish(60)
    log.archive()
    for _ in range(2):
        problems = verify(log.past.vault, {}).problems
        assert len(problems) == len({id.shard for id in missing})
        assert all("there is a gap" in problem.what and problem.object.endswith(".segment") for problem in problems)
        log.publish(60)
        log.archive()
    caplog.clear()
    assert log.read() == [id for id in log.ids if id not in missing]
    assert "is missing" in caplog.text
    caplog.clear()
    log.read(log.ids[130])
    assert caplog.text == ""


def test_what_redis_still_has_makes_no_hole(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = log.app.settings
    log.publish(60)
    log.archive()
    log.trim(0.5)
    with RStream(settings.url, namespace=settings.namespace, blobs=f"file://{tmp_path / 'wrong'}") as app:
        log.publish(60)
        Log(app).archive()
    log.archive()
    assert verify(log.past.vault, {}).problems == []
    assert log.read() == log.ids


def test_a_clock_that_was_set_back_does_not_stop_the_archiving(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids then run ahead of it, for as long as it was set back."""
    log.publish(10)
    log.archive()
    ahead = (time.time_ns() // 1_000_000) + 3_600_000
    for shard in log.layout.every:
        log.ask(("XSETID", shard.stream, f"{ahead}-0"))
    log.publish(30)
    now = 100.0
    monkeypatch.setattr("rstream.archive.archiver.clock", lambda: now)
    archiver = Archiver(log.past, 60.0)
    assert log.drive(archiver.cycle(log.layout)) == log.drive(archiver.cycle(log.layout)) == 0
    now = 161.0
    assert log.drive(archiver.cycle(log.layout)) == 30


def test_who_saw_no_archive_sees_the_one_that_begins(log: Log) -> None:
    """Also where all of it is in a generation that Redis has no more already."""
    settings = log.app.settings
    with RStream(settings.url, namespace=settings.namespace, blobs=settings.blobs) as app:
        other = Log(app)
        other.stream.archive = None
        other.publish(10)
        for shard in other.layout.every:
            log.ask(("XTRIM", shard.stream, "MAXLEN", 0))
        assert other.read() == []
        log.publish(100)
        log.archive()
        log.trim()
        for _ in range(2):
            log.stream.sync.reshard(5)
        assert log.layout.removed and not log.layout.older
        assert other.read() == log.read() == log.ids


class Old(Event):
    device: str
    n: int


class New(Event):
    device: str
    number: int


def test_payloads_keep_their_versions_where_redis_lost_all(own_server: Server, tmp_path: Path) -> None:
    blobs = f"file://{tmp_path / 'blobs'}"
    with RStream(own_server.url, blobs=blobs) as app:
        old = app.stream("readings", Old, key="device", archive=True)
        old.sync.publish_many([Old(device="a", n=n) for n in range(5)])
        archiver = Archiver(old.past, 60.0)  # type: ignore[arg-type]
        drive_sync(app.sync_link, archiver.cycle(old.sync.layout(fresh=True), everything=True), 10)
    with redis.Redis.from_url(own_server.url) as raw:
        raw.flushall()
    with RStream(own_server.url, blobs=blobs) as app, pytest.raises(SchemaIncompatible, match="version 1"):
        app.stream("readings", New, key="device", archive=True).sync.publish(New(device="a", number=0))
    with RStream(own_server.url, blobs=blobs) as app:
        new = app.stream("readings", New, key="device", archive=True)

        @new.upgrade(1)
        def _(fields: dict[str, Any]) -> dict[str, Any]:
            return {"device": fields["device"], "number": fields["n"]}

        new.sync.publish_many([New(device="a", number=n) for n in range(5, 10)])
        assert [entry.event.number for entry in new.sync.read()] == [*range(10)]
        archiver = Archiver(new.past, 60.0)  # type: ignore[arg-type]
        drive_sync(app.sync_link, archiver.cycle(new.sync.layout(fresh=True), everything=True), 10)
        assert new.past is not None and len(new.past.vault.schemas()[0]) == 2


def test_versions_that_got_other_numbers_are_told_of(
    own_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For somebody declared the stream who does not archive it."""
    blobs = f"file://{tmp_path / 'blobs'}"
    with redis.Redis.from_url(own_server.url) as raw:
        for model in (Old, New):
            raw.flushall()
            with RStream(own_server.url, blobs=blobs) as app:
                stream = app.stream("readings", model, key="device")
                stream.sync.publish({"device": "a", "n": 1, "number": 1})
                archiver = Archiver(stream.past, 60.0)  # type: ignore[arg-type]
                drive_sync(app.sync_link, archiver.cycle(stream.sync.layout(fresh=True), everything=True), 10)
            assert ("other schema versions" in caplog.text) == (model is New)
