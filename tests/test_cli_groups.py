"""`rstream groups`, and the numbers behind it: never wrong, and unknown only where Redis cannot tell."""

from __future__ import annotations

import json
import random
import time

import pytest
import redis

from rstream import RStream, Stream
from rstream.store.deliveries import Outcome
from rstream.store.keys import rotated
from tests.commands import Commands, Order
from tests.orders import member, publish, stats
from tests.servers import Server


@pytest.fixture
def orders(app: RStream) -> Stream[Order]:
    return app.stream("orders", Order, key="customer", shards=4)


def test_a_group_from_its_making_to_the_end(orders: Stream[Order]) -> None:
    run = orders.app.sync_link.run
    publish(orders, 40)
    ops = member(orders)
    (fresh,) = stats(orders)
    fetched = run(ops.fetch(30)).entries
    (reading,) = stats(orders)
    run(ops.settle([Outcome(entry.shard, entry.id, 1, "ack") for entry in fetched]))
    fetched = run(ops.fetch(30)).entries
    run(ops.settle([Outcome(entry.shard, entry.id, 1, "ack") for entry in fetched]))
    (done,) = stats(orders)

    assert (fresh.lag, fresh.pending) == (40, 0)
    assert [(worker.worker, worker.pending, worker.alive) for worker in fresh.workers] == [("w1", 0, False)]
    assert (reading.lag, reading.pending) == (10, 30)
    assert (done.lag, done.pending, done.behind) == (0, 0, 0.0)
    assert sorted(done.positions) == sorted(
        max(entry.id for entry in orders.sync.read() if entry.id.shard == shard) for shard in range(4)
    )


def test_outcomes_and_workers_are_told_apart(orders: Stream[Order]) -> None:
    run = orders.app.sync_link.run
    publish(orders, 40)
    dead, alive = member(orders, worker="dead"), member(orders, worker="alive")
    run(alive.beat(60_000))
    run(dead.fetch(5))
    entries = run(alive.fetch(20)).entries
    ends = [("retry", 60_000, "")] * 3 + [("dead", "poison", "Boom")] * 2 + [("release", 0, "~released")] * 4
    outcomes = [Outcome(e.shard, e.id, 1, *end) for e, end in zip(entries[:9], ends, strict=True)]
    assert run(alive.settle(outcomes)) == []

    (group,) = stats(orders)

    assert [(worker.worker, worker.pending, worker.alive) for worker in group.workers] == [
        ("alive", 11, True),
        ("dead", 5, False),
    ]
    assert group.waiting == {"released": 4, "again": 0, "retry": 3, "parked": 0}
    assert (group.retries, group.dead, group.pending, group.lag) == (3, 2, 5 + 11 + 3 + 4, 15)


def test_behind_is_the_age_of_the_oldest_unprocessed_entry(
    orders: Stream[Order], raw: redis.Redis, namespace: str
) -> None:
    run = orders.app.sync_link.run
    layout = orders.sync.layout()
    now = run(layout_clock())
    for shard, age in enumerate((7_000, 90_000, 50_000, 1_000)):
        raw.xadd(layout.current[shard].stream, {"e": b"x"}, id=f"{now - age}-0")
    ops = member(orders)

    def behind() -> float:
        return stats(orders)[0].behind

    assert behind() == pytest.approx(90, abs=3)
    entries = {entry.shard.number: entry for entry in run(ops.fetch(10)).entries}
    assert behind() == pytest.approx(90, abs=3)  # pending is not processed
    run(ops.settle([Outcome(entries[1].shard, entries[1].id, 1, "ack")]))
    assert behind() == pytest.approx(50, abs=3)
    run(ops.settle([Outcome(entries[2].shard, entries[2].id, 1, "dead", "poison", "")]))
    assert behind() == pytest.approx(7, abs=3)
    run(ops.settle([Outcome(entries[n].shard, entries[n].id, 1, "ack") for n in (0, 3)]))
    assert behind() == 0


def layout_clock():
    from rstream.store import layout

    return layout.clock()


