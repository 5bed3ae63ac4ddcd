"""`rstream top` in a real terminal: what is seen, what keys do, what happens when Redis goes away."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rstream import RStream, Stream
from rstream.operate import pause
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.layout import clock
from rstream.top.fetch import look
from rstream.top.rows import group_rows, stream_rows
from tests.commands import Commands, Order
from tests.fleets import Cluster
from tests.orders import member, publish
from tests.screens import Screen
from tests.servers import Server
from tests.waiting import eventually, eventually_async

UP, DOWN, ENTER, ESCAPE, END = "\x1b[A", "\x1b[B", "\r", "\x1b", "\x1b[F"
FAST = ("top", "--interval", "200ms")


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Iterator[Stream[Order]]:
    with RStream(one_server.url, namespace=namespace) as app:
        yield app.stream("orders", Order, key="customer", shards=4)


def busy(orders: Stream[Order]) -> GroupOps:
    """billing: 20 pending, of which one waits for a retry; 1 dead, 19 unread. shipping: has read nothing."""
    ops = member(orders)
    orders.app.sync_link.run(ops.beat(600_000))
    member(orders, "shipping", "s1")
    publish(orders, 40)
    entries = orders.app.sync_link.run(ops.fetch(21)).entries
    ends = [("dead", "failed", "KeyError: 'price'", "Traceback …\nKeyError: 'price'"), ("retry", 3_600_000)]
    outcomes = [Outcome(e.shard, e.id, 1, *end) for e, end in zip(entries, ends, strict=False)]  # type: ignore[arg-type]
    assert orders.app.sync_link.run(ops.settle(outcomes)) == []
    return ops


def cells(line: str) -> list[str]:
    return line.split()


def test_one_frame_for_scripts(rs: Commands, orders: Stream[Order]) -> None:
    assert rs.ok("top", "--once", "--interval", "100ms").split()[0] == "GROUP"
    busy(orders)
    head, *rows = rs.ok("top", "--once", "--interval", "100ms").splitlines()
    assert head.split() == [
        "GROUP",
        "UNREAD",
        "BEHIND",
        "PEND",
        "OLDEST",
        "IN/s",
        "OUT/s",
        "RETRY",
        "DEAD",
        "LOST",
        "WRK",
    ]
    billing = next(row.split() for row in rows if row.startswith("orders/billing"))
    assert [billing[n] for n in (1, 3, 7, 8, 9, 10)] == ["19", "20", "1", "1", "0", "1"]
    found = [json.loads(line) for line in rs.ok("top", "--once", "--json", "--interval", "100ms").splitlines()]
    by_name = {row["group"]: row for row in found}
    assert (by_name["billing"]["pending"], by_name["shipping"]["unread"]) == (20, 40)
    assert by_name["billing"]["workers_alive"] == 1 and by_name["billing"]["published_per_second"] == 0.0
    assert rs.run("top", "--once", "--stream", "nothing").returncode == 1
    # in a pipe there is no screen to take over
    assert "\x1b" not in rs.ok("top", "--interval", "100ms")


def test_down_from_the_groups_to_one_entry_and_back(rs: Commands, orders: Stream[Order]) -> None:
    busy(orders)
    with Screen(rs, *FAST) as screen:
        screen.shows("orders/billing", "orders/shipping", "q quit")
        assert all(len(line) <= 80 for line in screen.lines) and len(screen.lines) == 24
        head = screen.line("GROUP", "UNREAD")
        assert cells(head)[0] == "GROUP" and cells(head)[-1] == "WRK"
        screen.press("/bill")
        screen.shows_no("orders/shipping")
        screen.press(ENTER)
        assert cells(screen.line("orders/billing "))[1:4:2] == ["19", "20"]
        eventually(lambda: screen.selected.startswith("orders/billing"))
        screen.press(ENTER)
        screen.shows("› orders › billing", "retry", "held", "w1")
        screen.press(DOWN * 3)
        eventually(lambda: screen.selected and screen.selected == screen.lines[6])
        chosen = screen.selected.split()
        screen.press(ENTER)
        screen.shows(f"› {chosen[0]}", "group billing: held, by w1", '"customer":', "in redis")
        screen.press(ESCAPE)
        screen.shows("ENTRY", "STATE")
        eventually(lambda: screen.selected.split()[:1] == chosen[:1])  # where one was before
        screen.press("\x7f")  # backspace does the same
        screen.shows("orders/shipping", "orders/billing")
        screen.press(ESCAPE)
        screen.shows("STREAM", "SHARDS")
        assert cells(screen.line("orders "))[:4] == ["orders", "40", "4", "2"]
        screen.press("q")
        assert screen.ended() == 0 and screen.restored


def test_sorting_and_turning_and_the_selection_stays_with_its_row(rs: Commands, orders: Stream[Order]) -> None:
    busy(orders)
    with Screen(rs, *FAST) as screen:
        screen.shows("orders/billing", "orders/shipping")

        def order() -> list[str]:
            return [match[1] for line in screen.lines if (match := re.match(r"orders/(\w+) ", line))]

        screen.press("s")  # by UNREAD
        screen.shows("s sort: UNREAD")
        eventually(lambda: order() == ["shipping", "billing"])
        screen.press(END)
        eventually(lambda: screen.selected.startswith("orders/billing"))
        screen.press("r")
        eventually(lambda: order() == ["billing", "shipping"])
        assert screen.selected.startswith("orders/billing")
        screen.press("S")  # back to BEHIND
        screen.shows("s sort: BEHIND")
        screen.press("?")
        screen.shows("age of the oldest entry that is not processed")
        screen.press("?")
        screen.shows("orders/billing")


def test_rates_are_what_was_published_and_done_since(rs: Commands, orders: Stream[Order]) -> None:
    with rs.started("worker", "shop:app", "--group", "orders/billing") as worker:
        eventually(lambda: " ready: " in worker.err)
        with Screen(rs, *FAST) as screen:
            screen.shows("orders/billing")

            def moved() -> bool:
                publish(orders, 50)
                parts = cells(screen.line("orders/billing "))
                return len(parts) > 6 and parts[5] not in ("-", "0") and parts[6] not in ("-", "0")

            eventually(moved)
            eventually(lambda: cells(screen.line("orders/billing "))[5:7] == ["0", "0"])


def test_pausing_and_cancelling_ask_first(rs: Commands, orders: Stream[Order]) -> None:
    ops = busy(orders)
    with Screen(rs, *FAST) as screen:
        screen.shows("orders/billing")
        screen.press("/billing" + ENTER)
        eventually(lambda: screen.selected.startswith("orders/billing"))
        screen.press("p")
        screen.shows("pause group billing of orders? y = yes")
        screen.press("n")
        screen.shows_no("y = yes")
        screen.press("p")
        screen.shows("y = yes")
        screen.press("y")
        screen.shows("orders/billing is paused", "⏸", "p resume")
        assert "billing is paused" in rs.run("groups", "orders").stderr
        screen.press("p")
        screen.shows("resume group billing of orders?")
        screen.press("y")
        screen.shows("orders/billing goes on", "p pause")
        screen.press(ENTER)
        screen.shows("held")
        first = eventually(lambda: screen.selected.split()[:1])
        screen.press(END)
        eventually(lambda: screen.selected.split()[:1] not in ([], first))
        (last, *_) = screen.selected.split()
        screen.press("c")
        screen.shows(f"cancel {last}?")
        screen.press("y")
        screen.shows(f"{last}: cancelled")
        shard = next(s for s in orders.sync.layout().every if last.endswith(f"@{s}"))
        run = orders.app.sync_link.run
        assert last not in {str(shard.entry_id(id)) for id, *_ in run(ops.mine(shard, "-", 100))}


def test_an_empty_fleet_and_one_stream(rs: Commands, orders: Stream[Order]) -> None:
    with Screen(rs, *FAST) as screen:
        screen.shows("no stream has a group yet")
        busy(orders)
        screen.shows("orders/billing")
    with Screen(rs, *FAST, "--stream", "orders") as screen:
        screen.shows("orders/billing")
        screen.press(ESCAPE + "x")  # there is nothing above it
        screen.shows("orders/billing", "GROUP")


def test_it_follows_the_size_of_its_window_and_writes_only_what_changed(rs: Commands, orders: Stream[Order]) -> None:
    busy(orders)
    with Screen(rs, "top", "--interval", "100ms") as screen:
        screen.shows("orders/billing", "orders/shipping")
        screen.press(ENTER)
        screen.shows("ENTRY")
        clears = screen.written.count(b"\x1b[2J")
        size = len(screen.written)
        looks = eventually(lambda: screen.written.count(b"UTC") >= 2)
        eventually(lambda: screen.written[size:].count(b"\x1b[?2026h") >= 5)
        frames = screen.written[size:].count(b"\x1b[?2026h")
        assert looks and screen.written.count(b"\x1b[2J") == clears, "a redraw from nothing flickers"
        assert (len(screen.written) - size) / frames < 80 * 24
        for rows, cols in ((10, 40), (50, 200), (5, 20), (24, 80)):
            screen.resize(rows, cols)
            eventually(lambda rows=rows: "q quit" in screen.lines[rows - 1] or "q" in screen.lines[rows - 1])
            assert all(len(line) <= cols for line in screen.lines) and len(screen.lines) == rows
        screen.shows("orders", "ENTRY")


@pytest.mark.timeout(120)
def test_redis_away_is_said_and_recovered_from(tmp_path: Path, own_server: Server, namespace: str) -> None:
    rs = Commands(tmp_path, own_server.url, namespace)
    with RStream(own_server.url, namespace=namespace) as app:
        busy(app.stream("orders", Order, key="customer", shards=4))
    with redis.Redis.from_url(own_server.url) as raw:
        raw.save()
    with Screen(rs, *FAST) as screen:
        screen.shows("orders/billing")
        own_server.kill()
        screen.shows("Redis is away for", "orders/billing")
        screen.press("/ship")
        screen.shows_no("orders/billing")  # keys work meanwhile
        screen.press(ESCAPE)
        own_server.restart()
        screen.shows_no("Redis is away")
        screen.shows("orders/billing")
        screen.press("q")
        assert screen.ended() == 0
    own_server.kill()
    done = rs.run("top", "--once")
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_however_it_ends_the_terminal_is_given_back(rs: Commands, orders: Stream[Order], number: int) -> None:
    busy(orders)
    with Screen(rs, *FAST) as screen:
        screen.shows("orders/billing")
        assert not screen.restored
        if number == signal.SIGINT:
            screen.press("\x03")
        else:
            screen.signal(number)
        assert screen.ended() == (130 if number == signal.SIGINT else 0)
        eventually(lambda: screen.written.endswith(b"\x1b[?1049l") or b"\x1b[?1049l" in screen.written)
        assert screen.restored and b"Traceback" not in screen.written


def test_what_names_hold_is_no_order_to_the_terminal(rs: Commands, orders: Stream[Order]) -> None:
    ops = member(orders)
    orders.sync.publish_many([Order(customer="\x1b[2J\x1b]0;x\x07" + "日本" * 30, total=1)])
    orders.app.sync_link.run(ops.fetch(10))
    with Screen(rs, *FAST) as screen:
        screen.shows("orders/billing")
        screen.press(ENTER)
        screen.shows("[2J")
        assert b"\x1b]0;x" not in screen.written
        assert "ENTRY" in screen.text and "q quit" in screen.text


async def seen(url: str, namespace: str) -> None:
    async with RStream(url, namespace=namespace) as app:
        orders = app.stream("orders", Order, key="customer", shards=6)
        notes = app.stream("notes", Order, key="customer", shards=2)
        assert group_rows(await look(app), None) == []
        ids = await orders.publish_many(Order(customer=f"c{n}", total=n) for n in range(30))
        ops = GroupOps(await orders.layout(), "billing", "w1", spread=app.endpoint.clustered)
        await app.link.run(ops.create("0"))
        await app.link.run(ops.beat(60_000))
        entries = (await app.link.run(ops.fetch(60))).entries
        await notes.layout()
        await pause(orders, "billing", by="kim")
        before = await look(app)
        ends = [Outcome(e.shard, e.id, 1, "ack", "", "", "bare") for e in entries if e.shard.entry_id(e.id) != min(ids)]
        assert await app.link.run(ops.settle(ends)) == []
        await eventually_async(lambda: later(app, before.now))
        after = await look(app)
        (row,) = group_rows(after, before)
        assert (row.pending, row.oldest, row.holder, row.alive) == (1, min(ids), "w1", 1)
        assert row.done == 29 * 1000 / (after.now - before.now) and row.came == 0.0
        assert row.paused is not None and row.paused.by == "kim"
        rows = stream_rows(after, [row])
        assert [(each.stream, each.entries, each.groups) for each in rows] == [("notes", 0, 0), ("orders", 30, 1)]
        assert [*(await look(app, "orders")).streams] == ["orders"] and (await look(app, "none")).streams == {}


async def later(app: RStream, than: int) -> bool:
    return await app.link.run(clock()) > than


async def test_a_look_at_the_fleet(server: Server, namespace: str) -> None:
    await seen(server.url, namespace)


async def test_a_look_at_a_cluster(cluster: Cluster, namespace: str) -> None:
    await seen(cluster.url, namespace)
