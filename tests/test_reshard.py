"""Another number of shards while producers run: every step may be the last of a killed process; nothing is lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from rstream import Delivery, EntryId, Event, RStream, Stream
from rstream.errors import ConfigError, MemoryFull, PublishUncertain, ShardSealed, StoreUnavailable, UnknownStream
from rstream.preparing import flattened
from rstream.replay import Replay
from rstream.store import reshard as resharding
from rstream.store.keys import Shard
from rstream.store.link import Op
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel, records_of
from rstream.store.record import place_of
from rstream.store.reshard import Resharding
from rstream.store.steps import Steps
from tests.proxy import ChaosProxy
from tests.servers import KINDS, Server
from tests.waiting import eventually, eventually_async

LAST = b"18446744073709551615-18446744073709551615"


class Seen(Event):
    device: str
    n: int
    pad: bytes = b""


class Note(Event):
    text: str


def declare(app: RStream, name: str = "seen", shards: int = 3) -> Stream[Seen]:
    return app.stream(name, Seen, key="device", shards=shards)


def events(numbers: range) -> list[Seen]:
    return [Seen(device=f"d{n % 17}", n=n) for n in numbers]


def quiet(text: str) -> None: ...


def steps(stream: Stream[Any], shards: int) -> Steps[Resharding]:
    return resharding.reshard(stream.app.settings.namespace, stream.name, shards, tell=quiet)


def retiring(stream: Stream[Any]) -> Steps[list[int]]:
    return resharding.retire(stream.app.settings.namespace, stream.name, quiet)


def take(app: RStream, procedure: Steps[Any], operations: int | None = None, *, half: bool = False) -> Any:
    """Take the steps, as a process does that is killed after so many operations; `half`: in the midst of one more."""
    result: Any = None
    for taken in itertools.count():
        try:
            step = procedure.send(result)
        except StopIteration as end:
            return end.value
        if taken == operations:
            if half and isinstance(step, Op):
                app.sync_link.exchange(step.calls[: len(step.calls) // 2])
            procedure.close()
            return None
        result = app.sync_link.run(step) if isinstance(step, Op) else time.sleep(step)


def is_sealed(raw: redis.Redis, shard: Shard) -> bool:
    try:
        raw.xadd(shard.stream, {"e": b""}, nomkstream=True)
    except redis.ResponseError as error:
        assert "exhausted the last possible ID" in str(error)
        return True
    return False


def positions(raw: redis.Redis, shard: Shard) -> dict[str, bytes]:
    return {group["name"].decode(): group["last-delivered-id"] for group in raw.xinfo_groups(shard.stream)}


def check_order(stream: Stream[Seen], total: int) -> list[EntryId]:
    """Everything is there once, and in order for every key, a generation after the other; the ids."""
    entries = list(stream.sync.read())
    assert sorted(entry.event.n for entry in entries) == list(range(total))
    for device in {entry.key for entry in entries}:
        own = [entry.event.n for entry in entries if entry.key == device]
        assert own == sorted(own)
        assert own == [entry.event.n for entry in stream.sync.read(key=device)]
    generations = [entry.id.generation for entry in entries]
    assert generations == sorted(generations)
    return [entry.id for entry in entries]


# -- the steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 5, 6])
def test_a_stream_gets_another_number_of_shards(app: RStream, raw: redis.Redis, shards: int) -> None:
    seen, told = declare(app), []
    first = seen.sync.publish_many(events(range(100)))
    for group in ("a", "b"):
        for shard in seen.sync.layout().current:
            raw.xgroup_create(shard.stream, group, "0")

    plan = seen.sync.reshard(shards, dry_run=True)
    assert seen.sync.layout(fresh=True).generation == 1
    done = seen.sync.reshard(shards, progress=told.append)
    second = seen.sync.publish_many(events(range(100, 200)))

    layout = seen.sync.layout(fresh=True)
    assert (layout.generation, layout.shards, layout.older, layout.planned) == (2, shards, ((1, 3),), None)
    assert (done.before, done.after, done.generation, done.groups) == (3, shards, 2, ("a", "b"))
    assert (plan.groups, plan.generation, plan.to_drain, plan.dry_run) == (("a", "b"), 2, {"a": 100, "b": 100}, True)
    assert (done.to_drain, done.resumed) == ({"a": 100, "b": 100}, False)
    assert [text.split()[0] for text in told] == ["planned", "opened", "sealed", "flipped:"]
    old, new = layout.every[:3], layout.current
    assert all(is_sealed(raw, shard) for shard in old) and not any(raw.exists(shard.sealed) for shard in new)
    assert all(positions(raw, shard) == {"a": b"0-0", "b": b"0-0"} for shard in new)
    assert {id.generation for id in first} == {1} and {id.generation for id in second} == {2}
    assert min(second) > max(first)
    assert check_order(seen, 200) == sorted(first + second)


def test_the_number_it_has_is_nothing_to_do(app: RStream) -> None:
    seen = declare(app)
    ids = seen.sync.publish_many(events(range(10)))
    done = seen.sync.reshard(3)
    assert (done.generation, done.groups, done.to_drain, done.resumed) == (1, (), {}, False)
    assert seen.sync.publish(Seen(device="x", n=10)).generation == 1 and len(ids) == 10


@pytest.mark.parametrize("shards", [0, -1, 1025])
def test_an_impossible_number_is_refused(app: RStream, shards: int) -> None:
    with pytest.raises(ConfigError, match="between 1 and 1024"):
        declare(app).sync.reshard(shards)


def test_a_stream_that_is_not_stored_is_no_ground_to_store_one(app: RStream, raw: redis.Redis, namespace: str) -> None:
    with pytest.raises(UnknownStream, match="nothing is stored"):
        take(app, resharding.reshard(namespace, "nobody", 4))
    assert not raw.exists(f"{namespace}:stream:nobody")


def test_another_number_waits_for_the_one_that_was_begun(app: RStream) -> None:
    seen = declare(app)
    seen.sync.layout()
    take(app, steps(seen, 8), 2)
    for shards in (3, 5):
        with pytest.raises(ConfigError, match="rstream streams reshard seen --shards 8"):
            seen.sync.reshard(shards)
    assert seen.sync.reshard(8).resumed
    assert seen.sync.reshard(5).generation == 3


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shards", [2, 5])
def test_killed_after_any_step_the_same_again_ends_it(app: RStream, raw: redis.Redis, shards: int, half: bool) -> None:
    for operations in itertools.count():
        seen = declare(app, f"seen{operations}")
        first = seen.sync.publish_many(events(range(50)))
        raw.xgroup_create(seen.sync.layout().current[1].stream, "g", "0")  # one shard lost it, say
        ended = take(app, steps(seen, shards), operations, half=half)
        assert [entry.id for entry in seen.sync.read()] == sorted(first)  # whatever the step, readers see all
        again = seen.sync.reshard(shards)
        second = seen.sync.publish_many(events(range(50, 100)))

        layout = seen.sync.layout(fresh=True)
        assert (again.after, layout.generation, layout.shards, layout.planned) == (shards, 2, shards, None)
        assert all(is_sealed(raw, shard) for shard in layout.every[:3])
        assert all(positions(raw, shard) == {"g": b"0-0"} for shard in layout.current)
        assert check_order(seen, 100) == sorted(first + second)
        if ended is not None:
            break
    assert operations >= 8


@pytest.mark.parametrize("seed", range(6))
def test_several_at_once_do_the_same_as_one(app: RStream, raw: redis.Redis, seed: int) -> None:
    dice = random.Random(seed)
    seen = declare(app)
    first = seen.sync.publish_many(events(range(50)))
    raw.xgroup_create(seen.sync.layout().current[0].stream, "g", "0")
    commands: list[tuple[Steps[Resharding], list[Any]]] = [(steps(seen, 7), [None]) for _ in range(3)]
    while commands:
        command, answer = dice.choice(commands)
        try:
            step = command.send(answer.pop())
        except StopIteration:
            commands.remove((command, answer))
            continue
        answer.append(app.sync_link.run(step) if isinstance(step, Op) else None)
    second = seen.sync.publish_many(events(range(50, 100)))
    layout = seen.sync.layout(fresh=True)
    assert (layout.generation, layout.older) == (2, ((1, 3),))
    assert all(positions(raw, shard) == {"g": b"0-0"} for shard in layout.current)
    assert check_order(seen, 100) == sorted(first + second)


def test_a_step_that_comes_late_changes_nothing(app: RStream, raw: redis.Redis) -> None:
    """A command that was frozen between two steps, for any time."""
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    raw.xgroup_create(seen.sync.layout().current[0].stream, "g", "0")
    frozen = []
    for operations in range(2, 8):  # from the one that has planned to the one that has flipped
        command = steps(seen, 5)
        step: Any = command.send(None)
        for _ in range(operations):
            step = command.send(app.sync_link.run(step))
        frozen.append((command, step))
    seen.sync.reshard(5)
    seen.sync.publish_many(events(range(30, 60)))
    seen.sync.reshard(4)
    seen.sync.publish_many(events(range(60, 90)))
    before = {shard: raw.xinfo_stream(shard.stream)["last-generated-id"] for shard in seen.sync.layout().every}
    for command, step in frozen:
        with contextlib.suppress(StopIteration):
            while True:
                step = command.send(app.sync_link.run(step))
    assert seen.sync.layout(fresh=True).generation == 3
    assert before == {shard: raw.xinfo_stream(shard.stream)["last-generated-id"] for shard in seen.sync.layout().every}
    check_order(seen, 90)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_seal_outlives_the_server(tmp_path: Any, namespace: str, kind: str) -> None:
    with Server(KINDS[kind], tmp_path / "server", tcp=True) as server, RStream(server.url, namespace=namespace) as app:
        seen = declare(app)
        seen.sync.publish(Seen(device="a", n=0))  # in one shard; the others are empty
        old = seen.sync.layout().current
        with redis.Redis.from_url(server.url) as raw:
            raw.delete(next(shard.stream for shard in old if not raw.xlen(shard.stream)))  # and this one was never made
            seen.sync.reshard(5)
            server.restart()
            assert all(is_sealed(raw, shard) for shard in old)
            raw.bgrewriteaof()
            eventually(lambda: raw.info("persistence")["aof_rewrite_in_progress"] == 0)
            server.restart()
            assert all(is_sealed(raw, shard) for shard in old)
            for shard in old:
                dump = raw.dump(shard.stream)
                raw.restore(shard.stream + ":copy", 0, dump)
                assert raw.xinfo_stream(shard.stream + ":copy")["last-generated-id"] == LAST
        assert [entry.event.n for entry in seen.sync.read()] == [0]
        assert seen.sync.publish(Seen(device="a", n=1)).generation == 2


def test_ids_follow_those_of_a_clock_that_ran_ahead(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(20)))
    ahead = raw.time()[0] * 1000 + 3_600_000
    raw.xadd(seen.sync.layout().current[1].stream, {"e": b"x", "i": bytes(16)}, id=f"{ahead}-7")
    take(app, steps(seen, 4), 4)  # sealed
    raw.delete(*(shard.sealed for shard in seen.sync.layout().current))  # then they are looked at again
    seen.sync.reshard(4)
    assert all((id.ms, id.seq) > (ahead, 7) for id in seen.sync.publish_many(events(range(20, 40))))


def test_resharding_goes_on_when_memory_is_full(own_server: Server, namespace: str) -> None:
    with (
        redis.Redis.from_url(own_server.url) as raw,
        RStream(own_server.url, namespace=namespace, publish_timeout=5) as app,
    ):
        seen = declare(app)
        seen.sync.publish_many(events(range(20)))
        take(app, steps(seen, 5), 4)  # sealed
        raw.config_set("maxmemory", 1)
        assert seen.sync.reshard(5).generation == 2
        with pytest.raises(MemoryFull):
            seen.sync.publish(Seen(device="a", n=20))
        raw.config_set("maxmemory", 0)
        seen.sync.publish(Seen(device="a", n=20))
        check_order(seen, 21)


# -- producers ------------------------------------------------------------------------------------------------------


class Storm:
    """Publishers that go on until told to stop, each with keys of its own: one call after the other, many at once, and
    lists of events of several keys."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.found: dict[EntryId, int] = {}
        self.stopped = False

    async def calls(self, stream: Stream[Seen], name: str) -> None:
        while not self.stopped:
            some = [Seen(device=f"{name}-{n % 3}", n=next(self.numbers)) for n in range(30)]
            self._add(await asyncio.gather(*(stream.publish(event) for event in some)), some)

    async def lists(self, stream: Stream[Seen], name: str) -> None:
        while not self.stopped:
            some = [Seen(device=f"{name}-{n % 40}", n=next(self.numbers)) for n in range(700)]
            self._add(await stream.publish_many(some), some)
            await asyncio.sleep(0)

    def thread(self, stream: Stream[Seen], name: str) -> None:
        while not self.stopped:
            some = [Seen(device=f"{name}-{n % 5}", n=next(self.numbers)) for n in range(20)]
            self._add(stream.sync.publish_many(some[:10]), some[:10])
            self._add([stream.sync.publish(event) for event in some[10:]], some[10:])

    def _add(self, ids: list[EntryId], some: list[Seen]) -> None:
        self.found.update((id, event.n) for id, event in zip(ids, some, strict=True))

    @contextlib.asynccontextmanager
    async def blowing(self, stream: Stream[Seen], *others: Stream[Seen]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for n, each in enumerate((stream, *others)):
                group.create_task(self.calls(each, f"call{n}"))
                group.create_task(self.lists(each, f"list{n}"))
                group.create_task(asyncio.to_thread(self.thread, each, f"thread{n}"))
                group.create_task(asyncio.to_thread(self.thread, each, f"other{n}"))
            try:
                yield
            finally:
                self.stopped = True

    async def more(self, count: int) -> None:
        seen = len(self.found)
        await eventually_async(lambda: len(self.found) >= seen + count, 30)


async def test_producers_go_on_through_reshardings(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as other:
        seen, storm = declare(app), Storm()
        async with storm.blowing(seen, declare(other)):
            for shards in (8, 2, 5):
                await storm.more(3000)
                await (seen if shards == 2 else other.streams["seen"]).reshard(shards, progress=quiet)
            await storm.more(3000)
        entries = [entry async for entry in seen.read()]
    assert {entry.id: entry.event.n for entry in entries} == storm.found
    assert {entry.id.generation for entry in entries} == {1, 2, 3, 4}
    by_key: dict[str | None, list[int]] = {}
    for entry in entries:
        by_key.setdefault(entry.key, []).append(entry.event.n)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def test_through_broken_lines_and_reshardings_every_event_is_added_once(
    one_server: Server, namespace: str
) -> None:
    with ChaosProxy(one_server.upstream) as proxy:
        async with (
            RStream(proxy.url, namespace=namespace) as app,
            RStream(one_server.url, namespace=namespace) as other,
        ):
            seen, storm, dice = declare(app), Storm(), random.Random(5)
            async with storm.blowing(seen):
                for shards in (8, 2, 5, 3, 9):
                    proxy.cut_after_request(20, dice, mean_bytes=30_000)
                    await storm.more(2000)
                    await declare_again(other).reshard(shards, progress=quiet)
                proxy.cut_after_request(0, dice, mean_bytes=1)
            entries = [entry async for entry in declare_again(other).read()]
    assert {entry.id: entry.event.n for entry in entries} == storm.found
    by_key: dict[str | None, list[int]] = {}
    for entry in entries:
        by_key.setdefault(entry.key, []).append(entry.event.n)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


def declare_again(app: RStream) -> Stream[Seen]:
    return app.streams.get("seen") or declare(app)


def sealed_at(app: RStream, stream: Stream[Any], raw: redis.Redis, *, half: bool) -> None:
    """A command was killed when it had sealed all shards, or some."""
    for operations in itertools.count(2):
        take(app, steps(stream, 8), operations, half=half)
        if any(raw.exists(shard.sealed) for shard in stream.sync.layout().current):
            return


@pytest.mark.parametrize("half", [False, True])
def test_a_producer_ends_a_resharding_that_stands_still(app: RStream, raw: redis.Redis, half: bool) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(50)))
    sealed_at(app, seen, raw, half=half)
    assert seen.sync.layout(fresh=True).generation == 1
    began = time.monotonic()
    ids = seen.sync.publish_many(events(range(50, 100)))
    assert time.monotonic() - began > resharding.RESCUE * 0.9  # whoever is at it gets time to go on
    layout = seen.sync.layout(fresh=True)
    assert (layout.generation, layout.shards) == (2, 8)
    assert {id.generation for id in ids} == ({1, 2} if half else {2})
    check_order(seen, 100)


