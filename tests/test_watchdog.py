"""The watchdog: it ends a process that must end, and looks on, whatever state stderr and logging are in."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from rstream import RStream
from rstream.process import clock
from rstream.store.keys import shard
from rstream.worker import watchdog
from rstream.worker.watchdog import EXIT_CODE, Watchdog
from tests.servers import Server
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job

RUN = """
import sys
{before}
sys.argv[1:] = ["worker", "tests.workload:app", "--group", "limited"]
from rstream.cli.main import main
main()
"""

NO_FILENO = """
class Nowhere:
    def write(self, text): pass
    def flush(self): pass
sys.stderr = Nowhere()
"""

CLOSED = """
import os
os.close(2)
"""

CHATTY = """
import logging, threading
def chat():  # its handler's lock is held by a write that never ends
    while True:
        logging.getLogger("chatty").warning("x" * 1000)
from rstream.worker.watchdog import Watchdog
look = Watchdog._check_handlers
def first_look(self, run):
    if run.running and not any(thread.name == "chat" for thread in threading.enumerate()):
        threading.Thread(target=chat, name="chat", daemon=True).start()
    look(self, run)
Watchdog._check_handlers = first_look
"""

STALL = """
from rstream.worker import watchdog
watchdog.STALL_TOLD = 0.2
"""

SHARD = shard("ns", "s", 1, 0, 1)


class Pipe:
    """A stderr that is read only when the test says so."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.text = b""

    def read(self) -> bytes:
        """All that came so far."""
        while select.select([self.reader], [], [], 0)[0] and (part := os.read(self.reader, 65536)):
            self.text += part
        return self.text

    @property
    def is_full(self) -> bool:
        return not select.select([], [self.writer], [], 0)[1]

    def fill(self) -> None:
        while not self.is_full:
            os.write(self.writer, b"." * 4096)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.writer)
    os.close(pipe.reader)


