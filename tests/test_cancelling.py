"""Cancelling deliveries by hand: exactly one of that and their own outcome counts, and what runs is told."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from rstream import Batch, Delivery, Event, RetryPolicy, RStream, Stream
from rstream.errors import ConfigError, LeaseLost, PositionError
from rstream.event import EntryId
from rstream.operate import cancel, pause, pending, resume, show
from rstream.store.cancel import cancel as settle
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.keys import Shard
from tests.commands import Commands
from tests.fleets import Cluster
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.test_worker import working
from tests.waiting import eventually, eventually_async
from tests.workload import History, Job, workers


class Item(Event):
    n: int
    name: str = ""


class Made(Event):
    n: int
    name: str = ""


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def cancelled(items: Stream[Any], group: str = "g") -> int:
    """As counted."""
    async with redis.asyncio.Redis.from_url(items.app.settings.url or "") as raw:
        counts = [await raw.hget(shard.done, f"cancelled:{group}") for shard in (await items.layout()).every]
    return sum(int(count or 0) for count in counts)


async def left(items: Stream[Any], group: str = "g") -> int:
    return len((await pending(items, group, limit=1000)).entries)


async def test_a_handler_on_the_loop_is_cancelled_and_the_worker_goes_on(
    app: RStream, caplog: pytest.LogCaptureFixture
) -> None:
    items = app.stream("items", Item, shards=1)
    began, ended = asyncio.Event(), list[str]()

    @items.consumer("g", concurrency=1)
    async def handle(event: Item) -> None:
        if event.n == 0:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
        ended.append(str(event.n))

    async with working(app) as worker:
        ids = await items.publish_many(Item(n=n) for n in range(3))
        await began.wait()
        with caplog.at_level(logging.INFO):
            (done,) = await cancel(items, "g", ids[:1])
            await eventually_async(lambda: len(ended) == 3)
        assert (done.verdict, done.worker, done.waited, done.attempt) == ("cancelled", worker.id, None, 1)
        assert ended == ["cancelled", "1", "2"]
        await eventually_async(lambda: worker.runs[0].in_hand == 0)
        assert worker.counts.handled == 2 and worker.counts.failed == worker.counts.refused == 0
        assert "LeaseLost" not in caplog.text and f"entry {ids[0]} was cancelled by hand" in caplog.text
        assert (await left(items), await cancelled(items)) == (0, 1)
        (state,) = (await show(items, ids[0])).groups
        assert (state.state, state.letters) == ("done", ())
        assert [each.verdict for each in await cancel(items, "g", [*ids, ids[0]])] == ["settled"] * 3
        assert await cancelled(items) == 1


async def test_a_thread_runs_on_keeps_and_settles_nothing_and_its_key_waits_for_it(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=2)
    seen: list[str] = []
    began, go_on = threading.Event(), threading.Event()

    @items.consumer("g", concurrency=4)
    def handle(event: Item, delivery: Delivery) -> None:
        seen.append(f"begin {event.n}")
        if event.n == 0:
            began.set()
            assert go_on.wait(20)
            try:
                delivery.sync.checkpoint("x")
            except LeaseLost:
                seen.append("lost")
        seen.append(f"end {event.n}")

    async with working(app) as worker:
        ids = await items.publish_many(Item(n=n, name="k") for n in range(2))
        await eventually_async(began.is_set)
        (done,) = await cancel(items, "g", ids[:1])
        assert done.verdict == "cancelled"
        other = await items.publish(Item(n=9, name="other"))
        await eventually_async(lambda: "end 9" in seen)
        assert "begin 1" not in seen, other
        go_on.set()
        await eventually_async(lambda: worker.runs[0].in_hand == 0 and "end 1" in seen)
        assert seen.index("lost") < seen.index("end 0") < seen.index("begin 1")
        assert worker.counts.handled == 2


async def test_what_waits_in_a_worker_is_never_begun(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    begun: list[int] = []
    go_on = asyncio.Event()

    @items.consumer("g", concurrency=1, prefetch=50)
    async def handle(event: Item) -> None:
        begun.append(event.n)
        await go_on.wait()

    async with working(app) as worker:
        ids = await items.publish_many(Item(n=n) for n in range(20))
        await eventually_async(lambda: worker.runs[0].in_hand == 20)
        done = await cancel(items, "g", ids[5:15])
        assert {each.verdict for each in done} == {"cancelled"}
        await eventually_async(lambda: worker.runs[0].hand.is_cancelled(place(worker.runs[0], ids[14])))
        go_on.set()
        await eventually_async(lambda: worker.runs[0].in_hand == 0)
        assert begun == [n for n in range(20) if not 5 <= n < 15]
        assert (await left(items), await cancelled(items)) == (0, 10)


def place(run: Any, id: EntryId) -> tuple[Shard, bytes]:
    (shard,) = [shard for shard in run.layout.every if (shard.generation, shard.number) == id[2:]]
    return shard, id.redis.encode()


async def test_what_waits_for_its_retry_lets_the_next_of_its_key_go(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=1)
    seen: list[int] = []

    @items.consumer("g", retry=RetryPolicy(initial_delay=3600, max_delay=3600))
    async def handle(event: Item) -> None:
        seen.append(event.n)
        if event.n == 0:
            raise ValueError("no")

    async with working(app):
        ids = await items.publish_many(Item(n=n, name="k") for n in range(3))
        found = await eventually_async(lambda: waiting(items, "retry"))
        assert found[0].id == ids[0] and seen == [0]
        (done,) = await cancel(items, "g", ids[:1])
        assert (done.verdict, done.waited) == ("cancelled", "retry")
        await eventually_async(lambda: seen == [0, 1, 2])
        assert await left(items) == 0


async def waiting(items: Stream[Any], state: str) -> Any:
    return (await pending(items, "g", state=state)).entries


async def test_whoever_has_it_and_what_was_kept_of_it(app: RStream, raw: redis.Redis) -> None:
    """Released, given again, put aside, waiting, with a dead worker; and what nobody was given yet."""
    items = app.stream("items", Item, key="name", shards=2)
    ids = await items.publish_many(Item(n=n, name="k") for n in range(8))
    layout = await items.layout()
    ops, run = GroupOps(layout, "g", "w1"), app.link.run
    await run(ops.create("0"))
    fetched = (await run(ops.fetch(6))).entries
    shard = fetched[0].shard
    ends = [("release", 0, "~released"), ("release", 0, "~again"), ("park", 1, b"k"), ("park", 1, b"k", "!")]
    outcomes = [Outcome(e.shard, e.id, 1, *end) for e, end in zip(fetched, ends, strict=False)]  # type: ignore[arg-type]
    outcomes.append(Outcome(shard, fetched[4].id, 1, "retry", 60_000))
    assert await run(ops.settle(outcomes)) == []
    raw.hset(shard.memo("g", fetched[4].id.decode()), mapping={"by": "1 w1", "n": 1, "bytes": 1, "c": "x"})
    aside = shard.aside("g", b"k")
    assert raw.zcard(aside) == 2

    done = await cancel(items, "g", ids)

    assert [(each.verdict, each.worker, each.waited) for each in done] == [
        ("cancelled", None, "released"), ("cancelled", None, "again"), ("cancelled", None, "parked"),
        ("cancelled", None, "parked"), ("cancelled", None, "retry"), ("cancelled", "w1", None),
        ("unread", None, None), ("unread", None, None),
    ]  # fmt: skip
    assert await left(items) == 0 and await cancelled(items) == 6
    gone = (aside, shard.parked("g"), shard.retry("g"), shard.memo("g", fetched[4].id.decode()))
    assert not raw.exists(*gone)
    assert len((await run(ops.fetch(10))).entries) == 2
    assert [each.verdict for each in await cancel(items, "g", ["1-1@1.1", "1-1@7.0"])] == ["settled", "gone"]
    with pytest.raises(ConfigError, match="there are g"):
        await cancel(items, "h", ids)
    with pytest.raises(PositionError):
        await cancel(items, "g", ["1-1"])


async def test_of_a_settle_and_a_cancel_exactly_one_counts(app: RStream, namespace: str) -> None:
    rng = random.Random(20261129)
    items = app.stream("items", Item, shards=2)
    layout = await items.layout()
    ops = GroupOps(layout, "g", "w1")
    await app.link.run(ops.create("0"))
    won = lost = 0
    async with RStream(app.settings.url, namespace=namespace) as other:
        there = other.stream("items", Item, shards=2)
        await there.layout()
        for n in range(120):
            (id,) = await items.publish_many([Item(n=n)])
            (entry,) = (await app.link.run(ops.fetch(1))).entries
            kind = rng.choice(["ack", "retry", "dead", "bare", "release"])
            end: tuple[Any, ...] = {
                "ack": ("ack", "", ""), "bare": ("ack", "", "", "bare"), "retry": ("retry", 0),
                "dead": ("dead", "failed", "no", ""), "release": ("release", 0, "~released"),
            }[kind]  # fmt: skip
            outcome = Outcome(entry.shard, entry.id, 1, *end)

            async def settle(outcome: Outcome = outcome, wait: float = rng.random() / 500) -> list[Any]:
                await asyncio.sleep(wait)
                return await app.link.run(ops.settle([outcome]))

            refused, (done,) = await asyncio.gather(settle(), cancel(there, "g", [id]))
            if refused:
                assert (done.verdict, refused[0].owner) == ("cancelled", "")
                won += 1
            elif kind in ("retry", "release"):  # settled first, it waits, and can be cancelled all the same
                assert (done.verdict, done.waited) == ("cancelled", "retry" if kind == "retry" else "released")
            else:
                assert done.verdict == "settled"
                lost += 1
            assert await left(items) == 0
        assert won and lost, (won, lost)


async def test_a_storm_of_cancels_while_workers_handle(app: RStream) -> None:
    """Each event is either done, once, and what it emits is there; or it was cancelled, and nothing of it is."""
    items = app.stream("items", Item, key="name", shards=3)
    made = app.stream("made", Made, shards=3)
    rng = random.Random(7)
    last: dict[str, int] = {}

    @items.consumer("g", concurrency=8, emits=made)
    async def handle(event: Item) -> Made:
        assert last.get(event.name, -1) < event.n
        last[event.name] = event.n
        await asyncio.sleep(rng.random() / 50)
        return Made(n=event.n)

    async with working(app) as one, working(app) as two:
        ids = await items.publish_many(Item(n=n, name=f"k{n % 11}") for n in range(400))
        verdicts: dict[EntryId, str] = {}
        for id in rng.sample(ids, 200):
            (done,) = await cancel(items, "g", [id])
            verdicts[id] = done.verdict
        await eventually_async(lambda: drained(items, one, two))
    stopped = {ids.index(id) for id, verdict in verdicts.items() if verdict == "cancelled"}
    emitted = [entry.event.n async for entry in made.read()]
    assert sorted(emitted) == [n for n in range(400) if n not in stopped]
    assert stopped and "settled" in verdicts.values()
    assert await cancelled(items) == len(stopped)


async def drained(items: Stream[Any], *working: Any) -> bool:
    return not any(run.in_hand for worker in working for run in worker.runs) and await left(items) == 0


async def test_given_again_while_the_old_handler_runs_on(app: RStream) -> None:
    """What a redrive, a replay or a reset gives after the cancel is a delivery of its own."""
    items = app.stream("items", Item, shards=1)
    seen: list[str] = []
    began, go_on = threading.Event(), threading.Event()

    @items.consumer("g", concurrency=2)
    def handle(event: Item, delivery: Delivery) -> None:
        seen.append("begin")
        if len(seen) == 1:
            began.set()
            assert go_on.wait(20)
        seen.append("end")

    async with working(app) as worker:
        run = worker.runs[0]
        (id,) = await items.publish_many([Item(n=0)])
        await eventually_async(began.is_set)
        assert (await cancel(items, "g", [id]))[0].verdict == "cancelled"
        await eventually_async(lambda: run.hand.is_cancelled(place(run, id)))
        (shard,) = (await items.layout()).every
        give = ("XCLAIM", shard.stream, "g", "~again", 0, id.redis, "FORCE", "RETRYCOUNT", 0, "JUSTID")
        await app.link.exchange([give])
        run.look_in(0)
        await eventually_async(lambda: place(run, id) in run.hand.back)
        go_on.set()
        await eventually_async(lambda: seen == ["begin", "end", "begin", "end"])
        await eventually_async(lambda: drained(items, worker))


async def test_of_a_batch_only_that_one_is_not_settled(app: RStream) -> None:
    items = app.stream("items", Item, shards=1)
    calls: list[list[int]] = []
    go_on = asyncio.Event()

    @items.consumer("g", batch=4, max_wait=0.2)
    async def handle(events: list[Item], batch: Batch) -> None:
        calls.append([event.n for event in events])
        await go_on.wait()

    async with working(app) as worker:
        ids = await items.publish_many(Item(n=n) for n in range(4))
        await eventually_async(lambda: calls)
        (done,) = await cancel(items, "g", ids[1:2])
        assert done.verdict == "cancelled"
        go_on.set()
        await eventually_async(lambda: drained(items, worker))
        assert calls == [[0, 1, 2, 3]] and await cancelled(items) == 1


async def test_while_it_is_paused(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=1)
    begun: list[int] = []
    go_on = asyncio.Event()

    @items.consumer("g", concurrency=1, prefetch=50)
    async def handle(event: Item) -> None:
        begun.append(event.n)
        await go_on.wait()

    async with working(app) as worker:
        ids = await items.publish_many(Item(n=n, name="k") for n in range(5))
        await eventually_async(lambda: begun and worker.runs[0].in_hand == 5)
        await pause(items, "g")
        await eventually_async(lambda: worker.runs[0].lanes.paused)
        assert {each.verdict for each in await cancel(items, "g", ids[:3])} == {"cancelled"}
        await eventually_async(lambda: not worker.runs[0].running)
        go_on.set()
        await resume(items, "g")
        await eventually_async(lambda: begun == [0, 3, 4])
        await eventually_async(lambda: drained(items, worker))


@pytest.mark.timeout(120)
def test_a_worker_that_was_frozen_meanwhile_settles_nothing(one_server: Server, namespace: str, tmp_path: Path) -> None:
    with (
        workers(one_server, namespace, tmp_path) as spawn,
        RStream(one_server.url, namespace=namespace) as app,
        redis.Redis.from_url(one_server.url) as raw,
    ):
        jobs, history = app.stream("jobs", Job, shards=4), History(raw, namespace)
        worker = spawn(lease=1, concurrency=4, group="thread").ready()
        ids = jobs.sync.publish_many(Job(n=n, seconds=1.0) for n in range(4))
        eventually(lambda: len(history.running(worker.pid)) == 4)
        worker.signal(signal.SIGSTOP)

        async def stop() -> list[str]:
            async with RStream(one_server.url, namespace=namespace) as other:
                there = other.stream("jobs", Job, shards=4)
                return [each.verdict for each in await cancel(there, "thread", ids[:2])]

        assert asyncio.run(stop()) == ["cancelled"] * 2
        worker.signal(signal.SIGCONT)
        eventually(lambda: not history.running(worker.pid))
        shards = jobs.sync.layout().every
        eventually(lambda: not any(raw.xpending(shard.stream, "thread")["pending"] for shard in shards))
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert sum(int(raw.hget(shard.done, "cancelled:thread") or 0) for shard in shards) == 2
        assert history.counts("start").total() == 4


async def test_on_a_cluster(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="name", shards=6)
        begun: list[int] = []
        stopped: list[int] = []

        @items.consumer("g", concurrency=100)
        async def handle(event: Item) -> None:
            begun.append(event.n)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                stopped.append(event.n)
                raise

        async with working(app, grace=0.1):
            ids = await items.publish_many(Item(n=n, name=f"k{n}") for n in range(30))
            await eventually_async(lambda: len(begun) == 30)
            assert {each.verdict for each in await cancel(items, "g", ids[:20])} == {"cancelled"}
            await eventually_async(lambda: sorted(stopped) == [*range(20)])
            assert await left(items) == 10


@pytest.mark.timeout(120)
def test_a_handler_in_a_process_runs_on_and_nothing_of_it_counts(rs: Commands, one_server: Server) -> None:
    rs.write(
        "shop.py",
        """
