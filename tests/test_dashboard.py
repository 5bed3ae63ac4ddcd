"""What the dashboard shows, and what it keeps to itself; asked over its socket."""

from __future__ import annotations

import base64
import concurrent.futures
import html
import re
import shlex
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from rstream import EntryId, RStream, operate
from rstream.crypto import Keyring
from rstream.dashboard.live import EVERY, Shared, Watch
from rstream.errors import UnknownStream
from rstream.store import stats
from tests.commands import Commands, Order
from tests.dashboards import OPERATOR, VIEWER, Dashboard, csrf, dashboard, shop, text
from tests.fleets import Cluster
from tests.orders import member, publish
from tests.servers import Server
from tests.waiting import eventually

SECRET = "ada@example.org"
"""Somebody's key, and in their events."""


@pytest.fixture
def board(rs: Commands) -> Iterator[Dashboard]:
    with dashboard(rs) as running:
        yield running


@pytest.fixture
def client(board: Dashboard) -> Iterator[httpx.Client]:
    with board.client() as client:
        yield client


def dead(rs: Commands, *customers: str, group: str = "billing") -> list[EntryId]:
    """Entries that a group gave up; the ids of their letters."""
    with shop(rs) as orders:
        orders.sync.publish_many(Order(customer=name, total=-1, scan=b"\0") for name in customers)
    rs.write("bad.py", BAD)
    rs.ok("worker", "bad:app", "--burst")
    with shop(rs) as orders:
        return [letter.id for letter in orders.sync.dead(group).read()]


BAD = """
from shop import Order
from rstream import RStream, RetryPolicy
app = RStream()
orders = app.stream("orders", Order, key="customer", shards=4)

@orders.consumer("billing", lease=2.0, retry=RetryPolicy(max_attempts=1))
async def bill(order: Order) -> None:
    raise ValueError(f"no account of {order.customer}")
"""


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_nothing_is_there_yet(client: httpx.Client) -> None:
    assert "No streams yet" in text(client.get("/"))
    assert client.get("/s/orders").status_code == 404
    assert client.get("/s/orders/g/billing").status_code == 404
    assert client.get("/static/../site.py").status_code == 404
    assert client.get("/static/..%2fsite.py").status_code == 404


def test_one_screen_tells_what_lags_and_who_has_it(rs: Commands, client: httpx.Client) -> None:
    with shop(rs) as orders:
        publish(orders, 20)
        billing = member(orders, "billing", "w1")
        first = orders.sync.layout().every[0]
        orders.app.sync_link.exchange(
            [
                ("XREADGROUP", "GROUP", "billing", "w1", "COUNT", 2, "STREAMS", first.stream, ">"),
            ]
        )
        oldest = min(entry.id for entry in orders.sync.read() if entry.id.shard == first.number)
        member(orders, "shipping", "w2", start="$")
    page = client.get("/")
    told = text(page)
    assert "1 of 2 groups needs attention" in told
    assert "no worker" in told
    assert f"w1 has {oldest} and gives no sign of life: the next worker that starts takes it over" in told
    assert f"{billing.group} " in told
    assert "/s/orders/g/billing" in page.text
    assert f"/s/orders/e/{oldest}" in page.text
    stream = text(client.get("/s/orders"))
    assert "Entries 20" in stream
    assert "Key customer" in stream
    group = text(client.get("/s/orders/g/billing"))
    assert "there is something to do, and no worker is alive" in group


def test_names_of_others_are_escaped(rs: Commands, client: httpx.Client) -> None:
    """Keys, payloads, errors and headers are whatever somebody sent."""
    evil = "<script>alert(1)</script>\"'&"
    (letter,) = dead(rs, evil)
    page = client.get(f"/s/orders/g/billing/dead/{letter}")
    shown = client.post(page.url.path, data={"csrf": csrf(page)})
    listed = client.post("/s/orders/g/billing/dead", data={"csrf": csrf(page)})
    for answer in (shown, listed):
        assert answer.status_code == 200
        assert "alert(1)" in answer.text
        assert "<script>alert" not in answer.text
        assert "\"'&<" not in answer.text


