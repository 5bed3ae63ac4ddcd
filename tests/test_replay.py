"""Replay as a library: windows, order, failures, the lease, stopping and going on."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from rstream import Batch, Delivery, EntryId, Event, RStream, Stream
from rstream.errors import ConfigError, PositionError, ReplayBusy, StoreUnavailable
from rstream.replay import Replay, ReplayResult, replay
from rstream.replay.backlog import ENTRIES
from rstream.replay.mark import BAD, Mark
from rstream.replay.run import CHUNK
from rstream.store.replays import OUTCOMES, Outcome, Progress, ReplayOps, Window
from tests.servers import Server
from tests.waiting import eventually, eventually_async


class Seen(Event):
    device: str
    n: int


class Bench:
    """A stream, what was published to it, and what a replay handled."""

    def __init__(self, app: RStream, raw: redis.Redis) -> None:
        self.app, self.raw = app, raw
        self.stream: Stream[Seen] = app.stream("seen", Seen, key="device", shards=4)
        self.ids: list[EntryId] = []
        self.handled: list[EntryId] = []

    def publish(self, count: int, devices: int = 7) -> list[EntryId]:
        """They are returned, and kept in `ids`, in the order in which they are read."""
        begin = len(self.ids)
        events = [Seen(device=f"d{n % devices}", n=n) for n in range(begin, begin + count)]
        new = sorted(self.stream.sync.publish_many(events))
        self.ids = sorted(self.ids + new)
        return new

    async def handle(self, event: Seen, delivery: Delivery) -> None:
        self.handled.append(delivery.id)

    def play(self, *args: Any, handler: Callable[..., Any] | None = None, **options: Any) -> ReplayResult:
        return self.run(lambda: replay(self.stream, handler or self.handle, *args, **options))

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with self.app:
                return await work()

        return asyncio.run(main())

    def tick(self) -> None:
        """Let Redis's clock go on, so that what is published next has later ids."""
        before = self.raw.time()
        eventually(
            lambda: self.raw.time()[0] * 1000 + self.raw.time()[1] // 1000 > before[0] * 1000 + before[1] // 1000
        )

    def stored(self) -> dict[bytes, bytes]:
        """The stored state of the only replay there is; {} for none."""
        keys = list(self.raw.scan_iter(f"{self.app.settings.namespace}:replay:*"))
        assert len(keys) <= 1
        return self.raw.hgetall(keys[0]) if keys else {}

    def shard_keys(self) -> list[str]:
        return [keys.stream for keys in self.stream.sync.layout().current]

    def everything(self) -> dict[bytes, Any]:
        return {key: self.raw.dump(key) for key in self.raw.scan_iter(f"*{self.app.settings.namespace}*")}


@pytest.fixture
def bench(app: RStream, raw: redis.Redis) -> Bench:
    return Bench(app, raw)


@pytest.fixture
def one(one_server: Server, namespace: str) -> Any:
    """The same on one server only, for what does not depend on it."""
    with RStream(one_server.url, namespace=namespace) as app, redis.Redis.from_url(one_server.url) as raw:
        yield Bench(app, raw)


def cut(bench: Bench, before: EntryId) -> list[EntryId]:
    """Trim the stream, as its retention would; what is gone."""
    for shard in bench.stream.sync.layout().every:
        bench.raw.xtrim(shard.stream, minid=before.redis, approximate=False)
    return [id for id in bench.ids if id[:2] < before[:2]]


# -- the window -----------------------------------------------------------------------------------------------------


def test_a_window_by_ids_has_both_its_ends_and_nothing_else(bench: Bench) -> None:
    bench.publish(300)
    result = bench.play(bench.ids[50], bench.ids[249])
    assert sorted(bench.handled) == bench.ids[50:250]
    assert (result.handled, result.failed, result.invalid, result.finished) == (200, 0, 0, True)
    assert (result.start, result.end, result.position) == (bench.ids[50], bench.ids[249], bench.ids[249])
    assert bench.stored() == {}


def test_a_window_by_time_has_both_its_ends(bench: Bench) -> None:
    batches = []
    for _ in range(3):
        batches.append(bench.publish(50))
        bench.tick()
    first, last = batches[1][0].ms, batches[1][-1].ms
    bench.play(*(datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms) for ms in (first, last)))
    assert sorted(bench.handled) == batches[1]


