"""`rstream groups reset`: a group reads again or skips, exactly from the position that was asked for, and nobody else
notices; also when it is stopped half-way, and page by page.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from rstream import Delivery, EntryId, Event, RStream, Stream
from rstream.errors import ConfigError, GroupLive, PositionError
from rstream.position import Position
from rstream.reset import Plan, Reset, execute, plan
from rstream.store import bell, keys
from rstream.store import layout as layouts
from rstream.store import reset as store
from rstream.store.deliveries import Fetched, GroupOps, Outcome
from rstream.store.keys import Shard
from rstream.store.owners import OwnerOps
from rstream.store.steps import Steps, drive_sync
from rstream.worker.worker import Worker
from tests.commands import Commands
from tests.servers import Server
from tests.waiting import eventually, eventually_async

R = TypeVar("R")

HIGHEST = f"{2**64 - 1}-{2**64 - 1}"


class Order(Event):
    customer: str
    n: int
    scan: bytes = b""


def run(app: RStream, steps: Steps[R]) -> R:
    return drive_sync(app.sync_link, steps, 0.0)


class Bench:
    """A stream and its group "g", as workers, retries and the like have left them."""

    def __init__(self, app: RStream, raw: redis.Redis) -> None:
        self.app, self.raw, self.run = app, raw, app.sync_link.run
        self.orders = app.stream("orders", Order, key="customer", shards=4)
        self.run(self.ops().create("0"))
        self.count = 0

    @property
    def layout(self) -> layouts.Layout:
        return self.orders.sync.layout()

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.layout.every

    def ops(self, worker: str = "w1", group: str = "g") -> GroupOps:
        return GroupOps(self.layout, group, worker)

    def publish(self, count: int, customers: int = 5) -> list[EntryId]:
        numbers = range(self.count, self.count + count)
        self.count += count
        return self.orders.sync.publish_many(Order(customer=f"c{n % customers}", n=n) for n in numbers)

    def fetch(self, count: int = 1000, worker: str = "w1", group: str = "g") -> list[Fetched]:
        return self.run(self.ops(worker, group).fetch(count)).entries

    def settle(self, entries: list[Fetched], kind: Any = "ack", a: Any = "", b: Any = "", worker: str = "w1") -> None:
        outcomes = [Outcome(e.shard, e.id, 1, kind, a, e.flat[3] if kind == "park" else b) for e in entries]
        assert self.run(self.ops(worker).settle(outcomes)) == []

    def reshard(self, shards: int) -> None:
        """What resharding leaves behind: a sealed generation, and a new one that the group knows."""
        for shard in self.layout.current:
            self.raw.execute_command("XSETID", shard.stream, HIGHEST)
        number = self.layout.generation + 1
        meta = keys.stream(self.layout.namespace, "orders")
        self.raw.hset(meta, mapping={"generation": number, f"shards:{number}": shards})
        layout = self.run(layouts.load(self.layout.namespace, "orders"))
        assert layout is not None
        self.orders.adopt(layout)
        self.run(self.ops().create("0", layout.current))

    def stored(self) -> list[EntryId]:
        return [entry.id for entry in self.orders.sync.read()]

    def pending(self, group: str = "g") -> dict[EntryId, tuple[str, int]]:
        """Who has what, and how often it was delivered."""
        return {
            shard.entry_id(item["message_id"]): (item["consumer"].decode(), item["times_delivered"])
            for shard in self.shards
            for item in self.raw.xpending_range(shard.stream, group, "-", "+", 100_000)
        }

    def unread(self, group: str = "g") -> list[EntryId]:
        found = []
        for shard in self.shards:
            position = self.position(shard, group)
            if position[0] < 2**64 - 1:
                entries = self.raw.xrange(shard.stream, min=f"({position[0]}-{position[1]}")
                found += [shard.entry_id(id) for id, _ in entries]
        return found

    def position(self, shard: Shard, group: str = "g") -> EntryId:
        infos = self.raw.xinfo_groups(shard.stream)
        return next(shard.entry_id(info["last-delivered-id"]) for info in infos if info["name"] == group.encode())

    def plan(self, to: Position, key: str | None = None, group: str = "g") -> Plan:
        return run(self.app, plan(self.layout, group, to, key))

    def reset(self, to: Position, key: str | None = None, *, forced: bool = False) -> Reset:
        return run(self.app, execute(self.plan(to, key), forced=forced))

    def left_behind(self) -> list[bytes]:
        """Keys of the group beside the streams, dead letters and what is counted."""
        found = [key for shard in self.shards for key in self.raw.scan_iter(f"{shard.stream.replace('{', '[{]')}:*")]
        return [key for key in found if b":seq:" not in key and b":dead:" not in key and not key.endswith(b":done")]


@pytest.fixture
def bench(app: RStream, raw: redis.Redis) -> Bench:
    return Bench(app, raw)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few entries make many pages."""
    monkeypatch.setattr(store, "PAGE", 2)
    monkeypatch.setattr(store, "GROWN", 6)
    monkeypatch.setattr(store, "LOOK", 3)