def test_what_events_hold_is_hidden_until_asked_for(rs: Commands) -> None:
    (letter,) = dead(rs, SECRET)
    with shop(rs) as orders:
        id = orders.sync.publish(Order(customer=SECRET, total=2), headers={"prompt": SECRET})
        entry = next(iter(orders.sync.read())).id
    paths = ("/", "/s/orders", "/s/orders/g/billing", "/s/orders/g/billing/dead", f"/s/orders/g/billing/dead/{letter}",
             f"/s/orders/e/{id}", f"/s/orders/e/{entry}", "/workers")  # fmt: skip
    with dashboard(rs, "--host", "127.0.0.1", tokens=True) as board:
        with board.client(VIEWER) as viewer, board.client(OPERATOR) as operator:
            for path in paths:
                for client in (viewer, operator):
                    page = client.get(path)
                    assert page.status_code == 200, path
                    assert SECRET not in page.text, path
            for query in (f"?key={SECRET}", "?error=account"):
                assert viewer.get(f"/s/orders/g/billing/dead{query}").status_code == 403, "one could guess and see"
            token = csrf(operator.get("/"))
            told = text(operator.post(f"/s/orders/g/billing/dead/{letter}", data={"csrf": token}))
            assert f"ValueError: no account of {SECRET}" in told
            assert "Traceback (most recent call last)" in told
            assert '"total": -1.0' in told
            told = text(operator.post("/s/orders/g/billing/dead", data={"csrf": token}))
            assert SECRET in told
            told = text(operator.post(f"/s/orders/e/{id}", data={"csrf": token}))
            assert f"Header prompt {SECRET}" in told
            assert '"total": 2.0' in told
            for path in paths:
                assert SECRET not in operator.get(path).text, "it was shown once"
        assert SECRET not in board.log
        for line in ("revealed a dead letter stream=orders group=billing", "revealed an entry stream=orders"):
            assert f"operator 127.0.0.1 {line}" in board.log


def test_an_entry_that_is_no_event(rs: Commands, client: httpx.Client) -> None:
    with shop(rs) as orders:
        id = orders.sync.publish(Order(customer="ada", total=1))
        shard = next(each for each in orders.sync.layout().every if each.number == id.shard)
        orders.app.sync_link.exchange([("XADD", shard.stream, f"{id.ms}-{id.seq + 1}", "e", b"\xff\xfe", "x", "<y>")])
    page = client.get(f"/s/orders/e/{id._replace(seq=id.seq + 1)}")
    assert page.status_code == 200
    told = text(client.post(page.url.path, data={"csrf": csrf(page)}))
    assert "undecodable" in told
    assert "base64:" in told
    for nothing in ("1-1@1.0", "1-1@9.9", "nonsense", "1-1"):
        assert client.get(f"/s/orders/e/{nothing}").status_code == 404


def test_what_is_encrypted_is_shown_to_who_has_the_key(rs: Commands) -> None:
    key = "k1:" + base64.b64encode(b"k" * 32).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSTREAM_KEYS", key)
        with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"], encrypt=Keyring.env()) as app:
            id = app.stream("orders", Order, key="customer").sync.publish(Order(customer="ada", total=42.5))
    for keys, shown in (("", "RSTREAM_KEYS is not set"), (key, '"total": 42.5')):
        rs.env["RSTREAM_KEYS"] = keys
        with dashboard(rs) as board, board.client() as client:
            for path in ("/", "/s/orders", f"/s/orders/e/{id}"):
                assert client.get(path).status_code == 200, path
            page = client.post(f"/s/orders/e/{id}", data={"csrf": csrf(client.get("/s/orders/replay"))})
            assert shown in text(page)
            assert ('"total": 42.5' in text(page)) is bool(keys)


