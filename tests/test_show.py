"""One entry in full, wherever it is by now, and how every group stands to it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Blob, Event, Keyring, Retention, RStream, Stream
from rstream.errors import PositionError, UnknownEntry
from rstream.event import EntryId
from rstream.operate import Shown, cancel, pause, pending, show
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.steps import drive
from rstream.store.trim import tidy
from tests.archives import Log
from tests.fleets import Cluster
from tests.objects import bucket, client, moto
from tests.servers import Server


class Item(Event):
    n: int
    name: str = ""
    pad: bytes = b""


class Scan(Event):
    name: str
    page: Blob


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def group(items: Stream[Any], name: str = "g", start: str = "0") -> GroupOps:
    ops = GroupOps(await items.layout(), name, f"worker-of-{name}", spread=items.app.endpoint.clustered)
    await items.app.link.run(ops.create(start))
    await items.app.link.run(ops.beat(60_000))
    return ops


def states(shown: Shown) -> dict[str, str]:
    return {state.group: state.pending.state if state.pending else state.state for state in shown.groups}


async def test_an_entry_as_it_was_published_and_as_every_group_has_it(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=2)
    before = datetime.now(UTC)
    id = await items.publish(Item(n=7, name="k", pad=b"\xff"), headers={"trace": "t"})
    run = app.link.run
    ends: dict[str, Any] = {
        "acked": ("ack", "", ""), "gone": ("dead", "failed", "no: such luck", "Traceback…"), "waits": ("retry", 5000),
        "handed": ("release", 0, "~released"), "aside": ("park", 0, b"k"),
    }  # fmt: skip
    for name, end in ends.items():
        ops = await group(items, name)
        (entry,) = (await run(ops.fetch(1))).entries
        assert await run(ops.settle([Outcome(entry.shard, entry.id, 1, *end)])) == []
    held = await group(items, "held")
    await run(held.fetch(1))
    await group(items, "new")
    await group(items, "late", "$")
    await pause(items, "new", why="not yet", by="kim")

    shown = await show(items, str(id))

    assert states(shown) == {
        "acked": "done", "gone": "dead", "waits": "retry", "handed": "released", "aside": "parked", "held": "held",
        "new": "unread", "late": "done",
    }  # fmt: skip
    assert (shown.id, shown.stream, shown.where, shown.key) == (id, "items", "redis", "k")
    assert shown.event == {"n": 7, "name": "k", "pad": "_w=="} and shown.problem is None
    assert shown.headers == {"trace": "t"} and uuid.UUID(str(shown.event_id)).version == 7
    assert shown.published_at is not None and abs(shown.published_at - before) < timedelta(seconds=30)
    assert shown.size == len(shown.fields[b"e"]) and shown.claims == () and shown.archived is None
    by_name = {state.group: state for state in shown.groups}
    (letter,) = by_name["gone"].letters
    assert (letter.reason, letter.error, letter.traceback, letter.attempts) == (
        "failed",
        "no: such luck",
        "Traceback…",
        1,
    )
    one = by_name["held"].pending
    assert one is not None and (one.worker, one.key, one.size) == ("worker-of-held", "k", shown.size)
    due = by_name["waits"].pending
    assert due is not None and due.due is not None and 0 < due.due <= 5
    told = by_name["new"].paused
    assert told is not None and (told.by, told.why) == ("kim", "not yet")
    hidden = await show(items, id, payload=False)
    assert (hidden.event, hidden.headers, hidden.fields) == (None, {}, {}) and states(hidden) == states(shown)
    await cancel(items, "held", [id])
    assert states(await show(items, id))["held"] == "done"


async def test_what_was_trimmed_is_lost_or_a_dead_letter_or_unknown(app: RStream, raw: redis.Redis) -> None:
    retention = Retention(entries=1, unprocessed="drop")
    items = app.stream("items", Item, shards=1, retention=retention)
    ids = await items.publish_many(Item(n=n) for n in range(4))
    run, ops = app.link.run, await group(items)
    found = (await run(ops.fetch(2))).entries
    dead, acked = (
        Outcome(e.shard, e.id, 1, *end)
        for e, end in zip(found, (("dead", "failed", "no", ""), ("ack", "", "")), strict=True)
    )  # type: ignore[arg-type]
    assert await run(ops.settle([dead, acked])) == []
    layout = await items.layout()
    await drive(app.link, tidy(layout, retention), 5.0)
    raw.xtrim(layout.every[0].stream, maxlen=1, approximate=False)

    shown = await show(items, ids[0])
    assert (shown.where, shown.event["n"], states(shown)) == ("letter", 0, {"g": "dead"})
    with pytest.raises(UnknownEntry, match="it was trimmed, if it ever was there"):
        await show(items, ids[1])
    with pytest.raises(UnknownEntry, match="none was published by that id"):
        await show(items, EntryId(ids[3].ms + 1, 0, 1, 0))
    with pytest.raises(UnknownEntry, match=r"its shards are 1\.0 to 1\.0"):
        await show(items, "1-1@1.4")
    with pytest.raises(PositionError):
        await show(items, "1-1")


async def test_what_is_no_event_is_shown_as_it_is_stored(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, shards=1)
    (shard,) = (await items.layout()).every
    broken = raw.xadd(shard.stream, {"e": b"\xc1", "i": b"x"})
    foreign = raw.xadd(shard.stream, {"a": "b"})
    for id, fields in ((broken, {b"e": b"\xc1", b"i": b"x"}), (foreign, {b"a": b"b"})):
        shown = await show(items, shard.entry_id(id))
        assert (shown.event, shown.fields) == (None, fields) and shown.event_id is None
        assert shown.problem is not None and shown.problem.startswith("undecodable")
    other = await items.publish({"n": 1})
    later = RStream(app.settings.url, namespace=app.settings.namespace)
    async with later:

        class Stricter(Event):
            n: str
            name: str = ""
            pad: bytes = b""

        from rstream.codec import ModelCodec

        there = later.stream("items", Item, shards=1)
        there.codec = ModelCodec(Stricter)  # type: ignore[assignment]
        shown = await show(there, other)
        assert shown.event == {"n": 1, "name": "", "pad": ""} and (shown.problem or "").startswith("invalid")


async def test_claim_checks_are_resolved_and_missing_ones_told(server: Server, namespace: str) -> None:
    place = bucket(moto())
    url = f"s3://{place}/p?endpoint={moto()}"
    async with RStream(server.url, namespace=namespace, blobs=url, blob_threshold=1000) as app:
        items = app.stream("items", Item, key="name", shards=1)
        scans = app.stream("scans", Scan, key="name", shards=1)
        large = await items.publish(Item(n=1, name="k", pad=bytes(5000)))
        scan = await scans.publish(Scan(name="k", page=Blob(b"x" * 3000)))

        shown = await show(items, large)
        assert shown.event["n"] == 1 and shown.size > 5000 and shown.where == "redis"
        (claim,) = shown.claims
        assert (claim.what, claim.size, claim.state) == ("payload", shown.size, "there")
        opened = await show(scans, scan)
        (page,) = opened.claims
        assert opened.event == {"name": "k", "page": {"digest": page.digest, "size": 3000}}
        assert (page.what, page.size, page.state) == ("page", 3000, "there")
        hidden = await show(items, large, payload=False)
        assert hidden.event is None and [each.what for each in hidden.claims] == ["payload"]

        store = client(moto())
        for each in store.list_objects_v2(Bucket=place)["Contents"]:
            if each["Key"].endswith(page.digest):
                store.put_object(Bucket=place, Key=each["Key"], Body=b"short")
            elif each["Key"].endswith(claim.digest):
                store.delete_object(Bucket=place, Key=each["Key"])
        shown = await show(items, large)
        assert shown.event is None and (shown.problem or "").startswith("blob missing")
        assert [each.state for each in shown.claims] == ["missing"]
        assert [each.state for each in (await show(scans, scan)).claims] == ["altered"]
    async with RStream(server.url, namespace=namespace) as bare:
        shown = await show(bare.stream("items", Item, key="name", shards=1), large)
        assert shown.claims[0].state == "unknown" and "RSTREAM_BLOBS" in shown.claims[0].problem
        assert shown.event is None and shown.problem is not None


def test_what_is_archived_is_found_there(one_server: Server, namespace: str, tmp_path: Path) -> None:
    import anyio

    url = f"file://{tmp_path}"
    with RStream(one_server.url, namespace=namespace, blobs=url) as app:
        log = Log(app)
        log.publish(200)
        log.archive()
        log.trim(1.0)
        kept = log.publish(5)

    async def look() -> None:
        async with RStream(one_server.url, namespace=namespace, blobs=url) as app:
            readings = Log(app).stream
            shown = await show(readings, log.ids[3])
            assert (shown.where, shown.archived) == ("archive", True) and shown.event["device"] == shown.key
            fresh = await show(readings, kept[0])
            assert (fresh.where, fresh.archived) == ("redis", False)

    anyio.run(look)


async def test_on_a_cluster(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="name", shards=6)
        ids = await items.publish_many(Item(n=n, name=f"k{n}") for n in range(12))
        await app.link.run((await group(items)).fetch(600))
        for n, id in enumerate(ids):
            shown = await show(items, id)
            assert (shown.event["n"], states(shown)) == (n, {"g": "held"})


async def test_what_is_encrypted_is_read_by_who_has_the_keys(one_server: Server, namespace: str) -> None:
    from rstream.memo import pack
    from rstream.store.memo import Place

    ring = Keyring({"k1": bytes(range(1, 33))})
    async with RStream(one_server.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="name", shards=1, encrypt=ring)
        id = await items.publish(Item(n=7, name="k"))
        ops = await group(items)
        (entry,) = (await app.link.run(ops.fetch(1))).entries
        place = Place(ops, entry.shard, entry.id, 1, items.claims.seal)
        await app.link.run(place.keep("c", pack({"page": 3}, "it"), 1))
        shown = await show(items, id)
        assert shown.event["n"] == 7 and shown.problem is None
        assert (await pending(items, "g")).entries[0].checkpoint == {"page": 3}
        (state,) = shown.groups
        assert state.pending is not None and state.pending.checkpoint == {"page": 3}
    async with RStream(one_server.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="name", shards=1, encrypt=Keyring({"k2": bytes(range(2, 34))}))
        shown = await show(items, id)
        assert shown.event is None and (shown.problem or "").startswith("undecryptable")
        assert "k2" in (await pending(items, "g")).entries[0].checkpoint