async def drained(bench: Bench, *, ordered: bool = True) -> list[Delivery]:
    """What a worker of the group handles until nothing is left, in the order in which it did."""
    handled: list[Delivery] = []

    async def handle(order: Order, delivery: Delivery) -> None:
        handled.append(delivery)

    bench.orders.consumers.clear()
    bench.orders.consumer("g", lease=0.5, ordered=ordered)(handle)
    worker = Worker(bench.app, burst=True)
    async with asyncio.timeout(30):
        await worker.serve(signals=False)
    assert worker.counts.refused == 0
    return handled


# -- whatever happened before


def history(bench: Bench, dice: random.Random) -> None:
    """Entries are published, read, acked, retried, put aside, given back, dead, or still with a worker that is gone."""
    for step in range(30):
        match dice.choice(["publish", "publish", "fetch", "fetch", "fetch", "reshard"] if step > 12 else "pf"):
            case "publish" | "p":
                bench.publish(dice.randrange(1, 8))
            case "reshard" if bench.layout.generation < 3:
                bench.reshard(dice.choice([2, 3, 6]))
            case "fetch" | "f":
                worker = dice.choice(["w1", "w2"])
                for entry in bench.fetch(dice.randrange(1, 10), worker):
                    end = dice.choice([
                        ("ack",), ("ack",), ("retry", 60_000), ("retry", 0), ("dead", "failed", "Boom"), ("park", 0),
                        ("release", 0, "~released"), None,
                    ])  # fmt: skip
                    if end is not None:
                        bench.settle([entry], *end, worker=worker)
                        if end[0] == "retry":
                            bench.raw.hset(entry.shard.memo("g", entry.id.decode()), "c", "half way")


