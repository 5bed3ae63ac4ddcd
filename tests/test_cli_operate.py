"""`rstream pending, show, pause, resume, cancel`, as their users have them: processes, one-line errors, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rstream import RStream, Stream
from rstream.store.deliveries import GroupOps, Outcome
from tests.commands import Commands, Order
from tests.doctoring import codes, found, look
from tests.orders import member, publish
from tests.servers import Server
from tests.waiting import eventually


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Iterator[Stream[Order]]:
    with RStream(one_server.url, namespace=namespace) as app:
        yield app.stream("orders", Order, key="customer", shards=4)


def fetched(orders: Stream[Order], count: int = 12) -> tuple[GroupOps, list[Any]]:
    ops = member(orders)
    orders.app.sync_link.run(ops.beat(60_000))
    publish(orders, count)
    return ops, orders.app.sync_link.run(ops.fetch(count - 2)).entries


def lines(rs: Commands, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rs.ok(*arguments, "--json").splitlines()]


def test_pending_tells_who_holds_what_and_goes_on_where_it_ended(rs: Commands, orders: Stream[Order]) -> None:
    ops, entries = fetched(orders)
    ends = [Outcome(entries[0].shard, entries[0].id, 1, "retry", 90_000)]
    ends += [Outcome(entries[1].shard, entries[1].id, 1, "release", 0, "~released")]
    orders.app.sync_link.run(ops.settle(ends))
    ids = sorted(entry.shard.entry_id(entry.id) for entry in entries)

    shown = rs.ok("pending", "orders", "--group", "billing")

    head, *rows = shown.splitlines()
    assert head.split() == ["ENTRY", "KEY", "STATE", "WORKER", "FOR", "ATTEMPT", "HEARD", "WAITS", "FOR", "KEPT"]
    assert [row.split()[0] for row in rows] == [*map(str, ids)]
    assert sum(" held " in row and " w1 " in row for row in rows) == 8
    assert sum(" retry " in row and "due in 1m " in row for row in rows) == 1
    everything = lines(rs, "pending", "orders", "-g", "billing")
    assert [row["id"] for row in everything] == [*map(str, ids)]
    assert {row["state"] for row in everything} == {"held", "retry", "released"}
    page = rs.run("pending", "orders", "-g", "billing", "-n", "4", "--json")
    assert f"There are more: --after {ids[3]}" in page.stderr
    rest = lines(rs, "pending", "orders", "-g", "billing", "--after", str(ids[3]))
    assert [row["id"] for row in rest] == [*map(str, ids[4:])]
    assert [row["state"] for row in lines(rs, "pending", "orders", "-g", "billing", "--state", "retry")] == ["retry"]
    assert lines(rs, "pending", "orders", "-g", "billing", "--older-than", "1h", "--held-for", "10m") == []
    none = rs.run("pending", "orders", "-g", "billing", "--worker", "w9")
    assert (none.returncode, none.stdout) == (0, "") and "Nothing of group billing is pending" in none.stderr
    for wrong, told in (
        (["pending", "orders", "-g", "nobody"], "no group 'nobody' reads stream 'orders': there are billing"),
        (["pending", "nothing", "-g", "billing"], "no stream 'nothing'"),
    ):
        done = rs.run(*wrong)
        assert (done.returncode, done.stdout) == (1, "") and told in done.stderr and done.stderr.count("\n") == 1
    assert rs.run("pending", "orders", "-g", "billing", "--older-than", "soon").returncode == 2


def test_show_tells_all_of_an_entry(rs: Commands, orders: Stream[Order]) -> None:
    ops, entries = fetched(orders)
    error = ("dead", "failed", "KeyError: 'price'", "Traceback (most recent call last):\n  …\nKeyError: 'price'")
    orders.app.sync_link.run(ops.settle([Outcome(entries[0].shard, entries[0].id, 1, *error)]))
    dead, held = (entries[n].shard.entry_id(entries[n].id) for n in (0, 1))

    shown = rs.ok("show", "orders", str(dead))
    assert "group billing: dead" in shown and "failed on attempt 1" in shown and "    KeyError: 'price'" in shown
    assert '"customer": ' in shown and f"entry      {dead}" in shown and "where      in Redis" in shown
    told = json.loads(rs.ok("show", "orders", str(held), "--json"))
    (state,) = told["groups"]
    assert (state["group"], state["state"], state["pending"]["worker"]) == ("billing", "pending", "w1")
    assert told["event"]["customer"] == told["key"] and told["bytes"] > 0
    hidden = json.loads(rs.ok("show", "orders", str(held), "--json", "--no-payload"))
    assert "event" not in hidden and "headers" not in hidden
    assert '"customer"' not in rs.ok("show", "orders", str(held), "--no-payload")
    gone = rs.run("show", "orders", "1-1@1.1")
    assert gone.returncode == 1 and "stream 'orders' has no entry 1-1@1.1" in gone.stderr
    assert rs.run("show", "orders", "1-1").returncode == 1


def test_pause_and_resume_under_a_worker(rs: Commands, orders: Stream[Order]) -> None:
    with rs.started("worker", "shop:app", "--group", "orders/billing") as worker:
        eventually(lambda: " ready: " in worker.err)
        told = rs.ok("pause", "billing", "--why", "the bank is down")
        assert "Group billing of stream orders is paused" in told and "rstream resume billing --stream orders" in told
        eventually(lambda: "the bank is down" in worker.err)
        publish(orders, 8)
        again = json.loads(rs.ok("pause", "billing", "--stream", "orders", "--json"))
        assert again["paused"] is False and again["why"] == "the bank is down"
        groups = rs.run("groups", "orders")
        assert "group billing is paused since " in groups.stderr and "the bank is down" in groups.stderr
        (row,) = json.loads(rs.ok("groups", "orders", "--json"))
        assert row["paused"]["why"] == "the bank is down" and row["lag"] == 8
        findings = look(orders.app, "orders")
        assert "the bank is down" in found(findings, "group-paused").what and "no-worker" not in codes(findings)
        eventually(lambda: "orders/billing (paused)" in rs.ok("workers"))  # with the next beat of its lease
        assert rs.handled == []
        assert "goes on" in rs.ok("resume", "billing")
        eventually(lambda: len(rs.handled) == 8)
        assert "is not paused" in rs.ok("resume", "billing", "--stream", "orders")


def test_a_paused_group_has_no_missing_worker(orders: Stream[Order], rs: Commands) -> None:
    member(orders)
    publish(orders, 3)
    rs.ok("pause", "billing")
    assert "group-paused" in codes(look(orders.app, "orders"), "note")
    told = rs.run("replay", "orders", "--from", "earliest", "--to", "now", "--into-group", "billing", "--dry-run")
    assert told.returncode == 0 and "group billing was paused by " in told.stderr


def test_pause_has_to_know_which_stream(rs: Commands, orders: Stream[Order]) -> None:
    assert "no stream has a group 'billing'" in rs.run("pause", "billing").stderr
    member(orders)
    other = orders.app.stream("refunds", Order, key="customer", shards=2)
    member(other)
    both = rs.run("pause", "billing")
    assert both.returncode == 1 and "streams orders, refunds have a group 'billing'" in both.stderr
    assert "Group billing of stream refunds is paused" in rs.ok("pause", "billing", "--stream", "refunds")
    assert "no group 'shipping'" in rs.run("pause", "shipping", "--stream", "refunds").stderr


def test_cancel_says_what_became_of_each(rs: Commands, orders: Stream[Order]) -> None:
    ops, entries = fetched(orders)
    orders.app.sync_link.run(ops.settle([Outcome(entries[0].shard, entries[0].id, 1, "ack")]))
    done, held, *_ = (str(entry.shard.entry_id(entry.id)) for entry in entries)
    unread = str(max(entry.id for entry in orders.sync.read() if str(entry.id) not in _ids(entries)))

    assert f"{held}: cancelled. Worker w1 has it" in rs.ok("cancel", "orders", held, "--group", "billing")
    told = rs.run("cancel", "orders", done, unread, held, "1-1@9.9", "--group", "billing")
    assert told.returncode == 1 and told.stdout == ""
    first, second, third, fourth = told.stderr.splitlines()
    assert "is settled already" in first and f"rstream show orders {done}" in first
    assert "no worker of billing was given it yet" in second and "rstream groups reset orders" in second
    assert "is settled already" in third and "no such shard" in fourth
    verdicts = rs.run("cancel", "orders", done, unread, "--group", "billing", "--json").stdout.splitlines()
    assert [json.loads(line)["verdict"] for line in verdicts] == ["settled", "unread"]
    assert rs.run("cancel", "orders", "--group", "billing").returncode == 2
    assert "not an entry id" in rs.run("cancel", "orders", "nonsense", "--group", "billing").stderr


def _ids(entries: list[Any]) -> set[str]:
    return {str(entry.shard.entry_id(entry.id)) for entry in entries}
