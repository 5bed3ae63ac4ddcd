"""What a worker says of itself, beside what it did: seeded histories of every kind of consumer, on every server."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Batch, Blob, Delivery, Event, Reject, RetryPolicy, RStream
from rstream.errors import StoreUnavailable
from rstream.metrics import collector
from rstream.metrics.collector import Readiness, collect
from rstream.metrics.server import Check
from rstream.store import layout as layouts
from rstream.worker import groups
from rstream.worker.worker import Worker
from tests.metrics import documented
from tests.proxy import ChaosProxy
from tests.scrapes import Scrape, read
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually, eventually_async

KINDS = ("well", "fails once", "fails", "is rejected")
TWICE = RetryPolicy(initial_delay=0.02, max_attempts=2)


class Job(Event):
    n: int
    kind: str = "well"
    who: str = ""


def handle(event: Job, delivery: Delivery) -> None:
    if event.kind == "is rejected":
        raise Reject("no")
    if event.kind == "fails" or (event.kind == "fails once" and delivery.attempt == 1):
        raise ValueError(event.kind)


async def on_loop(event: Job, delivery: Delivery) -> None:
    await asyncio.sleep(0)
    handle(event, delivery)


def in_batches(events: list[Job], batch: Batch) -> None:
    for index, (event, delivery) in enumerate(zip(events, batch.deliveries, strict=True)):
        try:
            handle(event, delivery)
        except Exception as error:
            batch.fail(index, error)


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def said(worker: Worker) -> Scrape:
    return read(collect(worker))


OPTIONS = {
    "async": (on_loop, {"ordered": False}),
    "ordered": (on_loop, {"ordered": True}),
    "thread": (handle, {"ordered": False}),
    "process": (handle, {"run_in": "process", "concurrency": 2}),
    "batch": (in_batches, {"batch": 10, "max_wait": 0.01, "ordered": False}),
}


@pytest.mark.parametrize("how", OPTIONS)
async def test_what_was_done_is_what_is_told(app: RStream, raw: redis.Redis, how: str) -> None:
    dice = random.Random(how)
    jobs = app.stream("jobs", Job, key="who", shards=3)
    handler, options = OPTIONS[how]
    jobs.consumer("g", retry=TWICE, **options)(handler)  # type: ignore[arg-type]
    kinds = [dice.choice(KINDS) for _ in range(150)]
    await jobs.publish_many(Job(n=n, kind=kind, who=f"k{n % 20}") for n, kind in enumerate(kinds))
    for shard in (await jobs.layout()).current:
        raw.xadd(shard.stream, {"e": b"\xc1 garbage", "k": "k", "i": bytes(16)})
    worker = await drain(app)
    done, found = Counter(kinds), said(worker)
    of = {"stream": "jobs", "group": "g"}
    assert found.by("rstream_settled_total", "outcome", **of) == {
        "ack": done["well"] + done["fails once"],
        "retry": done["fails once"] + done["fails"],
        "dead": done["fails"] + done["is rejected"] + 3,
    }
    assert found.by("rstream_dead_letters_total", "reason") == {
        "failed": done["fails"],
        "rejected": done["is rejected"],
        "undecodable": 3,
    }
    assert found.total("rstream_attempts_total", **of) == 150 + done["fails once"] + done["fails"]
    assert found.total("rstream_queue_delay_seconds_count", **of) == 150
    calls = found.total("rstream_handler_seconds_count", **of)
    assert calls < 150 if how == "batch" else calls == found.total("rstream_attempts_total", **of)
    for name in ("fenced_settles_total", "lease_lost_total", "redelivered_total", "in_flight", "buffered"):
        assert found.total(f"rstream_{name}") == 0, name
    assert worker.counts.dead == done["fails"] + done["is rejected"] + 3


async def test_what_runs_and_what_waits_is_told_and_who_owns_what(app: RStream) -> None:
    jobs, go = app.stream("jobs", Job, key="who", shards=4), asyncio.Event()

    @jobs.consumer("ordered", concurrency=2, ordered=True, prefetch=50)
    async def in_order(event: Job) -> None:
        await go.wait()

    @jobs.consumer("plain", concurrency=3, prefetch=5, ordered=False)
    async def plain(event: Job) -> None:
        await go.wait()

    @jobs.consumer("batches", batch=4, max_wait=0.01, prefetch=5, ordered=False)
    async def batches(events: list[Job]) -> None:
        await go.wait()

    await jobs.publish_many(Job(n=n, who="k") for n in range(40))
    async with working(app) as worker:
        await eventually_async(lambda: said(worker).total("rstream_in_flight") == 1 + 3 + 4)
        assert said(worker).by("rstream_in_flight", "group") == {"ordered": 1, "plain": 3, "batches": 4}
        every = {"ordered", "plain", "batches"}
        await eventually_async(lambda: said(worker).by("rstream_buffered", "group").keys() == every)
        assert said(worker).by("rstream_shards_owned", "group") == {"ordered": 4}
        go.set()
        done = dict.fromkeys(every, 40)
        await eventually_async(lambda: said(worker).by("rstream_settled_total", "group", outcome="ack") == done)
        await eventually_async(lambda: not said(worker).by("rstream_in_flight", "group"))
        await eventually_async(lambda: not said(worker).by("rstream_buffered", "group"))


async def test_what_was_never_started_is_told_as_that(app: RStream) -> None:
    jobs = app.stream("jobs", Job, key="who", shards=1)
    jobs.consumer("late", expires=0.001, ordered=False)(on_loop)
    jobs.consumer("once", once="n")(on_loop)
    await jobs.publish_many(Job(n=n % 5, who="k") for n in range(20))
    later = (await app.link.run(layouts.clock())) + 100
    await eventually_async(lambda: _is_after(app, later))
    worker = await drain(app)
    found = said(worker)
    assert found.by("rstream_settled_total", "outcome", group="late") == {"expired": 20}
    assert found.by("rstream_settled_total", "outcome", group="once") == {"ack": 5, "skipped": 15}
    assert (worker.counts.expired, worker.counts.skipped) == (20, 15)


async def _is_after(app: RStream, ms: int) -> bool:
    return await app.link.run(layouts.clock()) > ms


async def test_ten_thousand_keys_make_no_series(one_app: RStream) -> None:
    jobs = one_app.stream("jobs", Job, key="who", shards=4)
    jobs.consumer("ordered", ordered=True, concurrency=100)(on_loop)
    jobs.consumer("plain", concurrency=100, ordered=False)(on_loop)
    await jobs.publish(Job(n=0, who="first"))
    few = await drain(one_app)
    before = len(said(few).samples)
    await jobs.publish_many(Job(n=n, who=f"user-{n}") for n in range(10_000))
    many = await drain(one_app)
    found = said(many)
    assert found.total("rstream_settled_total", outcome="ack") == 20_000
    assert len(found.samples) == before
    assert not any("user" in value for sample in found.samples for value in sample.labels.values())


class Scan(Event):
    page: Blob
    text: str = ""


async def read_page(event: Scan) -> None:
    assert len(await event.page.read()) == 100_000


def read_page_in_thread(event: Scan) -> None:
    with event.page.sync.open() as file:
        assert len(file.read()) == 100_000


@pytest.mark.parametrize("how", ["async", "thread", "process"])
async def test_every_documented_metric_is_there_and_blobs_and_the_archive_count_for_their_group(
    one_server: Server, namespace: str, tmp_path: Path, how: str
) -> None:
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}") as app:
        scans = app.stream("scans", Scan, shards=2, archive=0.2)
        in_process = {"run_in": "process", "concurrency": 1} if how == "process" else {}
        scans.consumer("pages", ordered=True, **in_process)(read_page if how == "async" else read_page_in_thread)  # type: ignore[arg-type]
        await scans.publish_many(Scan(page=Blob(bytes(100_000)), text=f"{n}" * 50_000) for n in range(5))
        async with working(app) as worker:
            await eventually_async(lambda: said(worker).total("rstream_settled_total", outcome="ack") == 5)
            await eventually_async(lambda: said(worker).total("rstream_archive_segment_seconds_count") >= 2)
            found = said(worker)
        of = {"stream": "scans", "group": "pages"}
        # A page and a payload, each.
        assert found.total("rstream_blob_operation_seconds_count", operation="get", **of) == 10
        assert found.total("rstream_blob_bytes_total", operation="get", **of) == pytest.approx(5 * 150_000, rel=0.01)
        assert found.total("rstream_archive_bytes_total", stream="scans", group="~archive") > 100
        assert found.by("rstream_blob_operation_seconds_count", "operation", group="~archive").keys() >= {"get", "put"}
        wanted = [metric for metric in documented().values() if "process" in metric.labels]
        for metric in wanted:
            for name in metric.series:
                for sample in (s for s in found.samples if s.name == name):
                    assert {*sample.labels} - {"le"} == {*metric.labels} - {"process"}
                    for label, values in metric.labels.items():
                        assert values is None or sample.labels[label] in values
                assert found.series(name), f"{name} is documented, and not there"
        assert found.total("rstream_build_info") == 1


# -- readiness and stalls


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.why for check in checks if not check.well}


async def looked(ready: Readiness) -> dict[str, str]:
    """What is not well."""
    return failing(await asyncio.to_thread(ready))


async def test_a_worker_is_ready_while_it_can_work(own_server: Server, namespace: str) -> None:
    with ChaosProxy(own_server.upstream) as proxy:
        async with RStream(proxy.url, namespace=namespace) as app:
            jobs = app.stream("jobs", Job, shards=2)
            jobs.consumer("g", lease=1.0)(on_loop)
            worker = Worker(app)
            ready = Readiness(worker)
            assert "is starting" in failing(ready())["worker"]
            task = asyncio.create_task(worker.serve(signals=False))
            await eventually_async(lambda: _is_empty(ready))

            proxy.blackhole(True)  # Redis is there, and silent
            told = await eventually_async(lambda: looked(ready))
            assert re.search("silent|answer|timed out", told["redis"], re.IGNORECASE), told
            await eventually_async(lambda: _names(ready, "leases"))
            assert "run out: jobs/g" in (await looked(ready))["leases"]
            proxy.blackhole(False)
            await eventually_async(lambda: _is_empty(ready))

            own_server.pause()
            await eventually_async(lambda: _names(ready, "redis"))
            own_server.resume()
            await eventually_async(lambda: _is_empty(ready))
            assert said(worker).total("rstream_reconnects_total") > 0

            worker.stop()
            await task
            assert "has ended" in failing(ready())["worker"]


async def _is_empty(ready: Readiness) -> bool:
    return not await looked(ready)


async def _names(ready: Readiness, what: str) -> bool:
    return what in await looked(ready)


async def test_a_group_that_is_gone_is_told_until_it_is_made_anew(
    app: RStream, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = app.stream("jobs", Job, shards=2)
    jobs.consumer("g")(on_loop)
    async with working(app) as worker:
        ready = Readiness(worker)
        await eventually_async(lambda: _is_empty(ready))
        healing = asyncio.Event()
        real = groups.declare_again

        def held(*args: Any) -> Any:
            if not healing.is_set():
                raise StoreUnavailable("not yet")
            return real(*args)

        monkeypatch.setattr(groups, "declare_again", held)
        for shard in (await jobs.layout()).current:
            raw.xgroup_destroy(shard.stream, "g")
        await eventually_async(lambda: _names(ready, "groups"))
        assert "gone from Redis: jobs/g" in (await looked(ready))["groups"]
        healing.set()
        await eventually_async(lambda: _is_empty(ready))
        await eventually_async(lambda: said(worker).total("rstream_group_resets_total") >= 1)


async def test_a_blocked_loop_is_told_while_it_is_and_for_a_minute(
    one_app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "STALLED", 0.3)
    jobs, seen, go = one_app.stream("jobs", Job, shards=1), list[dict[str, str]](), threading.Event()

    @jobs.consumer("g")
    async def block(event: Job) -> None:
        go.wait(30)

    async with working(one_app) as worker:
        ready = Readiness(worker)
        await eventually_async(lambda: _is_empty(ready))
        assert said(worker).total("rstream_loop_stall_seconds") < 5

        def watch() -> None:
            while "loop" not in (told := failing(ready())):
                pass
            seen.append(told)
            eventually(lambda: said(worker).total("rstream_loop_stall_seconds") > 0.5)
            go.set()

        watching = threading.Thread(target=watch)
        watching.start()
        await jobs.publish(Job(n=1))
        await eventually_async(lambda: not watching.is_alive())
        assert "blocked for" in seen[0]["loop"]
        await eventually_async(lambda: _is_empty(ready))
        assert said(worker).total("rstream_loop_stall_seconds") > 0.3  # the longest of the last minute
