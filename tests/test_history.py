"""The history in Redis: whoever samples, however many at once, and wherever one dies, all is counted, and once."""

from __future__ import annotations

import itertools
import json
import random
from datetime import timedelta
from typing import Any

import msgpack
import pytest
import redis

from rstream import Event, RStream, Stream
from rstream.buckets import DAY, Bucket
from rstream.errors import ConfigError, PositionError
from rstream.history import history, history_of, window
from rstream.store import keys
from rstream.store.deliveries import GroupOps
from rstream.store.history import Place, Witness, look
from rstream.store.remove import remove
from rstream.store.scripts import SAMPLE
from rstream.store.steps import drive_sync
from rstream.worker.janitor import Janitor
from tests.commands import Commands
from tests.fleets import Cluster
from tests.servers import Server
from tests.test_buckets import full
from tests.test_deliveries import Bench
from tests.test_reshard import declare, events, retiring, take
from tests.test_totals import emptied, kinds, work
from tests.test_worker import drain, working
from tests.waiting import eventually, eventually_async

WHOLE_DAY = timedelta(days=1)


class Item(Event):
    n: int


def place(stream: Stream[Any]) -> Place:
    return Place(stream.app.settings.namespace, stream.name)


def sampled(app: RStream, stream: Stream[Any], witness: Witness | None = None) -> bool:
    return drive_sync(app.sync_link, look(place(stream), witness or Witness(), 0), 0).taken


def read(app: RStream, stream: Stream[Any], step: timedelta = WHOLE_DAY) -> Bucket:
    """All there is, as one."""
    found = window(app.sync_link.run(history_of(stream)), "30d", None, step)
    whole = Bucket(found[0].start, 0)
    for bucket in found:
        whole.published += bucket.published
        whole.resets += bucket.resets
        for name, counts in bucket.groups.items():
            whole.groups.setdefault(name, type(counts)()).add(counts)
    return whole


def counts(bucket: Bucket, group: str = "g") -> dict[str, int]:
    return kinds(bucket.groups[group])  # type: ignore[arg-type]


def key_of(stream: Stream[Any]) -> str:
    return keys.history(*place(stream))


# -- who samples -----------------------------------------------------------------------------------------------------


def test_a_sample_adds_what_has_happened_since_the_one_before(app: RStream) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    assert sampled(app, seen)
    work(app, seen)
    assert sampled(app, seen)
    seen.sync.publish_many(events(range(30, 40)))
    eventually(lambda: sampled(app, seen) and read(app, seen).groups["g"].behind > 0)
    found = read(app, seen)
    assert (found.published, counts(found)) == (40, {"acked": 29, "retried": 3, "dead": 1})


def test_where_nothing_happens_nothing_is_written_but_that_somebody_looked(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    sampled(app, seen)
    before: Any = raw.hgetall(key_of(seen))
    done = drive_sync(app.sync_link, look(place(seen), Witness(), 0), 0)
    assert done.taken and not done.news
    after: Any = raw.hgetall(key_of(seen))
    assert {name for name in after if after[name] != before[name]} <= {b"seq", b"at"}


def test_it_is_time_when_some_seconds_have_passed_or_the_clock_was_set_back(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.layout()

    def due() -> bool:
        return drive_sync(app.sync_link, look(place(seen), Witness(), 5000), 0).taken

    assert due() and not due()
    at = int(raw.hget(key_of(seen), "at") or 0)  # type: ignore[arg-type]
    raw.hset(key_of(seen), "at", at - 4000)
    assert not due()
    raw.hset(key_of(seen), "at", at - 5001)
    assert due() and not due()
    raw.hset(key_of(seen), "at", at + 3_600_000)
    assert due() and not due()


@pytest.mark.parametrize("seed", range(6))
def test_several_at_once_add_nothing_twice(app: RStream, seed: int) -> None:
    rng, seen = random.Random(seed), declare(app)
    seen.sync.layout()
    going: dict[int, tuple[Any, Any]] = {}
    published, taken = 0, 0
    for turn in itertools.count():
        if turn == 300:
            break
        if rng.random() < 0.2:
            seen.sync.publish_many(events(range(published, published + 5)))
            published += 5
        number = rng.randrange(5)
        steps, came = going.pop(number, None) or (look(place(seen), Witness(), 0), None)
        try:
            step = steps.send(came)
            if rng.random() > 0.05:  # else it dies here, its call sent or not
                going[number] = steps, app.sync_link.run(step)
            elif rng.random() < 0.5:
                app.sync_link.run(step)
        except StopIteration as end:
            taken += end.value.taken
        assert read(app, seen).published <= published
    sampled(app, seen)
    assert read(app, seen).published == published and read(app, seen).resets == 0
    assert taken > 10


def test_one_that_is_late_adds_nothing(app: RStream) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(5)))
    late = look(place(seen), Witness(), 0)
    came: Any = None
    while True:
        step: Any = late.send(came)
        if step.calls[0][1] == SAMPLE.sha:
            break
        came = app.sync_link.run(step)
    seen.sync.publish_many(events(range(5, 8)))
    assert sampled(app, seen)
    with pytest.raises(StopIteration) as end:
        late.send(app.sync_link.run(step))
    assert not end.value.value.taken
    assert read(app, seen).published == 8


