"""Replay as a new group: it begins where it was asked to, misses nothing, and follows live beside those there are."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import redis

from rstream import Delivery, EntryId, Event, RStream, Stream
from rstream.errors import ConfigError, PositionError
from rstream.position import Position
from rstream.replay import Fork, as_group
from rstream.replay.result import ReplayPlan
from rstream.worker.worker import Worker
from tests.commands import Commands
from tests.waiting import eventually_async


class Move(Event):
    player: str
    n: int


def events(first: int, count: int) -> list[Move]:
    return [Move(player=f"p{n % 7}", n=n) for n in range(first, first + count)]


def declared(app: RStream) -> Stream[Move]:
    return app.stream("moves", Move, key="player", shards=4)


async def test_it_gets_all_from_there_on_each_once_while_others_publish(app: RStream) -> None:
    moves = declared(app)
    handled: list[EntryId] = []

    @moves.consumer("shadow", lease=1.0, start="latest")  # which does not count: the group is there
    async def shadow(move: Move, delivery: Delivery) -> None:
        handled.append(delivery.id)

    async with app:
        ids = sorted(await moves.publish_many(events(0, 300)))
        new = await as_group(moves, "shadow", ids[100])
        assert (new.plan.left, new.plan.start, new.plan.end) == (200, ids[100], ids[-1])
        worker = Worker(app)
        working = asyncio.create_task(worker.serve(signals=False))
        for first in range(1000, 1400, 100):
            ids += sorted(await moves.publish_many(events(first, 100)))
        await eventually_async(lambda: len(handled) == 600, timeout=20)
        worker.stop()
        await working
    assert sorted(handled) == sorted(ids[100:])


@pytest.mark.parametrize(
    ("start", "left"), [("earliest", 60), ("latest", 0), ("1h ago", 60), ("2001-01-01", 60), (None, 60)]
)
async def test_it_begins_at_any_point(one_app: RStream, start: Position, left: int) -> None:
    moves = declared(one_app)
    await moves.publish_many(events(0, 60))
    plan = await Fork(moves, "g", start).plan()
    assert (plan.left, plan.entries, plan.way) == (left, left, "new group")
    new = await as_group(moves, "g", start)
    unread = 0
    for at, shard in zip(new.positions, (await moves.layout()).every, strict=True):
        unread += sum(
            1 for entry in [e async for e in moves.read()] if entry.id.shard == shard.number and entry.id > at
        )
    assert unread == left


async def test_nothing_is_made_by_a_plan_and_no_group_is_touched_that_is_there(app: RStream, raw: redis.Redis) -> None:
    moves = declared(app)
    async with app:
        await moves.publish_many(events(0, 20))
        shards = (await moves.layout()).every
        raw.xgroup_create(shards[1].stream, "live", "0")
        raw.xreadgroup("live", "somebody", {shards[1].stream: ">"}, count=2)
        before = raw.xinfo_groups(shards[1].stream)
        plan: ReplayPlan = await Fork(moves, "g", None).plan()
        assert plan.entries == 20
        assert [raw.xinfo_groups(shard.stream) for shard in shards] == [[], before, [], []]
        for work in (Fork(moves, "live", None).plan, Fork(moves, "live", None).make):
            with pytest.raises(ConfigError, match=r"has a group 'live' already: .* rstream groups reset moves"):
                await work()
        await as_group(moves, "g", None)
        with pytest.raises(ConfigError, match="has a group 'g' already"):
            await as_group(moves, "g", None)
        assert [info for info in raw.xinfo_groups(shards[1].stream) if info["name"] == b"live"] == before


async def test_older_shards_are_gone_through_too(one_app: RStream) -> None:
    moves = declared(one_app)
    first = await moves.publish_many(events(0, 100))
    await as_group(moves, "holds", "earliest")  # so that the old shards stay
    await moves.reshard(6)
    second = await moves.publish_many(events(100, 100))
    start = sorted(first)[50]
    new = await as_group(moves, "shadow", start)
    assert len(new.positions) == 10 and new.plan.left == 150
    handled: Counter[EntryId] = Counter()

    @moves.consumer("shadow", lease=1.0)
    async def shadow(move: Move, delivery: Delivery) -> None:
        handled[delivery.id] += 1

    async with asyncio.timeout(20):
        await Worker(one_app, ["shadow"], burst=True).serve(signals=False)
    assert handled == dict.fromkeys([*sorted(first)[50:], *second], 1)


async def test_what_makes_no_sense_is_refused(one_app: RStream) -> None:
    moves = declared(one_app)
    await moves.publish_many(events(0, 5))
    with pytest.raises(PositionError, match="lies in the future"):
        await as_group(moves, "g", "2999-01-01")
    with pytest.raises(PositionError, match="neither an id nor a time"):
        await as_group(moves, "g", "yesterdai")
    with pytest.raises(ConfigError, match="group 'a b'"):
        await as_group(moves, "a b", None)


def test_on_the_command_line(rs: Commands) -> None:
    lines = "".join(f'{{"customer": "c{n}", "total": {n}}}\n' for n in range(5))
    rs.ok("publish", "orders", "-", "--app", "shop:app", stdin=lines)
    out = rs.ok("replay", "orders", "--from", "earliest", "--as-group", "shadow", "--dry-run")
    assert "with 5 entries, then it follows live" in out and "no group was made" in out
    out = rs.ok("replay", "orders", "--from", "earliest", "--as-group", "billing")
    assert "made group billing of stream orders" in out and "5 entries to catch up with" in out
    (command,) = [line.strip() for line in out.splitlines() if line.strip().startswith("rstream worker")]
    assert command == "rstream worker MODULE:APP --group orders/billing"
    rs.ok(*command.replace("MODULE:APP", "shop:app").split()[1:], "--burst")
    assert sorted(rs.handled) == [f"billing c{n} {n}" for n in range(5)]
    done = rs.run("replay", "orders", "--from", "earliest", "--as-group", "billing")
    assert done.returncode == 1 and "has a group 'billing' already" in done.stderr
