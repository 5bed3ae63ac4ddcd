"""`rstream streams reshard`, as its users have it: a plan, each step, what is left, and the same again after a kill."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
import redis

from rstream import RStream, Stream
from rstream.store.deliveries import GroupOps
from tests.commands import Commands, Order
from tests.servers import Server
from tests.test_reshard import steps, take
from tests.test_retire import emptied
from tests.waiting import eventually


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Iterator[Stream[Order]]:
    with RStream(one_server.url, namespace=namespace) as app:
        stream = app.stream("orders", Order, key="customer", shards=4)
        stream.sync.publish_many(Order(customer=f"c{n}", total=n) for n in range(100))
        yield stream


def grouped(orders: Stream[Order], *names: str) -> None:
    for name in names:
        orders.app.sync_link.run(GroupOps(orders.sync.layout(), name, "w").create("0"))


def test_a_dry_run_tells_and_does_nothing(rs: Commands, orders: Stream[Order]) -> None:
    grouped(orders, "billing", "audit")
    told = rs.ok("streams", "reshard", "orders", "--shards", "6", "--dry-run")
    assert told.splitlines() == [
        "orders: 4 shards -> 6 (generation 2), groups: audit, billing",
        "Order: a group reads a new shard once it has handled all of the old shards that held its keys "
        "(at most 2 of 4)",
        "Now to be drained from the old shards: audit 100, billing 100",
        "Nothing was done: this was a dry run",
    ]
    layout = orders.sync.layout(fresh=True)
    assert (layout.generation, layout.planned) == (1, None)


def test_it_tells_each_step_and_what_is_left(rs: Commands, orders: Stream[Order]) -> None:
    grouped(orders, "billing")
    told = rs.ok("streams", "reshard", "orders", "--shards", "8").splitlines()
    assert told[0] == "orders: 4 shards -> 8 (generation 2), groups: billing" and "at most 1 of 4" in told[1]
    assert told[2:] == [
        "  planned generation 2 with 8 shards",
        "  opened 8 shards of generation 2 for 1 group",
        "  sealed 4 shards of generation 1",
        "  flipped: producers write to 8 shards of generation 2 now",
        "Still to be drained from old shards: billing 100",
    ]
    (row,) = json.loads(rs.ok("streams", "--json"))
    assert (row["generation"], row["shards"], row["entries"], len(row["per_shard"])) == (2, 8, 100, 12)
    again = rs.ok("streams", "reshard", "orders", "--shards", "8").splitlines()
    assert again == ["orders has 8 shards already: nothing to do", "Still to be drained from old shards: billing 100"]
    assert orders.sync.publish(Order(customer="c", total=1)).generation == 2


def test_producers_and_workers_go_on(rs: Commands, orders: Stream[Order]) -> None:
    with rs.started("worker", "shop:app", "--group", "billing") as worker:
        eventually(lambda: len(rs.handled) == 100, 20)
        for n, shards in enumerate(("7", "3"), 1):
            rs.ok("streams", "reshard", "orders", "--shards", shards)
            orders.sync.publish_many(Order(customer=f"c{m}", total=m) for m in range(100 * n, 100 * n + 100))
        eventually(lambda: len(rs.handled) == 300, 30)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
    assert sorted(rs.handled) == sorted(f"billing c{n} {n}" for n in range(300))
    assert rs.ok("streams", "reshard", "orders", "--shards", "3").splitlines()[1:] == [
        "Still to be drained from old shards: billing 0"
    ]


@pytest.mark.parametrize("operations", [2, 4, 6])  # planned; half of it sealed; all but flipped
def test_what_was_begun_is_gone_on_with(rs: Commands, orders: Stream[Order], operations: int) -> None:
    grouped(orders, "billing")
    take(orders.app, steps(orders, 7), operations, half=True)
    other = rs.run("streams", "reshard", "orders", "--shards", "30")
    assert other.returncode == 1 and "`rstream streams reshard orders --shards 7`" in other.stderr
    told = rs.ok("streams", "reshard", "orders", "--shards", "7")
    assert "It was begun before and is not done: this goes on" in told
    assert "  planned already: going on with what was begun" in told
    assert "producers write to 7 shards" in told
    orders.sync.publish(Order(customer="c", total=100))
    assert sorted(entry.event.total for entry in orders.sync.read()) == list(range(101))


def test_old_shards_in_which_nothing_is_left_are_removed(
    rs: Commands, orders: Stream[Order], one_server: Server
) -> None:
    rs.ok("streams", "reshard", "orders", "--shards", "5")
    with redis.Redis.from_url(one_server.url) as raw:
        orders.sync.layout(fresh=True)
        old = emptied(raw, orders)
        told = rs.ok("streams", "reshard", "orders", "--shards", "5").splitlines()
        assert not raw.exists(*(shard.stream for shard in old))
    assert told == [
        "orders has 5 shards already: nothing to do",
        "  removed generation 1, in which nothing was left",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nope", "--shards", "4"], 1, "no stream 'nope'"),
        (["orders", "--shards", "0"], 1, "between 1 and 1024"),
        (["orders", "--shards", "2000"], 1, "between 1 and 1024"),
        (["orders", "--shards", "many"], 2, "not a valid integer"),
        (["orders"], 2, "Missing option '--shards'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    rs: Commands, orders: Stream[Order], arguments: list[str], code: int, says: str
) -> None:
    done = rs.run("streams", "reshard", *arguments)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert orders.sync.layout(fresh=True).generation == 1


def test_ctrl_c_says_how_to_go_on(rs: Commands, orders: Stream[Order], own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace) as app:
        app.stream("orders", Order, key="customer", shards=4).sync.publish(Order(customer="a", total=1))
    # A signal that comes right before the wait is felt after it.
    rs.env["RSTREAM_URL"] = f"{own_server.url}?socket_timeout=10"
    with redis.Redis.from_url(own_server.url) as raw:
        raw.client_pause(60_000, all=False)  # writes wait
        with rs.started("streams", "reshard", "orders", "--shards", "8") as command:
            eventually(lambda: raw.info("clients")["blocked_clients"] > 0 or command.process.poll() is not None, 20)
            command.process.send_signal(signal.SIGINT)
            assert command.ended() == 130
            assert "To go on: rstream streams reshard orders --shards 8" in command.err
        raw.client_unpause()
    assert "producers write to 8 shards" in rs.ok("streams", "reshard", "orders", "--shards", "8")


def test_streams_still_lists(rs: Commands, orders: Stream[Order]) -> None:
    assert rs.ok("streams").splitlines()[0].split()[0] == "STREAM"
    assert "reshard" in rs.ok("streams", "--help")
