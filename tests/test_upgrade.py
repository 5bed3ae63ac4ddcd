"""Versions of a stream's events: what is refused when it is declared, and how old payloads reach a new model."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis

from rstream import Event, RetryPolicy, RStream, Stream
from rstream.codec import pack_payload
from rstream.compat import digest
from rstream.errors import ConfigError, EntryInvalid, SchemaIncompatible, StreamMismatch
from rstream.store import layout as layouts
from rstream.worker.worker import Worker
from tests.commands import Commands
from tests.servers import Server
from tests.test_worker import working
from tests.waiting import eventually_async


class First(Event):
    device: str
    celsius: float


class Wider(First):
    room: str = ""


class Second(Event):
    device: str
    kelvin: float


class Third(Event):
    device: str
    kelvin: float
    site: str


def declare(app: RStream, model: type[Event], **options: Any) -> Stream[Any]:
    return app.stream("seen", model, key="device", shards=2, **options)


def to_kelvin(old: dict[str, Any]) -> dict[str, Any]:
    return {"device": old["device"], "kelvin": old["celsius"] + 273.0}


@pytest.fixture
def again(server: Server, namespace: str) -> Any:
    """Makes more apps, as other processes are."""
    made: list[RStream] = []

    def another() -> RStream:
        made.append(RStream(server.url, namespace=namespace))
        return made[-1]

    yield another
    for app in made:
        app.close()


def test_a_compatible_model_becomes_a_version(app: RStream, again: Any) -> None:
    declare(app, First).sync.publish(First(device="a", celsius=1))
    wider = declare(again(), Wider)
    assert wider.sync.layout().version == 2
    wider.sync.publish(Wider(device="a", celsius=2, room="x"))
    assert [entry.event.room for entry in wider.sync.read()] == ["", "x"]
    assert [entry.event.celsius for entry in declare(again(), First).sync.read()] == [1, 2]


def test_an_incompatible_model_is_refused_before_it_publishes(app: RStream, again: Any, raw: redis.Redis) -> None:
    declare(app, First).sync.publish(First(device="a", celsius=1))
    seen = declare(again(), Second)
    for _ in range(2):
        with pytest.raises(SchemaIncompatible) as caught:
            seen.sync.publish(Second(device="a", kelvin=1))
        assert isinstance(caught.value, StreamMismatch)
        assert caught.value.differences == (
            "Second cannot read version 1: kelvin: required, and not written",
            "version 1 cannot read Second: celsius: required, and not written",
        )
        headline, *lines = str(caught.value).splitlines()
        assert (
            "'seen'" in headline
            and "@stream.upgrade(1)" in headline
            and digest(app.streams["seen"]._schema) in headline
        )
        assert [line.strip() for line in lines] == [*caught.value.differences]
    assert len([*app.streams["seen"].sync.read()]) == 1
    assert raw.hget(f"{app.settings.namespace}:stream:seen", "versions") == b"1"


@pytest.mark.anyio
async def test_the_async_way_refuses_too(one_app: RStream) -> None:
    await declare(one_app, First).publish(First(device="a", celsius=1))
    async with RStream(one_app.settings.url, namespace=one_app.settings.namespace) as other:
        with pytest.raises(SchemaIncompatible):
            await declare(other, Second).publish(Second(device="a", kelvin=1))


@pytest.mark.parametrize("by", ["number", "digest"])
def test_hooks_are_a_chain(app: RStream, again: Any, by: str) -> None:
    first = declare(app, First)
    first.sync.publish(First(device="a", celsius=1))
    one: int | str = 1 if by == "number" else digest(first._schema)
    second = declare(again(), Second)
    second.upgrade(one)(to_kelvin)
    second.sync.publish(Second(device="a", kelvin=2))
    assert [entry.event.kelvin for entry in second.sync.read()] == [274, 2]

    third = declare(again(), Third)
    third.upgrade(one)(to_kelvin)
    third.upgrade(2 if by == "number" else digest(second._schema))(lambda old: {**old, "site": "?"})
    third.sync.publish(Third(device="a", kelvin=3, site="s"))
    assert third.sync.layout().version == 3
    assert [(entry.event.kelvin, entry.event.site) for entry in third.sync.read()] == [(274, "?"), (2, "?"), (3, "s")]


def test_a_hook_of_a_later_version_covers_what_that_can_read(app: RStream, again: Any) -> None:
    declare(app, First).sync.publish(First(device="a", celsius=1))
    declare(again(), Wider).sync.publish(Wider(device="a", celsius=2))
    with pytest.raises(SchemaIncompatible, match="version 2"):
        early = declare(again(), Second)
        early.upgrade(1)(to_kelvin)
        early.sync.layout()
    early.upgrade(2)(to_kelvin)  # it was not declared, so hooks may be added
    late = declare(again(), Second)
    late.upgrade(2)(to_kelvin)
    assert [entry.event.kelvin for entry in late.sync.read()] == [274, 275]


def test_an_older_model_goes_on_beside_a_newer_one(app: RStream, again: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As in a rolling deployment, and after a rollback."""
    first = declare(app, First)
    first.sync.publish(First(device="a", celsius=1))
    second = declare(again(), Second)
    second.upgrade(1)(to_kelvin)
    second.sync.publish(Second(device="a", kelvin=2))
    assert not caplog.records
    first.sync.publish(First(device="a", celsius=3))
    restarted = declare(again(), First)
    restarted.sync.publish(First(device="a", celsius=4))
    assert "First cannot read version 2: celsius: required, and not written" in caplog.text
    assert [entry.event.kelvin for entry in second.sync.read()] == [274, 2, 276, 277]
    with pytest.raises(EntryInvalid, match=r"celsius: .*written as version 2 of the schema; this model is version 1"):
        [entry.event for entry in restarted.sync.read()]