# -- what is lost ----------------------------------------------------------------------------------------------------


def test_who_remembers_tells_that_redis_lost_all_of_it_and_all_of_them_say_the_same(
    own_server: Server, namespace: str
) -> None:
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        seen = declare(app)
        seen.sync.publish_many(events(range(5)))
        old, other, third = Witness(), Witness(), Witness()
        for witness in (old, other, third, old):
            sampled(app, seen, witness)
        raw.flushall()
        again = declare(RStream(own_server.url, namespace=namespace))
        again.sync.publish_many(events(range(3)))
        assert sampled(app, seen)  # one that remembers nothing is first
        assert read(app, seen).resets == 0
        for witness in (old, other, old, third, other):
            sampled(app, seen, witness)
        assert (read(app, seen).published, read(app, seen).resets) == (3, 1)
        raw.flushall()
        again.sync.layout(fresh=True)
        sampled(app, seen, third)  # one that remembers
        for witness in (old, other, Witness()):
            sampled(app, seen, witness)
        assert read(app, seen).resets == 1
        assert raw.hget(key_of(seen), "resets") == b"2"
        again.app.sync_link.close()


def test_who_began_it_remembers_it_at_once(own_server: Server, namespace: str) -> None:
    """Redis may be lost before its next look."""
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        seen, first = declare(app), Witness()
        seen.sync.publish_many(events(range(5)))
        sampled(app, seen, first)
        raw.flushall()
        declare(RStream(own_server.url, namespace=namespace)).sync.publish_many(events(range(3)))
        sampled(app, seen, first)
        assert (read(app, seen).published, read(app, seen).resets) == (3, 1)


def test_who_remembers_tells_that_redis_went_back(app: RStream, raw: redis.Redis) -> None:
    """As a replica that had not heard the last of it."""
    seen = declare(app)
    seen.sync.publish_many(events(range(5)))
    one, other = Witness(), Witness()
    sampled(app, seen, one)
    before = raw.dump(key_of(seen))
    assert before is not None
    for witness in (other, one):
        sampled(app, seen, witness)
    raw.restore(key_of(seen), 0, before, replace=True)
    for witness in (one, other, one, other):
        sampled(app, seen, witness)
    assert (read(app, seen).published, read(app, seen).resets) == (5, 1)


