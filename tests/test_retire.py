"""What becomes of generations that are not written to any more: they are removed when nothing is left in them, and
whoever stood still meanwhile does not bring them back.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import redis

from rstream import RStream, Stream
from rstream.store import reshard as resharding
from rstream.store.deliveries import GroupOps
from rstream.store.keys import Shard
from rstream.store.record import Record, new_ones, place_of, publish_once
from tests.servers import Server
from tests.test_reshard import Seen, check_order, declare, events, retiring, steps, take
from tests.test_worker import drain


def emptied(raw: redis.Redis, stream: Stream[Any]) -> tuple[Shard, ...]:
    """What retention does to a generation that is not written to any more."""
    old = tuple(shard for shard in stream.sync.layout().every if shard.generation == 1)
    for shard in old:
        raw.xtrim(shard.stream, maxlen=0, approximate=False)
    return old


def test_a_generation_is_removed_when_nothing_is_left(app: RStream, raw: redis.Redis, namespace: str) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    old = seen.sync.layout().current
    for shard in old:
        raw.xgroup_create(shard.stream, "g", "0")
        raw.xreadgroup("g", "w", {shard.stream: ">"}, count=100)
    seen.sync.reshard(5)
    assert take(app, retiring(seen)) == []
    pending = [(shard, raw.xpending(shard.stream, "g")) for shard in old]
    emptied(raw, seen)
    assert take(app, retiring(seen)) == []  # all of it is pending
    for shard, found in pending[1:]:
        raw.xack(shard.stream, "g", *(item["message_id"] for item in raw.xpending_range(
            shard.stream, "g", found["min"], found["max"], 100)))  # fmt: skip
    assert take(app, retiring(seen)) == []  # in one shard it is
    shard, found = pending[0]
    raw.xack(shard.stream, "g", *(i["message_id"] for i in raw.xpending_range(shard.stream, "g", "-", "+", 100)))
    raw.xadd(old[2].dead("g"), {"id": "1-1"})
    assert take(app, retiring(seen)) == []  # a dead letter
    raw.delete(old[2].dead("g"))
    raw.set(old[1].epoch("g"), "7")
    raw.set(old[1].owner("g"), "w|7")
    assert take(app, retiring(seen)) == [1]
    left = {key.decode() for shard in old for key in raw.keys(shard.stream.replace("{", "?") + "*")}
    assert {key.rpartition(":")[2] for key in left if ":seq:" not in key} == {"done", "sealed"}
    assert all(raw.ttl(key) > 0 for key in left), left
    assert seen.sync.layout(fresh=True).older == () and take(app, retiring(seen)) == []
    assert not [field for field in raw.hkeys(f"{namespace}:stream:seen") if field.endswith(b":1") and b"sh" in field]


@pytest.mark.parametrize("half", [False, True])
def test_a_removal_that_was_killed_at_any_step_is_ended_by_the_next(app: RStream, raw: redis.Redis, half: bool) -> None:
    for operations in itertools.count():
        seen = declare(app, f"seen{operations}")
        seen.sync.publish_many(events(range(30)))
        seen.sync.reshard(5)
        old = emptied(raw, seen)
        ended = take(app, retiring(seen), operations, half=half)
        seen.sync.publish(Seen(device="a", n=1))
        assert [entry.event.n for entry in seen.sync.read()] == [1]
        done = seen.sync.reshard(5)  # the command does it, too
        assert done.removed == (() if ended is not None else (1,))
        assert not raw.exists(*(shard.stream for shard in old))
        assert all(raw.ttl(shard.sealed) > 0 for shard in old)
        assert raw.hkeys(raw_meta(seen)) and b"retired:1" not in raw.hkeys(raw_meta(seen))
        if ended is not None:
            break
    assert operations >= 5


def raw_meta(stream: Stream[Any]) -> str:
    return f"{stream.app.settings.namespace}:stream:{stream.name}"


async def test_who_was_idle_meanwhile_brings_nothing_removed_back(
    server: Server, namespace: str, raw: redis.Redis
) -> None:
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as idle:
        seen, late = declare(app), declare(idle)
        await late.publish(Seen(device="a", n=-1))
        late.sync.publish(Seen(device="a", n=-1))
        await seen.reshard(5)
        old = emptied(raw, seen)
        assert (await seen.reshard(5)).removed == (1,)
        ids = await late.publish_many(events(range(50)))
        ids += late.sync.publish_many(events(range(50, 100)))
        assert {id.generation for id in ids} == {2}
        assert not raw.exists(*(shard.stream for shard in old))
        check_order(seen, 100)


@pytest.mark.parametrize("operations", range(1, 6))
def test_a_command_that_stood_still_meanwhile_makes_nothing_anew(
    app: RStream, raw: redis.Redis, operations: int
) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    command = steps(seen, 5)
    step: Any = command.send(None)
    for _ in range(operations + 2):
        step = command.send(app.sync_link.run(step))
    seen.sync.reshard(5)
    planned = seen.sync.layout().current
    seen.sync.reshard(4)
    emptied(raw, seen)
    assert seen.sync.reshard(4).removed == (1, 2)
    told: list[str] = []
    with pytest.raises(StopIteration):
        while True:
            step = command.send(app.sync_link.run(step))
    assert not raw.exists(*(shard.stream for shard in planned)), told
    seen.sync.publish_many(events(range(30)))
    check_order(seen, 30)


def test_a_producer_that_stood_still_meanwhile_goes_where_others_are(app: RStream, raw: redis.Redis) -> None:
    """Frozen between reading the layout and making the shards that had refused it."""
    seen = declare(app)
    layout = seen.sync.layout()
    shard = layout.current[0]
    following = resharding.follow(seen.declaration(), shard, 10)
    step: Any = following.send(None)
    before = app.sync_link.run(step)
    seen.sync.reshard(5)
    assert seen.sync.reshard(5).removed == (1,)
    step = following.send(before)
    for _ in range(20):
        try:
            step = following.send(None if isinstance(step, float) else app.sync_link.run(step))
        except StopIteration as end:
            assert end.value.generation == 2
            break
    assert not raw.exists(*(shard.stream for shard in layout.current))
    assert all(app.sync_link.run(resharding._seal([shard], 9)) == [((0, 0), False)] for shard in layout.current)
    app.sync_link.run(GroupOps(layout, "g", "w").create("0"))
    assert not raw.exists(*(shard.stream for shard in layout.current))


async def test_what_was_done_in_a_removed_generation_is_remembered(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    handled: list[int] = []

    @seen.consumer("g", once="device")
    async def handle(event: Seen) -> None:
        handled.append(event.n)

    await seen.publish(Seen(device="a", n=1))
    await drain(app)
    await seen.reshard(5)
    emptied(raw, seen)
    assert (await seen.reshard(5)).removed == (1,)
    await seen.publish(Seen(device="a", n=2))
    await drain(app)
    assert handled == [1]


async def test_nor_is_an_event_stored_again_that_was_stored_in_one(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    layout = await seen.layout()
    records = [Record(b"x", b"a", bytes(15) + bytes([n]), b"") for n in range(4)]
    await app.link.run(publish_once({place_of(layout, records[0]): records[:3]}, 60_000))
    await seen.reshard(5)
    emptied(raw, seen)
    assert (await seen.reshard(5)).removed == (1,)
    assert await app.link.run(new_ones(await seen.layout(), records)) == records[3:]


def test_a_group_that_began_in_a_removed_generation_reads_on_in_the_next(app: RStream, raw: redis.Redis) -> None:
    """Its worker was killed before it made the group there, and would begin at the latest entry when it comes back."""
    seen = declare(app)
    seen.sync.publish_many(events(range(5)))
    old = seen.sync.layout().current
    seen.sync.reshard(5)
    for shard in old:
        raw.xgroup_create(shard.stream, "late", "$")
    seen.sync.publish_many(events(range(5, 10)))
    emptied(raw, seen)
    assert seen.sync.reshard(5).removed == (1,)
    groups = [raw.xinfo_groups(shard.stream) for shard in seen.sync.layout().current]
    assert [[(group["name"], group["last-delivered-id"]) for group in each] for each in groups] == [
        [(b"late", b"0-0")]
    ] * 5


def test_dead_letters_keep_a_generation_also_where_its_stream_was_deleted(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    old = seen.sync.layout().current
    for shard in old:
        raw.xgroup_create(shard.stream, "g", "0")
    raw.xadd(old[1].dead("g"), {"id": "1-1"})
    seen.sync.reshard(5)
    raw.delete(*(shard.stream for shard in old))
    assert seen.sync.reshard(5).removed == ()
    raw.delete(old[1].dead("g"))
    assert seen.sync.reshard(5).removed == (1,)