async def test_many_producers_that_wait_end_it_together(server: Server, namespace: str, raw: redis.Redis) -> None:
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as other:
        seen, again = declare(app), declare(other)
        await seen.publish_many(events(range(50)))
        sealed_at(app, seen, raw, half=False)
        await asyncio.gather(
            *(seen.publish(event) for event in events(range(50, 80))),
            again.publish_many(events(range(80, 130))),
            asyncio.to_thread(again.sync.publish_many, events(range(130, 180))),
        )
        assert (await seen.layout(fresh=True)).generation == 2
        entries = [entry.event.n async for entry in seen.read()]
    assert sorted(entries) == list(range(180))


async def test_who_cannot_wait_is_told_that_nothing_was_added(server: Server, namespace: str, raw: redis.Redis) -> None:
    async with RStream(server.url, namespace=namespace, publish_timeout=0.2) as app:
        seen = declare(app)
        await seen.publish_many(events(range(50)))
        sealed_at(app, seen, raw, half=False)
        told = await asyncio.gather(*(seen.publish(e) for e in events(range(50, 60))), return_exceptions=True)
        with pytest.raises(StoreUnavailable, match="being resharded") as caught:
            seen.sync.publish_many(events(range(50, 60)))
        for error in (*told, caught.value):
            assert isinstance(error, StoreUnavailable) and not isinstance(error, PublishUncertain)
            assert "rstream streams reshard seen --shards 8" in str(error) and list(error.published) == []
        await seen.reshard(8)
        await seen.publish_many(events(range(50, 60)))
        check_order(seen, 60)