def test_totals_that_went_back_are_a_reset_for_anybody(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    work(app, seen)
    sampled(app, seen)
    raw.delete(seen.sync.layout().current[1].done)
    sampled(app, seen)
    sampled(app, seen)
    found = read(app, seen)
    assert (found.published, found.resets, counts(found)["acked"]) == (30, 1, 29)


def test_a_group_that_was_removed_and_made_anew_is_no_loss(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw)
    bench.publish(10)
    work(app, bench.stream)
    sampled(app, bench.stream)
    raw.delete(bench.key.dead("g"))
    late = look(place(bench.stream), Witness(), 0)
    step: Any = late.send(None)
    step = late.send(app.sync_link.run(step))
    drive_sync(app.sync_link, remove(bench.layout, "g"), 0)
    bench.publish(3)
    bench.run(bench.ops("w").create("0"))
    with pytest.raises(StopIteration):  # one that had begun before
        while True:
            step = late.send(app.sync_link.run(step))
    work(app, bench.stream)
    sampled(app, bench.stream)
    sampled(app, bench.stream)
    found = read(app, bench.stream)
    assert found.resets == 0 and b"gone:g" not in raw.hkeys(key_of(bench.stream))
    # The new group reads all that is retained: 13 entries, of which one died, and three were retried.
    assert counts(found) == {"acked": 9 + 12, "retried": 6, "dead": 2}


def test_to_remove_a_group_of_a_stream_without_a_history_begins_none(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw)
    drive_sync(app.sync_link, remove(bench.layout, "g"), 0)
    assert not raw.exists(key_of(bench.stream))


def test_resharding_and_the_end_of_a_generation_are_nothing_to_the_history(app: RStream, raw: redis.Redis) -> None:
    for operations in range(12):
        seen = declare(app, f"seen{operations}")
        seen.sync.publish_many(events(range(30)))
        work(app, seen)
        sampled(app, seen)
        seen.sync.reshard(5)
        seen.sync.publish_many(events(range(30, 50)))
        work(app, seen)
        emptied(raw, seen.sync.layout(fresh=True))
        take(app, retiring(seen), operations)
        sampled(app, seen)
        take(app, retiring(seen))
        sampled(app, seen)
        take(app, retiring(seen))
        sampled(app, seen)
        found = read(app, seen)
        assert (found.published, found.resets) == (50, 0)
        assert counts(found) == {"acked": 48, "retried": 6, "dead": 2}


# -- workers ---------------------------------------------------------------------------------------------------------


async def test_a_worker_that_ends_leaves_nothing_out(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        items = app.stream("items", Item, shards=2)

        @items.consumer("g")
        async def handle(event: Item) -> None: ...

        await items.publish_many([Item(n=n) for n in range(50)])
        await drain(app)
        await items.publish_many([Item(n=n) for n in range(7)])  # nobody is there to see it
        await drain(app)
        found = await history(items, "1h", step=timedelta(hours=1))
        assert (sum(b.published for b in found), sum(b.groups["g"].acked for b in found if b.groups)) == (57, 57)
        assert sum(bucket.published for bucket in await history(items)) == 57


async def test_workers_sample_while_they_run(server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rstream.worker.janitor.EVERY_MS", 20)
    monkeypatch.setattr("rstream.worker.janitor.INTERVAL", 0.02)
    monkeypatch.setattr("rstream.worker.janitor.QUIET", 0.05)
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as twin:
        items = app.stream("items", Item, shards=2)
        twins = twin.stream("items", Item, shards=2)
        idle = twin.stream("idle", Item)

        @items.consumer("g")
        @twins.consumer("g")
        async def handle(event: Item) -> None: ...

        await idle.publish(Item(n=1))  # a stream that nobody reads has a history, too

        async def acked() -> int:
            return sum(bucket.groups["g"].acked for bucket in await history(items) if bucket.groups)

        async with working(app), working(twin):
            for n in range(1, 6):
                await items.publish_many([Item(n=i) for i in range(20)])
                await eventually_async(lambda n=n: _is(acked, 20 * n))  # type: ignore[misc]
        assert sum(bucket.published for bucket in await history(idle)) == 1
        assert await acked() == 100


async def _is(found: Any, wanted: int) -> bool:
    number = await found()
    assert number <= wanted
    return bool(number == wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, b"x\xff") for name in ("seq", "at", "resets", "birth", "state", "m5:g", "gone:g")),
        ("state", msgpack.packb([1, 0, 0, {"1.0": "x"}, {}, [0, {}], [0, {}]])),
        ("state", msgpack.packb([1, 0, 0, {}, {"g": ["x"]}, [0, {}], [0, {}]])),
    ],
)
def test_whatever_somebody_writes_there_it_goes_on(app: RStream, raw: redis.Redis, field: str, value: bytes) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(5)))
    assert sampled(app, seen)
    raw.hset(key_of(seen), field, value)
    seen.sync.publish_many(events(range(5, 7)))
    assert sampled(app, seen) and sampled(app, seen)
    assert read(app, seen).published >= 7


