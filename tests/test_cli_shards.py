"""`rstream groups STREAM --shards`: how a group stands in each shard, of all generations; and the command's shape."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import redis

from rstream import RStream, Stream
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.owners import OwnerOps
from rstream.store.stats import ShardGroupStats
from tests.commands import Commands, Order
from tests.orders import member, publish, stats
from tests.servers import Server


@pytest.fixture
def orders(app: RStream) -> Stream[Order]:
    return app.stream("orders", Order, key="customer", shards=4)


HIGHEST = f"{2**64 - 1}-{2**64 - 1}"


def by_shard(orders: Stream[Order], group: int = 0) -> list[ShardGroupStats]:
    return stats(orders)[group].shards


def reshard(orders: Stream[Order], raw: redis.Redis, shards: int) -> None:
    """What resharding leaves behind: a sealed generation, and a new one."""
    layout = orders.sync.layout()
    for shard in layout.current:
        raw.execute_command("XSETID", shard.stream, HIGHEST)
    number = layout.generation + 1
    raw.hset(keys.stream(layout.namespace, "orders"), mapping={"generation": number, f"shards:{number}": shards})
    new = orders.app.sync_link.run(layouts.load(layout.namespace, "orders"))
    assert new is not None
    orders.adopt(new)


def test_what_a_group_is_in_each_shard(orders: Stream[Order], raw: redis.Redis) -> None:
    run = orders.app.sync_link.run
    publish(orders, 60)
    ops = member(orders)
    layout = orders.sync.layout()
    first, second, _, fourth = layout.current
    tokens = run(OwnerOps(ops).own({first: 0, second: 0}, 60_000))
    raw.delete(second.owner("billing"))
    raw.xgroup_destroy(fourth.stream, "billing")
    entries = run(ops.fetch(1000, [first])).entries
    ids = [first.entry_id(entry.id) for entry in entries]
    ends = [("ack", "", ""), ("retry", 60_000, ""), ("park", 0, entries[2].flat[3]), ("dead", "failed", "Boom")]
    run(ops.settle([Outcome(first, entry.id, 1, *end) for entry, end in zip(entries[:4], ends, strict=True)]))

    (owned, unowned, competing, missing) = by_shard(orders)

    assert (owned.shard, owned.owner, owned.epoch) == (first, "w1", int(tokens[first].partition("|")[2]))
    assert (unowned.owner, unowned.epoch) == ("", int(tokens[second].partition("|")[2]))
    assert (competing.owner, competing.epoch) == (None, None)
    assert (owned.position, owned.lag, owned.pending) == (ids[-1], 0, len(ids) - 2)
    assert (owned.oldest, owned.holder) == (ids[1], "~retry")
    assert owned.oldest_age == owned.behind > 0
    assert (owned.parked, owned.retries, owned.dead) == (1, 1, 1)
    assert (unowned.position, unowned.lag) == (second.entry_id(b"0-0"), raw.xlen(second.stream))
    assert (unowned.pending, unowned.oldest, unowned.holder, unowned.oldest_age) == (0, None, None, 0.0)
    assert (missing.shard, missing.position, missing.lag) == (fourth, None, raw.xlen(fourth.stream))
    assert missing.behind > 0
    assert [each.older for each in (owned, unowned, competing, missing)] == [False] * 4
    (group,) = stats(orders)
    assert group.waiting == {"released": 0, "again": 0, "retry": 1, "parked": 1}
    assert (group.pending, group.lag) == (owned.pending, sum(each.lag or 0 for each in group.shards))


@pytest.mark.parametrize("seed", range(8))
def test_the_lag_of_a_shard_is_right_or_unknown(orders: Stream[Order], raw: redis.Redis, seed: int) -> None:
    """Whatever was read, deleted, trimmed and sealed, and wherever groups were made and moved to."""
    dice = random.Random(seed)
    run = orders.app.sync_link.run
    names = ["first"]
    member(orders, "first")
    known = 0
    for _ in range(70):
        layout = orders.sync.layout()
        shard = dice.choice(layout.every)
        stored = raw.xrange(shard.stream)
        name = dice.choice(names)
        match dice.choice(["publish", "publish", "fetch", "fetch", "delete", "trim", "group", "move", "reshard"]):
            case "publish":
                publish(orders, dice.choice([3, 10, 200]))
            case "fetch":
                run(GroupOps(layout, name, "w1").fetch(dice.choice([1, 5, 150]), [shard]))
            case "delete" if stored:
                raw.xdel(shard.stream, dice.choice(stored)[0])
            case "trim":
                raw.xtrim(shard.stream, maxlen=dice.randrange(20), approximate=False)
            case "group" if stored and len(names) < 4:
                names.append(f"group{len(names)}")
                member(orders, names[-1], start=dice.choice([b"$", dice.choice(stored)[0]]).decode())
            case "move" if stored:
                raw.xgroup_setid(shard.stream, name, dice.choice(["$", "0", dice.choice(stored)[0]]))
            case "reshard" if layout.generation < 3 and len(stored) > 3:
                reshard(orders, raw, dice.choice([2, 3]))
                for group in names:
                    member(orders, group)
        for group in stats(orders):
            for each in group.shards:
                position = each.position
                assert position is not None
                ended = position.redis == HIGHEST
                truth = 0 if ended else len(raw.xrange(each.shard.stream, min=f"({position.redis}"))
                assert each.lag in (None, truth), each
                assert each.older == (each.shard.generation < orders.sync.layout().generation)
                known += each.lag is not None
    assert known > 400


def test_few_unread_entries_are_counted_where_redis_cannot_tell(orders: Stream[Order], raw: redis.Redis) -> None:
    run = orders.app.sync_link.run
    shard = orders.sync.layout().current[0]
    ops = member(orders)
    for n in range(400):
        raw.xadd(shard.stream, {"e": b"x", "k": b"c", "i": b"i"}, id=f"{n + 1}-0")
    run(ops.fetch(50, [shard]))
    raw.xtrim(shard.stream, maxlen=390, approximate=False)
    assert by_shard(orders)[0].lag is None
    run(ops.fetch(250, [shard]))
    assert by_shard(orders)[0].lag == 100
    raw.xdel(shard.stream, "333-0", "334-0")
    assert by_shard(orders)[0].lag == 98
    run(ops.fetch(98, [shard]))
    for n in range(9):
        raw.xadd(shard.stream, {"e": bytes(100_000)}, id=f"{n + 1000}-0")
    run(ops.fetch(1, [shard]))
    assert by_shard(orders)[0].lag is None, "that would be too many bytes to look at"
    run(ops.fetch(6, [shard]))
    assert by_shard(orders)[0].lag == 2


def test_shards_as_json_and_as_a_table(tmp_path: Path, server: Server, namespace: str, raw: redis.Redis) -> None:
    rs = Commands(tmp_path, server.url, namespace)
    with RStream(server.url, namespace=namespace) as app:
        orders = app.stream("orders", Order, key="customer", shards=2)
        publish(orders, 10)
        ops = member(orders)
        old, sealed = orders.sync.layout().current
        (token,) = app.sync_link.run(OwnerOps(ops).own({old: 0}, 60_000)).values()
        entries = app.sync_link.run(ops.fetch(1000, [old])).entries
        app.sync_link.run(ops.settle([Outcome(old, entries[0].id, 1, "park", 0, entries[0].flat[3])]))
        raw.xgroup_setid(sealed.stream, "billing", "$")
        reshard(orders, raw, 1)
        new = orders.sync.layout().current[0]
        audit = GroupOps(orders.sync.layout(), "audit", "w2")
        app.sync_link.run(audit.create("$", [sealed, new]))

    (group,) = json.loads(rs.ok("groups", "orders", "--shards", "--group", "billing", "--json"))
    lines = rs.ok("groups", "orders", "--shards").splitlines()
    told = rs.run("groups", "orders", "--shards", "--group", "billing")

    assert group["shards"][0] == {
        "generation": 1,
        "shard": 0,
        "older": True,
        "owner": "w1",
        "epoch": int(token.partition("|")[2]),
        "position": str(old.entry_id(entries[-1].id)),
        "lag": 0,
        "behind_seconds": group["shards"][0]["behind_seconds"],
        "pending": len(entries),
        "oldest_pending": str(old.entry_id(entries[0].id)),
        "oldest_pending_seconds": group["shards"][0]["behind_seconds"],
        "held_by": "~parked",
        "parked": 1,
        "retries": 0,
        "dead": 0,
    }
    assert [(row["generation"], row["shard"], row["older"]) for row in group["shards"]] == [
        (1, 0, True), (1, 1, True), (2, 0, False),
    ]  # fmt: skip
    assert (group["shards"][2]["position"], group["shards"][2]["owner"]) == (None, None)
    assert group["missing_shards"] == ["2.0"]
    assert lines[0].split("  ")[0] == "GROUP"
    cells = [re.split(r"  +", line) for line in lines]
    assert cells[0] == [
        "GROUP", "SHARD", "OWNER", "EPOCH", "POSITION", "UNREAD", "BEHIND", "PENDING", "OLDEST", "AGE", "HELD BY",
        "ASIDE",
    ]  # fmt: skip
    assert [row[:2] for row in cells[1:]] == [
        ["audit", "1.0 older"], ["audit", "1.1 older"], ["audit", "2.0"],
        ["billing", "1.0 older"], ["billing", "1.1 older"], ["billing", "2.0"],
    ]  # fmt: skip
    assert cells[4][2] == "w1"
    assert cells[4][-2:] == ["~parked", "1"]
    assert cells[2][2:6] == ["-", "-", "end", "0"]
    assert cells[6][4] == "missing"
    assert told.stderr == "group billing is gone from shard 2.0: a worker will read there from the start\n"


def test_what_is_put_aside_is_shown(rs: Commands, one_server: Server, namespace: str) -> None:
    with RStream(one_server.url, namespace=namespace) as app:
        orders = app.stream("orders", Order, key="customer", shards=4)
        publish(orders, 10)
        ops = member(orders)
        entries = app.sync_link.run(ops.fetch(4)).entries
        app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "park", 0, e.flat[3]) for e in entries[:3]]))
    table = rs.ok("groups", "orders").splitlines()
    assert [line.split()[:2] for line in table[3:5]] == [["GROUP", "WAITING"], ["billing", "3"]]
    assert table[4].endswith("its key's turn: put aside")
    assert json.loads(rs.ok("groups", "orders", "--json"))[0]["waiting"]["parked"] == 3


def test_a_stream_may_be_called_as_a_command_is(rs: Commands, one_server: Server, namespace: str) -> None:
    with RStream(one_server.url, namespace=namespace) as app:
        for name in ("reset", "show", "orders"):
            member(app.stream(name, Order, key="customer", shards=1), f"of-{name}")

    def groups(*arguments: str) -> list[str]:
        return [group["name"] for group in json.loads(rs.ok("groups", *arguments))]

    assert groups("show", "reset", "--json") == ["of-reset"]
    assert groups("--json", "reset") == ["of-reset"]
    assert groups("show", "show", "--json") == ["of-show"]
    assert groups("orders", "--json") == groups("--json", "orders") == ["of-orders"]
    assert "STREAM" in rs.run("groups").stderr
    assert rs.run("groups").returncode == rs.run("groups", "--nonsense", "orders").returncode == 2
    wrong = rs.run("groups", "orders", "--group", "nobody")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "Error: no group 'nobody' reads stream 'orders': there are of-orders\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["groups", "--help"], ["rstream groups reset orders", "show", "reset", "STREAM"]),
        (["groups", "orders", "--help"], ["--shards", "--group", "--json", "--url"]),
        (["groups", "reset", "--help"], ["--to X", "--execute", "--force", "--key", "LeaseLost"]),
    ],
)
def test_help_is_where_it_is_looked_for(rs: Commands, command: list[str], told: list[str]) -> None:
    help = rs.ok(*command)
    assert [part for part in told if part not in help] == []