def test_a_flush_that_was_applied_before_the_seal_gets_its_first_answer(app: RStream) -> None:
    seen = declare(app)
    layout = seen.sync.layout()
    outbox, parcels = Outbox(layout), parcels_of(seen, events(range(100)))
    outbox.add(parcels)
    op = outbox.take()
    assert op is not None and len(op.calls) == 3
    app.sync_link.exchange(op.calls[:2])  # applied, the answer was lost; the third did not arrive
    seen.sync.reshard(5)
    app.sync_link.run(op)
    assert outbox.refused is parcels[2].shard
    assert [parcel.promise.done() for parcel in parcels] == [True, True, False]
    assert [{id.generation for id in ids(parcel)} for parcel in parcels[:2]] == [{1}, {1}]

    later = parcels_of(seen, events(range(100, 120)))
    outbox.add(later)  # knows the new shards, and must not come before what was refused
    outbox.go_on(seen.sync.layout())
    while op := outbox.take():
        app.sync_link.run(op)
    assert {id.generation for id in ids(parcels[2])} == {2}
    check_order(seen, 120)


def parcels_of(stream: Stream[Any], some: list[Seen]) -> list[Parcel]:
    records = flattened(stream.prepare(stream.sync.layout(), some)[0])
    return [p for shard, batch in records.items() for p in Parcel.pack(shard, batch, concurrent.futures.Future)]