async def test_a_declaration_that_cannot_be_read_ends_no_worker(
    server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        one, two = app.stream("one", Item), app.stream("two", Item)
        await one.publish(Item(n=1))
        await two.publish(Item(n=1))
        with redis.Redis.from_url(server.url) as raw:
            raw.hset(keys.stream(namespace, "one"), "schema:1", "{")
            await Janitor(app, "w").look()
        assert sum(bucket.published for bucket in await history(two)) == 1
        assert "stream 'one': its history was not added to" in caplog.text


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("done", "acked:g", b"1" + b"0" * 30),
        ("done", "added", b"9" * 400),
        ("done", "acked:g", b"1.5"),
        ("lost", "g", msgpack.packb([[1]])),
        ("lost", "g", msgpack.packb([])),
        ("lost", "g", msgpack.packb("x")),
        ("history", "state", msgpack.packb([1, 0, 0, {}, {"g": [1]}, [0, {"": [2**64 - 1]}], [0, {"": [2**64 - 1]}]])),
        ("history", "seq", b"1e300"),
        ("history", "resets", b"1e300"),
    ],
)
async def test_numbers_that_are_none_end_no_worker(
    server: Server, namespace: str, key: str, field: str, value: bytes
) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        one, two = app.stream("one", Item, shards=1), app.stream("two", Item)
        await one.publish(Item(n=1))
        await two.publish(Item(n=1))
        (shard,) = (await one.layout()).every
        await app.link.run(GroupOps(await one.layout(), "g", "w").create("0"))
        names = {"done": shard.done, "lost": shard.lost, "history": key_of(one)}
        with redis.Redis.from_url(server.url) as raw:
            raw.hset(names[key], field, value)
            await Janitor(app, "w").look()
        assert sum(bucket.published for bucket in await history(two)) == 1


