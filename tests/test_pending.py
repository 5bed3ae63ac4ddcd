"""Who holds what: the list is right and in order, and short calls bring it however long it is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from rstream import Delivery, Event, RStream, Stream
from rstream.errors import ConfigError
from rstream.event import EntryId
from rstream.memo import pack
from rstream.operate import Pending, pending
from rstream.operate.pending import STATES
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.link import Link, Op
from rstream.store.memo import Place
from tests.fleets import Cluster
from tests.servers import Server
from tests.test_worker import working
from tests.waiting import eventually_async


class Item(Event):
    n: int
    name: str = ""
    pad: bytes = b""


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


async def member(items: Stream[Any], worker: str = "w1", lease: int = 60_000) -> GroupOps:
    ops = GroupOps(await items.layout(), "g", worker, spread=items.app.endpoint.clustered)
    await items.app.link.run(ops.create("0"))
    await items.app.link.run(ops.beat(lease))
    return ops


async def test_every_state_and_what_each_waits_for(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("items", Item, key="name", shards=1)
    ids = await items.publish_many(Item(n=n, name=f"k{n % 2}") for n in range(10))
    run, live = app.link.run, await member(items)
    mine = (await run(live.fetch(7))).entries
    dead = await member(items, "w2", lease=1)
    await run(dead.fetch(1))
    (shard,) = (await items.layout()).every
    await eventually_async(lambda: not raw.exists(shard.alive("g", "w2")))
    ends = [
        ("retry", 60_000),
        ("release", 1, "~released"),
        ("release", 0, "~again"),
        ("park", 1, b"k1"),
        ("park", 0, b"k0"),
    ]
    outcomes = [Outcome(e.shard, e.id, 1, *end) for e, end in zip(mine, ends, strict=False)]  # type: ignore[arg-type]
    assert await run(live.settle(outcomes)) == []
    await keep(live, app.link, mine[5].id, c={"page": 3}, load=[1], draw=[2])

    page = await pending(items, "g")

    assert [one.id for one in page.entries] == ids[:8] and not page.more
    told = [(one.state, one.worker, one.attempt, one.key) for one in page.entries]
    assert told == [
        ("retry", None, 1, "k0"), ("released", None, 1, "k1"), ("again", None, 0, "k0"), ("parked", None, 1, "k1"),
        ("parked", None, 0, "k0"), ("held", "w1", 1, "k1"), ("held", "w1", 1, "k0"), ("silent", "w2", 1, "k1"),
    ]  # fmt: skip
    retry, released, again, parked, aside, kept, held, silent = page.entries
    assert retry.due is not None and 50 < retry.due <= 60
    assert (parked.behind, aside.behind, retry.behind) == (ids[1], ids[0], None)
    assert held.lease is not None and 50 < held.lease <= 60 and silent.lease is None
    assert (kept.checkpoint, kept.steps) == ({"page": 3}, 2) and kept.checkpoint_bytes > 0
    assert (held.checkpoint, held.steps, held.checkpoint_bytes) == (None, 0, 0)
    assert all(0 <= one.since <= one.age < 30 and one.size > 0 and not one.trimmed for one in page.entries)
    by_state = {state: [one.id for one in (await pending(items, "g", state=state)).entries] for state in STATES}
    assert by_state == {
        "retry": [ids[0]], "released": [ids[1]], "again": [ids[2]], "parked": ids[3:5], "held": ids[5:7],
        "silent": [ids[7]],
    }  # fmt: skip
    assert released.id in by_state["released"] and again.id in by_state["again"]
    assert [one.id for one in (await pending(items, "g", worker="w1")).entries] == ids[5:7]
    assert [one.id for one in (await pending(items, "g", key="k1")).entries] == ids[1:8:2]
    assert (await pending(items, "g", older_than=3600)).entries == []
    assert (await pending(items, "g", held_for=3600)).entries == []
    raw.xdel(shard.stream, ids[5].redis)
    (gone,) = [one for one in (await pending(items, "g")).entries if one.id == ids[5]]
    assert (gone.trimmed, gone.key, gone.size) == (True, None, 0)


async def keep(ops: GroupOps, link: Link, id: bytes, **values: object) -> None:
    """As a handler's delivery does."""
    (shard,) = ops.layout.every
    for number, (name, value) in enumerate(values.items(), 1):
        field = "c" if name == "c" else f"s:{name}"
        await link.run(Place(ops, shard, id, 1).keep(field, pack(value, "it"), number))