def test_an_id_is_found(rs: Commands, client: httpx.Client) -> None:
    with shop(rs) as orders:
        id = orders.sync.publish(Order(customer="ada", total=1))
    page = client.get("/find", params={"stream": "orders", "id": f" {id} "})
    assert (page.status_code, page.url.path) == (200, f"/s/orders/e/{id}")


def test_dead_letters_are_filtered(rs: Commands, client: httpx.Client) -> None:
    letters = dead(rs, "ada", "bob", "cid")
    path = "/s/orders/g/billing/dead"

    def ids(query: str = "") -> set[str]:
        return set(re.findall(r'id="letter-([^"]+)"', client.get(path + query).text))

    assert ids() == {str(id) for id in letters}
    assert ids("?reason=failed") == ids()
    assert ids("?reason=crashed") == set()
    assert len(ids("?key=ada")) == 1
    assert len(ids("?error=OF+BOB")) == 1
    assert ids("?since=1h+ago&until=now") == ids()
    assert ids("?since=2020-01-01T00:00Z&until=2020-01-02T00:00Z") == set()
    assert "is neither an id nor a time" in text(client.get(path + "?since=tuesday"))


def test_a_redrive_of_all_that_match_takes_no_later_ones(rs: Commands, client: httpx.Client) -> None:
    dead(rs, "ada", "bob")
    form = {"csrf": csrf(client.get("/s/orders/g/billing/dead")), "verb": "discard", "which": "all"}
    plan = client.post("/s/orders/g/billing/dead/plan", data=form)
    assert "Discard 2 dead letters?" in text(plan)
    dead(rs, "cid")
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', plan.text))
    done = client.post("/s/orders/g/billing/dead/do", data={**fields, "verb": "discard"})
    assert "Discarded: 2 dead letters" in text(done)
    with shop(rs) as orders:
        assert [letter.key for letter in orders.sync.dead("billing").read()] == ["cid"]


def test_what_cannot_be_done_is_said(rs: Commands, client: httpx.Client) -> None:
    with shop(rs) as orders:
        publish(orders, 3)
        member(orders)
    token = csrf(client.get("/s/orders/replay"))
    for form, why in (
        ({"from": "tuesday", "to": "now", "group": "billing"}, "neither an id nor a time"),
        ({"from": "1h ago", "to": "now", "group": "nobody"}, "no group 'nobody' reads stream"),
        ({"from": "1h ago", "to": "now", "group": ""}, "Which group?"),
        ({"from": "1h ago", "to": "", "group": "billing"}, "From when until when?"),
        ({"from": "1h ago", "to": "now", "group": "billing", "rate": "fast"}, "fast"),
        ({"from": "1h ago", "to": "now", "group": "billing", "where": "total"}, "total"),
        ({"from": "1h ago", "to": "now", "group": "billing", "way": "new"}, "has a group 'billing' already"),
    ):
        answer = client.post("/s/orders/replay/plan", data={**form, "csrf": token})
        assert answer.status_code == 400, form
        assert why in text(answer)
    assert client.post("/s/orders/g/billing/cancel", data={"csrf": token}).status_code == 400
    assert client.post("/s/orders/g/billing/cancel", data={"csrf": token, "id": "x"}).status_code == 400
    assert (
        client.post("/s/orders/g/billing/dead/plan", data={"csrf": token, "verb": "burn", "id": "1-1@1.0"}).status_code
        == 400
    )
    assert client.post("/s/orders/g/billing/dead/plan", data={"csrf": token, "verb": "redrive"}).status_code == 400