async def test_a_stream_that_cannot_be_sampled_is_told_once_and_stops_nothing(
    server: Server, namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rstream.worker.janitor.EVERY_MS", 5)
    monkeypatch.setattr("rstream.worker.janitor.INTERVAL", 0.02)
    monkeypatch.setattr("rstream.worker.janitor.QUIET", 0.05)
    async with RStream(server.url, namespace=namespace) as app:
        one, two = app.stream("one", Item), app.stream("two", Item)

        @one.consumer("g")
        async def handle(event: Item) -> None: ...

        with redis.Redis.from_url(server.url) as raw:
            raw.set(key_of(one), "not mine")
        await two.publish(Item(n=1))
        async with working(app):

            async def there() -> int:
                return sum(bucket.published for bucket in await history(two))

            await eventually_async(lambda: _is(there, 1))
            await one.publish(Item(n=1))
        told = [record for record in caplog.records if "history was not added to" in record.message]
        assert len(told) == 1 and "WRONGTYPE" in told[0].message


async def test_on_a_cluster_all_masters_are_in_it_and_one_that_loses_all_is_a_reset(
    own_cluster: Cluster, namespace: str
) -> None:
    async with RStream(own_cluster.url, namespace=namespace) as app:
        seen = declare(app, shards=6)

        @seen.consumer("g")
        async def handle(event: Any) -> None: ...

        await seen.publish_many(events(range(60)))
        await drain(app)
        found = read(app, seen)
        assert (found.published, counts(found)) == (60, {"acked": 60})
        slot = keys.slot_of(key_of(seen))
        shard = next(
            s for s in seen.sync.layout().current if own_cluster.master_of(s.slot) is not own_cluster.node_at(slot)
        )
        own_cluster.master_of(shard.slot).ask("DEL", shard.stream)
        own_cluster.master_of(shard.slot).ask("DEL", shard.done)
        sampled(app, seen)
        found = read(app, seen)
        assert (found.published, found.resets, counts(found)) == (60, 1, {"acked": 60})


# -- what it costs, and what is asked of it --------------------------------------------------------------------------

TAKES = {"group": 68_000, "stream": 12_000}
"""Bytes of Redis at most, as docs/history.md says."""


def test_it_is_as_small_as_it_says(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.layout()
    empty = raw.memory_usage("none") or 0
    book = full(32, 500_000 * 60)
    for kind in ("group", "stream"):
        raw.delete(key_of(seen))
        raw.hset(key_of(seen), mapping={n: v for n, v in book.fields.items() if n.endswith(":") == (kind == "stream")})  # type: ignore[misc]
        took = int(raw.memory_usage(key_of(seen), samples=0) or 0) - empty  # type: ignore[arg-type]
        assert took < TAKES[kind], kind


def test_a_window_begins_and_ends_where_it_is_asked_for(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.layout()
    book = full(31, 10)
    shift = app.sync_link.run(history_of(seen)).now // DAY - max(
        int(n[1:].partition(":")[0]) for n in book.fields if n[0] == "h"
    )
    moved = {f"{n[0]}{int(n[1:].partition(':')[0]) + shift * (24 if n[0] == 'm' else 1)}:{n.partition(':')[2]}": v
             for n, v in book.fields.items()}  # fmt: skip
    raw.hset(key_of(seen), mapping=moved)  # type: ignore[arg-type]
    found = app.sync_link.run(history_of(seen))
    week = window(found, "7d", "1d")
    assert len(week) in (6, 7) and all(bucket.published == 14_400 for bucket in week[1:-1])
    assert len(window(found, "2h ago", None, timedelta(minutes=1))) in (120, 121)
    assert [len(window(found, since)) for since in ("1h", "3h", "6h", "2d", "30d")] == [61, 37, 25, 49, 31]
    for since in ("7h", "2d"):
        with pytest.raises(ConfigError, match="minutes are kept for 6 hours"):
            window(found, since, None, timedelta(minutes=30))
    for step in (timedelta(seconds=30), timedelta(minutes=90), timedelta(0), timedelta.max):
        with pytest.raises(ConfigError, match="whole minutes up to an hour, or whole hours"):
            window(found, "1h", None, step)
    with pytest.raises(PositionError):
        window(found, "last tuesday")
    assert window(found, "1h", "2h") == []


def test_the_command_shows_a_table_a_group_with_totals(rs: Commands) -> None:
    assert rs.run("history", "orders").returncode == 1  # there is no such stream
    rs.ok("publish", "orders", "--app", "shop:app", "--file", "-", stdin='{"customer": "ada", "total": 1}\n' * 30)
    done = rs.run("history", "orders")
    assert done.returncode == 0, done.stderr
    assert "There is no history of it yet" in done.stderr
    rs.ok("worker", "shop:app", "--burst")
    text = rs.ok("history", "orders", "--since", "1h")
    lines = [line.split() for line in text.splitlines() if line]
    kinds = ["ACKED", "RETRIED", "DEAD", "EXPIRED", "FENCED", "REDELIVERED", "LOST"]
    assert lines[0] == ["orders/billing", "PUBLISHED", *kinds, "RESETS", "LAG"]
    totals = [line for line in lines if line[0] == "total"]
    assert [line[1:9] for line in totals] == [["30", "30", "0", "0", "0", "0", "0", "0"]] * 2
    one = rs.ok("history", "orders", "--since", "7d", "--group", "shipping")
    assert "orders/shipping" in one and "billing" not in one
    told = json.loads(rs.ok("history", "orders", "--since", "2h", "--step", "1h", "--json"))
    assert (told["stream"], told["step_seconds"]) == ("orders", 3600) and told["sampled"]
    assert sum(bucket["published"] for bucket in told["buckets"]) == 30
    assert sum(bucket["groups"]["billing"]["acked"] for bucket in told["buckets"]) == 30
    assert rs.run("history", "orders", "--step", "soon").returncode == 2
    refused = rs.run("history", "orders", "--since", "7d", "--step", "1m")
    assert refused.returncode == 1 and "minutes are kept for 6 hours" in refused.stderr
    assert eventually(lambda: "Nothing is known" in rs.ok("history", "orders", "--since", "3h", "--until", "2h"))