async def test_a_list_of_shards_is_merged_paged_and_cut_as_redis_has_it(app: RStream) -> None:
    rng = random.Random(20261129)
    items = app.stream("items", Item, key="name", shards=5)
    ids: list[EntryId] = []
    for size in (1, 40, 3, 160, 7):
        ids += await items.publish_many(Item(n=n, name=f"k{rng.randrange(20)}") for n in range(size))
        await asyncio.sleep(0.002)
    await app.link.run((await member(items)).fetch(1000))
    ids.sort()
    everything = await pending(items, "g", limit=1000)
    assert [one.id for one in everything.entries] == ids and not everything.more
    for limit in (1, 2, 50, 211, 300):
        found, after = list[EntryId](), None
        for _ in range(300):
            page = await pending(items, "g", limit=limit, after=after)
            found += [one.id for one in page.entries]
            assert page.more == (found != ids)
            if not page.more:
                break
            assert len(page.entries) == limit
            after = found[-1]
        assert found == ids
    for key in ("k0", "k7"):
        wanted = [one.id for one in everything.entries if one.key == key]
        assert [one.id for one in (await pending(items, "g", key=key)).entries] == wanted


async def test_a_hundred_thousand_block_nobody_and_fill_nothing(
    app: RStream, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = app.stream("items", Item, key="name", shards=2)
    await items.publish_many(Item(n=n, name="k" if n != 99_990 else "rare") for n in range(100_000))
    ops = await member(items)
    while (await app.link.run(ops.fetch(5000))).entries:
        pass
    sizes: list[int] = []
    run = app.link.run

    async def measured(op: Op[Any], **options: Any) -> Any:
        sizes.append(0)
        return await run(op.then(lambda found: (sizes.__setitem__(-1, count(found)), found)[1]), **options)

    monkeypatch.setattr(app.link, "run", measured)
    raw.config_resetstat()
    began = time.process_time()
    first = await pending(items, "g")
    assert len(first.entries) == 50 and first.more and time.process_time() - began < 0.5
    (rare,) = (await pending(items, "g", key="rare")).entries
    assert rare.key == "rare"
    assert (await pending(items, "g", worker="nobody")).entries == []
    assert (await pending(items, "g", state="retry")).entries == []
    assert max(sizes) <= 1000
    calls = raw.info("commandstats")["cmdstat_evalsha"]
    assert calls["calls"] > 200 and calls["usec_per_call"] < 15_000, calls  # of wall time: others have the machine, too


def count(found: Any) -> int:
    if isinstance(found, dict):
        return sum(len(page) for page, _ in found.values() if isinstance(page, list))
    return 0


async def test_large_entries_are_looked_at_in_small_pages(app: RStream) -> None:
    """Of each its key has to be read, and for that Redis copies it."""
    items = app.stream("items", Item, key="name", shards=1)
    await items.publish_many(Item(n=n, name="k", pad=bytes(500_000)) for n in range(40))
    ops = await member(items)
    for _ in range(5):
        await app.link.run(ops.fetch(40))
    page = await pending(items, "g", limit=40)
    assert [one.size > 500_000 for one in page.entries] == [True] * 40


async def test_what_a_live_worker_has_in_hand(app: RStream) -> None:
    items = app.stream("items", Item, key="name", shards=2)
    go_on, kept = asyncio.Event(), asyncio.Event()

    @items.consumer("g")
    async def handle(event: Item, delivery: Delivery) -> None:
        await delivery.checkpoint({"at": event.n})
        kept.set()
        await go_on.wait()

    async with working(app) as worker:
        id = await items.publish(Item(n=7, name="k"))
        await kept.wait()
        (one,) = (await pending(items, "g")).entries
        assert (one.id, one.state, one.worker, one.attempt) == (id, "held", worker.id, 1)
        assert one.checkpoint == {"at": 7}
        go_on.set()
        await eventually_async(lambda: nothing(items))


async def nothing(items: Stream[Any]) -> bool:
    return (await pending(items, "g")).entries == []


async def test_who_asks_for_what_is_not_there_is_told_so(app: RStream) -> None:
    items = app.stream("items", Item, shards=2)
    await items.publish(Item(n=1))
    with pytest.raises(ConfigError, match="there are none yet; a worker makes them"):
        await pending(items, "g")
    await member(items)
    with pytest.raises(ConfigError, match="no group 'h' reads stream 'items': there are g"):
        await pending(items, "h")
    with pytest.raises(ConfigError, match="no state 'running'"):
        await pending(items, "g", state="running")
    assert await pending(items, "g") == type(await pending(items, "g"))([], False)


async def test_on_a_cluster(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="name", shards=6)
        ids = sorted(await items.publish_many(Item(n=n, name=f"k{n}") for n in range(60)))
        await app.link.run((await member(items)).fetch(600))
        page = await pending(items, "g", limit=20)
        assert [one.id for one in page.entries] == ids[:20] and page.more
        rest: list[Pending] = (await pending(items, "g", limit=100, after=ids[19])).entries
        assert [one.id for one in rest] == ids[20:]