def ids(parcel: Parcel) -> list[EntryId]:
    assert isinstance(parcel.promise, concurrent.futures.Future)
    found = parcel.promise.result(0)
    assert isinstance(found, list | tuple) and len(found) == parcel.count
    return found


def test_who_has_the_older_layout_goes_where_the_newer_one_says(app: RStream) -> None:
    seen = declare(app)
    stale = parcels_of(seen, events(range(50)))
    seen.sync.reshard(2)
    seen.sync.reshard(7)
    new = seen.sync.layout()
    outbox = Outbox(new)
    outbox.add(stale)
    op = outbox.take()
    assert op is not None
    app.sync_link.run(op)
    assert outbox.refused is None and outbox.take() is None
    for parcel in stale:
        for id, record in zip(ids(parcel), records_of(parcel.flat), strict=True):
            assert (id.generation, id.shard) == (3, place_of(new, record).number)
    check_order(seen, 50)


def test_of_a_parcel_that_was_cut_up_the_error_tells_what_was_published(app: RStream) -> None:
    seen = declare(app, shards=1)
    (parcel,) = parcels_of(seen, events(range(40)))
    outbox = Outbox(seen.sync.layout())
    outbox.add([parcel])
    op = outbox.take()
    assert op is not None
    op.parse([ShardSealed("sealed")])
    seen.sync.reshard(4)
    outbox.go_on(seen.sync.layout())
    op = outbox.take()
    assert op is not None and len(op.calls) == 4
    op.parse([b"5-0", MemoryFull("full"), b"6-0", MemoryFull("full")])
    with pytest.raises(MemoryFull) as caught:
        ids(parcel)
    added = [place_of(seen.sync.layout(), record).number for record in records_of(parcel.flat)]
    shards = [id.shard for id in caught.value.published]
    assert sorted(shards) == sorted(number for number in added if number in set(shards)) and len(set(shards)) == 2


