"""Publishes whose task, thread or process is taken from under them: nobody waits for ever, and nothing comes later."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time

import pytest
import redis

from rstream import Event, Retention, RStream, Stream
from rstream.errors import PublishUncertain, StoreUnavailable
from rstream.store.layout import Layout
from rstream.store.outbox import Outbox
from tests.servers import Server

ROUNDS, THREADS = 3, 20


class Seen(Event):
    device: str
    n: int


def numbers(stream: Stream[Seen]) -> list[int]:
    return [entry.event.n for entry in stream.sync.read()]


@pytest.mark.parametrize("known", [False, True], ids=["first", "later"])
async def test_after_all_tasks_were_cancelled_before_they_began_others_are_published(app: RStream, known: bool) -> None:
    """As code does that shuts down: the tasks of rstream's own are among them."""
    seen = app.stream("seen", Seen, key="device", shards=2)
    if known:
        seen.sync.layout()
    before = asyncio.all_tasks()
    publishing = asyncio.create_task(seen.publish(Seen(device="a", n=1)))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    (outcome,) = await asyncio.gather(publishing, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    async with asyncio.timeout(10):
        await seen.publish(Seen(device="a", n=2))
    assert numbers(seen) == [2]


async def test_who_waits_for_a_task_that_is_cancelled_before_it_began_learns_it(app: RStream) -> None:
    seen = app.stream("seen", Seen, key="device", shards=2)
    seen.sync.layout()
    publishing = asyncio.create_task(seen.publish(Seen(device="a", n=1)))
    before = asyncio.all_tasks()
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(PublishUncertain, match="was interrupted"):
        async with asyncio.timeout(10):
            await publishing


def interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_what_was_interrupted_before_it_was_sent_is_never_added(
    app: RStream, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    full = app.stream("seen", Seen, key="device", shards=1, retention=Retention(entries=10), full_wait=30)
    (shard,) = full.sync.layout().current
    raw.xgroup_create(shard.stream, "group", "0")
    full.sync.publish_many([Seen(device="a", n=0)] * 10)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)  # Ctrl-C, while it waits for room
        with pytest.raises(KeyboardInterrupt):
            if many:
                full.sync.publish_many([Seen(device="a", n=1)] * 5)
            else:
                full.sync.publish(Seen(device="a", n=1))
    found = raw.xreadgroup("group", "me", {shard.stream: ">"})
    raw.xack(shard.stream, "group", *[id for id, _ in found[0][1]])
    full.sync.publish(Seen(device="a", n=2))
    assert set(numbers(full)) <= {0, 2} and numbers(full)[-1] == 2


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_handler_that_publishes_in_mid_publish_is_told_and_does_not_wait_for_itself(
    own_server: Server, namespace: str, many: bool
) -> None:
    with RStream(own_server.url, namespace=namespace, publish_timeout=0.2) as app:
        seen = app.stream("seen", Seen, key="device", shards=2)
        told = []

        class Shipping(logging.Handler):
            """Sends what is logged to a stream; of which there is something when Redis is away."""

            def emit(self, record: logging.LogRecord) -> None:
                try:
                    publish(1)
                except RuntimeError as error:
                    told.append(str(error))

        def publish(n: int) -> None:
            event = Seen(device="a", n=n)
            seen.sync.publish_many([event]) if many else seen.sync.publish(event)

        publish(0)
        own_server.kill()
        logging.getLogger("rstream").addHandler(shipping := Shipping())
        try:
            with pytest.raises(StoreUnavailable):
                publish(2)
        finally:
            logging.getLogger("rstream").removeHandler(shipping)
        assert len(told) == 1 and told[0].startswith("reentrant call")
        own_server.start()
        publish(3)
        assert numbers(seen) == [0, 3]


async def test_an_app_that_is_closed_and_used_again_keeps_its_connection(app: RStream, raw: redis.Redis) -> None:
    seen = app.stream("seen", Seen, key="device", shards=2)
    async with app:
        await seen.publish(Seen(device="a", n=0))
    before = raw.info("stats")["total_connections_received"]
    async with app:
        for n in range(20):
            await seen.publish(Seen(device="a", n=n))
    assert raw.info("stats")["total_connections_received"] - before < 10


def test_threads_of_a_forked_child_that_begin_at_once_all_come_through(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = app.stream("seen", Seen, key="device", shards=2)
    seen.sync.publish(Seen(device="parent", n=0))
    monkeypatch.setattr("rstream.synccourier.Outbox", slowly)
    for _ in range(ROUNDS):
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(_crowd(seen))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "threads that failed or hang"
    assert len(numbers(seen)) == 1 + ROUNDS * THREADS


def slowly(layout: Layout) -> Outbox:
    """Others go on meanwhile, as they may at any time."""
    time.sleep(random.uniform(0.0, 0.01))
    return Outbox(layout)


def _crowd(seen: Stream[Seen]) -> int:
    """How many of many threads do not get their publish through."""
    go, through = threading.Event(), []

    def publish(number: int) -> None:
        go.wait()
        through.append(seen.sync.publish(Seen(device=f"t{number}", n=number)))

    threads = [threading.Thread(target=publish, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    go.set()
    until = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return THREADS - len(through)