def test_a_long_list_is_paged_through(rs: Commands, client: httpx.Client) -> None:
    with shop(rs) as orders:
        publish(orders, 130)
        member(orders, "billing", "w1")
        shards = orders.sync.layout().every
        calls = [("XREADGROUP", "GROUP", "billing", "w1", "STREAMS", shard.stream, ">") for shard in shards]
        orders.app.sync_link.exchange(calls)
        ids = sorted(str(entry.id) for entry in orders.sync.read())
    seen, path = [], "/s/orders/g/billing"
    for _ in range(3):
        page = client.get(path)
        seen += re.findall(r'<tr id="pending-([^"]+)"', page.text)
        found = re.search(r'href="([^"]+)">The next', page.text)
        path = html.unescape(found[1]) if found else ""
    assert (sorted(seen), path) == (ids, "")


def test_many_dead_letters_are_paged_through(rs: Commands, client: httpx.Client) -> None:
    letters = dead(rs, *(f"c{n}" for n in range(150)))
    seen, path = list[str](), "/s/orders/g/billing/dead"
    for _ in range(2):
        page = client.get(path)
        seen += re.findall(r'<tr id="letter-([^"]+)"', page.text)
        found = re.search(r'href="([^"]+)">Those that died later', page.text)
        path = html.unescape(found[1]) if found else ""
    assert (seen, path) == ([str(id) for id in letters], "")


def test_a_replay_is_seen_to_run_and_is_stopped(rs: Commands, client: httpx.Client) -> None:
    with shop(rs) as orders:
        publish(orders, 30)
        billing = member(orders)
        for shard in orders.sync.layout().every:
            orders.app.sync_link.exchange([("XGROUP", "SETID", shard.stream, billing.group, "$")])
    token = csrf(client.get("/s/orders/replay"))
    window = {"csrf": token, "from": "1h ago", "to": "now", "group": "billing", "rate": "2/s", "key": "", "where": ""}
    plan = client.post("/s/orders/replay/plan", data=window)
    assert "handle 30 entries once more" in text(plan)
    assert re.search("Takes at least 1[45] s by rate", text(plan)), text(plan)
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', plan.text))
    assert client.post("/s/orders/replay/run", data=fields).url.path == "/replays"
    eventually(lambda: re.search(r"running .* % [1-9]", text(client.get("/replays"))))
    again = client.post("/s/orders/replay/run", data=fields)  # pressed twice
    eventually(lambda: "is running already" in text(client.get("/replays")))
    assert again.status_code == 200
    client.post("/replays/1/stop", data={"csrf": token})
    page = eventually(lambda: "stopped" in text(found := client.get("/replays")) and found)
    command = re.search(r"<code>rstream (replay orders [^<]+)</code>", page.text)
    assert command
    with shop(rs) as orders:
        given = orders.app.sync_link.run(stats.group_stats(orders.sync.layout()))[0].pending
        assert 0 < given < 30
        rs.ok(*shlex.split(html.unescape(command[1]).replace("--rate 2/s", "")))  # goes on, each once
        assert orders.app.sync_link.run(stats.group_stats(orders.sync.layout()))[0].pending == 30


# -- Redis comes and goes --------------------------------------------------------------------------------------------


def test_redis_is_away_and_comes_back(rs: Commands, own_server: Server) -> None:
    rs.env["RSTREAM_URL"] = own_server.url
    with dashboard(rs) as board, board.client() as client:
        with shop(rs) as orders:
            publish(orders, 3)
        assert client.get("/s/orders").status_code == 200
        assert client.get("/readyz").status_code == 200
        own_server.kill()
        page = eventually(lambda: (found := client.get("/s/orders")).status_code == 503 and found)
        assert "does not answer" in text(page)
        assert client.get("/", headers={"X-Live": "1"}).status_code == 503
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200, "the process is well: restarting it would help nobody"
        own_server.start()
        eventually(lambda: client.get("/s/orders").status_code == 200)
        assert "Entries 3" in text(client.get("/s/orders"))
        own_server.pause()
        eventually(lambda: client.get("/", timeout=60).status_code == 503, timeout=60)
        own_server.resume()
        eventually(lambda: client.get("/").status_code == 200)


