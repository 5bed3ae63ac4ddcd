"""What user code may do to its worker: raise anything, cancel anything, never end. The worker lives (promise 7)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import redis

from rstream import Batch, Event, Reject, Retry, RetryPolicy, RStream
from rstream import calling as calling_module
from tests.servers import Server
from tests.test_worker import dead_letters, drain, working
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job, workers


class Item(Event):
    n: int


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Careless(Retry):
    def __init__(self) -> None:
        """Does not call its parent's."""


class Liar(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("guess")


def crooked() -> SyntaxError:
    """One that the traceback module cannot print."""
    error = SyntaxError("bad")
    error.filename, error.lineno, error.offset, error.text = "f", "one", object(), 17  # type: ignore[assignment]
    return error


KINDS: dict[str, tuple[Callable[[], BaseException], bytes, bytes]] = {
    "exception": (lambda: ValueError("plain"), b"failed", b"ValueError: plain"),
    "group": (lambda: BaseExceptionGroup("some", [KeyboardInterrupt(), ValueError()]), b"failed", b"some (2 sub-"),
    "cancelled": (asyncio.CancelledError, b"failed", b"CancelledError"),
    "exit": (lambda: SystemExit(3), b"failed", b"SystemExit: 3"),
    "interrupt": (KeyboardInterrupt, b"failed", b"KeyboardInterrupt"),
    "generator exit": (GeneratorExit, b"failed", b"GeneratorExit"),
    "stop iteration": (lambda: StopIteration(1), b"failed", b"StopIteration"),
    "timeout": (lambda: TimeoutError("its own"), b"failed", b"TimeoutError: its own"),
    "mute": (Mute, b"failed", b"Mute"),
    "careless": (Careless, b"failed", b"Careless"),
    "liar": (Liar, b"failed", b"Liar"),
    "crooked": (crooked, b"failed", b"SyntaxError"),
    "surrogate": (lambda: ValueError("\udc80"), b"failed", b"ValueError"),
    "huge": (lambda: ValueError("x" * 5_000_000), b"failed", b"ValueError: xxx"),
    "reject": (lambda: Reject("no"), b"rejected", b"no"),
}


@pytest.fixture
async def app(one_server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(one_server.url, namespace=namespace) as app:
        yield app


@pytest.mark.parametrize("how", ["loop", "loop in time", "thread", "thread in time", "wrapped", "batch"])
@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_is_raised_fails_its_delivery_and_nothing_else(app: RStream, kind: str, how: str) -> None:
    items = app.stream("items", Item, shards=1)
    make, reason, text = KINDS[kind]

    def in_thread(event: Item) -> None:
        if event.n == 1:
            raise make()

    async def on_loop(event: Item) -> None:
        await asyncio.sleep(0)
        in_thread(event)

    def wrapped(event: Item) -> Any:
        return on_loop(event)

    def batch(events: list[Item], batch: Batch) -> None:
        for index, event in enumerate(events):
            if event.n == 1:
                batch.fail(index, make())

    handler = {"loop": on_loop, "thread": in_thread, "wrapped": wrapped, "batch": batch}[how.split()[0]]
    timeout = 30 if "time" in how else None
    policy = RetryPolicy(max_attempts=2, initial_delay=0)
    options: dict[str, Any] = {"batch": 3, "max_wait": 0.2} if how == "batch" else {"concurrency": 2}
    items.consumer("g", retry=policy, timeout=timeout, **options)(handler)
    await items.publish_many(Item(n=n) for n in range(3))
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (2, 1)
    (letter,) = await dead_letters(app, "g")
    assert letter[b"reason"] == reason and text in letter[b"error"]


async def test_a_timeout_that_was_not_disarmed_hits_no_other_event(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    began: list[int] = []

    @items.consumer("g", concurrency=1, retry=RetryPolicy(max_attempts=1))
    async def handle(event: Item) -> None:
        began.append(event.n)
        if event.n == 0:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(0.05, task.cancel)
        else:
            await asyncio.sleep(0.2)

    await items.publish_many(Item(n=n) for n in range(3))
    worker = await drain(app)
    assert worker.counts.handled == 3 and began == [0, 1, 2]


async def test_an_event_leaves_nothing_in_context_variables_for_the_next(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    user = contextvars.ContextVar("user", default=-1)
    found: list[int] = []

    @items.consumer("g", concurrency=1)
    async def handle(event: Item) -> None:
        found.append(user.get())
        user.set(event.n)

    await items.publish_many(Item(n=n) for n in range(5))
    await drain(app)
    assert found == [-1] * 5


async def test_every_event_has_a_task_of_its_own_from_the_first_line_on(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    user = contextvars.ContextVar("user", default=-1)
    tasks: set[asyncio.Task[Any] | None] = set()
    limited: list[int] = []

    @items.consumer("g", concurrency=3, retry=RetryPolicy(max_attempts=1))
    async def handle(event: Item) -> None:
        first = asyncio.current_task()
        assert first in asyncio.all_tasks() and first not in tasks
        tasks.add(first)
        user.set(event.n)
        if event.n % 3 == 1:  # both belong to the task that entered them, over every wait
            try:
                async with asyncio.timeout(0.05):
                    await asyncio.sleep(30)
            except TimeoutError:
                limited.append(event.n)
        elif event.n % 3 == 2:
            with anyio.move_on_after(0.05) as scope:
                await asyncio.sleep(30)
            assert scope.cancelled_caught
            limited.append(event.n)
        assert asyncio.current_task() is first and user.get() == event.n

    await items.publish_many(Item(n=n) for n in range(12))
    async with asyncio.timeout(20):
        worker = await drain(app)
    assert worker.counts.handled == len(tasks) == 12
    assert sorted(limited) == [n for n in range(12) if n % 3]
    assert user.get() == -1


@pytest.mark.parametrize("kind", ["loop", "in time", "wrapped", "batch"])
async def test_a_handler_that_cancels_its_own_task_and_returns_ends_nothing_but_its_attempt(
    app: RStream, kind: str
) -> None:
    items = app.stream("items", Item, shards=1)

    async def handle(event: Item) -> None:
        if event.n == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def in_batch(events: list[Item]) -> None:
        for event in events:
            await handle(event)

    def wrapped(event: Item) -> Any:
        return handle(event)

    options: dict[str, Any] = {"batch": 3} if kind == "batch" else {"timeout": 30 if kind == "in time" else None}
    handler: Any = {"wrapped": wrapped, "batch": in_batch}.get(kind, handle)
    items.consumer("g", concurrency=1, retry=RetryPolicy(max_attempts=1), **options)(handler)
    await items.publish_many(Item(n=n) for n in range(3))
    worker = await drain(app)
    assert (worker.counts.handled, worker.counts.dead) == (2, 1)
    (letter,) = await dead_letters(app, "g")
    assert b"CancelledError: the handler was cancelled" in letter[b"error"]


@pytest.mark.parametrize("kind", ["loop", "thread", "wrapped"])
async def test_a_handler_that_swallows_its_timeout_has_failed_all_the_same(app: RStream, kind: str) -> None:
    items = app.stream("items", Item, shards=1)
    ends: list[float] = []

    async def on_loop(event: Item) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ends.append(event.n)

    def in_thread(event: Item) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and len(ends) < 2:  # the second interruption comes a second later
            try:
                time.sleep(0.01)
            except Exception:
                ends.append(event.n)

    def wrapped(event: Item) -> Any:
        return on_loop(event)

    handler = {"loop": on_loop, "thread": in_thread, "wrapped": wrapped}[kind]
    items.consumer("g", timeout=0.3, retry=RetryPolicy(max_attempts=1))(handler)
    await items.publish(Item(n=0))
    async with asyncio.timeout(20):
        worker = await drain(app)
    assert worker.counts.dead == 1
    (letter,) = await dead_letters(app, "g")
    assert b"HandlerTimeout" in letter[b"error"] and b"0.3 s" in letter[b"error"]


async def test_a_handler_that_does_not_heed_the_end_is_left_to_itself(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling_module, "CANCEL_PATIENCE", 0.1)
    items = app.stream("items", Item, shards=1)
    ended, attempts = asyncio.Event(), [0]

    @items.consumer("g", lease=1)
    async def handle(event: Item) -> None:
        attempts[0] += 1
        while not ended.is_set() and attempts[0] == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    await items.publish(Item(n=0))
    async with working(app, grace=0.1):
        await eventually_async(lambda: attempts[0])
    assert (await drain(app)).counts.handled == 1
    assert attempts == [2]
    ended.set()


def test_a_worker_ends_also_over_a_handler_that_never_does(one_server: Server, namespace: str, tmp_path: Path) -> None:
    with workers(one_server, namespace, tmp_path) as spawn, redis.Redis.from_url(one_server.url) as raw:
        history = History(raw, namespace)
        worker = spawn("--grace", "0.2").ready()
        with RStream(one_server.url, namespace=namespace) as app:
            app.stream("jobs", Job, shards=4).sync.publish(Job(n=1, kind="stubborn"))
        eventually(lambda: history.counts("start") == {1: 1})
        worker.signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        assert "left to itself" in worker.log


def test_a_second_signal_is_heeded_while_a_handler_blocks_the_loop(
    one_server: Server, namespace: str, tmp_path: Path
) -> None:
    with workers(one_server, namespace, tmp_path) as spawn, redis.Redis.from_url(one_server.url) as raw:
        history = History(raw, namespace)
        worker = spawn(concurrency=1).ready()
        with RStream(one_server.url, namespace=namespace) as app:
            app.stream("jobs", Job, shards=4).sync.publish(Job(n=1, kind="block", seconds=30))
        eventually(lambda: history.running(worker.pid))
        worker.signal(signal.SIGTERM)
        told = time.monotonic()
        eventually(lambda: time.monotonic() > told + 0.2)  # it cannot tell us that it heard
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 128 + signal.SIGTERM


def test_a_signal_to_all_processes_of_a_service_is_one_signal(
    one_server: Server, namespace: str, tmp_path: Path
) -> None:
    """As systemd sends it: to the supervisor, which passes it on, and to each of its workers, at once."""
    with workers(one_server, namespace, tmp_path) as spawn, redis.Redis.from_url(one_server.url) as raw:
        history = History(raw, namespace)
        supervisor = spawn("--processes", "2", concurrency=1)
        eventually(lambda: supervisor.log.count(" ready: ") == 2, 20)
        with RStream(one_server.url, namespace=namespace) as app:
            app.stream("jobs", Job, shards=4).sync.publish_many(Job(n=n, seconds=1.5) for n in range(2))
        eventually(lambda: len(history.counts("start")) == 2)
        for process in [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]:
            process.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0
        assert history.counts("end") == {0: 1, 1: 1}
