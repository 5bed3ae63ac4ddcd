"""`rstream trim` and `rstream streams retention`: what is kept, what is in the way, and what was dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis

from rstream import Retention, RStream, Stream
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.lost import losses
from rstream.store.steps import drive_sync
from rstream.store.trim import retain
from tests.commands import Commands, Order
from tests.orders import member
from tests.servers import Server


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Iterator[Stream[Order]]:
    """With 40 entries, in 2 shards."""
    with RStream(one_server.url, namespace=namespace) as app:
        stream = app.stream("orders", Order, key="customer", shards=2)
        stream.sync.publish_many(Order(customer=f"c{n}", total=n) for n in range(40))
        yield stream


def per_shard(orders: Stream[Order]) -> list[int]:
    with redis.Redis.from_url(orders.app.settings.url or "") as raw:
        return [raw.xlen(shard.stream) for shard in orders.sync.layout().current]


def settle(orders: Stream[Order], ops: GroupOps, count: int) -> None:
    found = orders.app.sync_link.run(ops.fetch(count)).entries
    orders.app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in found]))


def keep(orders: Stream[Order], retention: Retention) -> None:
    drive_sync(orders.app.sync_link, retain(orders.sync.layout(), retention), 5)


def test_without_a_retention_everything_is_kept(rs: Commands, orders: Stream[Order]) -> None:
    assert "keeps everything" in rs.ok("trim", "orders")
    assert sum(per_shard(orders)) == 40


def test_a_retention_is_set_changed_and_taken_away(rs: Commands, orders: Stream[Order]) -> None:
    assert "age 7d, bytes 100 MB; unprocessed keep" in rs.ok(
        "streams", "retention", "orders", "--age", "7d", "--bytes", "100MB"
    )
    assert "age 7d, entries 50; unprocessed drop, group_ttl 1d, soft 0.5" in rs.ok(
        *("streams", "retention", "orders", "--bytes", "none", "--entries", "50"),
        *("--unprocessed", "drop", "--group-ttl", "1d", "--soft", "0.5"),
    )
    assert "everything is kept" in rs.ok("streams", "retention", "orders", "--none")
    assert rs.ok("streams", "retention", "orders") == "orders: everything is kept\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--age", "soon"], "age is 'soon'"),
        (["--none", "--age", "1d"], "leave out the other options"),
    ],
)
def test_what_makes_no_sense_is_refused(rs: Commands, orders: Stream[Order], arguments: list[str], why: str) -> None:
    done = rs.run("streams", "retention", "orders", *arguments)
    assert done.returncode == 1 and why in done.stderr


def test_a_dry_run_says_what_a_trim_then_does(rs: Commands, orders: Stream[Order]) -> None:
    keep(orders, Retention(entries=10))
    before = per_shard(orders)
    planned = json.loads(rs.ok("trim", "orders", "--dry-run", "--json"))
    assert per_shard(orders) == before
    done = json.loads(rs.ok("trim", "orders", "--json"))
    assert [shard["trimmed"] for shard in planned["shards"]] == [shard["trimmed"] for shard in done["shards"]]
    assert sum(shard["trimmed"] for shard in done["shards"]) == 30
    assert per_shard(orders) == [5, 5]


def test_a_dry_run_of_a_large_trim_does(rs: Commands, orders: Stream[Order]) -> None:
    """Which takes several calls."""
    for _ in range(3):
        orders.sync.publish_many([Order(customer=f"c{n}", total=n) for n in range(4000)])
    keep(orders, Retention(entries=10))
    before = per_shard(orders)
    planned = json.loads(rs.ok("trim", "orders", "--dry-run", "--json"))
    assert per_shard(orders) == before
    done = json.loads(rs.ok("trim", "orders", "--json"))
    assert [shard["trimmed"] for shard in planned["shards"]] == [shard["trimmed"] for shard in done["shards"]]
    assert per_shard(orders) == [5, 5]


def test_it_names_the_group_the_entry_and_whose_delivery_it_is(rs: Commands, orders: Stream[Order]) -> None:
    keep(orders, Retention(entries=10))
    first = member(orders, "ahead")
    settle(orders, first, 40)
    behind = member(orders, "behind", "w7")
    held = orders.app.sync_link.run(behind.fetch(1)).entries[0]
    shown = json.loads(rs.ok("trim", "orders", "--json"))
    pinned = {shard["shard"]: shard["pinned_by"] for shard in shown["shards"]}
    assert all(pin["group"] == "behind" for pin in pinned.values())
    mine = pinned[held.shard.number]
    assert mine["entry"] == str(held.shard.entry_id(held.id))
    assert (mine["holder"], mine["holder_alive"], mine["attempt"]) == ("w7", False, 1)
    other = pinned[1 - held.shard.number]
    assert other["entry"] is None and other["unread"] == per_shard(orders)[1 - held.shard.number]
    orders.app.sync_link.run(behind.beat(60_000))
    text = rs.ok("trim", "orders")
    assert f"{held.id.decode()}" in text and "w7 (alive), attempt 1" in text and "behind" in text
    assert sum(per_shard(orders)) == 40
    orders.app.sync_link.run(behind.settle([Outcome(held.shard, held.id, 1, "retry", 60_000)]))
    assert "retry, attempt 1" in rs.ok("trim", "orders", "--dry-run")


def test_what_was_dropped_is_told_with_its_ids(rs: Commands, orders: Stream[Order]) -> None:
    ids = [entry.id for entry in orders.sync.read()]
    settle(orders, member(orders, "ahead"), 40)
    member(orders, "behind")
    keep(orders, Retention(entries=10, unprocessed="drop"))
    shown = json.loads(rs.ok("trim", "orders", "--json"))
    dropped = shown["dropped_unprocessed"]
    assert {loss["group"] for loss in dropped} == {"behind"}
    assert sum(loss["count"] for loss in dropped) == 30
    for loss in dropped:
        (part,) = loss["ranges"]
        of_shard = [str(id) for id in ids if id.shard == loss["shard"]]
        assert part == {"from": of_shard[0], "to": of_shard[loss["count"] - 1], "count": loss["count"]}
    assert "DROPPED UNPROCESSED" in rs.ok("trim", "orders", "--dry-run")
    assert "DROPPED UNPROCESSED" in rs.ok("groups", "orders")
    groups = json.loads(rs.ok("groups", "orders", "--json"))
    assert {group["name"]: group["dropped_unprocessed"] for group in groups} == {"ahead": 0, "behind": 30}
    assert "DROPPED" not in rs.ok("groups", "show", "orders", "--group", "ahead")


def test_alarms_are_shown(rs: Commands, orders: Stream[Order]) -> None:
    keep(orders, Retention(entries=10, group_ttl="1h"))
    member(orders, "behind")
    with redis.Redis.from_url(orders.app.settings.url or "") as raw:
        key = f"{orders.app.settings.namespace}:seen:orders"
        raw.hset(key, "behind", int((raw.time()[0] - 2000) * 1000))
        assert "more than half of group_ttl" in rs.run("trim", "orders", "--dry-run").stderr
        raw.hset(key, "behind", int((raw.time()[0] - 4000) * 1000))
        planned = json.loads(rs.ok("trim", "orders", "--dry-run", "--json"))
    assert "keeps nothing from being trimmed" in rs.run("groups", "orders").stderr
    assert [(group["name"], group["alarm"]) for group in planned["groups"]] == [("behind", "ignored")]
    assert sum(shard["trimmed"] for shard in planned["shards"]) == 30


def test_what_was_lost_in_a_generation_that_is_gone_is_still_told(rs: Commands, orders: Stream[Order]) -> None:
    member(orders, "behind")
    keep(orders, Retention(entries=10, unprocessed="drop"))
    orders.sync.reshard(4)
    keep(orders, Retention(age="0.001s", unprocessed="drop"))
    rs.ok("trim", "orders")
    orders.sync.reshard(4)  # removes what is empty
    layout = orders.sync.layout(fresh=True)
    assert layout.removed and not layout.older
    assert sum(loss.count for loss in orders.app.sync_link.run(losses(layout))) == 40
    shown = json.loads(rs.ok("trim", "orders", "--json"))
    assert sum(loss["count"] for loss in shown["dropped_unprocessed"]) == 40
