"""`rstream doctor` on streams and groups that something is wrong with: each is made so, and looked at."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from rstream import Event, Retention, RStream, Stream
from rstream.doctor import groups as checks
from rstream.doctor.finding import exit_code
from rstream.errors import StreamFull
from rstream.store import archiving, keys
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.keys import ARCHIVE, Shard
from rstream.store.owners import OwnerOps
from rstream.store.steps import drive_sync
from tests.commands import Commands, Order
from tests.doctoring import codes, found, look
from tests.objects import bucket, moto
from tests.orders import member, publish
from tests.servers import Server
from tests.waiting import eventually

LIVES_MS = 600_000


@pytest.fixture
def orders(app: RStream) -> Stream[Order]:
    return app.stream("orders", Order, key="customer", shards=4)


def old(raw: redis.Redis, shard: Shard, hours: float = 2.0, count: int = 3) -> None:
    """Entries that were published so long ago."""
    ms = int((time.time() - hours * 3600) * 1000)
    for n in range(count):
        raw.xadd(shard.stream, {"e": b"{}", "k": "c", "i": b"0" * 16}, id=f"{ms + n}-0")


def lives(raw: redis.Redis, ops: GroupOps, worker: str = "w1") -> None:
    for shard in ops.layout.every:
        raw.set(shard.alive(ops.group, worker), 1, px=LIVES_MS)
        raw.xgroup_createconsumer(shard.stream, ops.group, worker)


# -- streams


def test_streams_that_are_not_there(orders: Stream[Order], raw: redis.Redis, namespace: str) -> None:
    publish(orders, 4)
    assert found(look(orders.app, "ordres"), "stream-unknown").level == "problem"
    raw.delete(keys.stream(namespace, "orders"))
    finding = found(look(orders.app), "stream-lost")
    assert finding.level == "problem" and finding.where == "stream orders"


@pytest.mark.parametrize("spoil", [{"retention": "{"}, {"generation": "x"}, {"schema:1": "{"}, {"versions": "7"}])
def test_declarations_that_cannot_be_read(
    orders: Stream[Order], raw: redis.Redis, namespace: str, spoil: dict[str, str]
) -> None:
    publish(orders, 4)
    raw.hset(keys.stream(namespace, "orders"), mapping=spoil)  # type: ignore[arg-type]
    finding = found(look(orders.app), "could-not-look")
    assert finding.level == "problem" and "its declaration cannot be read" in finding.what


def test_ids_ahead_of_the_clock(orders: Stream[Order], raw: redis.Redis) -> None:
    shard = orders.sync.layout().current[0]
    old(raw, shard, hours=-0.01)
    assert found(look(orders.app), "ids-ahead").level == "warning"
    old(raw, shard, hours=-48)
    finding = found(look(orders.app), "ids-ahead")
    assert finding.level == "problem" and "2d ahead" in finding.what


def test_a_shard_that_has_most(orders: Stream[Order]) -> None:
    publish(orders, 1500)
    assert "hot-shard" not in codes(look(orders.app))
    orders.sync.publish_many(Order(customer="whale", total=n) for n in range(30_000))
    shard = orders.sync.layout().shard("whale")
    finding = found(look(orders.app), "hot-shard")
    assert finding.level == "warning" and f"shard {shard} holds" in finding.what


def test_generations(orders: Stream[Order], raw: redis.Redis, namespace: str) -> None:
    publish(orders, 20)
    orders.sync.reshard(2)
    assert "20 entries are left in older generations (1)" in found(look(orders.app), "older-generations").what
    raw.hset(keys.stream(namespace, "orders"), "shards:3", 8)
    finding = found(look(orders.app), "reshard-unfinished")
    assert finding.level == "warning" and finding.do == ("rstream streams reshard orders --shards 8",)


def test_entries_that_belong_into_a_blob_store(orders: Stream[Order]) -> None:
    orders.sync.publish(Order(customer="ada", total=1, scan=b"x" * 40_000))
    assert found(look(orders.app), "large-entries").level == "note"
    id = orders.sync.publish(Order(customer="ada", total=1, scan=b"x" * 300_000))
    finding = found(look(orders.app), "large-entries")
    assert finding.level == "warning" and str(id) in finding.what and "RSTREAM_BLOBS" in finding.do[0]


# -- retention


def test_a_group_that_keeps_everything(app: RStream, raw: redis.Redis) -> None:
    orders = app.stream("orders", Order, key="customer", shards=4, retention=Retention(entries=2000))
    ops = member(orders)
    publish(orders, 200)
    assert codes(look(app), "warning", "problem") <= {"server-flawed", "slow-calls", "latency"}
    for size in (200, 40, 8):  # a large flush is refused first
        with pytest.raises(StreamFull):
            for _ in range(20):
                publish(orders, size)
    (entry,) = app.sync_link.run(ops.fetch(1, ops.layout.current[:1])).entries
    finding = found(look(app), "retention-pinned")
    assert finding.level == "problem" and "group 'billing' keeps" in finding.what and "StreamFull" in finding.why
    assert f"{entry.shard.entry_id(entry.id)}, with w1 (silent), attempt 1" in finding.what or "unread" in finding.what
    assert "rstream worker MODULE:APP --group billing" in finding.do


def test_a_group_that_keeps_what_is_too_old(app: RStream, raw: redis.Redis) -> None:
    orders = app.stream("orders", Order, key="customer", shards=2, retention=Retention(age="30m"))
    old(raw, orders.sync.layout().current[1])
    member(orders)
    finding = found(look(app), "retention-pinned")
    assert finding.level == "warning" and "keeps 1 of 2 shards" in finding.what and "2h old" in finding.what


def test_a_stream_without_retention_is_noted_and_one_that_drops_is_not_pinned(app: RStream, raw: redis.Redis) -> None:
    kept = app.stream("kept", Order, key="customer", shards=1)
    publish(kept, 1)
    dropping = Retention(age="30m", unprocessed="drop")
    drops = app.stream("drops", Order, key="customer", shards=1, retention=dropping)
    old(raw, drops.sync.layout().current[0])
    member(drops)
    findings = look(app)
    assert found(findings, "no-retention").where == "stream kept" and "retention-pinned" not in codes(findings)


def test_what_was_dropped_unprocessed(app: RStream) -> None:
    orders = app.stream("orders", Order, key="customer", shards=1, retention=Retention(entries=300, unprocessed="drop"))
    member(orders)
    for _ in range(10):
        publish(orders, 200)
    finding = found(look(app), "dropped")
    assert finding.level == "warning" and finding.where == "group orders/billing" and "entries before" in finding.what


@pytest.mark.parametrize(("days", "level"), [(4, "warning"), (8, "problem")])
def test_groups_that_will_not_be_waited_for(
    app: RStream, raw: redis.Redis, namespace: str, days: int, level: str
) -> None:
    orders = app.stream("orders", Order, key="customer", shards=1, retention=Retention(age="30d"))
    member(orders)
    publish(orders, 3)
    now = int(time.time() * 1000)
    raw.hset(keys.seen(namespace, "orders"), mapping={"billing": now - days * 86_400_000, "/": now})
    finding = found(look(app), "group-expires")
    assert finding.level == level and f"{days}d" in finding.what


# -- groups


def test_a_group_that_is_gone(orders: Stream[Order], raw: redis.Redis) -> None:
    ops = member(orders)
    shard = ops.layout.current[2]
    raw.xgroup_destroy(shard.stream, "billing")
    finding = found(look(orders.app), "group-missing")
    assert finding.level == "warning" and f"1 of 4 shards ({shard})" in finding.what


def test_a_group_that_nobody_works_for(orders: Stream[Order], raw: redis.Redis) -> None:
    old(raw, orders.sync.layout().current[0])
    ops = member(orders)
    orders.app.sync_link.run(ops.fetch(2))
    finding = found(look(orders.app), "no-worker")
    assert finding.level == "warning" and "2 are with silent ones: w1" in finding.what and "1 unread" in finding.what


def test_a_worker_that_says_nothing(orders: Stream[Order], raw: redis.Redis) -> None:
    publish(orders, 20)
    ops = member(orders)
    orders.app.sync_link.run(ops.fetch(3))
    assert "worker-silent" not in codes(look(orders.app))  # nobody else is there to wait for
    lives(raw, ops, "w2")
    finding = found(look(orders.app), "worker-silent")
    assert finding.level == "warning" and "w1" in finding.what and "w2" not in finding.what


def test_consumers_that_were_never_cleaned(orders: Stream[Order], raw: redis.Redis) -> None:
    ops = member(orders)
    for n in range(21):
        raw.xgroup_createconsumer(ops.layout.current[0].stream, "billing", f"gone{n}")
    assert "22 consumers" in found(look(orders.app), "stale-consumers").what


def test_shards_that_nobody_owns_and_groups_that_are_far_behind(orders: Stream[Order], raw: redis.Redis) -> None:
    first, second, *_ = orders.sync.layout().current
    old(raw, first)
    old(raw, second)
    ops = member(orders)
    lives(raw, ops)
    orders.app.sync_link.run(OwnerOps(ops).own({first: 0, second: 0}, LIVES_MS))
    findings = look(orders.app)
    assert "unowned-shards" not in codes(findings) and "2h old" in found(findings, "far-behind").what
    raw.delete(second.owner("billing"))
    assert f"unread: {second}" in found(look(orders.app), "unowned-shards").what


def test_dead_letters_and_retries_that_wait(orders: Stream[Order], raw: redis.Redis) -> None:
    publish(orders, 200)
    ops = member(orders)
    lives(raw, ops)
    run, shard = orders.app.sync_link.run, ops.layout.current[0]
    dead, again, *_ = run(ops.fetch(100, [shard])).entries
    ends = [Outcome(shard, dead.id, 1, "dead", "failed", "Boom"), Outcome(shard, again.id, 1, "retry", 600_000)]
    run(ops.settle(ends))
    findings = look(orders.app)
    assert found(findings, "dead-letters").level == "warning" and "retries-overdue" not in codes(findings)
    raw.zadd(shard.retry("billing"), {again.id: (time.time() - 3600) * 1000})
    finding = found(look(orders.app), "retries-overdue")
    assert "1h past its time" in finding.what or "59" in finding.what
    letters = raw.xrange(shard.dead("billing"))
    raw.delete(shard.dead("billing"))
    raw.xadd(shard.dead("billing"), letters[0][1], id=f"{int((time.time() - 7200) * 1000)}-0")
    assert found(look(orders.app), "dead-letters").level == "note"


# -- the archive


def test_an_archive_that_nobody_writes(orders: Stream[Order], raw: redis.Redis) -> None:
    run, layout = orders.app.sync_link.run, orders.sync.layout()
    old(raw, layout.current[0])
    run(archiving.make(layout, layout.every))
    finding = found(look(orders.app), "archiver-behind")
    assert finding.level == "problem" and "nobody archives it" in finding.what and "no-worker" not in codes([finding])
    run(archiving.hold(layout, "take", "host-1", LIVES_MS))
    assert found(look(orders.app), "archiver-behind").level == "warning"
    run(archiving.hold(layout, "stop"))
    assert "switched off half-way" in found(look(orders.app), "archiver-behind").what
    run(archiving.hold(layout, "start"))
    raw.xgroup_destroy(layout.current[1].stream, ARCHIVE)
    assert str(layout.current[1]) in found(look(orders.app), "archive-gap").what


# -- what an app declares


class Changed(Event):
    customer: int
    total: str


def test_an_app_that_does_not_go_with_what_is_stored(server: Server, orders: Stream[Order], namespace: str) -> None:
    publish(orders, 3)
    with RStream(server.url, namespace=namespace) as other:
        other.stream("orders", Changed, key="customer", retention=Retention(age="1d"))
        new = other.stream("new", Order)
        findings = look(other, declared=True)
        mismatch = found(findings, "schema-mismatch")
        assert mismatch.level == "problem" and "customer" in mismatch.what
        assert found(findings, "retention-differs").level == "note"
        assert found(findings, "not-stored").where == f"stream {new.name}"
        assert codes(look(other, "orders", declared=True)) & {"not-stored"} == set()
    with RStream(server.url, namespace=namespace) as other:

        @other.stream("orders", Order).consumer("never")
        def handle(order: Order) -> None: ...

        findings = look(other, declared=True)
        assert found(findings, "key-mismatch").level == "problem"
        assert "never" in found(findings, "group-not-made").what


class Older(Event):
    customer: str


class Newer(Event):
    customer: str
    street: str


def test_a_model_that_was_accepted_and_cannot_read_older_entries(server: Server, namespace: str) -> None:
    with RStream(server.url, namespace=namespace) as app:
        app.stream("people", Older).sync.layout()
    with RStream(server.url, namespace=namespace) as app:
        people = app.stream("people", Newer)
        people.upgrade(1)(lambda fields: fields | {"street": ""})
        people.sync.layout()
    with RStream(server.url, namespace=namespace) as app:
        app.stream("people", Newer)
        finding = found(look(app, declared=True), "schema-unreadable")
    assert finding.level == "warning" and "street" in finding.what


def test_blob_stores(server: Server, namespace: str, tmp_path: Path) -> None:
    def told(blobs: str) -> set[str]:
        with RStream(server.url, namespace=namespace, blobs=blobs) as app:
            return codes(look(app), "warning", "problem") & {"blob-store"}

    endpoint = moto()
    assert told(f"s3://{bucket(endpoint)}/p?endpoint={endpoint}") == set()
    assert told("s3://there-is-none/p?endpoint=http://127.0.0.1:1&patience=0.2") == {"blob-store"}
    assert told(f"file://{tmp_path}/blobs") == set()


def test_an_archive_that_is_declared_and_off(server: Server, namespace: str, tmp_path: Path) -> None:
    with RStream(server.url, namespace=namespace, blobs=f"file://{tmp_path}") as app:
        orders = app.stream("orders", Order, key="customer", shards=2, archive=True)
        layout = orders.sync.layout()
        assert "archive-off" not in codes(look(app, declared=True))
        app.sync_link.run(archiving.hold(layout, "stop"))
        drive_sync(app.sync_link, archiving.end(layout.every), 1)
        assert found(look(app, declared=True), "archive-off").level == "warning"


# -- as a whole


RETAINED = "orders = app.stream("


@pytest.fixture
def shop(tmp_path: Path, own_server: Server, namespace: str) -> Iterator[Commands]:
    with redis.Redis.from_url(own_server.url) as raw:
        raw.config_set("slowlog-log-slower-than", -1)  # a busy machine may be slow
    commands = Commands(tmp_path, own_server.url, namespace)
    text = (tmp_path / "shop.py").read_text()
    text = text.replace("import Event, RStream", "import Event, Retention, RStream")
    commands.write("shop.py", text.replace("shards=4)", "shards=4, retention=Retention(age='7d'))"))
    yield commands


def test_all_is_well_while_a_worker_works(shop: Commands) -> None:
    lines = "".join(f'{{"customer": "c{n}", "total": {n}}}\n' for n in range(50))
    with shop.started("worker", "shop:app"):
        shop.ok("publish", "orders", "--app", "shop:app", "--file", "-", stdin=lines)
        eventually(lambda: len(shop.handled) == 100, 30)
        done = shop.run("doctor", "--app", "shop:app", "--strict")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "0 problems, 0 warnings," in done.stdout and "OK       group: " in done.stdout


def test_a_worker_that_is_frozen_is_found(
    shop: Commands, own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BEHIND_SECONDS", 0.0)
    with shop.started("worker", "shop:app", "--group", "slow") as running:
        shop.ok("publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}')
        eventually(lambda: shop.handled == ["begin a"], 30)
        with RStream(own_server.url, namespace=namespace) as app:
            assert "no-worker" not in codes(look(app))
            running.process.send_signal(signal.SIGSTOP)
            try:
                finding = eventually(lambda: next((f for f in look(app) if f.code == "no-worker"), None), 20)
                assert "1 are with silent ones" in finding.what and finding.where == "group notes/slow"
                assert exit_code([finding], strict=False) == 0 and exit_code([finding], strict=True) == 1
            finally:
                running.process.send_signal(signal.SIGCONT)


def test_a_look_changes_nothing(orders: Stream[Order], raw: redis.Redis, namespace: str) -> None:
    publish(orders, 50)
    ops = member(orders)
    orders.app.sync_link.run(ops.fetch(10))

    def state() -> dict[bytes, object]:
        every = sorted(key for key in raw.scan_iter() if namespace.encode() in key)
        return {key: raw.dump(key) for key in every}

    before = state()
    look(orders.app)
    assert state() == before


def test_parts_that_are_not_processed_are_guessed_with_care() -> None:
    from rstream.doctor.stream import unprocessed
    from rstream.retention import Held, Limits
    from rstream.store.pins import Pin
    from rstream.store.weigh import Group, Weight

    shard = keys.shard("n", "s", 1, 0, 1)
    group = Group("g", b"5-0", 2, b"9-0", 8, False, ())
    weight = Weight(shard, 0, b"1-0", Held(40, 1, 1, 1, 2), Limits(None, None), None, (group,))
    pin = Pin(shard, "g", None, 1.0, None, False, 0, 8)
    assert unprocessed(weight, pin) == 0.25
    assert unprocessed(weight, replace(pin, unread=None)) == 0.25
    assert unprocessed(replace(weight, groups=(group._replace(unread=-1),)), replace(pin, unread=None)) == 0.0
    assert unprocessed(weight, replace(pin, group="other")) == 0.0
    at_first = shard.entry_id(b"1-0")
    assert unprocessed(weight, replace(pin, entry=at_first)) == 1.0
