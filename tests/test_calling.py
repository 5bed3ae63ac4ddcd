"""Handlers in processes, and time limits of every kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import redis

from rstream import RetryPolicy, RStream
from rstream.errors import ConfigError, StoreUnavailable
from rstream.worker.watchdog import EXIT_CODE
from rstream.worker.worker import Worker
from tests import handlers
from tests.handlers import Work
from tests.servers import Server
from tests.test_worker import dead_letters, drain, working
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job, workers


@pytest.fixture
async def app(one_server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(one_server.url, namespace=namespace) as app:
        yield app


def history(folder: Path) -> list[tuple[int, int, int]]:
    path = folder / "history"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(n), int(attempt), int(pid)) for n, attempt, pid in (line.split() for line in lines)]


async def test_cpu_work_runs_in_warm_processes_beside_a_live_loop_and_keeps_its_lease(
    app: RStream, tmp_path: Path
) -> None:
    work = app.stream("work", Work, shards=1)
    work.consumer("g", run_in="process", concurrency=2, lease=0.5)(handlers.in_process)
    await work.publish_many(Work(n=n, folder=str(tmp_path), seconds=2.5 if n < 2 else 0) for n in range(6))
    worker = await drain(app)
    assert worker.counts.handled == 6 and worker.counts.refused == 0
    assert sorted((n, attempt) for n, attempt, _ in history(tmp_path)) == [(n, 1) for n in range(6)]
    assert len({pid for _, _, pid in history(tmp_path)}) == 2


@pytest.mark.parametrize(
    ("kind", "reason", "says", "attempts"),
    [
        ("value", b"failed", b"ValueError: a plain one", 2),
        ("unpicklable", b"failed", b"Unpicklable: 1 and 2 (it could not be pickled)", 2),
        ("exit", b"failed", b"SystemExit: 3", 2),
        ("reject", b"rejected", b"no such thing", 1),
        ("retry", b"failed", b"Retry", 2),
        ("die", b"failed", b"the process that ran tests.handlers:in_process died", 2),
    ],
)
async def test_what_goes_wrong_in_a_process_stays_with_its_delivery(
    app: RStream, tmp_path: Path, kind: str, reason: bytes, says: bytes, attempts: int
) -> None:
    work = app.stream("work", Work, shards=1)
    policy = RetryPolicy(max_attempts=2, initial_delay=0)
    work.consumer("g", run_in="process", concurrency=2, retry=policy)(handlers.in_process)
    await work.publish_many(Work(n=n, folder=str(tmp_path), kind=kind if n == 3 else "ok") for n in range(8))
    worker = await drain(app, "g")
    assert (worker.counts.handled, worker.counts.dead) == (7, 1)
    assert [attempt for n, attempt, _ in history(tmp_path) if n == 3] == list(range(1, attempts + 1))
    (letter,) = await dead_letters(app, "g", "work")
    assert letter[b"reason"] == reason
    assert says in letter[b"error"]
    if kind == "value":
        assert b"raise raising[event.kind]" in letter[b"traceback"]  # a line of the handler: the child's traceback


async def test_a_worker_that_stops_takes_its_processes_along(app: RStream, tmp_path: Path) -> None:
    work = app.stream("work", Work, shards=1)
    work.consumer("g", run_in="process", concurrency=2)(handlers.in_process)
    await work.publish(Work(n=0, folder=str(tmp_path), seconds=60))
    async with working(app, grace=0.1):
        await eventually_async(lambda: history(tmp_path), 20)
    child = history(tmp_path)[0][2]
    await eventually_async(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


@pytest.mark.parametrize("kind", ["loop", "thread", "process"])
async def test_a_handler_that_takes_too_long_is_interrupted_and_fails(app: RStream, tmp_path: Path, kind: str) -> None:
    work = app.stream("work", Work, shards=1)

    async def on_loop(event: Work) -> None:
        await asyncio.sleep(event.seconds)

    def in_thread(event: Work) -> None:
        until = time.monotonic() + event.seconds
        while time.monotonic() < until:
            time.sleep(0.01)

    handler = {"loop": on_loop, "thread": in_thread, "process": handlers.in_process}[kind]
    work.consumer("g", run_in=kind, timeout=0.5, retry=RetryPolicy(max_attempts=1))(handler)  # type: ignore[arg-type]
    await work.publish_many(Work(n=n, folder=str(tmp_path), seconds=30 if n == 0 else 0) for n in range(3))
    async with asyncio.timeout(20):
        worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (2, 1)
    (letter,) = await dead_letters(app, "g", "work")
    assert b"HandlerTimeout" in letter[b"error"] and b"0.5 s" in letter[b"error"]


def test_what_cannot_run_there_is_refused_when_it_is_declared(app_sync: RStream) -> None:
    work = app_sync.stream("work", Work)
    with pytest.raises(ConfigError, match="at the top level of a module"):
        work.consumer("g", run_in="process")(lambda event: None)
    with pytest.raises(ConfigError, match="would block all others"):
        work.consumer("g", run_in="loop")(handlers.in_process)
    with pytest.raises(ConfigError, match="cannot run in a thread"):
        work.consumer("g", run_in="thread")(handlers.async_in_process)
    with pytest.raises(ConfigError, match="timeout is 0"):
        work.consumer("g", timeout=0)(handlers.in_process)


@pytest.fixture
def app_sync() -> RStream:
    return RStream("redis://nowhere.invalid")


async def test_a_checkpoint_from_a_process_is_there_for_the_next_attempt(app: RStream, tmp_path: Path) -> None:
    work = app.stream("work", Work, shards=1)
    policy = RetryPolicy(initial_delay=0)
    work.consumer("g", run_in="process", concurrency=1, retry=policy)(handlers.checkpointing)
    await work.publish(Work(n=7, folder=str(tmp_path)))
    assert (await drain(app)).counts.handled == 1
    assert (tmp_path / "resumed").read_text() == "7"


async def test_a_handler_past_its_hard_limit_ends_the_process_and_is_taken_over(
    one_server: Server, namespace: str, tmp_path: Path
) -> None:
    with (
        workers(one_server, namespace, tmp_path) as spawn,
        RStream(one_server.url, namespace=namespace) as app,
        redis.Redis.from_url(one_server.url) as raw,
    ):
        history_ = History(raw, namespace)
        jobs = app.stream("jobs", Job, shards=4)
        stuck = spawn(lease=1, group="limited").ready()
        jobs.sync.publish(Job(n=1, seconds=60, kind="block"))
        assert stuck.wait(20) == EXIT_CODE
        assert "hard limit" in stuck.log and "in on_loop_limited" in stuck.log  # and its stack
        other = spawn(lease=1, group="limited").ready()
        eventually(lambda: history_.counts("start")[1] == 2, 20)
        assert other.wait(20) == EXIT_CODE


async def test_a_worker_that_cannot_start_leaves_no_processes_behind(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(run: object) -> None:
        started.extend(child.pid for child in psutil.Process().children() if child.pid not in before)
        raise StoreUnavailable("not today")

    before = {child.pid for child in psutil.Process().children()}
    started: list[int] = []
    monkeypatch.setattr("rstream.worker.groups.ensure", refuse)
    work = app.stream("work", Work, shards=1)
    work.consumer("g", run_in="process", concurrency=2)(handlers.in_process)
    with pytest.raises(StoreUnavailable):
        await Worker(app).serve(signals=False)
    assert len(started) >= 2
    pools = [pid for pid in started if psutil.pid_exists(pid) and "multiprocessing.spawn" in str(cmdline(pid))]
    assert pools == []


def cmdline(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []
