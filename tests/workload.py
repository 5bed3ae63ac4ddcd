"""An app whose handlers write down what happened to them, into a Redis list: the history that tests check.

Run as a real worker process: `rstream worker tests.workload:app --group jobs/async`, steered by environment variables.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from rstream import Batch, Delivery, Event, Reject, Retry, RetryPolicy, RStream
from tests.fleets import Cluster, Sentinels
from tests.servers import Server
from tests.waiting import eventually

LEASE = float(os.environ.get("WORKLOAD_LEASE", "2"))
CONCURRENCY = int(os.environ.get("WORKLOAD_CONCURRENCY", "16"))


class Job(Event):
    n: int
    seconds: float = 0.0
    kind: str = "wait"


class Done(Event):
    n: int


app = RStream()
jobs = app.stream("jobs", Job, shards=4)
done = app.stream("done", Done, shards=2)
_raw: redis.Redis | None = None


def note(what: str, event: Job, delivery: Delivery) -> None:
    global _raw
    if _raw is None:
        # redis-py's own retry would write a line twice when Redis restarts in between.
        _raw = redis.Redis.from_url(os.environ["WORKLOAD_HISTORY"], retry=RedisRetry(NoBackoff(), 0))
    _raw.rpush(f"history:{app.settings.namespace}", f"{what} {event.n} {delivery.attempt} {os.getpid()} {time.time()}")


@jobs.consumer("async", concurrency=CONCURRENCY, lease=LEASE, retry=RetryPolicy(initial_delay=0.05), emits=done)
async def on_loop(event: Job, delivery: Delivery) -> Done:
    await asyncio.to_thread(note, "start", event, delivery)
    if event.kind == "block":
        time.sleep(event.seconds)  # noqa: ASYNC251 (what is tested is a handler that blocks the loop)
    elif event.kind == "die":
        await asyncio.sleep(event.seconds)
        os._exit(11)
    elif event.kind == "stubborn":
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
    elif event.kind == "fail" and delivery.attempt == 1:
        raise ValueError(f"job {event.n} fails at first")
    else:
        await asyncio.sleep(event.seconds)
    if event.kind == "late failure" and delivery.attempt == 1:
        raise ValueError(f"job {event.n} fails late")
    if event.kind == "late reject" and delivery.attempt == 1:
        raise Reject(f"job {event.n} is rejected late")
    await asyncio.to_thread(note, "end", event, delivery)
    return Done(n=event.n)


@jobs.consumer("thread", concurrency=CONCURRENCY, lease=LEASE)
def in_thread(event: Job, delivery: Delivery) -> None:
    note("start", event, delivery)
    time.sleep(event.seconds)
    note("end", event, delivery)


@jobs.consumer("limited", concurrency=CONCURRENCY, lease=LEASE, hard_timeout=1.0)
async def on_loop_limited(event: Job, delivery: Delivery) -> None:
    await on_loop(event, delivery)


@jobs.consumer("single", concurrency=CONCURRENCY, lease=LEASE, retry=RetryPolicy(max_attempts=1))
async def on_loop_one_attempt(event: Job, delivery: Delivery) -> None:
    await on_loop(event, delivery)


@jobs.consumer(
    "batch",
    batch=20,
    max_wait=0.05,
    concurrency=4,
    lease=LEASE,
    retry=RetryPolicy(initial_delay=0.05, max_attempts=9),
    emits=done,
)
async def in_batches(events: list[Job], batch: Batch) -> list[Done]:
    def note_all(what: str) -> None:
        for index, (event, delivery) in enumerate(zip(events, batch.deliveries, strict=True)):
            if index not in batch.failures:
                try:
                    note(what, event, delivery)
                except redis.RedisError:  # it is not this event: bisection would begin the same attempt again
                    raise Retry(after=0.05) from None

    await asyncio.to_thread(note_all, "start")
    await asyncio.sleep(max(event.seconds for event in events))
    for index, event in enumerate(events):
        if event.kind == "fail" and batch.deliveries[index].attempt == 1:
            batch.fail(index, ValueError(f"job {event.n} fails at first"))
    await asyncio.to_thread(note_all, "end")
    return [Done(n=event.n) for event in events]


class Line(NamedTuple):
    what: str
    n: int
    attempt: int
    pid: int
    at: float


class History:
    """What the handlers of one namespace wrote down."""

    def __init__(self, raw: redis.Redis, namespace: str) -> None:
        self._raw, self._key = raw, f"history:{namespace}"

    def lines(self) -> list[Line]:
        parts = [line.decode().split() for line in self._raw.lrange(self._key, 0, -1)]
        return [Line(what, int(n), int(attempt), int(pid), float(at)) for what, n, attempt, pid, at in parts]

    def counts(self, what: str) -> Counter[int]:
        """How often each job did that."""
        return Counter(line.n for line in self.lines() if line.what == what)

    def running(self, pid: int) -> set[int]:
        """Jobs that the process has begun and not ended."""
        open_jobs: set[int] = set()
        for line in self.lines():
            if line.pid == pid:
                (open_jobs.add if line.what == "start" else open_jobs.discard)(line.n)
        return open_jobs


class WorkerProcess:
    """`rstream worker tests.workload:app` as a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> WorkerProcess:
        eventually(lambda: " ready: " in self.log or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.log
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)


@contextmanager
def workers(
    server: Server | Cluster | Sentinels, namespace: str, folder: Path, *, url: str | None = None
) -> Iterator[Spawner]:
    """Starts workers; whatever happens, none of them is left."""
    spawner = Spawner(server, namespace, folder, url or server.url)
    try:
        yield spawner
    finally:
        for worker in spawner.started:
            worker.process.kill()
            worker.process.wait()


class Spawner:
    target = "tests.workload:app"

    def __init__(self, server: Server | Cluster | Sentinels, namespace: str, folder: Path, url: str) -> None:
        self.environ = {
            **os.environ,
            "RSTREAM_URL": url,
            "RSTREAM_NAMESPACE": namespace,
            "WORKLOAD_HISTORY": server.url,
        }
        self._folder = folder
        self.started: list[WorkerProcess] = []

    def __call__(self, *options: str, group: str = "async", lease: float = 2.0, concurrency: int = 16) -> WorkerProcess:
        log = self._folder / f"worker-{len(self.started)}.log"
        environ = self.environ | {"WORKLOAD_LEASE": str(lease), "WORKLOAD_CONCURRENCY": str(concurrency)}
        command = [sys.executable, "-m", "rstream", "worker", self.target, "--group", group, *options]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environ, stdout=out, stderr=out, cwd=Path(__file__).parent.parent)
        self.started.append(WorkerProcess(process, log))
        return self.started[-1]


FREEZE, THAW = signal.SIGSTOP, signal.SIGCONT
