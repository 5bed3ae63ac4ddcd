"""`rstream dead`, as its users have it: processes, one-line errors, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis

from rstream import RStream, Stream
from rstream.store.deliveries import GroupOps, Outcome
from tests.commands import Commands, Order
from tests.servers import Server
from tests.test_deadletter import next_millisecond

BROKEN = """
import pathlib
from rstream import Delivery, Event, RetryPolicy, RStream

app = RStream()

class Order(Event):
    customer: str
    total: float
    scan: bytes = b""

orders = app.stream("orders", Order, key="customer", shards=4)

@orders.consumer("billing", lease=2.0, retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
def bill(order: Order, delivery: Delivery) -> None:
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(f"{order.customer} attempt {delivery.attempt}\\n")
    if not pathlib.Path("fixed.txt").exists():
        raise KeyError(f"no price for {order.customer}")

@orders.consumer("audit", lease=2.0)
def audit(order: Order) -> None:
    with pathlib.Path("audited.txt").open("a") as file:
        file.write(order.customer + "\\n")
"""


@pytest.fixture
def rs(rs: Commands) -> Commands:
    rs.write("shop.py", BROKEN)
    return rs


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Iterator[Stream[Order]]:
    with RStream(one_server.url, namespace=namespace) as app:
        yield app.stream("orders", Order, key="customer", shards=4)


def killed(orders: Stream[Order], count: int, reason: str = "failed", error: str = "KeyError: {n}") -> None:
    run, ops = orders.app.sync_link.run, GroupOps(orders.sync.layout(), "billing", "w1")
    run(ops.create("0"))
    orders.sync.publish_many(Order(customer=f"c{n}", total=n, scan=b"\xff") for n in range(count))
    found = enumerate(run(ops.fetch(1000)).entries)
    next_millisecond(orders)
    assert not run(ops.settle([Outcome(e.shard, e.id, 1, "dead", reason, error.format(n=n)) for n, e in found]))
    next_millisecond(orders)  # those who die next come after these in every list


def test_from_the_failure_to_the_redrive(rs: Commands, orders: Stream[Order]) -> None:
    rs.ok("publish", "orders", "--app", "shop:app", "--json", '{"customer": "ada", "total": 1.5, "scan": "/w=="}')
    rs.ok("worker", "shop:app", "--burst")
    (row,) = map(json.loads, rs.ok("dead", "list", "orders", "--group", "billing", "--json").splitlines())
    full = rs.ok("dead", "show", "orders", "-g", "billing", "--id", row["entry_id"])
    told = json.loads(rs.ok("dead", "show", "orders", "-g", "billing", "--id", row["id"], "--json"))

    assert (row["reason"], row["attempts"], row["key"]) == ("failed", 2, "ada")
    assert row["published_at"] <= row["died_at"] and row["bytes"] > 100
    assert told["event"] == {"customer": "ada", "total": 1.5, "scan": "_w=="}
    assert "KeyError" in told["error"] and "problem" not in told
    for part in (row["id"], row["entry_id"], "failed", row["worker"], '  "customer": "ada"', "no price for ada"):
        assert part in full

    planned = rs.ok("dead", "redrive", "orders", "-g", "billing", "--error", "keyerror", "--dry-run")
    assert planned.splitlines() == [
        "would be redriven: 1 dead letter of group billing",
        "This was a dry run: nothing was changed.",
    ]
    rs.write("fixed.txt", "")
    done = rs.ok("dead", "redrive", "orders", "-g", "billing", "--error", "keyerror")
    assert done == "redriven: 1 dead letter of group billing\n"
    rs.ok("worker", "shop:app", "--burst")
    assert rs.handled == ["ada attempt 1", "ada attempt 2", "ada attempt 1"]
    assert (rs.directory / "audited.txt").read_text() == "ada\n"
    empty = rs.run("dead", "list", "orders", "-g", "billing")
    assert (empty.returncode, empty.stdout) == (0, "") and empty.stderr == "No dead letters of group billing.\n"


def test_list_is_a_table_and_filters_add_up(rs: Commands, orders: Stream[Order]) -> None:
    killed(orders, 30)
    killed(orders, 3, reason="invalid", error="total:\nwrong\x1b[31m")
    table = rs.ok("dead", "list", "orders", "--group", "billing").splitlines()
    assert table[0].split() == ["DIED", "LETTER", "ENTRY", "REASON", "ATTEMPTS", "KEY", "ERROR"]
    assert len(table) == 34
    assert {line.index("KeyError") for line in table if "KeyError" in line} == {table[0].index("ERROR")}
    assert table[-1].endswith("total: wrong�[31m")
    some = rs.ok("dead", "list", "orders", "-g", "billing", "--reason", "failed", "--key", "c2", "--since", "1h ago")
    assert len(some.splitlines()) == 2
    none = rs.run("dead", "list", "orders", "-g", "billing", "--reason", "fialed")
    assert none.stderr == "No dead letter matches. Group billing has 33 dead letters: failed 30, invalid 3\n"
    two = rs.ok("dead", "show", "orders", "-g", "billing", "--limit", "2", "--json").splitlines()
    assert len(two) == 2 and len(rs.ok("dead", "show", "orders", "-g", "billing", "--json").splitlines()) == 1


def test_a_redrive_into_a_paused_group_says_that_it_waits(rs: Commands, orders: Stream[Order]) -> None:
    killed(orders, 2)
    rs.ok("pause", "billing", "--stream", "orders")
    planned = rs.run("dead", "redrive", "orders", "-g", "billing", "--all", "--dry-run")
    done = rs.run("dead", "redrive", "orders", "-g", "billing", "--all")
    assert done.stdout == "redriven: 2 dead letters of group billing\n"
    for each in (planned, done):
        assert each.returncode == 0
        assert "group billing is paused: what is redriven waits" in each.stderr
        assert "rstream resume billing --stream orders" in each.stderr


def test_what_cannot_be_redriven_is_named_and_published_again(
    rs: Commands, orders: Stream[Order], one_server: Server
) -> None:
    killed(orders, 3)
    first, *_ = orders.sync.dead("billing").read()
    with redis.Redis.from_url(one_server.url) as raw:
        raw.xdel(orders.sync.layout().current[first.entry_id.shard].stream, first.entry_id.redis)
    done = rs.run("dead", "redrive", "orders", "-g", "billing", "--all", "--json")
    left = [{"id": str(first.id), "entry_id": str(first.entry_id), "why": "trimmed"}]
    assert json.loads(done.stdout) == {"redriven": 2, "gone": 0, "left": left, "dry_run": False}
    assert done.returncode == 1
    again = rs.run("dead", "redrive", "orders", "-g", "billing", "--all")
    assert (again.returncode, again.stdout) == (1, "redriven: 0 dead letters of group billing\n")
    assert again.stderr.startswith(f"left: {first.id}") and "publish it again" in again.stderr

    event = json.dumps(json.loads(rs.ok("dead", "show", "orders", "-g", "billing", "--json"))["event"])
    rs.ok("publish", "orders", "--file", "-", stdin=event)
    assert [entry.event for entry in orders.sync.read()][-1] == first.event
    assert rs.ok("dead", "discard", "orders", "-g", "billing", "--id", str(first.id)).startswith("discarded: 1 dead")


def test_discard_says_what_it_would_do_and_does_it(rs: Commands, orders: Stream[Order]) -> None:
    killed(orders, 5)
    dead = orders.sync.dead("billing")
    id = next(dead.heads()).id
    assert "would be discarded: 5 dead letters" in rs.ok(
        "dead", "discard", "orders", "-g", "billing", "--all", "--dry-run"
    )
    assert sum(dead.count().values()) == 5
    done = rs.run("dead", "discard", "orders", "-g", "billing", "--id", str(id), "--id", "1-1@1.0")
    assert (done.returncode, done.stdout) == (1, "discarded: 1 dead letter of group billing\n")
    assert done.stderr == "left: 1-1@1.0: no dead letter has this id, nor has its entry\n"
    assert json.loads(rs.ok("dead", "discard", "orders", "-g", "billing", "--all", "--json"))["discarded"] == 4
    assert dead.count() == {}


def test_an_undecodable_letter_is_shown_as_it_is_stored(
    rs: Commands, orders: Stream[Order], one_server: Server
) -> None:
    run, layout = orders.app.sync_link.run, orders.sync.layout()
    ops = GroupOps(layout, "billing", "w1")
    run(ops.create("0"))
    with redis.Redis.from_url(one_server.url) as raw:
        raw.xadd(layout.current[0].stream, {"foreign": b"\xff\xfe", "text": "caf\u00e9"})
        raw.xadd(layout.current[0].stream, {"e": b"\x92\x01\x81\xa8customer\xa1x"})  # no total
    foreign, invalid = run(ops.fetch(10)).entries
    ends = (foreign, "undecodable", "x"), (invalid, "invalid", "y")
    outcomes = [Outcome(entry.shard, entry.id, 1, "dead", reason, error) for entry, reason, error in ends]
    run(ops.settle(outcomes))
    full = rs.ok("dead", "show", "orders", "-g", "billing", "--limit", "5")
    assert "foreign = base64://4=" in full and "text = café" in full
    assert '"customer": "x"' in full
    one, two = map(json.loads, rs.ok("dead", "show", "orders", "-g", "billing", "-n", "5", "--json").splitlines())
    assert (one["event"], one["fields"]["text"]) == (None, "café") and one["problem"].startswith("undecodable")
    assert (two["event"], two["reason"], two["error"]) == ({"customer": "x"}, "invalid", "y")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["redrive", "orders", "-g", "billing"], 2, "--all"),
        (["discard", "orders", "-g", "billing", "--limit", "3"], 2, "--all"),
        (["discard", "orders", "-g", "billing", "--all", "--reason", "failed"], 2, "leave it out"),
        *(
            ([command, "orders", "-g", "billing", f"--{name}", ""], 2, f"the filter '{name}' of dead letters is ''")
            for command in ("list", "show", "redrive", "discard")
            for name in ("reason", "key", "error")
        ),
        (["discard", "orders", "-g", "billing", "--error", "", "--dry-run"], 2, "give a text, or leave it out"),
        (["discard", "orders", "-g", "billing", "--error", "", "--reason", "failed"], 2, "'error'"),
        (["discard", "orders", "-g", "billing", "--error", " "], 2, "'error'"),
        (["discard", "orders", "-g", "billing", "--id", ""], 1, "is not an entry id"),
        (["discard", "orders", "-g", "billing", "--since", ""], 1, "neither an id nor a time"),
        (["list", "orders"], 2, "--group"),
        (["list", "nowhere", "-g", "billing"], 1, "no stream 'nowhere'"),
        (["list", "orders", "-g", "bill ing"], 1, "group"),
        (["list", "orders", "-g", "biling"], 1, "no group 'biling' reads stream 'orders': there are billing"),
        (["redrive", "orders", "-g", "biling", "--all"], 1, "no group 'biling'"),
        (["show", "orders", "-g", "billing", "--id", "17"], 1, "is not an entry id"),
        (["show", "orders", "-g", "billing", "--id", "1-1@1.0"], 1, "No dead letter matches"),
        (["list", "orders", "-g", "billing", "--since", "soon"], 1, "neither an id nor a time"),
    ],
)
def test_wrong_usage_is_told_in_a_line(
    rs: Commands, orders: Stream[Order], arguments: list[str], code: int, text: str
) -> None:
    killed(orders, 1)
    done = rs.run("dead", *arguments)
    assert (done.returncode, done.stdout.replace("redriven: 0 dead letters of group biling\n", "")) == (code, "")
    assert text in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert sum(orders.sync.dead("billing").count().values()) == 1
    assert len(done.stderr.splitlines()) == 1 or code == 2


def test_a_group_that_is_gone_is_told_in_a_line(rs: Commands, orders: Stream[Order], one_server: Server) -> None:
    killed(orders, 1)
    with redis.Redis.from_url(one_server.url) as raw:
        for keys in orders.sync.layout().current:
            raw.xgroup_destroy(keys.stream, "billing")
    done = rs.run("dead", "redrive", "orders", "-g", "billing", "--all")
    assert done.returncode == 1 and "start a worker" in done.stderr and len(done.stderr.splitlines()) == 1


def test_help_teaches(rs: Commands) -> None:
    assert "dead" in rs.ok("--help")
    assert "rstream dead redrive orders" in rs.ok("dead", "--help")
    for command in ("list", "show", "redrive", "discard"):
        text = rs.ok("dead", command, "--help")
        assert "Examples:" in text and f"rstream dead {command} orders --group billing" in text
