"""`rstream acl`: the whole flow under exactly the rights that it prints, and what each role is refused."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from rstream import Delivery, Event, Reject, Retention, RetryPolicy, RStream, Stream
from rstream.archive.run import ArchiveRun
from rstream.errors import StoreRefused
from rstream.store import keys, rights, roles, scripts
from rstream.store.rights import called_by
from rstream.worker.janitor import Janitor
from tests.commands import Commands
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually_async

SECRET = "pass w'rd"


class Order(Event):
    customer: str
    n: int


class World:
    """A server with a user for each role, made by what the command prints. raw: of its administrator."""

    def __init__(self, server: Server, namespace: str, rs: Commands) -> None:
        self.server, self.namespace, self.rs = server, namespace, rs
        self.raw = redis.Redis.from_url(server.url)
        self.users: list[str] = []

    def url(self, role: str, *options: str) -> str:
        """Of a user who was made so."""
        user = f"{self.namespace}-{role}-{len(self.users)}"
        printed = self.rs.ok("acl", role, *options, "--user", user, "--namespace", self.namespace)
        words = shlex.split(printed)
        assert words[:3] == ["ACL", "SETUSER", user]
        self.raw.execute_command(*words)
        self.raw.execute_command("ACL", "SETUSER", user, f">{SECRET}")
        self.users.append(user)
        return self.as_user(user)

    def as_user(self, user: str) -> str:
        return self.server.url.replace("//", f"//{user}:{SECRET.replace(' ', '%20')}@")

    @asynccontextmanager
    async def app(self, role: str, *options: str, blobs: str | None = None) -> AsyncIterator[RStream]:
        async with RStream(self.url(role, *options), namespace=self.namespace, blobs=blobs) as app:
            yield app

    def commands(self, role: str, *options: str) -> Commands:
        """The command line of such a user."""
        self.rs.env |= {"RSTREAM_URL": self.url(role, *options), "RSTREAM_NAMESPACE": self.namespace}
        return self.rs

    def denials(self) -> list[str]:
        """What was refused since the last time, by user, command and key."""
        entries = [{str(name): value for name, value in entry.items()} for entry in self.raw.acl_log()]
        self.raw.execute_command("ACL", "LOG", "RESET")
        return [f"{each['username']} {each['reason']} {each['object']}" for each in entries]


@pytest.fixture
def world(server: Server, namespace: str, rs: Commands) -> Iterator[World]:
    world = World(server, namespace, rs)
    world.raw.execute_command("ACL", "LOG", "RESET")
    yield world
    for user in world.users:
        world.raw.execute_command("ACL", "DELUSER", user)
    world.raw.close()


def orders_of(app: RStream, retention: Retention | None = None, *, archive: bool = False) -> Stream[Order]:
    return app.stream("orders", Order, key="customer", shards=2, retention=retention, archive=archive)


def events(count: int, first: int = 0) -> list[Order]:
    return [Order(customer=f"c{n % 7}", n=n) for n in range(first, first + count)]


class Consumers:
    """Handlers of all kinds, of which some fail; `seen` is what they did, by group."""

    def __init__(self, app: RStream, retention: Retention | None = None, *, archive: bool = False) -> None:
        self.app, self.seen = app, {"ordered": list[int](), "free": list[int](), "batch": list[int]()}
        self.orders = orders_of(app, retention, archive=archive)
        self.invoices = app.stream("invoices", Order, key="customer", shards=2, retention=retention)
        policy = RetryPolicy(max_attempts=3, initial_delay=0.01)

        @self.orders.consumer("ordered", emits=self.invoices, lease=1.0, retry=policy)
        async def ordered(order: Order, delivery: Delivery) -> Order:
            await delivery.checkpoint({"n": order.n})
            await delivery.step("add", lambda: order.n + 1)
            if order.n % 5 == 0 and delivery.attempt == 1:
                raise ValueError("once more")
            if order.n == 7:
                raise Reject("not this one")
            self.seen["ordered"].append(order.n)
            return order

        @self.orders.consumer("free", ordered=False, once="n", lease=1.0, retry=policy)
        def free(order: Order) -> None:
            self.seen["free"].append(order.n)

        @self.orders.consumer("batch", batch=10, max_wait=0.02, lease=1.0)
        async def batch(orders: list[Order]) -> None:
            self.seen["batch"] += [order.n for order in orders]


LIMITS = [None, Retention(entries=100_000, age="1d")]
"""Without limits, and with some."""


@pytest.mark.parametrize("retention", LIMITS, ids=["unlimited", "limited"])
async def test_the_whole_flow_under_exactly_these_rights(world: World, retention: Retention | None) -> None:
    limited = ["--limited"] if retention else []
    both = ["--stream", "orders", "--stream", "invoices"]
    async with world.app("admin", *both) as admin:
        shipped = Consumers(admin, retention)
        for stream in (shipped.orders, shipped.invoices):
            await stream.layout()
    emits = ["--stream", "orders", "--emits", "invoices", *limited]
    async with (
        world.app("producer", "--stream", "orders", *limited) as producer,
        world.app("worker", *emits) as worker_app,
        world.app("worker", *emits) as dying_app,
        world.app("dashboard", *both) as dashboard,
        world.app("admin", *both) as admin,
    ):
        orders, consumers = orders_of(producer, retention), Consumers(worker_app, retention)
        await drain(worker_app)  # makes the groups
        for event in events(20):
            await orders.publish(event)
        await orders.publish_many(events(20, 20))
        await asyncio.to_thread(orders.sync.publish_many, events(10, 40))
        await one_dies(dying_app, retention)
        async with working(worker_app) as worker:
            await eventually_async(lambda: all(len({*seen}) >= 49 for seen in consumers.seen.values()), 30)
            # Another number of shards, while they publish and work.
            await orders_of(admin, retention).reshard(3)
            await orders.publish_many(events(50, 50))
            await eventually_async(lambda: all(len({*seen}) >= 99 for seen in consumers.seen.values()), 30)
            await eventually_async(lambda: sum(run.in_hand for run in worker.runs) == 0)
            await Janitor(worker_app, worker.id).look()
            # Who only emits to a stream does not look after its retention.
            assert all(denial.endswith("invoices") or "invoices:" in denial for denial in world.denials())
        assert {*consumers.seen["ordered"]} == {*range(100)} - {7}
        looked = await asyncio.to_thread(dashboard.open, "orders")
        assert await looked.dead("ordered").count() == {"rejected": 1}
        assert len([entry async for entry in looked.read()]) >= 50
        invoices = await asyncio.to_thread(dashboard.open, "invoices")
        assert {entry.event["n"] async for entry in invoices.read()} == {*range(100)} - {7}
    assert world.denials() == []


async def one_dies(app: RStream, retention: Retention | None) -> None:
    """A worker that took some of what there is, and is not heard of again."""
    from rstream.store.deliveries import GroupOps

    ops = GroupOps(await orders_of(app, retention).layout(), "free", "gone")
    assert await app.link.run(ops.fetch(5))


async def test_an_archive_is_written_and_trimmed_behind(world: World, tmp_path: Path) -> None:
    retention, blobs = Retention(entries=10), f"file://{tmp_path / 'blobs'}"
    async with world.app("worker", "--stream", "orders", blobs=blobs) as app:
        orders = orders_of(app, retention, archive=True)

        @orders.consumer("g")
        async def handle(order: Order) -> None: ...

        await orders.layout()  # the worker may declare its own stream
        async with world.app("producer", "--stream", "orders", "--limited", blobs=blobs) as producer:
            published = orders_of(producer, retention, archive=True)
            for part in range(4):
                await published.publish_many(events(10, 10 * part))
                await drain(app)
                await ArchiveRun(orders).once()
                await Janitor(app, "janitor").look()
        assert {entry.event.n async for entry in orders.read()} == {*range(40)}  # out of the archive, too
        length = sum(world.raw.xlen(shard.stream) for shard in (await orders.layout()).current)
        assert length < 40
    assert world.denials() == []


async def test_a_producer_that_may_declare_is_the_first(world: World) -> None:
    async with world.app("producer", "--stream", "orders", "--declares") as app:
        await orders_of(app).publish(events(1)[0])
    async with world.app("producer", "--stream", "orders") as app:
        await orders_of(app).publish(events(1)[0])
    assert world.denials() == []
    assert world.raw.smembers(keys.streams(world.namespace)) == {b"orders"}
    async with world.app("producer", "--stream", "fresh") as app:
        with pytest.raises(StoreRefused, match="rstream acl --help"):
            await app.stream("fresh", Order).publish(events(1)[0])
    assert not world.raw.exists(keys.stream(world.namespace, "fresh"))


async def shop(world: World) -> None:
    """Streams with entries, a group and a dead letter."""
    async with RStream(world.server.url, namespace=world.namespace) as app:
        orders, other = orders_of(app), app.stream("other", Order, shards=1)

        @orders.consumer("g", retry=RetryPolicy(max_attempts=1))
        async def handle(order: Order) -> None:
            if order.n == 1:
                raise ValueError("oh")

        await orders.publish_many(events(5))
        await other.publish_many(events(1))
        await drain(app, "g")


def refused(world: World, url: str, *calls: tuple[object, ...]) -> None:
    with redis.Redis.from_url(url) as user:
        for call in calls:
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*call)
    world.denials()


def everything(world: World, shard: keys.Shard) -> list[tuple[object, ...]]:
    """What nobody but an administrator of the server may."""
    stray, other = "stray", keys.shard(world.namespace, "other", 1, 0, 1)
    return [
        ("FLUSHALL",), ("CONFIG", "SET", "maxmemory", "0"), ("ACL", "LIST"), ("KEYS", "*"), ("SET", stray, "1"),
        ("SUBSCRIBE", "all"), ("PUBLISH", "all", "x"), ("DEL", other.stream), ("CONFIG", "GET", "requirepass"),
        ("CONFIG", "GET", "masterauth"), ("SLOWLOG", "GET"), ("SCAN", "0"),
        ("XADD", other.stream, "*", "e", "x"), ("XRANGE", other.stream, "-", "+"),
        ("XADD", shard.stream.replace(f"{{{world.namespace}:", "{elsewhere:"), "*", "e", "x"),
    ]  # fmt: skip


async def test_what_a_producer_is_refused(world: World) -> None:
    await shop(world)
    async with world.app("producer", "--stream", "orders") as app:
        orders = orders_of(app)
        shard = (await orders.layout()).current[0]
        with pytest.raises(StoreRefused, match="rstream acl --help"):
            _ = [entry async for entry in orders.read()]
        with pytest.raises(StoreRefused, match="rstream acl --help"):
            await orders.dead("g").count()
        with pytest.raises(StoreRefused, match="rstream acl --help"):
            await orders.reshard(4)
        await orders.publish(events(1)[0])
        stored = keys.stream(world.namespace, "orders")
        refused(
            world, app.settings.url or "", *everything(world, shard),
            ("XRANGE", shard.stream, "-", "+"), ("XREAD", "STREAMS", shard.stream, "0"),
            ("XREADGROUP", "GROUP", "g", "me", "STREAMS", shard.stream, ">"), ("XACK", shard.stream, "g", "1-1"),
            ("XCLAIM", shard.stream, "g", "me", "0", "1-1"), ("XTRIM", shard.stream, "MAXLEN", "0"),
            ("XDEL", shard.stream, "1-1"), ("DEL", shard.stream), ("XGROUP", "DESTROY", shard.stream, "g"),
            ("XADD", shard.dead("g"), "*", "id", "1-1"), ("XRANGE", shard.dead("g"), "-", "+"),
            ("SET", shard.owner("g"), "me|1"), ("SET", shard.alive("g", "w"), "1"), ("GET", shard.owner("g")),
            ("HSET", stored, "retention", "{}"), ("HDEL", stored, "generation"),
            ("SMEMBERS", keys.streams(world.namespace)), ("XADD", keys.bell(world.namespace), "*", "s", "x"),
        )  # fmt: skip


async def test_what_a_worker_is_refused(world: World) -> None:
    await shop(world)
    async with world.app("worker", "--stream", "orders") as app:
        orders = orders_of(app)
        shard = (await orders.layout()).current[0]
        with pytest.raises(StoreRefused, match="rstream acl --help"):
            await orders.publish(events(1)[0])
        with pytest.raises(StoreRefused, match="rstream acl --help"):
            await orders.dead("g").redrive(everything=True)
        calls = [("XADD", shard.stream, "*", "e", "forged"), ("XADD", shard.seq("p"), "*", "e", "x")]
        refused(world, app.settings.url or "", *everything(world, shard), *calls)


@pytest.mark.long
async def test_what_a_dashboard_is_refused(world: World) -> None:
    await shop(world)
    rs = world.commands("dashboard", "--stream", "*")
    for command in (["groups", "orders"], ["read", "orders"], ["dead", "list", "orders", "--group", "g"], ["streams"],
                    ["pending", "orders", "--group", "g"], ["workers"], ["history", "orders"]):  # fmt: skip
        rs.ok(*command)
    assert world.denials() == []
    rs = world.commands("dashboard", "--stream", "orders")
    async with RStream(rs.env["RSTREAM_URL"], namespace=world.namespace) as app:
        orders = orders_of(app)
        shard = (await orders.layout()).current[0]
        for act in (
            orders.publish(events(1)[0]),
            orders.dead("g").redrive(everything=True),
            orders.dead("g").discard(everything=True),
            orders.reshard(4),
        ):
            with pytest.raises(StoreRefused, match="rstream acl --help"):
                await act
        refused(
            world, rs.env["RSTREAM_URL"], *everything(world, shard),
            ("XADD", shard.stream, "*", "e", "x"), ("XACK", shard.stream, "g", "1-1"), ("DEL", shard.stream),
            ("XADD", shard.dead("g"), "*", "e", "x"), ("XTRIM", shard.stream, "MAXLEN", "0"),
            ("SET", shard.owner("g"), "x"), ("HSET", keys.stream(world.namespace, "orders"), "retention", "{}"),
            ("XGROUP", "CREATE", shard.stream, "new", "0"), ("XADD", keys.bell(world.namespace), "*", "s", "x"),
        )  # fmt: skip


@pytest.mark.long
async def test_what_an_admin_does(world: World) -> None:
    await shop(world)
    rs = world.commands("admin", "--stream", "orders")
    for command in (
        ["dead", "redrive", "orders", "--group", "g", "--all"],
        ["groups", "reset", "orders", "--group", "g", "--to", "earliest", "--execute"],
        ["replay", "orders", "--from", "earliest", "--to", "now", "--into-group", "g"],
        ["replay", "orders", "--from", "earliest", "--as-group", "shadow"],
        ["pause", "g", "--stream", "orders"],
        ["resume", "g", "--stream", "orders"],
        ["pending", "orders", "--group", "g"],
        ["history", "orders"],
        ["streams", "reshard", "orders", "--shards", "4"],
        ["streams", "retention", "orders", "--entries", "1000"],
        ["trim", "orders"],
        ["groups", "remove", "orders", "--group", "shadow", "--execute"],
        ["doctor", "orders"],
    ):
        done = rs.run(*command)
        assert done.returncode == 0, (command, done.stderr)
    async with RStream(rs.env["RSTREAM_URL"], namespace=world.namespace) as app:
        shard = (await orders_of(app).layout()).current[0]
        refused(world, rs.env["RSTREAM_URL"], *everything(world, shard))


@pytest.mark.parametrize(("role", "levels"), [("producer", {"note"}), ("worker", {"note"}), ("admin", set[str]())])
async def test_the_doctor_finds_that_who_has_these_rights_lacks_none(
    world: World, role: roles.Role, levels: set[str]
) -> None:
    """Run by such a user, who may look as well."""
    await shop(world)
    url = world.url(role, "--stream", "*")
    look = [*(f"~{world.namespace}:*", f"~{{{world.namespace}:*"), *(roles._allowed(each) for each in roles.READ)]
    world.raw.execute_command(
        "ACL", "SETUSER", world.users[-1], *map(roles._allowed, (*roles.ASK, *roles.PRY)), f"({' '.join(look)})"
    )
    world.rs.env |= {"RSTREAM_URL": url, "RSTREAM_NAMESPACE": world.namespace}
    found = [each for each in json.loads(world.rs.run("doctor", "--json").stdout) if each["code"] == "rights"]
    found = [each for each in found if each["level"] != "ok"]
    assert {each["level"] for each in found} == levels, found


@pytest.mark.parametrize("role", ["dashboard", "admin"])
async def test_the_doctor_looks_at_all_of_the_server_only_where_that_was_said(world: World, role: roles.Role) -> None:
    await shop(world)
    prying = {"CONFIG GET", "SLOWLOG GET", "SCAN"}
    for options, unseen in (((), prying), (("--doctor",), set[str]())):
        rs = world.commands(role, "--stream", "orders", *options)
        found = json.loads(rs.run("doctor", "orders", "--json").stdout)
        told = [each["what"] for each in found if each["code"] == "could-not-look"]
        assert {name for name in prying if any(name in each for each in told)} == unseen, told
        assert {each["level"] for each in found if each["code"] == "could-not-look"} <= {"note"}


# -- the command


def test_a_line_of_an_acl_file_loads_and_knows_its_password(world: World, tmp_path: Path) -> None:
    line = world.rs.ok(
        "acl", "producer", "-s", "orders", "--user", "ada", "--file", "--password-stdin", stdin=SECRET + "\n"
    )
    assert line.startswith("user ada on #") and SECRET not in line and line.count("\n") == 1
    (tmp_path / "users.acl").write_text("user default on nopass ~* &* +@all\n" + line)
    file = ("--aclfile", str(tmp_path / "users.acl"))
    with (
        Server(world.server.binary, tmp_path / "own", tcp=True, args=file) as own,
        redis.Redis.from_url(own.url.replace("//", "//ada:pass%20w'rd@")) as ada,
    ):
        assert ada.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            ada.set("a", "b")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["producer"], "Missing option '--stream'"), (["chief", "-s", "a"], "is not one of"),
        (["producer", "-s", "a*"], "stream 'a*' cannot be used"), (["dashboard", "-s", "a", "--emits", "b"], "--emits"),
        (["worker", "-s", "a", "--declares"], "--declares is for a producer"),
        (["admin", "-s", "a", "--limited"], "--limited is for a producer"),
        (["producer", "-s", "a", "--user", "a b"], "user 'a b' cannot be used"),
        (["producer", "-s", "a", "--password-stdin"], "no password on stdin"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(rs: Commands, words: list[str], told: str) -> None:
    done = rs.run("acl", *words)
    assert done.returncode in (1, 2) and told in done.stderr and done.stdout == ""


def test_a_user_who_is_changed_keeps_its_password_and_loses_what_it_could_do(world: World) -> None:
    url = world.url("admin", "--stream", "*")
    user = world.users[-1]
    words = shlex.split(world.rs.ok("acl", "producer", "-s", "orders", "--user", user, "--namespace", world.namespace))
    world.raw.execute_command(*words)
    shard = keys.shard(world.namespace, "orders", 1, 0, 2)
    refused(world, url, *everything(world, shard), ("XRANGE", shard.stream, "-", "+"))


# -- the table


def test_the_table_lags_behind_no_script() -> None:
    admin, worker = {*roles.administering()}, {*roles.working()}
    assert {script.name for script in scripts.EVERY} >= rights.ADMIN_SCRIPTS
    assert {*rights.PLAIN["look"]} <= {*roles.READ, *roles.CONNECTION}
    for script in scripts.EVERY:
        needed = called_by(script) - {*roles.CONNECTION}
        assert needed <= admin, script.name
        if script.name not in rights.ADMIN_SCRIPTS:
            assert needed <= worker, script.name
        if "flags=no-writes" in script.source.partition("\n")[0]:
            assert needed <= {*roles.READ}, f"{script.name}: a dashboard may not"


@pytest.mark.parametrize("role", roles.ROLES)
def test_nobody_is_given_what_is_dangerous(role: roles.Role) -> None:
    given = " ".join(roles.rules(role, "ns", ["orders"], emits=["b"] if role == "worker" else [], limited=True))
    for word in ("+@", "~* ", "allkeys", "&*", "+eval ", "+flush", "+config|set", "+acl|set", "+keys", "+script|flush",
                 "+config", "+slowlog", "+scan"):  # fmt: skip
        assert word not in given + " "
    assert "resetchannels" in given
    writes = {"+xadd", "+set", "+hset", "+del", "+unlink", "+xack", "+xtrim", "+zadd", "+sadd", "+xgroup|create"}
    if role == "dashboard":
        assert not writes & {*given.replace(")", "").split()}