import pathlib, time
from rstream import Event, RStream

app = RStream()

class Note(Event):
    text: str

notes = app.stream("notes", Note, shards=2)

@notes.consumer("slow", run_in="process", concurrency=1)
def slow(note: Note) -> None:
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(f"begin {note.text}\\n")
    while not pathlib.Path("go.txt").exists():
        time.sleep(0.01)
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(f"end {note.text}\\n")
""",
    )
    with rs.started("worker", "shop:app") as worker:
        eventually(lambda: " ready: " in worker.err, 60)
        (id,) = rs.ok("publish", "notes", "--json", '{"text": "a"}').split()
        eventually(lambda: rs.handled == ["begin a"])
        assert "cancelled. Worker" in rs.ok("cancel", "notes", id, "--group", "slow")
        eventually(lambda: "was cancelled by hand" in worker.err)
        rs.write("go.txt", "")
        rs.ok("publish", "notes", "--json", '{"text": "b"}')
        eventually(lambda: rs.handled == ["begin a", "end a", "begin b", "end b"])
        worker.process.terminate()
        assert worker.ended(30) == 0
        assert "handled 1," in worker.err and "LeaseLost" not in worker.err


async def test_who_cancels_again_has_the_worker_told_where_the_first_ring_was_lost(app: RStream) -> None:
    """As where the answer to the cancel was lost and it was sent again, or who cancelled died before it rang."""
    items = app.stream("items", Item, key="name", shards=1)
    seen: list[str] = []

    @items.consumer("g", concurrency=1)
    async def handle(event: Item) -> None:
        seen.append(f"begin {event.n}")
        if event.n == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("stopped")
                raise

    async with working(app, grace=0.1) as worker:
        ids = await items.publish_many(Item(n=n, name="k") for n in range(3))
        await eventually_async(lambda: seen == ["begin 0"])
        (shard,) = (await items.layout()).every
        assert (await app.link.run(settle(shard, "g", [ids[0].redis], [])))[0].verdict == "cancelled"
        assert [each.verdict for each in await cancel(items, "g", ids[:1])] == ["settled"]
        await eventually_async(lambda: seen == ["begin 0", "stopped", "begin 1", "begin 2"])
        await eventually_async(lambda: drained(items, worker))
        assert await cancelled(items) == 1 and worker.counts.refused == 0


async def test_a_worker_that_was_cut_off_meanwhile_hears_of_it_when_it_is_back(
    one_server: Server, namespace: str
) -> None:
    with ChaosProxy(one_server.upstream) as proxy:
        async with (
            RStream(proxy.url, namespace=namespace) as app,
            RStream(one_server.url, namespace=namespace) as operator,
        ):
            items, there = app.stream("items", Item, shards=1), operator.stream("items", Item, shards=1)
            seen: list[str] = []

            @items.consumer("g", concurrency=1, lease=20)
            async def handle(event: Item) -> None:
                seen.append(f"begin {event.n}")
                if event.n == 0:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        seen.append("stopped")
                        raise

            async with working(app, grace=0.1):
                ids = await items.publish_many(Item(n=n) for n in range(2))
                await eventually_async(lambda: seen == ["begin 0"])
                proxy.stop()
                assert [each.verdict for each in await cancel(there, "g", ids[:1])] == ["cancelled"]
                proxy.start()
                await eventually_async(lambda: seen == ["begin 0", "stopped", "begin 1"])


async def test_where_memory_is_full_the_worker_is_told_as_well(own_server: Server, namespace: str) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        items = app.stream("items", Item, shards=1)
        seen: list[str] = []

        @items.consumer("g", concurrency=1)
        async def handle(event: Item) -> None:
            seen.append(f"begin {event.n}")
            if event.n == 0:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    seen.append("stopped")
                    raise

        async with working(app, grace=0.1) as worker:
            ids = await items.publish_many(Item(n=n) for n in range(2))
            await eventually_async(lambda: seen == ["begin 0"])
            with redis.Redis.from_url(own_server.url) as raw:
                raw.config_set("maxmemory", 1)
                assert [each.verdict for each in await cancel(items, "g", ids[:1])] == ["cancelled"]
                await eventually_async(lambda: seen == ["begin 0", "stopped", "begin 1"])
                await eventually_async(lambda: drained(items, worker))
                raw.config_set("maxmemory", 0)