def test_only_the_entries_of_a_key(bench: Bench) -> None:
    bench.publish(100)
    keys = []
    bench.play(None, None, key="d3", handler=lambda event, delivery: keys.append((delivery.key, event.n)))
    assert keys == [("d3", n) for n in range(3, 100, 7)]


def test_no_group_is_touched(bench: Bench) -> None:
    bench.publish(100)
    for key in bench.shard_keys():
        bench.raw.xgroup_create(key, "live", "0")
        bench.raw.xreadgroup("live", "somebody", {key: ">"}, count=5)
    before = [(bench.raw.xinfo_groups(key), bench.raw.xpending(key, "live")) for key in bench.shard_keys()]
    bench.play("earliest", "latest")
    assert sorted(bench.handled) == bench.ids
    assert [(bench.raw.xinfo_groups(key), bench.raw.xpending(key, "live")) for key in bench.shard_keys()] == before


def test_a_plan_tells_all_and_changes_nothing(bench: Bench) -> None:
    bench.publish(300)
    before = bench.everything()
    plan = bench.run(Replay(bench.stream, bench.handle, bench.ids[10], bench.ids[-1]).plan)
    assert (plan.entries, plan.left, plan.shards) == (290, 290, len({id.shard for id in bench.ids[10:]}))
    assert (plan.start, plan.end, plan.resume_after) == (bench.ids[10], bench.ids[-1], None)
    assert plan.bytes == sum(len(entry.payload) for entry in bench.stream.sync.read(bench.ids[10]))
    assert bench.handled == []
    assert bench.everything() == before


def test_an_empty_window_is_done_at_once(bench: Bench) -> None:
    bench.publish(5)
    result = bench.play("2001-01-01", "2001-01-02")
    assert (result.finished, result.start, result.handled, result.fraction) == (True, None, 0, 1.0)
    assert bench.stored() == {}


def test_a_window_that_ends_before_it_begins_is_refused(one: Bench) -> None:
    one.publish(5)
    with pytest.raises(PositionError, match="ends before it begins"):
        one.play(one.ids[3], one.ids[1])
    one.play(one.ids[1], one.ids[3])  # the refusal has not left a lease behind
    assert sorted(one.handled) == one.ids[1:4]


# -- handlers -------------------------------------------------------------------------------------------------------


def test_async_and_sync_handlers_with_and_without_the_delivery(bench: Bench) -> None:
    bench.publish(50)
    loop_thread, threads, got = threading.current_thread(), set(), defaultdict(list)

    async def one(event: Seen) -> None:
        got["async, one"].append(event.n)

    def two(event: Seen, delivery: Delivery) -> None:
        threads.add(threading.current_thread())
        assert (delivery.stream, delivery.group, delivery.attempt) == ("seen", "again", 1)
        assert delivery.key == event.device and len(delivery.event_id) == 16
        got["sync, two"].append(event.n)

    bench.play(None, None, handler=one)
    bench.play(None, None, handler=two, name="again")
    assert {name: sorted(numbers) for name, numbers in got.items()} == {
        "async, one": list(range(50)),
        "sync, two": list(range(50)),
    }
    assert loop_thread not in threads


def test_events_come_as_the_model_that_the_handler_names(bench: Bench) -> None:
    """Also where the stream is opened by its name, and knows no model."""
    bench.publish(3)
    with RStream(bench.app.settings.url, namespace=bench.app.settings.namespace) as other:
        stream = other.open("seen")
        got: list[Any] = []

        def typed(event: Seen) -> None:
            got.append(type(event))

        def untyped(event) -> None:  # type: ignore[no-untyped-def]
            got.append(type(event))

        async def both() -> None:
            async with other:
                await replay(stream, typed, None, None)
                await replay(stream, untyped, None, None)

        asyncio.run(both())
    assert got == [Seen] * 3 + [dict] * 3


def test_a_handler_that_raises_is_counted_and_named_and_the_replay_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(100)
    poison = bench.ids[40]

    async def fails(event: Seen, delivery: Delivery) -> None:
        if delivery.id == poison:
            raise ValueError("no such device")
        bench.handled.append(delivery.id)

    result = bench.play(None, None, handler=fails)
    assert (result.handled, result.failed, result.failed_ids) == (99, 1, (poison,))
    assert sorted([*bench.handled, poison]) == bench.ids
    assert str(poison) in caplog.text and "no such device" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