def test_redis_lost_everything(rs: Commands, own_server: Server) -> None:
    """Nothing is made anew by somebody who looks."""
    rs.env["RSTREAM_URL"] = own_server.url
    with dashboard(rs) as board, board.client() as client, shop(rs) as orders:
        id = orders.sync.publish(Order(customer="ada", total=1))
        assert client.get(f"/s/orders/e/{id}").status_code == 200
        orders.app.sync_link.exchange([("FLUSHALL",)])
        eventually(lambda: client.get("/s/orders").status_code == 404)
        assert client.get(f"/s/orders/e/{id}").status_code == 404
        assert orders.app.sync_link.exchange([("DBSIZE",)]) == [0]


def test_on_a_cluster(rs: Commands, cluster: Cluster) -> None:
    """Keys of many slots: every page, and what it does."""
    rs.env["RSTREAM_URL"] = cluster.url
    letter, *_ = dead(rs, "ada", "bob", "cid", "dan")
    with shop(rs) as orders:
        id = orders.sync.publish(Order(customer="ada", total=2))
    group = "/s/orders/g/billing"
    with dashboard(rs) as board, board.client() as client:
        for path in (
            "/",
            "/workers",
            "/s/orders",
            group,
            f"{group}/dead",
            f"{group}/dead/{letter}",
            f"/s/orders/e/{id}",
        ):
            assert client.get(path).status_code == 200, path
        token = {"csrf": csrf(client.get(group))}
        client.post(f"{group}/pause", data=token)
        assert "by dashboard operator" in text(client.get(group))
        done = client.post(f"{group}/dead/do", data={**token, "verb": "redrive", "until": "now"})
        assert "Redriven: 4 dead letters" in text(done)
        plan = client.post("/s/orders/replay/plan", data={**token, "from": "1h ago", "to": "now", "group": "billing"})
        assert "Left alone: pending 4" in text(plan)


async def test_who_looks_declares_nothing_anew(own_server: Server) -> None:
    """Also in the second in which the last look still holds."""
    async with RStream(own_server.url) as app:
        await app.stream("orders", Order, key="customer").publish(Order(customer="ada", total=1))
    async with RStream(own_server.url) as app:
        watch = Watch(app)
        stream = (await watch.fleet()).streams["orders"]
        await app.link.exchange([("FLUSHALL",)])
        assert "orders" in (await watch.fleet()).streams
        for look in (operate.pending(watch.opened(stream), "billing"), operate.show(watch.opened(stream), "1-1@1.0")):
            with pytest.raises(UnknownStream, match="is gone"):
                await look
        assert await app.link.exchange([("DBSIZE",)]) == [0]


# -- under the least rights in Redis --------------------------------------------------------------------------------


def test_the_least_rights_show_all_and_change_nothing(rs: Commands, own_server: Server) -> None:
    rs.env["RSTREAM_URL"] = own_server.url
    letter, *_ = dead(rs, "ada", "bob")
    with shop(rs) as orders:
        id = orders.sync.publish(Order(customer="ada", total=2))

    def as_role(role: str) -> str:
        words = shlex.split(rs.ok("acl", role, "--stream", "*", "--user", role))
        with redis.Redis.from_url(own_server.url) as raw:
            raw.execute_command(*words)
            raw.execute_command("ACL", "SETUSER", role, ">secret")
        return own_server.url.replace("//", f"//{role}:secret@")

    looking, acting = as_role("dashboard"), as_role("admin")
    group = "/s/orders/g/billing"
    rs.env["RSTREAM_URL"] = looking
    with dashboard(rs) as board, board.client() as client:
        paths = ("/", "/workers", "/s/orders", group, f"{group}/dead", f"{group}/dead/{letter}", f"/s/orders/e/{id}")
        for path in paths:
            assert client.get(path).status_code == 200, path
        token = {"csrf": csrf(client.get(group))}
        assert "Traceback" in text(client.post(f"{group}/dead/{letter}", data=token))
        assert '"total": 2.0' in text(client.post(f"/s/orders/e/{id}", data=token))
        refused = client.post(f"{group}/pause", data=token)
        assert (refused.status_code, "rstream acl admin" in text(refused)) == (403, True)
        discard = {**token, "verb": "discard", "id": str(letter)}
        assert client.post(f"{group}/dead/do", data=discard).status_code == 403
        assert client.get(f"{group}/dead/{letter}").status_code == 200, "it is still there"
    rs.env["RSTREAM_URL"] = acting
    with dashboard(rs) as board, board.client() as client:
        token = {"csrf": csrf(client.get(group))}
        assert client.post(f"{group}/pause", data={**token, "why": "a test"}).status_code == 200
        assert "by dashboard operator: a test" in text(client.get(group))
        assert client.post(f"{group}/resume", data=token).status_code == 200
        done = client.post(f"{group}/dead/do", data={**token, "verb": "discard", "id": str(letter)})
        assert "Discarded: 1 dead letter" in text(done)


