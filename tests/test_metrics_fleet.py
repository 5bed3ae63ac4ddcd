"""`rstream metrics`: what Prometheus scrapes is what happened, on all servers, and while Redis is away."""

from __future__ import annotations

import concurrent.futures
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from rstream import Event, Reject, Retention, RStream
from rstream.metrics import fleet as fleets
from rstream.metrics.fleet import FLEET, OUTCOMES, Fleet
from rstream.metrics.server import MetricsServer
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.deliveries import GroupOps, Outcome, bare_ack
from rstream.store.keys import ARCHIVE
from rstream.store.link import SyncLink
from rstream.store.pause import pause
from rstream.store.remove import remove
from rstream.store.steps import drive_sync
from rstream.store.trim import retain, tidy
from tests.commands import Commands
from tests.fleets import Cluster
from tests.metrics import documented
from tests.servers import Server
from tests.test_deliveries import Bench
from tests.test_deploy import tool
from tests.test_history import sampled
from tests.test_worker import drain
from tests.waiting import eventually


class Item(Event):
    user: str
    n: int = 0


Labels = frozenset[tuple[str, str]]
Found = dict[tuple[str, Labels], float]


def values(found: Iterable[Family]) -> Found:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for family in found for sample in family.samples
    }


def scrape(app: RStream) -> Found:
    """Over HTTP, read by Prometheus's own parser."""
    with serving(app) as server:
        return values(text_string_to_metric_families(text_of(server)))


@contextmanager
def serving(app: RStream) -> Iterator[MetricsServer]:
    link = SyncLink(app.endpoint, 4.0)
    fleet = Fleet(link, app.settings.namespace)
    with MetricsServer(0, fleet.collect, ready=fleet.ready) as server:
        yield server
    link.close()


