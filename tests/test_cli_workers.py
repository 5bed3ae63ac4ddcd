"""`rstream workers`: who is there, what is said of it, and of those that fell silent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgpack
import pytest
import redis

from rstream import RStream
from rstream.store import keys, workers
from rstream.store.steps import drive_sync
from rstream.store.workers import FORGET, Presence, WorkerInfo
from tests.commands import Commands
from tests.fleets import Cluster
from tests.servers import Server
from tests.test_cli_worker import order, ready
from tests.waiting import eventually
from tests.workload import workers as spawning


def presence(id: str = "host-1-aa", **changed: object) -> Presence:
    told = {
        "id": id, "host": "host", "pid": 1, "process": 0, "version": "9.9", "started": 1000.0, "groups": ("s/g",),
        "paused": (), "concurrency": 16, "in_flight": 3, "buffered": 20, "handled": 1234, "failed": 5, "ending": False,
        "stalled": 0.0, "loop_stall": 0.25, "rss": 64 * 1024 * 1024, "lease": 30.0,
    }  # fmt: skip
    return Presence(**told | changed)  # type: ignore[arg-type]


def test_it_shows_who_works_and_on_what(rs: Commands) -> None:
    assert "No worker in namespace" in rs.ok("workers") and rs.ok("workers", "--json") == "[]\n"
    with rs.started("worker", "shop:app", "--processes", "2") as running:
        eventually(lambda: ready(running, 2))
        order(rs, *(f"c{n}" for n in range(20)))
        eventually(lambda: sum(each["handled"] for each in json.loads(rs.ok("workers", "--json"))) == 40)
        found = json.loads(rs.ok("workers", "--json"))
        assert [each["state"] for each in found] == ["alive"] * 2
        assert {each["process"] for each in found} == {1, 2}
        for each in found:
            assert each["groups"] == ["orders/billing", "orders/shipping", "notes/slow"]
            assert each["concurrency"] == 4 + 16 + 2 and each["in_flight"] == 0
            assert each["silent"] < 2 and each["rss"] > 10_000_000 and each["pid"] != running.process.pid
            assert each["id"].startswith(f"{each['host']}-{each['pid']}-")
        head, *rows = rs.ok("workers").splitlines()
        assert head.split()[:3] == ["WORKER", "STATE", "SINCE"] and len(rows) == 2
        assert all(re.search(r" alive +\d.* orders/billing, orders/shipping, notes/slow +0/22 ", row) for row in rows)
        running.process.terminate()
        assert running.ended() == 0
    assert rs.ok("workers", "--json") == "[]\n"


@pytest.mark.parametrize(
    ("silent", "changed", "state"),
    [
        (0.0, {}, "alive"),
        (29.0, {}, "alive"),
        (31.0, {}, "silent"),
        (91.0, {}, "dead"),
        (5.0, {"lease": 1.0}, "silent"),
        (12.0, {"lease": 1.0}, "dead"),
        (1.0, {"ending": True}, "ending"),
        (1.0, {"stalled": 6.0}, "blocked"),
        (40.0, {"stalled": 6.0}, "silent"),
    ],
)
def test_the_state_of_a_worker_is_how_long_it_is_silent_and_what_it_said(
    silent: float, changed: dict[str, object], state: str
) -> None:
    assert WorkerInfo("w", 0.0, silent, presence(**changed)).state == state
    assert WorkerInfo("w", 0.0, silent, None).state == "dead"


def listed(app: RStream) -> dict[str, WorkerInfo]:
    return {each.id: each for each in drive_sync(app.sync_link, workers.workers(app.settings.namespace), 10.0)}


def tell(app: RStream, said: Presence) -> None:
    replies = app.sync_link.exchange(workers.present(app.settings.namespace, said))
    assert not any(isinstance(reply, Exception) for reply in replies)


def test_what_is_said_is_what_is_read_on_every_server(app: RStream, raw: redis.Redis) -> None:
    namespace = app.settings.namespace
    one, other = presence("a-1-aa"), presence("b-2-bb", started=2000.0)
    tell(app, one)
    tell(app, other)
    assert [*listed(app)] == ["b-2-bb", "a-1-aa"]  # the newest first
    assert listed(app)["a-1-aa"].said == one
    assert listed(app)["a-1-aa"].silent < 5
    app.sync_link.run(workers.absent(namespace, "a-1-aa"))
    assert [*listed(app)] == ["b-2-bb"] and not raw.exists(keys.worker(namespace, "a-1-aa"))
    # What a newer rstream says beside that is passed over; what cannot be read is a worker all the same.
    raw.set(
        keys.worker(namespace, "b-2-bb"),
        msgpack.packb(msgpack.unpackb(raw.get(keys.worker(namespace, "b-2-bb"))) | {"new": 1}),
    )
    assert listed(app)["b-2-bb"].said == other
    raw.set(keys.worker(namespace, "b-2-bb"), b"\xc1")
    assert listed(app)["b-2-bb"].said is None


def test_those_that_died_are_forgotten(app: RStream, raw: redis.Redis) -> None:
    namespace = app.settings.namespace
    tell(app, presence("old-1-aa"))
    tell(app, presence("gone-1-aa"))
    now = raw.time()[0] * 1000
    raw.zadd(keys.workers(namespace), {"old-1-aa": now - FORGET * 1000 - 5000, "gone-1-aa": now - 1000_000})
    raw.delete(keys.worker(namespace, "gone-1-aa"))
    tell(app, presence("new-1-aa"))
    assert {id: each.state for id, each in listed(app).items()} == {"new-1-aa": "alive", "gone-1-aa": "dead"}
    assert 0 < raw.pttl(keys.worker(namespace, "new-1-aa")) <= FORGET * 1000


def test_those_that_fell_silent_are_shown_with_what_that_means(rs: Commands) -> None:
    with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"]) as app:
        for id in ("live-1-aa", "blocked-1-aa", "silent-1-aa", "dead-1-aa", "unknown-1-aa"):
            tell(app, presence(id, stalled=9.0 if id.startswith("blocked") else 0.0, paused=("s/g",)))
        with redis.Redis.from_url(rs.env["RSTREAM_URL"]) as raw:
            now = raw.time()[0] * 1000
            raw.zadd(
                keys.workers(app.settings.namespace),
                {"silent-1-aa": now - 45_000, "dead-1-aa": now - 600_000, "unknown-1-aa": now},
            )
            raw.delete(keys.worker(app.settings.namespace, "unknown-1-aa"))
    done = rs.run("workers")
    states = dict(line.split()[:2] for line in done.stdout.splitlines()[1:])
    assert states == {
        "live-1-aa": "alive", "blocked-1-aa": "blocked", "silent-1-aa": "silent", "dead-1-aa": "dead",
        "unknown-1-aa": "dead",
    }  # fmt: skip
    assert "s/g (paused)" in done.stdout and " 3/16 " in done.stdout and " 1,234 " in done.stdout
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {"blocked", "silent", "dead"}


def test_it_is_said_where_memory_is_full(own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        raw.config_set("maxmemory", "1mb")
        raw.config_set("maxmemory-policy", "noeviction")
        with pytest.raises(redis.OutOfMemoryError):
            raw.set("x", bytes(3_000_000))
            raw.set("y", b"y")
        tell(app, presence("a-1-aa"))
        assert [*listed(app)] == ["a-1-aa"]


def test_on_a_cluster_workers_are_seen_and_go(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    with spawning(cluster, namespace, tmp_path) as spawn, RStream(cluster.url, namespace=namespace) as app:
        one, other = spawn(lease=2), spawn(lease=2)
        pids = {one.ready().pid, other.ready().pid}
        eventually(lambda: {each.said.pid for each in listed(app).values() if each.said} == pids)
        first = min(each.beat for each in listed(app).values())
        eventually(lambda: all(each.beat > first + 1 for each in listed(app).values()))  # with every beat
        one.signal(15)
        assert one.wait() == 0
        eventually(lambda: {each.said.pid for each in listed(app).values() if each.said} == {other.pid})