def test_what_has_no_key_is_spread_over_the_new_shards(app: RStream) -> None:
    notes = app.stream("notes", Note, shards=2)
    layout = notes.sync.layout()
    with RStream(app.settings.url, namespace=app.settings.namespace) as other:
        other.stream("notes", Note, shards=2).sync.reshard(8)
    assert notes.sync.layout() == layout  # nobody told it
    found = notes.sync.publish_many(Note(text=str(n)) for n in range(400))
    by_shard = [sum(id.shard == n for id in found) for n in range(8)]
    assert {id.generation for id in found} == {2} and min(by_shard) > 20
    assert {entry.id: entry.event.text for entry in notes.sync.read()} == {id: str(n) for n, id in enumerate(found)}
    assert len({notes.sync.publish(Note(text="x"), key="same").shard for _ in range(5)}) == 1


def test_a_shard_that_was_lost_is_made_anew(app: RStream, raw: redis.Redis, namespace: str) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    raw.delete(seen.sync.layout().current[1].stream)
    kept = len(list(seen.sync.read()))
    assert len(seen.sync.publish_many(events(range(30, 60)))) == 30
    assert len(list(seen.sync.read())) == kept + 30
    seen.sync.reshard(5)
    raw.delete(*raw.keys(f"*{namespace}*"))  # all of it: then what is declared counts
    assert {id.generation for id in seen.sync.publish_many(events(range(10)))} == {1}
    assert len(list(seen.sync.read())) == 10 and seen.sync.layout().shards == 5