def somewhere(bench: Bench, dice: random.Random) -> tuple[Position, Callable[[EntryId], bool]]:
    """A position, and whether an entry is at it or after it."""
    stored = bench.stored()
    id = dice.choice(stored)
    published = datetime.fromtimestamp(id.ms // 1000, UTC) + timedelta(milliseconds=id.ms % 1000)
    choices: list[tuple[Position, Callable[[EntryId], bool]]] = [
        ("earliest", lambda other: True),
        ("latest", lambda other: other not in stored),
        (str(id), lambda other: other >= id),
        (id, lambda other: other >= id),
        (id.redis, lambda other: other[:2] >= id[:2]),
        (f"{id.ms}-{id.seq + 1}", lambda other: other[:2] > id[:2]),
        (published.isoformat(), lambda other: other.ms >= id.ms),
    ]
    return dice.choice(choices)


@pytest.mark.parametrize("seed", range(10))
async def test_what_is_handled_after_a_reset_is_exactly_what_lies_behind_it(
    server: Server, namespace: str, raw: redis.Redis, seed: int, request: pytest.FixtureRequest
) -> None:
    dice = random.Random(seed)
    if seed % 2:
        request.getfixturevalue("small_pages")
    async with RStream(server.url, namespace=namespace) as app:
        bench = Bench(app, raw)
        history(bench, dice)
        dead = sum(raw.xlen(shard.dead("g")) for shard in bench.shards)
        to, behind = somewhere(bench, dice)
        pending, unread, stored = bench.pending(), set(bench.unread()), bench.stored()
        wanted = bench.plan(to)
        assert wanted.again == sum(behind(id) for id in stored if id not in unread)
        assert wanted.skipped == sum(not behind(id) for id in unread)
        assert wanted.returning == sum(behind(id) for id in pending)
        assert wanted.dropped == len(pending) - wanted.returning
        assert (wanted.dead, wanted.live) == (dead, [])
        assert (bench.pending(), set(bench.unread())) == (pending, unread), "a plan changes nothing"

        done = run(app, execute(wanted))

        assert done == Reset(settled=len(pending))
        assert bench.pending() == {}
        assert set(bench.unread()) == {id for id in stored if behind(id)}
        assert bench.left_behind() == []
        bench.publish(5)
        handled = await drained(bench, ordered=dice.random() < 0.7)
        assert sorted(each.id for each in handled) == [id for id in bench.stored() if behind(id)]
        assert {each.attempt for each in handled} <= {1}
        assert sum(raw.xlen(shard.dead("g")) for shard in bench.shards) == dead


@pytest.mark.parametrize("seed", range(6))
async def test_a_reset_that_is_stopped_half_way_loses_nothing_and_runs_nothing_twice(
    server: Server, namespace: str, raw: redis.Redis, seed: int, small_pages: None
) -> None:
    dice = random.Random(seed)
    async with RStream(server.url, namespace=namespace) as app:
        bench = Bench(app, raw)
        history(bench, dice)
        to, behind = somewhere(bench, dice)
        todo = {*bench.pending(), *bench.unread()}
        while True:
            steps, turns = execute(bench.plan(to)), dice.randrange(1, 6)
            op = next(steps)
            try:
                for _ in range(turns):
                    op = steps.send(bench.run(op))
            except StopIteration:
                break  # it came to its end
            pending, unread = {*bench.pending()}, {*bench.unread()}
            assert not pending & unread, "read and taken over: it would run twice"
            assert {id for id in todo if behind(id)} <= pending | unread
        assert sorted(each.id for each in await drained(bench)) == [id for id in bench.stored() if behind(id)]


def test_a_page_that_grew_is_looked_at_anew(bench: Bench, small_pages: None) -> None:
    bench.publish(30)
    bench.fetch(4)
    wanted = bench.plan("earliest")
    bench.fetch(26)  # after the plan was made
    done = run(bench.app, execute(wanted))
    assert done.settled == 30
    assert (bench.pending(), sorted(bench.unread())) == ({}, bench.stored())


def test_a_reset_of_large_entries_goes_by_their_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOOK_BYTES", 100_000)
    bench.orders.sync.publish_many(Order(customer="c1", n=n, scan=bytes(30_000)) for n in range(20))
    bench.settle(bench.fetch(), "park", 0)
    wanted = bench.plan("earliest")
    assert (wanted.again, wanted.returning) == (20, 20)
    assert run(bench.app, execute(wanted)).settled == 20
    assert (bench.pending(), len(bench.unread()), bench.left_behind()) == ({}, 20, [])


# -- positions


def test_a_position_is_never_beyond_what_there_was(bench: Bench) -> None:
    """Where a group would be put beyond that, something that is yet to be published could be skipped."""
    bench.publish(20)
    bench.reset("latest")
    assert bench.unread() == []
    assert {bench.position(shard).redis for shard in bench.shards} == {
        bench.raw.xinfo_stream(shard.stream)["last-generated-id"].decode() for shard in bench.shards
    }
    with pytest.raises(PositionError, match="'latest' skips all there is now"):
        bench.plan("2099-01-01")
    new = bench.publish(5)
    assert sorted(bench.unread()) == sorted(new)


def test_latest_of_a_sealed_generation_is_its_last_entry(bench: Bench) -> None:
    bench.publish(20)
    bench.reshard(2)
    empty = [shard for shard in bench.layout.every if not bench.raw.xlen(shard.stream)]
    assert {shard.generation for shard in empty} == {1, 2}
    bench.reset("latest")
    assert bench.unread() == []
    old = [shard for shard in bench.shards if shard.generation == 1 and shard not in empty]
    assert [bench.position(shard).redis for shard in old] == [
        bench.raw.xrevrange(shard.stream, count=1)[0][0].decode() for shard in old
    ]
    bench.reset("earliest")
    assert sorted(bench.unread()) == bench.stored()


def test_a_shard_without_the_group_gets_it_where_the_others_are(bench: Bench) -> None:
    bench.publish(40)
    bench.settle(bench.fetch())
    third, gone = bench.shards[2], bench.shards[3]
    bench.raw.xgroup_destroy(third.stream, "g")
    bench.raw.delete(gone.stream)
    wanted = bench.plan("latest")
    assert [move.old is None for move in wanted.moves] == [False, False, True, True]
    assert wanted.skipped == bench.raw.xlen(third.stream) > 0  # a worker would have read them from the start
    run(bench.app, execute(wanted))
    assert bench.unread() == []
    assert bench.position(gone).redis == "0-0"


def test_who_is_not_there_is_told(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"no group 'nobody' reads stream 'orders': there are g$"):
        bench.plan("earliest", group="nobody")


# -- live groups


@pytest.fixture(params=["competing", "owner", "member"])
def live(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench with a live worker, "w1", that has read."""
    bench.publish(12)
    if request.param == "member":
        bench.run(OwnerOps(bench.ops()).take_part(60_000))
    else:
        bench.run(bench.ops().beat(60_000, {}))
    if request.param == "owner":
        bench.run(OwnerOps(bench.ops()).own(dict.fromkeys(bench.shards, 0), 60_000))
    bench.fetch(8)
    yield bench


def test_a_live_group_is_left_alone(live: Bench) -> None:
    before = live.pending(), live.unread()
    wanted = live.plan("earliest")
    assert wanted.live == ["w1"]
    with pytest.raises(GroupLive, match=r"live workers \(w1\)"):
        run(live.app, execute(wanted))
    with pytest.raises(GroupLive):
        run(live.app, execute(live.plan("earliest", "c1")))
    assert (live.pending(), live.unread()) == before


def test_a_worker_that_has_read_nothing_yet_counts_as_live(bench: Bench) -> None:
    """The successor in a deploy, say; a server that lists only consumers that have read does not show it by itself."""
    bench.publish(12)
    bench.settle(bench.fetch(12))
    idle = bench.ops("idle")
    bench.run(idle.create("0"))
    bench.run(idle.beat(60_000, {}))
    assert bench.plan("earliest").live == ["idle"]


@pytest.mark.parametrize("key", [None, "c1"])
def test_a_worker_that_came_after_the_plan_is_seen(bench: Bench, key: str | None) -> None:
    bench.publish(12)
    bench.settle(bench.fetch(8))
    wanted = bench.plan("earliest", key)
    bench.run(bench.ops().beat(60_000, {}))
    before = bench.unread()
    with pytest.raises(GroupLive, match=r"live workers \(w1\)"):
        run(bench.app, execute(wanted))
    assert (bench.pending(), bench.unread()) == ({}, before)


def test_what_a_forced_reset_takes_away_is_fenced(live: Bench) -> None:
    taken = [*live.pending()]
    assert live.reset("earliest", forced=True) == Reset(settled=8)
    outcomes = [Outcome(live.shards[id.shard], id.redis.encode(), 1, "ack") for id in taken]
    assert len(live.run(live.ops().settle(outcomes))) == 8
    tokens = dict.fromkeys(live.shards, "w1|1")
    assert live.run(live.ops().fetch(100, owned=tokens)).gone == [*live.shards]  # whoever owned them does not
    assert sorted(live.unread()) == live.stored()


async def test_workers_that_are_forced_go_on_from_there(server: Server, namespace: str, raw: redis.Redis) -> None:
    """The bell is rung for them, and they own their shards anew."""
    async with RStream(server.url, namespace=namespace) as app:
        bench = Bench(app, raw)
        handled: list[EntryId] = []

        @bench.orders.consumer("g")
        async def handle(order: Order, delivery: Delivery) -> None:
            handled.append(delivery.id)

        ids = bench.publish(40)
        worker = Worker(app)
        task = asyncio.create_task(worker.serve(signals=False))
        await eventually_async(lambda: len(handled) == 40 and not bench.pending(), timeout=20)
        assert bench.plan("earliest").live == [worker.id]
        rung = bench.run(bell.last(namespace))
        bench.reset("earliest", forced=True)
        assert bench.run(bell.last(namespace)) > rung
        await eventually_async(lambda: len(handled) == 80, timeout=20)
        assert sorted(handled) == sorted(ids * 2)
        worker.stop()
        async with asyncio.timeout(20):
            await task


def test_nobody_reads_an_ordered_group_while_it_is_reset(bench: Bench, small_pages: None) -> None:
    """Nor for ever, should the reset be killed."""
    bench.publish(30)
    bench.run(bench.ops().beat(60_000, {}))
    owners = OwnerOps(bench.ops())
    tokens = bench.run(owners.own(dict.fromkeys(bench.shards, 0), 60_000))
    assert len(bench.run(bench.ops().fetch(20, owned=tokens)).entries) == 20

    steps = execute(bench.plan("earliest"), forced=True)
    bench.run(next(steps))  # killed after this one
    assert bench.pending()

    found, gone, _ = bench.run(bench.ops().fetch(20, owned=tokens))
    assert not found and gone == [*bench.shards]
    assert bench.run(owners.own(dict.fromkeys(bench.shards, 0), 60_000)) == {}
    assert all(0 < bench.raw.pttl(shard.owner("g")) <= 30_000 for shard in bench.shards)
    assert bench.reset("earliest", forced=True).settled > 0
    again = bench.run(owners.own(dict.fromkeys(bench.shards, 0), 60_000))
    assert [*again] == [*bench.shards]
    assert len(bench.run(bench.ops().fetch(100, owned=again)).entries) == 30


# -- one key


def test_the_entries_of_one_key_are_given_again_and_nothing_else(bench: Bench) -> None:
    bench.publish(60, customers=3)
    bench.run(bench.ops(group="other").create("0"))
    bench.settle(bench.fetch(45))
    done = [entry for entry in bench.orders.sync.read(key="c1") if entry.id not in bench.unread()]
    others = bench.pending("other"), bench.unread("other"), bench.unread()
    start = done[3].id

    wanted = bench.plan(start, "c1")
    assert (wanted.again, wanted.left, wanted.dropped) == (len(done) - 3, 0, 0)
    assert bench.pending() == {}
    assert run(bench.app, execute(wanted)) == Reset(given=len(done) - 3)

    assert bench.pending() == {entry.id: ("~again", 0) for entry in done[3:]}
    assert (bench.pending("other"), bench.unread("other"), bench.unread()) == others
    assert bench.reset(start, "c1").given == len(done) - 3  # sent twice it gives nothing twice
    assert len(bench.pending()) == len(done) - 3


def test_what_is_pending_of_a_key_is_left_alone(bench: Bench, small_pages: None) -> None:
    bench.publish(20, customers=1)
    entries = bench.fetch(12)
    bench.settle(entries[:5])
    bench.settle(entries[5:7], "retry", 60_000)
    before = bench.pending()
    wanted = bench.plan("earliest", "c0")
    assert (wanted.again, wanted.left) == (5, 7)
    assert run(bench.app, execute(wanted)) == Reset(given=5, left=7)
    assert {id: holder for id, holder in bench.pending().items() if holder[0] != "~again"} == before
    assert sorted(id for id, holder in bench.pending().items() if holder[0] == "~again") == bench.stored()[:5]


async def test_the_entries_of_a_key_are_handled_again_in_order_and_before_newer_ones(
    server: Server, namespace: str, raw: redis.Redis, small_pages: None
) -> None:
    """Also over generations, and while the group is live."""
    async with RStream(server.url, namespace=namespace) as app:
        bench = Bench(app, raw)
        bench.publish(30, customers=3)
        bench.reshard(3)
        bench.publish(30, customers=3)
        handled: list[tuple[str | None, EntryId]] = []

        @bench.orders.consumer("g", concurrency=4)
        async def handle(order: Order, delivery: Delivery) -> None:
            handled.append((delivery.key, delivery.id))

        worker = Worker(app)
        task = asyncio.create_task(worker.serve(signals=False))
        await eventually_async(lambda: len(handled) == 60 and not bench.pending(), timeout=20)
        bench.reset("earliest", "c1", forced=True)
        new = bench.publish(6, customers=3)
        await eventually_async(lambda: len(handled) == 60 + 20 + 6 and not bench.pending(), timeout=20)
        worker.stop()
        async with asyncio.timeout(20):
            await task
    again = [id for key, id in handled[60:] if key == "c1"]
    assert again == [id for key, id in handled[:60] if key == "c1"] + [id for id in new if id in again]
    assert {id for key, id in handled[60:] if key != "c1"} == {id for id in new if id not in again}


def test_skipping_the_entries_of_a_key_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="a reset by key skips nothing"):
        bench.plan("latest", "c1")


# -- the command


@pytest.fixture
def shop(tmp_path: Path, one_server: Server, namespace: str) -> Iterator[tuple[Commands, Stream[Any], RStream]]:
    """40 orders, of which the group "billing" has read 30, and not settled the last 10 of these."""
    commands = Commands(tmp_path, one_server.url, namespace)
    with RStream(one_server.url, namespace=namespace) as app:
        orders = app.stream("orders", Order, key="customer", shards=1)
        orders.sync.publish_many(Order(customer=f"c{n % 4}", n=n) for n in range(40))
        ops = GroupOps(orders.sync.layout(), "billing", "w1")
        app.sync_link.run(ops.create("0"))
        entries = app.sync_link.run(ops.fetch(30)).entries
        app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in entries[:20]]))
        yield commands, orders, app


def test_a_plan_is_shown_and_nothing_is_changed(shop: tuple[Commands, Stream[Any], RStream]) -> None:
    rs, orders, _ = shop
    ids = [entry.id for entry in orders.sync.read()]
    before = rs.ok("groups", "orders", "--json", "--shards")

    told = rs.ok("groups", "reset", "orders", "--group", "billing", "--to", str(ids[25])).splitlines()

    assert told[0].startswith(f"Group billing of stream orders: from {ids[25].redis} (")
    assert told[3].split() == ["1.0", ids[29].redis, ids[24].redis, "5", "0", "5", "5"]
    assert told[5:] == [
        "read again: 5 entries · skipped unread: 0 entries",
        "pending: 10 end without being run: 5 of them are read again, 5 are dropped",
        "live workers: none",
        "Nothing was changed. Add --execute to do it.",
    ]
    told = rs.ok("groups", "reset", "orders", "--group", "billing", "--to", "latest").splitlines()
    assert "skipped unread: 10 entries" in told[5]
    after = json.loads(rs.ok("groups", "orders", "--json", "--shards"))
    assert [after[0][name] for name in ("pending", "lag", "positions")] == [
        json.loads(before)[0][name] for name in ("pending", "lag", "positions")
    ]


def test_a_plan_is_executed(shop: tuple[Commands, Stream[Any], RStream]) -> None:
    rs, _, _ = shop
    reset = "groups", "reset", "orders", "--group", "billing"
    told = rs.ok(*reset, "--to", "-2h", "--execute").splitlines()
    assert told[-1] == "Done: the group reads from there, 10 pending deliveries ended without being run."
    (group,) = json.loads(rs.ok("groups", "orders", "--json"))
    assert (group["lag"], group["pending"]) == (40, 0)
    done = json.loads(rs.ok(*reset, "--to", "latest", "--execute", "--json"))
    assert [done[name] for name in ("executed", "skipped", "again", "settled", "live")] == [True, 40, 0, 0, []]
    (group,) = json.loads(rs.ok("groups", "orders", "--json"))
    assert (group["lag"], group["behind_seconds"]) == (0, 0.0)
    told = rs.ok(*reset, "--to", "earliest", "--key", "c1", "--execute").splitlines()
    assert told[-1] == "Done: 10 entries will be handled again, 0 were left alone."
    (group,) = json.loads(rs.ok("groups", "orders", "--json"))
    assert (group["lag"], group["waiting"]["again"]) == (0, 10)


@pytest.mark.parametrize("key", [(), ("--key", "c1")])
def test_a_reset_at_full_memory_says_that_it_was_done(
    own_server: Server, namespace: str, tmp_path: Path, key: tuple[str, ...]
) -> None:
    rs = Commands(tmp_path, own_server.url, namespace)
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        orders = app.stream("orders", Order, key="customer", shards=1)
        orders.sync.publish_many(Order(customer="c1", n=n) for n in range(10))
        ops = GroupOps(orders.sync.layout(), "billing", "w1")
        app.sync_link.run(ops.create("0"))
        entries = app.sync_link.run(ops.fetch(10)).entries
        app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "ack") for e in entries]))
        raw.config_set("maxmemory", 1)
        reset = "groups", "reset", "orders", "--group", "billing", "--to", "earliest", *key
        assert rs.ok(*reset, "--execute").splitlines()[-1].startswith("Done: ")
        raw.config_set("maxmemory", 0)


def test_a_live_group_is_told_and_can_be_forced(shop: tuple[Commands, Stream[Any], RStream]) -> None:
    rs, orders, app = shop
    ops = GroupOps(orders.sync.layout(), "billing", "w1")
    app.sync_link.run(ops.beat(60_000, {}))
    reset = "groups", "reset", "orders", "--group", "billing", "--to", "earliest"
    told = rs.ok(*reset).splitlines()
    assert told[-2:] == [
        "live workers: w1",
        "Nothing was changed. Stop the live workers and add --execute to do it, or --execute --force.",
    ]
    refused = rs.run(*reset, "--execute")
    assert (refused.returncode, refused.stdout.splitlines()[-1]) == (1, "live workers: w1")
    assert refused.stderr.startswith("Error: group 'billing' of stream 'orders' has live workers (w1): ")
    assert refused.stderr.count("\n") == 1
    assert json.loads(rs.run(*reset, "--execute", "--json").stdout)["executed"] is False
    assert rs.ok(*reset, "--execute", "--force").splitlines()[-1].startswith("Done: ")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ["orders", "--group", "nobody", "--to", "-2h"],
            1,
            "no group 'nobody' reads stream 'orders': there are billing",
        ),
        (["nothing", "--group", "billing", "--to", "-2h"], 1, "no stream 'nothing'"),
        (["orders", "--group", "billing", "--to", "soon"], 1, "'soon' is neither an id nor a time"),
        (["orders", "--group", "billing", "--to", "2099-01-01"], 1, "lies in the future"),
        (["orders", "--group", "billing", "--to", "latest", "--key", "c1"], 1, "a reset by key skips nothing"),
        (["orders", "--group", "billing"], 2, "Missing option '--to'"),
        (["orders", "--to", "-2h"], 2, "Missing option '--group'"),
        ([], 2, "Missing argument 'STREAM'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    shop: tuple[Commands, Stream[Any], RStream], arguments: list[str], code: int, told: str
) -> None:
    done = shop[0].run("groups", "reset", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr.splitlines()[-1]


def test_a_reset_that_is_killed_is_finished_by_the_next(shop: tuple[Commands, Stream[Any], RStream]) -> None:
    """A kill may come anywhere; most come before or after the calls, and those between them are tested above."""
    rs = shop[0]
    reset = "groups", "reset", "orders", "--group", "billing", "--to", "earliest", "--execute"
    with rs.started(*reset) as running:
        eventually(lambda: "read again" in running.out, timeout=20)
    rs.ok(*reset)
    (group,) = json.loads(rs.ok("groups", "orders", "--json"))
    assert (group["lag"], group["pending"]) == (40, 0)