@contextmanager
def worker(server: Server, namespace: str, stderr: int, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A worker process of the group `limited`, whose handlers may take a second, steered before it begins."""
    environ = {
        **os.environ, "RSTREAM_URL": server.url, "RSTREAM_NAMESPACE": namespace,
        "WORKLOAD_HISTORY": server.url, "WORKLOAD_LEASE": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", RUN.format(before=before)]
    process = subprocess.Popen(command, env=environ, stderr=stderr, cwd=Path(__file__).parent.parent)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def stuck(server: Server, namespace: str) -> Iterator[None]:
    """A job that blocks the loop of whoever takes it; at the end it was started."""
    with RStream(server.url, namespace=namespace) as app, redis.Redis.from_url(server.url) as raw:
        app.stream("jobs", Job, shards=4).sync.publish(Job(n=1, seconds=60, kind="block"))
        yield
        assert History(raw, namespace).counts("start")[1] == 1


# -- real processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [NO_FILENO, CLOSED], ids=["replaced", "closed"])
def test_a_process_ends_where_stderr_cannot_be_written(
    one_server: Server, namespace: str, pipe: Pipe, before: str
) -> None:
    with stuck(one_server, namespace), worker(one_server, namespace, pipe.writer, before) as process:
        assert process.wait(20) == EXIT_CODE
    if before == NO_FILENO:  # the stacks are written to where stderr was
        assert b"in on_loop_limited" in pipe.read()


@pytest.mark.parametrize("before", ["", CHATTY, STALL], ids=["quiet", "chatty", "stall told"])
def test_a_process_ends_where_nobody_reads_its_stderr(
    one_server: Server, namespace: str, pipe: Pipe, before: str
) -> None:
    with worker(one_server, namespace, pipe.writer, before) as process:
        eventually(lambda: b" ready: " in pipe.read(), 20)
        pipe.fill()
        with stuck(one_server, namespace):
            assert process.wait(20) == EXIT_CODE
        assert pipe.is_full


def test_what_is_read_late_is_told_all_the_same(one_server: Server, namespace: str, pipe: Pipe) -> None:
    with worker(one_server, namespace, pipe.writer) as process:
        eventually(lambda: b" ready: " in pipe.read(), 20)
        pipe.fill()
        with stuck(one_server, namespace):
            eventually(lambda: b"hard limit" in pipe.read(), 20)
            assert process.wait(20) == EXIT_CODE
        assert b"in on_loop_limited" in pipe.read()
        assert os.get_blocking(pipe.writer)  # others write to it, too


# -- in this process -----------------------------------------------------------------------------------------------


def handlers_of(limit: float | None = None, running: Any = None) -> Any:
    """As much of a `ConsumerRun` as a watchdog sees."""
    consumer = SimpleNamespace(hard_timeout=limit)
    return SimpleNamespace(
        consumer=consumer, pool=None, name="s/g", running={} if running is None else running,
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK", 0.01)
    monkeypatch.setattr(watchdog, "STALL_TOLD", 0.05)


@contextmanager
def logging_to(pipe: Pipe) -> Iterator[None]:
    stream = os.fdopen(os.dup(pipe.writer), "w")
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("rstream")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        pipe.read()  # what is still to be flushed must find room, also where the test failed
        stream.close()


@pytest.mark.usefixtures("quick")
async def test_a_report_that_cannot_be_written_keeps_it_from_nothing(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "STDERR", pipe.writer)
    ended: list[str] = []
    slow = handlers_of(limit=0.3, running={(SHARD, b"1-0"): clock()})
    dog = Watchdog([slow], ended.append)
    with logging_to(pipe):
        pipe.fill()
        dog.start()
        for stall in range(3):
            block_the_loop_until(lambda stall=stall: len(ended) > 3 * stall)  # type: ignore[misc]
            await eventually_async(lambda: not dog._told)
        assert pipe.is_full
        telling = dog._telling
        assert telling is not None and telling.is_alive()  # one, for all three stalls
        await eventually_async(lambda: b"in block_the_loop_until" in pipe.read())
        dog.stop()
        await eventually_async(lambda: not (telling.is_alive() or dog.is_alive()))
    assert b"has not turned" in pipe.read() and pipe.text.count(b"has not turned") == 1
    assert "entry 1-0@1.0 has run for over 0.3 s, its hard limit" in ended[0]


def block_the_loop_until(done: Callable[[], bool]) -> None:
    """For 0.2 s at least."""
    began = time.monotonic()
    while time.monotonic() < began + 0.2 or not done():
        assert time.monotonic() < began + 5
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
async def test_a_look_that_fails_is_told_once_and_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(dict[Any, Any]):
        looks = 0

        def items(self) -> Any:
            self.looks += 1
            raise RuntimeError("dictionary changed size during iteration")

    broken, ended = Broken(), list[str]()

    def end(why: str) -> None:
        ended.append(why)
        raise OSError("it does not end either")

    slow = handlers_of(limit=0.01, running={(SHARD, b"1-0"): clock()})
    dog = Watchdog([handlers_of(limit=1, running=broken), slow], end)
    dog.start()
    await eventually_async(lambda: broken.looks > 3 and len(ended) > 3)
    dog.stop()
    await asyncio.to_thread(dog.join)
    told = [record for record in caplog.records if "could not look" in record.getMessage()]
    assert len(told) == 1 and told[0].exc_info is not None


def test_stacks_of_many_threads_are_all_there_the_main_one_first() -> None:
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, name=f"waits-{n}") for n in range(150)]
    for thread in threads:
        thread.start()
    try:
        stacks = watchdog._stacks().decode()
    finally:
        end.set()
        for thread in threads:
            thread.join()
    first, *others = stacks.split("Thread 0x")[1:]
    assert "in test_stacks_of_many_threads_are_all_there_the_main_one_first" in first
    assert sum("in wait" in other for other in others) >= 150


def test_a_thread_that_holds_the_gil_does_not_keep_the_process() -> None:
    """Whoever writes to a stderr of its own may do so in C, and without giving up the GIL."""
    code = """
import ctypes, logging, sys
from rstream.worker import watchdog
watchdog.STACKS_PATIENCE = watchdog.LOG_PATIENCE = 0.2
class Greedy(logging.Handler):
    def emit(self, record):
        ctypes.PyDLL(None).sleep(60)
logging.getLogger("rstream").addHandler(Greedy())
watchdog.end_process("a test")
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, check=False)
    assert done.returncode == 1 and b"in <module>" in done.stderr  # the stacks were told before