# -- readers --------------------------------------------------------------------------------------------------------


async def test_read_and_replay_go_through_all_generations(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as other:
        seen, elsewhere = declare(app), declare(other)
        assert [entry async for entry in seen.read()] == []  # it knows one generation
        published: list[EntryId] = []
        for n, shards in enumerate((5, 2, 8)):
            published += await elsewhere.publish_many(events(range(n * 100, n * 100 + 100)))
            await elsewhere.reshard(shards)
        published += await elsewhere.publish_many(events(range(300, 400)))

        assert [entry.id async for entry in seen.read()] == sorted(published)
        assert [entry.event.n async for entry in seen.read(key="d3")] == list(range(3, 400, 17))
        window = sorted(published)[150:350]
        assert [entry.id async for entry in seen.read(window[0], window[-1])] == window
        handled: list[Delivery] = []
        by_key: list[int] = []

        async def handle(event: Seen, delivery: Delivery) -> None:
            handled.append(delivery)

        async def one(event: Seen) -> None:
            by_key.append(event.n)

        result = await Replay(seen, handle, published[0], None, concurrency=4).run()
        assert (result.handled, result.finished) == (400, True)
        assert sorted(delivery.id for delivery in handled) == sorted(published)
        for key in {delivery.key for delivery in handled}:
            own = [delivery.id for delivery in handled if delivery.key == key]
            assert own == sorted(own)
        await Replay(seen, one, "1h ago", None, key="d3").run()
        assert by_key == list(range(3, 400, 17))


def test_who_goes_on_after_the_last_id_misses_nothing(app: RStream) -> None:
    seen, stop = declare(app), threading.Event()
    numbers = itertools.count()

    def publish() -> None:
        while not stop.is_set():
            seen.sync.publish_many(events(range(next(numbers) * 10, next(numbers) * 10)))
            seen.sync.publish(Seen(device="a", n=0))

    def go_on(at: EntryId | None) -> Iterator[EntryId]:
        for entry in seen.sync.read(at and at._replace(shard=at.shard + 1)):
            yield entry.id

    thread = threading.Thread(target=publish)
    thread.start()
    got: list[EntryId] = []
    with RStream(app.settings.url, namespace=app.settings.namespace) as other:
        for generation, shards in enumerate((5, 2, 8, 3), 1):
            while not got or got[-1].generation < generation:
                got += go_on(got[-1] if got else None)
            declare_again(other).sync.reshard(shards)
        while got[-1].generation < 5:
            got += go_on(got[-1])
    stop.set()
    thread.join()
    got += go_on(got[-1])
    assert got == [entry.id for entry in seen.sync.read()] and len({id.generation for id in got}) == 5