# -- who watches ------------------------------------------------------------------------------------------------------


async def test_viewers_share_a_look() -> None:
    now, shared = [0.0], None
    shared = Shared(1.0, clock=lambda: now[0])

    async def look() -> float:
        now[0] += 0.01
        return now[0]

    first = await shared.get("fleet", look)
    for _ in range(50):
        assert await shared.get("fleet", look) == first
    now[0] += 0.9
    assert await shared.get("fleet", look) == first
    now[0] += 0.2
    assert await shared.get("fleet", look) > first
    assert shared.looks == 2
    shared.forget()
    await shared.get("fleet", look)
    assert shared.looks == 3, "something was changed, and is seen at once"


async def test_a_slow_look_is_taken_less_often() -> None:
    now = [0.0]
    shared = Shared(1.0, clock=lambda: now[0])

    async def slow() -> None:
        now[0] += 3.0

    await shared.get("fleet", slow)
    now[0] += 29.0
    await shared.get("fleet", slow)
    assert shared.looks == 1
    now[0] += 2.0
    await shared.get("fleet", slow)
    assert shared.looks == 2


async def test_that_redis_is_away_is_remembered() -> None:
    now = [0.0]
    shared = Shared(1.0, clock=lambda: now[0])

    async def fails() -> None:
        raise OSError("away")

    for _ in range(5):
        with pytest.raises(OSError, match="away"):
            await shared.get("fleet", fails)
    assert shared.looks == 1


def test_many_viewers_cost_redis_what_one_does(rs: Commands, own_server: Server) -> None:
    rs.env["RSTREAM_URL"] = own_server.url
    with shop(rs) as orders:
        publish(orders, 10)
        member(orders)

        def calls() -> int:
            (told,) = orders.app.sync_link.exchange([("INFO", "commandstats")])
            found = re.search(rb"cmdstat_evalsha:calls=(\d+)", told if isinstance(told, bytes) else str(told).encode())
            return int(found[1]) if found else 0

        with dashboard(rs) as board:
            with board.client() as client:
                client.get("/")
            before, began = calls(), time.monotonic()

            def watch(_: int) -> list[int]:
                with board.client() as viewer:
                    return [viewer.get("/", headers={"X-Live": "1"}).status_code for _ in range(10)]

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                assert {code for codes in pool.map(watch, range(16)) for code in codes} == {200}
            looks, seconds = calls() - before, time.monotonic() - began
        a_look = 4 + 1  # a call for each of 4 shards, and one for the oldest entry of the group
        assert looks <= a_look * (seconds / EVERY + 2), f"{looks} calls for 160 pages in {seconds:.1f} s"


def test_it_ends_when_told(rs: Commands) -> None:
    with dashboard(rs) as board, board.client() as client:
        client.get("/")
        board.running.process.send_signal(signal.SIGTERM)
        assert board.running.ended() in (0, -signal.SIGTERM, 143)