def test_not_even_an_exit_in_a_handler_ends_the_replay(one: Bench, error: BaseException) -> None:
    one.publish(10)

    async def leaves(event: Seen, delivery: Delivery) -> None:
        raise error

    assert one.play(None, None, handler=leaves).failed == 10


def test_what_cannot_be_decoded_never_reaches_the_handler(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.publish(50)
    key = bench.shard_keys()[2]
    garbage = [
        bench.raw.xadd(key, {"unknown": "field"}),
        bench.raw.xadd(key, {"e": b"\xc1\xff", "k": "d1"}),
        bench.raw.xadd(key, {"e": msgpack.packb([1, {"device": "d1", "n": "many"}]), "k": "d1"}),
        bench.raw.xadd(key, {"e": msgpack.packb([1, {"device": "d1", "n": 1}]), "h": b"\xc1"}),
    ]
    bench.publish(50)
    result = bench.play(None, None)
    assert (result.handled, result.failed, result.invalid) == (100, 0, 4)
    assert [id.redis for id in result.invalid_ids] == [id.decode() for id in garbage]
    assert sorted(bench.handled) == bench.ids
    assert all(str(id) in caplog.text for id in result.invalid_ids)


def test_only_so_many_failures_are_named(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    one.publish(300)

    async def fails(event: Seen) -> None:
        raise ValueError(event.n)

    result = one.play(None, None, handler=fails)
    assert (result.failed, len(result.failed_ids)) == (300, 100)
    assert len(caplog.records) == 101


@pytest.mark.parametrize("ordered", [True, False])
def test_a_key_is_handled_in_order_and_keys_in_parallel(bench: Bench, ordered: bool) -> None:
    bench.publish(200, devices=5)
    running: dict[str, int] = defaultdict(int)
    order: dict[str, list[int]] = defaultdict(list)
    together, overlaps = 0, 0

    async def handler(event: Seen) -> None:
        nonlocal together, overlaps
        running[event.device] += 1
        overlaps += running[event.device] > 1
        together = max(together, sum(running.values()))
        for _ in range(20 + event.n % 4):
            await asyncio.sleep(0)
        order[event.device].append(event.n)
        running[event.device] -= 1

    bench.play(None, None, handler=handler, concurrency=16, ordered=ordered)
    assert sorted(n for numbers in order.values() for n in numbers) == list(range(200))
    if ordered:
        assert together == 5 and not overlaps
        assert all(numbers == sorted(numbers) for numbers in order.values())
    else:
        assert together == 16 and overlaps


def test_a_batch_handler_gets_batches_as_it_was_declared_or_as_asked_for(one: Bench) -> None:
    one.publish(95)
    sizes: list[int] = []
    seen: list[int] = []

    @one.stream.consumer("live", batch=10)
    async def declared(events: list[Seen]) -> None:
        seen.extend(event.n for event in events)
        sizes.append(len(events))

    async def another(events: list[Seen], batch: Batch) -> None:
        sizes.append(len(batch))
        assert [delivery.key for delivery in batch.deliveries] == [event.device for event in events]
        for index, event in enumerate(events):
            if event.n % 2:
                batch.fail(index, ValueError("odd"))

    assert one.play(None, None, handler=declared).handled == 95
    assert sorted(seen) == [*range(95)] and sizes == [10] * 9 + [5]
    sizes.clear()
    assert one.play(None, None, handler=declared, batch=50).handled == 95
    assert sizes == [50, 45]
    sizes.clear()
    result = one.play(None, None, handler=another)
    assert (result.handled, result.failed, sizes) == (48, 47, [95])


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("devices", [1, 5, 60])
def test_batches_have_each_key_in_order(one: Bench, devices: int, concurrency: int) -> None:
    one.publish(600, devices=devices)
    running: dict[str, int] = defaultdict(int)
    order: dict[str, list[int]] = defaultdict(list)
    sizes = []

    async def handler(events: list[Seen]) -> None:
        keys = {event.device for event in events}
        sizes.append(len(events))
        for key in keys:
            running[key] += 1
            assert running[key] == 1
        for _ in range(len(sizes) % 7):
            await asyncio.sleep(0)
        for event in events:
            order[event.device].append(event.n)
        for key in keys:
            running[key] -= 1

    result = one.play(None, None, handler=handler, batch=40, concurrency=concurrency)
    assert result.handled == 600
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert sorted(n for numbers in order.values() for n in numbers) == list(range(600))
    assert concurrency > 1 or sizes == [40] * 15


def test_of_a_batch_that_raises_the_bad_ones_are_found(one: Bench) -> None:
    one.publish(300)
    bad = {one.ids[n] for n in (7, 8, 150, 299)}
    calls = 0

    async def picky(events: list[Seen], batch: Batch) -> None:
        nonlocal calls
        calls += 1
        if any(delivery.id in bad for delivery in batch.deliveries):
            raise ValueError("one of them")
        one.handled.extend(delivery.id for delivery in batch.deliveries)

    result = one.play(None, None, handler=picky, batch=100)
    assert (result.handled, result.failed, set(result.failed_ids)) == (296, 4, bad)
    assert one.handled == [id for id in one.ids if id not in bad]
    assert calls < 60


def test_a_batch_handler_that_always_raises_is_not_called_for_every_event(one: Bench) -> None:
    one.publish(256)
    calls = 0

    async def broken(events: list[Seen], batch: Batch) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("the database is away")

    result = one.play(None, None, handler=broken, batch=256)
    assert (result.handled, result.failed) == (0, 256)
    assert calls < 20


def test_what_cannot_be_decoded_is_in_no_batch(one: Bench) -> None:
    one.publish(50)
    one.raw.xadd(one.shard_keys()[2], {"e": b"\xc1", "k": "d1"})

    async def handler(events: list[Seen], batch: Batch) -> None:
        one.handled.extend(delivery.id for delivery in batch.deliveries)

    result = one.play(None, None, handler=handler, batch=20)
    assert (result.handled, result.invalid) == (50, 1)
    assert sorted(one.handled) == one.ids


def test_no_more_than_the_concurrency_run_at_once_and_reading_waits_for_them(one: Bench) -> None:
    one.publish(5000, devices=1000)

    async def main() -> None:
        gate, begun = asyncio.Event(), 0

        async def blocked(event: Seen, delivery: Delivery) -> None:
            nonlocal begun
            begun += 1
            await gate.wait()
            await one.handle(event, delivery)

        run = Replay(one.stream, blocked, None, None, concurrency=4)
        task = asyncio.create_task(run.run())
        await eventually_async(lambda: run._backlog.full and begun == 4)
        assert run._mark.open <= ENTRIES + 4 + 2 * CHUNK
        gate.set()
        await task

    one.run(main)
    assert sorted(one.handled) == one.ids


def test_progress_is_told_and_may_fail(one: Bench) -> None:
    one.publish(100)
    told: list[ReplayResult] = []

    async def main() -> None:
        def show(result: ReplayResult) -> None:
            told.append(result)
            if result.done:
                raise ValueError("the bar broke")

        async def until_told(event: Seen, delivery: Delivery) -> None:
            if delivery.id == one.ids[50]:
                await eventually_async(lambda: told[-1].done)
            await one.handle(event, delivery)

        await replay(one.stream, until_told, None, None, progress=show)

    one.run(main)
    assert sorted(one.handled) == one.ids
    assert 0 <= told[-1].fraction <= 1 and not told[-1].finished


# -- stopping and going on ------------------------------------------------------------------------------------------


def stop_after(bench: Bench, count: int, **options: Any) -> ReplayResult:
    """A replay that is stopped while its next entries are being handled."""

    async def main() -> ReplayResult:
        async def handle(event: Seen, delivery: Delivery) -> None:
            if len(bench.handled) >= count:
                run.stop()
            await asyncio.sleep(0)
            await bench.handle(event, delivery)

        run = Replay(bench.stream, handle, None, None, handler_name="same", **options)
        return await run.run()

    result: ReplayResult = bench.run(main)
    return result


def go_on(bench: Bench, **options: Any) -> ReplayResult:
    run = Replay(bench.stream, bench.handle, None, None, handler_name="same", **options)
    result: ReplayResult = bench.run(run.run)
    return result


def test_stopped_and_gone_on_with_every_entry_is_handled_once_in_the_first_window(bench: Bench) -> None:
    window = bench.publish(500)
    first = stop_after(bench, 200)
    assert not first.finished
    assert 200 <= first.handled == len(bench.handled) < 500
    bench.publish(100)  # "latest" is what it was when the replay began
    second = go_on(bench)
    assert sorted(bench.handled) == window
    assert (second.handled, second.earlier, second.finished) == (500, first.handled, True)
    assert second.resumed_from == first.position
    assert bench.stored() == {}


def test_the_same_with_one_hot_key_among_others(one: Bench) -> None:
    """What was handled above the position, past a key that waits, is remembered as well."""
    window = one.publish(100, devices=1) + one.publish(100, devices=50)
    stop_after(one, 60)
    go_on(one)
    assert sorted(one.handled) == sorted(window)
    assert len(set(one.handled)) == len(one.handled)


# -- trimmed meanwhile ----------------------------------------------------------------------------------------------


def spread(bench: Bench, moments: int = 20, each: int = 150) -> list[EntryId]:
    """At many moments: there are pages enough that not all has been read when it is trimmed."""
    for _ in range(moments):
        bench.publish(each)
        bench.tick()
    return bench.ids


def test_a_trim_that_overtakes_a_replay_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    ids = spread(bench, 40)

    async def handle(event: Seen, delivery: Delivery) -> None:
        if not bench.handled:
            await asyncio.to_thread(cut, bench, ids[5500])
        await bench.handle(event, delivery)

    result = bench.play(None, None, handler=handle, concurrency=1)
    missed = set(ids) - set(bench.handled)
    assert result.finished and missed and result.handled == len(bench.handled)
    assert result.trimmed and min(result.trimmed) == min(missed) and set(result.trimmed) <= missed
    assert caplog.text.count("were trimmed before they were read") == 1
    assert bench.play(None, None).trimmed == ()  # what was gone before is in no window


def test_a_trim_of_what_was_read_is_none(one: Bench) -> None:
    ids = spread(one)

    async def handle(event: Seen, delivery: Delivery) -> None:
        await asyncio.to_thread(cut, one, delivery.id)
        await one.handle(event, delivery)

    result = one.play(None, None, handler=handle, concurrency=1)
    assert (result.trimmed, one.handled) == ((), ids)


@pytest.mark.parametrize("further", [0, 1000])
def test_a_trim_between_two_runs_is_told(one: Bench, further: int) -> None:
    ids = spread(one)
    first = stop_after(one, 100, concurrency=1)
    assert first.position is not None
    following = ids.index(first.position) + 1
    gone = [id for id in cut(one, ids[following + further]) if id > first.position]
    second = go_on(one)
    assert second.finished and sorted(one.handled) == [id for id in ids if id not in gone]
    assert second.trimmed[:1] == ((ids[following],) if further else ())


def test_a_plan_tells_where_it_would_go_on(one: Bench) -> None:
    one.publish(100)
    first = stop_after(one, 30)
    before = one.stored()
    plan = one.run(Replay(one.stream, one.handle, None, None, handler_name="same").plan)
    assert (plan.entries, plan.left, plan.resume_after) == (100, 100 - first.handled, first.position)
    assert one.stored() == before


def test_restart_forgets_how_far_it_was(one: Bench) -> None:
    one.publish(100)
    stop_after(one, 30)
    one.handled.clear()
    assert go_on(one, restart=True).earlier == 0
    assert sorted(one.handled) == one.ids


def test_failures_before_the_stop_are_told_after_it(one: Bench) -> None:
    one.publish(100)

    async def main() -> ReplayResult:
        async def fails(event: Seen, delivery: Delivery) -> None:
            if delivery.id == one.ids[20]:
                raise ValueError
            if delivery.id == one.ids[60]:
                run.stop()

        run = Replay(one.stream, fails, None, None, handler_name="same", concurrency=1)
        return await run.run()

    assert not one.run(main).finished
    result = go_on(one)
    assert (result.handled, result.failed, result.failed_ids) == (99, 1, (one.ids[20],))


def test_a_cancelled_replay_has_stored_what_was_handled(one: Bench) -> None:
    one.publish(100)

    async def main() -> None:
        async def handle(event: Seen, delivery: Delivery) -> None:
            if len(one.handled) >= 40:
                await asyncio.Event().wait()
            await one.handle(event, delivery)

        task = asyncio.create_task(Replay(one.stream, handle, None, None, handler_name="same").run())
        await eventually_async(lambda: len(one.handled) == 40)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    one.run(main)
    assert go_on(one).earlier == 40
    assert sorted(one.handled) == one.ids


def test_another_window_or_handler_under_the_same_name_is_refused(one: Bench) -> None:
    one.publish(100)
    stop_after(one, 30, name="mine")
    for end, handler, told in (
        (one.ids[50], "same", rf"begun with to 'any' and .*; now it is to '{one.ids[50]}': "),
        (None, "other", "begun with handler 'same' and .*; now it is handler 'other': "),
    ):
        run = Replay(one.stream, one.handle, None, end, handler_name=handler, name="mine")
        with pytest.raises(ConfigError, match=told):
            one.run(run.run)
    assert go_on(one, name="mine").finished


def test_a_live_group_is_no_name_for_a_replay(bench: Bench) -> None:
    bench.publish(10)
    bench.raw.xgroup_create(bench.shard_keys()[1], "live", "0")
    for work in ("run", "plan"):
        run = Replay(bench.stream, bench.handle, None, None, name="live")
        with pytest.raises(ConfigError, match="'live' is a live consumer group"):
            bench.run(getattr(run, work))
    assert bench.handled == []


def test_wishes_that_make_no_sense_are_refused(one: Bench) -> None:
    with pytest.raises(ConfigError, match="concurrency"):
        Replay(one.stream, one.handle, None, None, concurrency=0)
    with pytest.raises(ConfigError, match="replay 'a b'"):
        Replay(one.stream, one.handle, None, None, name="a b")


@given(st.data())
def test_what_is_stored_at_any_moment_misses_nothing_and_repeats_only_what_came_after(data: st.DataObject) -> None:
    ids = [EntryId(n, 0, 1, 0) for n in range(30)]
    mark, done = Mark(Progress()), dict[EntryId, Outcome]()
    todo, running = list(ids), list[EntryId]()
    for _ in range(data.draw(st.integers(0, 50))):
        if todo and (not running or data.draw(st.booleans())):
            running.append(todo.pop(0))
            assert not mark.begin([running[-1]])
        elif running:
            id = running.pop(data.draw(st.integers(0, len(running) - 1)))
            done[id] = data.draw(st.sampled_from(OUTCOMES))
            mark.end({id: done[id]})

    told = mark.progress()
    assert {id for id in ids if told.position and id <= told.position} | told.beyond.keys() == done.keys()
    assert sum(told.counts.values()) + len(told.beyond) == len(done)

    again = Mark(told)
    left = [id for id in ids if (told.position is None or id > told.position) and not again.begin([id])]
    assert left == [id for id in ids if id not in done]
    again.end(dict.fromkeys(left, "handled"))
    end = again.progress()
    assert (end.position, end.beyond, again.open) == (ids[-1], {}, 0)
    assert sum(end.counts.values()) == len(ids)
    assert set(end.aside) == {id for id, outcome in done.items() if outcome in BAD}


def test_bounds_are_stored_whole(one: Bench) -> None:
    """An end may have parts that no entry has."""
    ops = ReplayOps(one.app.settings.namespace, "seen", "whole", "me", 1000)
    window = Window(EntryId(0, 0, 0, 0), EntryId(*[2**64 - 1] * 4))
    one.app.sync_link.run(ops.take())
    assert one.app.sync_link.run(ops.open({"from": "a = b c"}, window))
    saved = one.app.sync_link.run(ops.load())
    assert (saved.window, dict(saved.spec)) == (window, {"from": "a = b c"})


# -- the lease ------------------------------------------------------------------------------------------------------


class Gated:
    """A replay whose first entries are being handled until the gate opens."""

    def __init__(self, bench: Bench, **options: Any) -> None:
        self.bench, self.gate, self.begun = bench, asyncio.Event(), 0
        self.run = Replay(bench.stream, self.handle, None, None, handler_name="same", **options)
        self.task = asyncio.create_task(self.run.run())

    async def handle(self, event: Seen, delivery: Delivery) -> None:
        self.begun += 1
        await self.gate.wait()
        await self.bench.handle(event, delivery)

    async def running(self) -> None:
        await eventually_async(lambda: self.begun)


@pytest.mark.long
def test_one_that_is_alive_is_not_disturbed(bench: Bench) -> None:
    bench.publish(20)

    async def main() -> None:
        first = Gated(bench)
        await first.running()
        said: list[str] = []
        for restart in (False, True):
            second = Replay(
                bench.stream, bench.handle, None, None, handler_name="same", restart=restart, notice=said.append
            )
            with pytest.raises(ReplayBusy, match="running already"):
                await second.run()
        assert len(said) == 2
        first.gate.set()
        assert (await first.task).handled == 20

    bench.run(main)
    assert sorted(bench.handled) == bench.ids


def test_a_dead_one_is_followed_when_its_lease_is_over(bench: Bench) -> None:
    bench.publish(20)

    async def main() -> ReplayResult:
        said: list[str] = []
        run = Replay(bench.stream, bench.handle, None, None, handler_name="same", notice=said.append)
        dead = ReplayOps(bench.app.settings.namespace, "seen", run.name, "the-dead-one", 1000)
        await bench.app.link.run(dead.take())  # and it never says another word
        result = await run.run()
        assert len(said) == 1 and "the-dead-one" in said[0]
        return result

    result = bench.run(main)
    assert result.finished and result.seconds > 0.9
    assert sorted(bench.handled) == bench.ids


def test_whoever_lost_the_lease_stops_and_stores_nothing(bench: Bench) -> None:
    bench.publish(100)

    async def main() -> None:
        loser = Gated(bench, lease=1.0, concurrency=4)
        await loser.running()
        (key,) = bench.raw.scan_iter(f"{bench.app.settings.namespace}:replay:*")
        bench.raw.hset(key, "holder", "another")
        before = bench.stored()
        await eventually_async(lambda: loser.run._stop_asked.is_set())
        loser.gate.set()
        with pytest.raises(ReplayBusy, match="taken over"):
            await loser.task
        assert bench.stored() == before

    bench.run(main)
    assert len(bench.handled) == 4  # those that ran when it noticed


@pytest.mark.long
def test_a_handler_that_blocks_the_loop_does_not_lose_the_lease(bench: Bench) -> None:
    bench.publish(3)

    def until() -> int:
        return int(bench.stored()[b"until"])

    async def blocks(event: Seen) -> None:
        first = until()
        eventually(lambda: until() > first + 1200, timeout=10)

    result = bench.run(Replay(bench.stream, blocks, None, None, lease=1.0, concurrency=1).run)
    assert result.handled == 3


def test_redis_away_for_a_moment_is_waited_out(own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        bench = Bench(app, raw)
        bench.publish(3000)

        async def restarts(event: Seen, delivery: Delivery) -> None:
            if event.n == 1000:
                await asyncio.to_thread(own_server.restart)
            await bench.handle(event, delivery)

        result = bench.play(None, None, handler=restarts)
        assert (result.handled, result.finished) == (3000, True)
        assert sorted(bench.handled) == bench.ids


def test_redis_away_for_long_ends_it_and_the_next_goes_on(own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace, publish_timeout=0.3) as app:
        bench = Bench(app, redis.Redis.from_url(own_server.url))
        window = bench.publish(3000)

        async def main() -> None:
            gate = asyncio.Event()

            async def handle(event: Seen, delivery: Delivery) -> None:
                if len(bench.handled) == 1000:
                    await gate.wait()
                await bench.handle(event, delivery)

            run = Replay(bench.stream, handle, None, None, handler_name="same", concurrency=1, lease=1.0)
            task = asyncio.create_task(run.run())
            await eventually_async(lambda: bench.stored().get(b"handled") == b"1000")
            await asyncio.to_thread(own_server.stop)
            await eventually_async(lambda: run._stop_asked.is_set(), timeout=15)
            gate.set()
            with pytest.raises(StoreUnavailable):
                await task

        bench.run(main)
        own_server.start()
        result = go_on(bench)
        # only the entry that was finished without Redis could not be stored
        assert (result.earlier, result.finished) == (1000, True)
        assert set(bench.handled) == set(window) and len(bench.handled) == 3001
        bench.raw.close()