def test_hooks_do_not_touch_what_the_model_wrote_itself(app: RStream) -> None:
    """On a Redis of its own the model is version 1, which elsewhere is an old one."""
    seen = declare(app, Second)
    seen.upgrade(1)(to_kelvin)
    seen.sync.publish(Second(device="a", kelvin=2))
    assert [entry.event.kelvin for entry in seen.sync.read()] == [2]


def test_two_versions_that_are_declared_at_once(server: Server, namespace: str) -> None:
    """However they meet, exactly one of two that do not go together is stored."""
    for turn in range(10):
        outcomes: list[object] = []
        barrier = threading.Barrier(2)

        def run(model: type[Event], turn: int = turn, barrier: Any = barrier, outcomes: Any = outcomes) -> None:
            with RStream(server.url, namespace=f"{namespace}{turn}") as app:
                barrier.wait()
                try:
                    outcomes.append(declare(app, model).sync.layout().version)
                except SchemaIncompatible as error:
                    outcomes.append(error.differences[0].partition(" cannot")[0])

        threads = [threading.Thread(target=run, args=(model,)) for model in (First, Second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 2 and 1 in outcomes and {*outcomes} & {"First", "Second"}


def test_a_new_version_is_stored_only_beside_those_it_was_compared_with(app: RStream) -> None:
    first, second = declare(app, First), app.stream("other", Second, key="device")
    first.sync.layout()
    late = layouts.declare(app.settings.namespace, "seen", 2, "device", second._schema, 0)
    layout = app.sync_link.run(late)
    assert (layout.version, {n: digest(each) for n, each in layout.schemas.items()}) == (0, {1: digest(first._schema)})
    seen = layouts.declare(app.settings.namespace, "seen", 2, "device", second._schema, 1)
    layout = app.sync_link.run(seen)
    assert (layout.version, layout.schemas) == (2, {})


@pytest.mark.parametrize(
    ("hook", "told"),
    [(lambda old: old["nothing"], "KeyError: 'nothing'"), (lambda old: None, "returned a NoneType, not a dict")],
)
def test_an_upgrade_that_fails_names_itself(app: RStream, again: Any, hook: Any, told: str) -> None:
    declare(app, First).sync.publish(First(device="a", celsius=1))
    seen = declare(again(), Second)
    seen.upgrade(1)(hook)
    seen.sync.publish(Second(device="a", kelvin=2))
    bad, good = seen.sync.read()
    with pytest.raises(EntryInvalid, match="the upgrade of version 1 ") as caught:
        _ = bad.event
    assert caught.value.reason == "outdated" and told in str(caught.value)
    assert good.event.kelvin == 2


async def _async_hook(old: dict[str, Any]) -> dict[str, Any]:
    return old


def test_hooks_that_cannot_be(app: RStream, again: Any) -> None:
    seen = declare(app, Second)
    seen.upgrade(1)(to_kelvin)
    for old, hook, told in [
        (1, to_kelvin, "declared already"),
        (0, to_kelvin, "names no version"),
        (True, to_kelvin, "names no version"),
        ("v1", to_kelvin, "names no version"),
        (2, _async_hook, "is async"),
    ]:
        with pytest.raises(ConfigError, match=told):
            seen.upgrade(old)(hook)
    seen.sync.layout()
    with pytest.raises(ConfigError, match="too late"):
        seen.upgrade(2)(to_kelvin)
    with pytest.raises(ConfigError, match="no model"):
        again().open("seen").upgrade(1)(to_kelvin)


def test_a_payload_of_no_version_is_not_upgraded(app: RStream, again: Any, raw: redis.Redis) -> None:
    declare(app, First).sync.layout()
    seen = declare(again(), Second)
    seen.upgrade(1)(to_kelvin)
    shard = seen.sync.layout().current[0]
    raw.xadd(shard.stream, {"e": pack_payload(0, {"device": "a", "kelvin": 5}), "k": "a", "i": bytes(16)})
    assert [entry.event.kelvin for entry in seen.sync.read()] == [5]


OLD = """
from rstream import Event, RStream
app = RStream()
class Order(Event):
    customer: str
    total: float
orders = app.stream("orders", Order, key="customer", shards=2)
"""
NEW = """
import pathlib
from rstream import Event, RStream
app = RStream()
class Order(Event):
    customer: str
    cents: int
orders = app.stream("orders", Order, key="customer")

@orders.upgrade(1)
def cents(old: dict) -> dict:
    return {"customer": old["customer"], "cents": round(100 / old["total"])}

@orders.consumer("billing", lease=2.0)
def bill(order: Order) -> None:
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(f"{order.customer} {order.cents}\\n")
"""


def test_consumers_dead_letters_and_replay_use_the_hooks(rs: Commands) -> None:
    rs.write("old.py", OLD)
    rs.write("new.py", NEW)
    for total in (4, 0, 5):
        rs.ok("publish", "orders", "--app", "old:app", "--json", f'{{"customer": "c", "total": {total}}}')
    rs.ok("publish", "orders", "--app", "new:app", "--json", '{"customer": "c", "cents": 7}')
    rs.ok("worker", "new:app", "--burst")
    assert rs.handled == ["c 25", "c 20", "c 7"]
    listed = rs.ok("dead", "list", "orders", "--group", "billing", "--json")
    assert '"reason": "outdated"' in listed and "upgrade of version 1 failed: ZeroDivisionError" in listed
    done = rs.run("replay", "orders", "--from", "earliest", "--to", "latest", "--handler", "new:bill")
    assert done.returncode == 1 and "the upgrade of version 1 failed" in done.stderr
    assert rs.handled[3:] == ["c 25", "c 20", "c 7"]


def test_schema_show_and_check(rs: Commands) -> None:
    rs.write("old.py", OLD)
    rs.write("new.py", NEW)
    rs.write("plain.py", NEW.replace("@orders.upgrade(1)", "#"))
    assert "would be version 1" in rs.ok("schema", "check", "orders", "--app", "new:app")
    missing = rs.run("schema", "show", "orders")
    assert missing.returncode == 1 and "no stream 'orders'" in missing.stderr
    rs.ok("publish", "orders", "--app", "old:app", "--json", '{"customer": "c", "total": 1}')
    shown = rs.ok("schema", "show", "orders")
    assert "version 1 of 1" in shown and "total     number  required" in shown
    assert "is version 1, stored already, and goes with" in rs.ok("schema", "check", "orders", "--model", "old:Order")
    assert "would be version 2, and goes" in rs.ok("schema", "check", "orders", "--app", "new:app")
    for option, spec in (("--app", "plain:app"), ("--model", "plain:Order")):
        bad = rs.run("schema", "check", "orders", option, spec)
        assert bad.returncode == 1
        assert "Order cannot read version 1: cents: required, and not written" in bad.stdout
        assert "version 1 cannot read Order: total: required, and not written" in bad.stdout
    refused = rs.run("publish", "orders", "--app", "plain:app", "--json", '{"customer": "c", "cents": 1}')
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[1] == "  Order cannot read version 1: cents: required, and not written"
    rs.ok("publish", "orders", "--app", "new:app", "--json", '{"customer": "c", "cents": 1}')
    assert '"total"' in rs.ok("schema", "show", "orders", "--version", "1", "--json")
    assert "Other versions: 1 (" in rs.ok("schema", "show", "orders")
    assert rs.run("schema", "show", "orders", "--version", "3").returncode == 1
    assert '"compatible": false' in rs.run("schema", "check", "orders", "--app", "plain:app", "--json").stdout


# -- Redis loses what it knew


class Lost:
    """A consumer of the new model at work, and a producer of the old one. got: what the consumer was given."""

    def __init__(self, again: Any) -> None:
        self.old, self.new = declare(again(), First), declare(again(), Second)
        self.got: list[float] = []
        self.new.upgrade(1)(to_kelvin)

        @self.new.consumer("g", retry=RetryPolicy(max_attempts=1), lease=2.0)
        async def handle(event: Second) -> None:
            self.got.append(event.kelvin)

    async def lose(self, worker: Worker) -> None:
        settings, resets = self.new.app.settings, worker.counts.resets
        with redis.Redis.from_url(settings.url or "") as client:
            client.delete(*client.keys(f"*{settings.namespace}*"))
        await eventually_async(lambda: worker.counts.resets > resets, 20)


async def test_versions_keep_their_numbers_where_redis_lost_them(again: Any) -> None:
    """A payload tells its version by a number, and producers that go on know the old one."""
    lost = Lost(again)
    await asyncio.to_thread(lost.old.sync.publish, First(device="a", celsius=0.0))
    async with working(lost.new.app) as worker:
        await eventually_async(lambda: lost.got == [273.0])
        lost.new.sync.publish(Second(device="a", kelvin=1.0))
        await lost.lose(worker)
        fresh = declare(again(), Second)
        fresh.upgrade(1)(to_kelvin)
        await fresh.publish(Second(device="a", kelvin=2.0))
        await lost.new.publish(Second(device="a", kelvin=3.0))
        await lost.old.publish(First(device="a", celsius=4.0))
        await eventually_async(lambda: 277.0 in lost.got)
        assert {*lost.got} >= {273.0, 2.0, 3.0, 277.0} and worker.counts.dead == 0


async def test_where_versions_have_other_numbers_hooks_stay_with_theirs(again: Any, monkeypatch: Any) -> None:
    lost = Lost(again)
    await lost.old.publish(First(device="a", celsius=0.0))
    restored = layouts.restore

    def late(layout: Any) -> Any:  # somebody else comes first
        monkeypatch.setattr(layouts, "restore", restored)
        declare(again(), Second).sync.publish(Second(device="a", kelvin=2.0))
        return restored(layout)

    async with working(lost.new.app) as worker:
        await eventually_async(lambda: lost.got == [273.0])
        monkeypatch.setattr(layouts, "restore", late)
        await lost.lose(worker)
        await lost.new.publish(Second(device="a", kelvin=3.0))
        await eventually_async(lambda: {2.0, 3.0} <= {*lost.got})
        assert worker.counts.dead == 0 and (await lost.new.layout()).version == 1