@pytest.mark.parametrize("seed", range(8))
def test_lag_is_right_or_unknown_whatever_was_read_deleted_and_trimmed(
    orders: Stream[Order], raw: redis.Redis, seed: int
) -> None:
    dice = random.Random(seed)
    run = orders.app.sync_link.run
    layout = orders.sync.layout()
    groups = [member(orders, "first")]
    known = 0
    for step in range(60):
        stream = layout.current[dice.randrange(4)].stream
        stored = raw.xrange(stream)
        match dice.choice(["publish", "publish", "fetch", "fetch", "delete", "trim", "group"] if step > 15 else "pf"):
            case "publish" | "p":
                publish(orders, dice.randrange(1, 12))
            case "fetch" | "f":
                run(dice.choice(groups).fetch(dice.randrange(1, 15), rotated(layout.current, dice.randrange(4))))
            case "delete" if stored:
                raw.xdel(stream, dice.choice(stored)[0])
            case "trim":
                raw.xtrim(stream, maxlen=dice.randrange(10), approximate=False)
            case "group" if stored and len(groups) < 4:
                start = dice.choice([b"$", dice.choice(stored)[0]]).decode()
                groups.append(member(orders, f"group{len(groups)}", start=start))
        for group in stats(orders):
            truth = sum(len(raw.xrange(layout.current[at.shard].stream, min=f"({at.redis}")) for at in group.positions)
            assert group.lag in (None, truth), (step, group)
            known += group.lag is not None
            ids = [m for keys in layout.current if (m := raw.xpending(keys.stream, group.name)["min"])]
            assert (group.behind == 0.0) == (not truth and not ids) or group.behind < 1
    assert known > 15


def test_a_shard_that_lost_the_group_counts_as_unread(orders: Stream[Order], raw: redis.Redis) -> None:
    publish(orders, 40)
    ops = member(orders)
    fetched = orders.app.sync_link.run(ops.fetch(100)).entries
    orders.app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in fetched]))
    raw.xgroup_destroy(orders.sync.layout().current[2].stream, "billing")

    (group,) = stats(orders)

    assert group.missing == [orders.sync.layout().current[2]]
    assert group.lag == sum(entry.shard.number == 2 for entry in fetched) > 0
    assert group.behind > 0
    assert len(group.positions) == 3


# -- the command


def test_groups_as_json_and_as_a_table(rs: Commands, one_server: Server, namespace: str) -> None:
    with RStream(one_server.url, namespace=namespace) as app:
        orders = app.stream("orders", Order, key="customer", shards=4)
        orders.sync.layout()
        assert rs.ok("groups", "orders", "--json").strip() == "[]"
        assert "rstream worker" in rs.ok("groups", "orders")
        publish(orders, 10)
        ops = member(orders)
        member(orders, "audit", start="$")
        app.sync_link.run(ops.beat(60_000))
        app.sync_link.run(ops.fetch(4))
    time.sleep(0.002)  # so that something is behind, if only by a millisecond

    audit, billing = json.loads(rs.ok("groups", "orders", "--json"))
    table = rs.ok("groups", "orders").splitlines()

    assert (audit["name"], audit["lag"], audit["behind_seconds"]) == ("audit", 0, 0.0)
    assert audit["workers"] == [{"worker": "w1", "pending": 0, "alive": False}]
    assert (billing["lag"], billing["pending"], billing["retries"], billing["dead"]) == (6, 4, 0, 0)
    assert billing["behind_seconds"] > 0
    assert billing["workers"] == [{"worker": "w1", "pending": 4, "alive": True}]
    assert [position.rpartition("@")[2] for position in billing["positions"]] == ["1.0", "1.1", "1.2", "1.3"]
    assert table[0].split() == ["GROUP", "UNREAD", "PENDING", "RETRIES", "DEAD", "BEHIND", "WORKERS"]
    assert table[2].split()[:5] == ["billing", "6", "4", "0", "0"]
    assert table[-1].split() == ["billing", "w1", "4", "alive"]