def text_of(server: MetricsServer, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def at(found: Found, name: str, **labels: str) -> float:
    return found[f"rstream_{name}", frozenset(labels.items())]


def outcomes(found: Found, stream: str, group: str) -> dict[str, float]:
    """Those that there were."""
    told = {out: at(found, "group_settled_total", stream=stream, group=group, outcome=out) for out in OUTCOMES}
    return {out: number for out, number in told.items() if number}


# -- the list ----------------------------------------------------------------------------------------------------------


def test_what_is_documented_is_what_is_told() -> None:
    told = {each.name: each for each in FLEET}
    page = {name: metric for name, metric in documented().items() if name in told}
    assert {*page} == {*told} and [*page] == [*told]
    for name, metric in page.items():
        assert (metric.type, [*metric.labels]) == (told[name].type, [*told[name].labels]), name
    assert page["rstream_group_settled_total"].labels["outcome"] == frozenset(OUTCOMES)
    rest = [name for name in documented() if name not in told]
    assert not [name for name in rest if name.startswith(("rstream_stream_", "rstream_archive_lag", "rstream_redis_"))]


def test_a_new_group_has_every_counter_at_0(app: RStream) -> None:
    bench = Bench(app, None, shards=2)  # type: ignore[arg-type]
    found = scrape(app)
    labels = {"stream": "items", "group": "g"}
    for metric in FLEET:
        if metric.name in ("rstream_archive_lag_seconds", "rstream_up"):
            continue
        wanted = {name: labels[name] for name in metric.labels if name in labels}
        for outcome in OUTCOMES if "outcome" in metric.labels else [None]:
            told = wanted | ({} if outcome is None else {"outcome": outcome})
            value = found[metric.name, frozenset(told.items())]
            assert value == 0 or metric.name in ("rstream_stream_bytes", "rstream_stream_shards"), metric.name
    assert at(found, "up") == 1 and at(found, "stream_shards", stream="items") == 2
    assert bench.layout.shards == 2


def test_no_stream_is_no_error(app: RStream) -> None:
    assert scrape(app) == {("rstream_up", frozenset()): 1.0}


# -- what happened -----------------------------------------------------------------------------------------------------


def history(app: RStream, raw: redis.Redis) -> Bench:
    """Of 40 entries in 2 shards: 20 acked, 3 dead, 2 expired; 2 late acks refused; 5 taken over, of which one acked;
    4 waiting for a retry, one with a live worker; 5 unread.
    """
    bench = Bench(app, raw, shards=2)
    bench.publish(40)
    first = bench.fetch("a", 25)
    bench.run(bench.ops("a").settle([bare_ack(entry) for entry in first[:20]]))
    bench.run(bench.ops("a").settle([Outcome(e.shard, e.id, 1, "dead", "failed", "why") for e in first[20:23]]))
    bench.run(bench.ops("a").settle([Outcome(e.shard, e.id, 1, "expired") for e in first[23:25]]))
    assert len(bench.run(bench.ops("a").settle([bare_ack(entry) for entry in first[:2]]))) == 2
    bench.run(bench.ops("doomed").fetch(5))
    heir = bench.alive("heir")
    taken = bench.recover(heir)
    assert len(taken) == 5
    bench.run(heir.begin(taken[0]))
    bench.run(heir.settle([Outcome(taken[0].shard, taken[0].id, 2, "ack")]))
    retried = bench.fetch("b", 4)
    bench.run(bench.ops("b").settle([Outcome(e.shard, e.id, 1, "retry", 60_000) for e in retried]))
    bench.alive("c")
    assert len(bench.fetch("c", 1)) == 1
    return bench


def check(found: Found) -> None:
    labels = {"stream": "items", "group": "g"}
    assert outcomes(found, "items", "g") == {"ack": 21, "retry": 4, "dead": 3, "expired": 2}
    told = {
        name: at(found, name, **labels)
        for name in (
            *("group_fenced_total", "group_redelivered_total", "group_entries_lost_total", "group_pending"),
            *("group_dead_letters", "group_workers_alive", "group_paused", "group_lag_entries"),
        )
    }
    assert told == {
        "group_fenced_total": 2,
        "group_redelivered_total": 5,
        "group_entries_lost_total": 0,
        "group_pending": 9,
        "group_dead_letters": 3,
        "group_workers_alive": 2,
        "group_paused": 0,
        "group_lag_entries": 5,
    }
    assert at(found, "stream_published_total", stream="items") == at(found, "stream_entries", stream="items") == 40
    assert 0 <= at(found, "group_lag_seconds", **labels) < 100
    assert 0 <= at(found, "group_oldest_pending_seconds", **labels) < 100
    assert at(found, "stream_bytes", stream="items") > 1000
    assert ("rstream_archive_lag_seconds", frozenset({("stream", "items")})) not in found


def test_what_happened_is_what_is_scraped(app: RStream, raw: redis.Redis) -> None:
    bench = history(app, raw)
    check(scrape(app))
    app.sync_link.run(pause(app.settings.namespace, "items", "g", "me", "because"))
    found = scrape(app)
    assert at(found, "group_paused", stream="items", group="g") == 1
    # Retention drops what is not processed, and says so.
    layout = bench.stream.sync.layout(fresh=True)
    drop = Retention(entries=10, unprocessed="drop")
    drive_sync(app.sync_link, retain(layout, drop), 5)
    layout = bench.stream.sync.layout(fresh=True)
    drive_sync(app.sync_link, tidy(layout, drop), 5)
    found = scrape(app)
    assert at(found, "stream_entries", stream="items") <= 10
    assert at(found, "stream_published_total", stream="items") == 40
    lost = at(found, "group_entries_lost_total", stream="items", group="g")
    assert lost > 0
    assert outcomes(found, "items", "g") == {"ack": 21, "retry": 4, "dead": 3, "expired": 2}
    raw.delete(
        *(shard.dead("g") for shard in layout.every), *(shard.alive("g", w) for shard in layout.every for w in "c")
    )
    for shard in layout.every:
        raw.delete(shard.alive("g", "heir"))
    drive_sync(app.sync_link, remove(layout, "g"), 5)
    assert not [labels for _, labels in scrape(app) if ("group", "g") in labels]


def test_the_numbers_go_on_through_a_resharding(app: RStream, raw: redis.Redis) -> None:
    bench = history(app, raw)
    bench.stream.sync.reshard(3)
    found = scrape(app)
    check(found)
    assert at(found, "stream_shards", stream="items") == 3


def test_a_lag_that_redis_does_not_know_is_absent_and_the_age_is_there(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw)
    for n in range(400):
        raw.xadd(bench.key.stream, {"e": "{}"}, id=f"{1000 + n}-1")
    bench.fetch("a", 10)
    raw.xdel(bench.key.stream, "1200-1")
    found = scrape(app)
    assert ("rstream_group_lag_entries", frozenset({("stream", "items"), ("group", "g")})) not in found
    assert at(found, "group_lag_seconds", stream="items", group="g") > 1e9


async def test_a_worker_that_rejects_and_an_archive_are_seen(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="user", shards=2)

        @items.consumer("g")
        async def handle(event: Item) -> None:
            if event.n == 3:
                raise Reject("not this one")

        await items.publish_many([Item(user=f"u{n}", n=n) for n in range(10)])
        await drain(app)
        for shard in (await items.layout()).current:
            await app.link.run(GroupOps(await items.layout(), ARCHIVE, "").create("0", [shard]))
        found = scrape(app)
        assert outcomes(found, "items", "g") == {"ack": 9, "dead": 1}
        assert at(found, "group_dead_letters", stream="items", group="g") == 1
        assert at(found, "archive_lag_seconds", stream="items") > 0
        assert at(found, "group_workers_alive", stream="items", group="g") == 0


async def test_on_a_cluster_of_three(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="user", shards=6)

        @items.consumer("g")
        async def handle(event: Item) -> None:
            if event.n % 10 == 3:
                raise Reject("not this one")

        await items.publish_many([Item(user=f"u{n}", n=n) for n in range(60)])
        await drain(app)
        found = scrape(app)
        assert outcomes(found, "items", "g") == {"ack": 54, "dead": 6}
        assert at(found, "stream_published_total", stream="items") == 60
        assert at(found, "stream_bytes", stream="items") > 1000
        assert at(found, "up") == 1


# -- what holds up the trimming ----------------------------------------------------------------------------------------


def test_the_group_that_pins_what_is_beyond_its_age_is_told_and_for_how_long(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=1, retention=Retention(age="1h"))
    layout = items.sync.layout()
    (shard,) = layout.current
    now = app.sync_link.run(layouts.clock())
    for hours in (3, 2):
        raw.xadd(shard.stream, {"e": "{}"}, id=f"{now - hours * 3_600_000}-1")
    for group in ("slow", "done", ARCHIVE):
        app.sync_link.run(GroupOps(layout, group, "").create("0"))
    done = GroupOps(layout, "done", "w")
    app.sync_link.run(done.settle([bare_ack(entry) for entry in app.sync_link.run(done.fetch(10)).entries]))
    raw.xgroup_setid(shard.stream, ARCHIVE, "$")
    found = scrape(app)
    pinned = {
        group: at(found, "stream_trim_pinned", stream="items", group=group) for group in ("slow", "done", ARCHIVE)
    }
    assert pinned == {"slow": 1, "done": 0, ARCHIVE: 0}
    assert 7190 < at(found, "stream_trim_pinned_seconds", stream="items") < 7300
    slow = GroupOps(layout, "slow", "w")
    (first,) = app.sync_link.run(slow.fetch(1)).entries
    app.sync_link.run(slow.settle([bare_ack(first)]))
    assert 3590 < at(scrape(app), "stream_trim_pinned_seconds", stream="items") < 3700
    (second,) = app.sync_link.run(slow.fetch(1)).entries
    app.sync_link.run(slow.settle([bare_ack(second)]))
    found = scrape(app)
    assert at(found, "stream_trim_pinned", stream="items", group="slow") == 0
    assert at(found, "stream_trim_pinned_seconds", stream="items") == 0


def test_a_shard_that_what_is_not_processed_fills_is_pinned_too(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=1, retention=Retention(entries=100))
    layout = items.sync.layout()
    app.sync_link.run(GroupOps(layout, "g", "").create("0"))
    items.sync.publish_many(Item(user="u", n=n) for n in range(50))
    assert at(scrape(app), "stream_trim_pinned", stream="items", group="g") == 0
    items.sync.publish_many(Item(user="u", n=n) for n in range(45))
    found = scrape(app)
    assert at(found, "stream_trim_pinned", stream="items", group="g") == 1
    assert at(found, "stream_trim_pinned_seconds", stream="items") > 0


def test_what_loses_or_is_ignored_pins_nothing(app: RStream, raw: redis.Redis, namespace: str) -> None:
    items = app.stream("items", Item, shards=1, retention=Retention(age="1h", group_ttl="1d"))
    layout = items.sync.layout()
    now = app.sync_link.run(layouts.clock())
    raw.xadd(layout.current[0].stream, {"e": "{}"}, id=f"{now - 9 * 3_600_000}-1")
    app.sync_link.run(GroupOps(layout, "g", "").create("0"))
    raw.hset(keys.seen(namespace, "items"), mapping={"g": now - 2 * 86_400_000, "/": now})
    assert at(scrape(app), "stream_trim_pinned", stream="items", group="g") == 0
    raw.hset(keys.seen(namespace, "items"), mapping={"g": now, "/": now})
    assert at(scrape(app), "stream_trim_pinned", stream="items", group="g") == 1


# -- resets, bounds ----------------------------------------------------------------------------------------------------


def test_a_redis_that_lost_its_data_is_counted_also_by_who_only_scrapes(own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        items = app.stream("items", Item)
        items.sync.publish(Item(user="u"))
        sampled(app, items)
        with serving(app) as server:

            def resets() -> float:
                found = values(text_string_to_metric_families(text_of(server)))
                return at(found, "redis_resets_total", stream="items")

            assert [resets(), resets()] == [0, 0]
            raw.flushall()
            items.sync.layout(fresh=True)
            assert [resets(), resets()] == [1, 1]
            sampled(app, items)
            assert resets() == 1


def test_ten_thousand_keys_are_no_more_series(app: RStream) -> None:
    items = app.stream("items", Item, key="user", shards=4)
    layout = items.sync.layout()
    ops = GroupOps(layout, "g", "w")
    app.sync_link.run(ops.create("0"))
    items.sync.publish(Item(user="first"))
    before = set(scrape(app))
    items.sync.publish_many(Item(user=f"user-{n}") for n in range(10_000))
    fetched = app.sync_link.run(ops.fetch(5000)).entries
    app.sync_link.run(ops.settle([bare_ack(entry) for entry in fetched]))
    after = set(scrape(app))
    assert {name for name, _ in after ^ before} <= {"rstream_group_lag_entries"}
    assert len(after) < 40


def test_a_scrape_is_three_round_trips_however_many_streams_there_are(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        stream = app.stream(f"items{number}", Item, shards=4)
        app.sync_link.run(GroupOps(stream.sync.layout(), "g", "w").create("0"))
    link = SyncLink(app.endpoint, 4.0)
    fleet, trips = Fleet(link, app.settings.namespace), []
    exchange = link.exchange
    [*fleet.collect()]  # the scripts are loaded
    monkeypatch.setattr(link, "exchange", lambda calls: trips.append(len(calls)) or exchange(calls))
    assert at(values(fleet.collect()), "stream_shards", stream="items4") == 4
    assert len(trips) == 3
    link.close()


def test_scrapes_at_once_share_one_look(app: RStream, monkeypatch: pytest.MonkeyPatch) -> None:
    app.stream("items", Item).sync.layout()
    link = SyncLink(app.endpoint, 4.0)
    fleet, looks = Fleet(link, app.settings.namespace), []
    run, begun = link.run, concurrent.futures.ThreadPoolExecutor(8)

    def slowly(op: Any, **options: Any) -> Any:
        looks.append(op)
        if len(looks) == 1:
            eventually(lambda: len(waiting) == 8)
            time.sleep(0.1)  # those that were submitted last have got as far as to wait
        return run(op, **options)

    monkeypatch.setattr(link, "run", slowly)
    waiting: list[Any] = []
    for _ in range(8):
        waiting.append(begun.submit(lambda: values(fleet.collect())))
    found = [each.result() for each in waiting]
    assert all(at(each, "up") == 1 for each in found)
    assert 3 <= len(looks) < 3 * 8
    begun.shutdown()
    link.close()


def test_one_stream_that_cannot_be_read_takes_no_other_with_it(
    app: RStream, raw: redis.Redis, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "gone", "good"):
        app.stream(name, Item, shards=1).sync.publish(Item(user="u"))
    raw.hset(keys.stream(namespace, "bad"), "schema:1", "{")
    raw.delete(keys.stream(namespace, "gone"))
    with serving(app) as server:
        for _ in range(3):
            found = values(text_string_to_metric_families(text_of(server)))
        assert at(found, "stream_published_total", stream="good") == 1 and at(found, "up") == 1
        assert not [labels for _, labels in found if ("stream", "bad") in labels or ("stream", "gone") in labels]
    told = [record.message for record in caplog.records if record.message.startswith("metrics: stream")]
    assert len(told) == 2 and "'bad'" in told[0] and "'gone'" in told[1]
    raw.srem(keys.streams(namespace), "bad", "gone")


# -- a Redis that is away ----------------------------------------------------------------------------------------------


def test_while_redis_is_away_it_is_not_up_and_a_scrape_ends_in_time(
    own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "PATIENCE", 0.5)
    with RStream(own_server.url, namespace=namespace) as app:
        app.stream("items", Item).sync.publish(Item(user="u"))
        with serving(app) as server:
            assert "rstream_up 1.0" in text_of(server)
            assert "ok" in text_of(server, "/readyz")
            own_server.pause()
            began = time.monotonic()
            text = text_of(server)
            assert time.monotonic() - began < 3
            assert "rstream_up 0.0" in text and "items" not in text
            with pytest.raises(urllib.error.HTTPError, match="503"):
                text_of(server, "/readyz")
            assert text_of(server, "/healthz")
            own_server.resume()
            eventually(lambda: "rstream_up 1.0" in text_of(server))
            own_server.stop()
            assert "rstream_up 0.0" in text_of(server)
            own_server.start()
            eventually(lambda: "rstream_up 1.0" in text_of(server))


def test_the_command_serves_what_promtool_accepts(rs: Commands, one_server: Server) -> None:
    rs.ok("publish", "orders", "--app", "shop:app", "--json", '{"customer": "ada", "total": 1}')
    rs.ok("worker", "shop:app", "--burst")
    with rs.started("metrics", "--port", "0") as running:
        port = eventually(lambda: [line for line in running.err.splitlines() if "/metrics" in line])[0]
        url = port[port.index("http://") :].split()[0].rstrip(".,")
        with urllib.request.urlopen(url, timeout=20) as answer:
            text = answer.read().decode()
        found = values(text_string_to_metric_families(text))
        assert outcomes(found, "orders", "billing") == {"ack": 1}
        done = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stdout and not done.stderr, done.stdout + done.stderr
        with urllib.request.urlopen(url.replace("/metrics", "/healthz"), timeout=20) as answer:
            assert answer.status == 200
        running.process.terminate()
        assert running.ended() == 0


def test_the_command_says_what_is_wrong_with_its_port(rs: Commands) -> None:
    with MetricsServer(0, lambda: []) as server:
        done = rs.run("metrics", "--port", str(server.port))
        assert done.returncode == 1 and "the port is taken" in done.stderr
