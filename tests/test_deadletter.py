"""Dead letters on real servers: what they tell, redriven to one group alone, discarded, searched by the thousand."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from rstream import Delivery, EntryId, Event, RetryPolicy, RStream, Stream
from rstream.deadletter import DeadLetter, Left
from rstream.errors import ConfigError, EntryInvalid, GroupMissing, PositionError
from rstream.store import dead as store
from rstream.store import layout as layouts
from rstream.store.dead import DeadOps, Match, Search
from rstream.store.deliveries import GroupOps, Outcome
from rstream.worker.worker import Worker
from tests.servers import Server
from tests.waiting import eventually, eventually_async


class Item(Event):
    n: int
    name: str = ""
    pad: bytes = b""


@pytest.fixture
def items(app: RStream) -> Stream[Item]:
    return app.stream("items", Item, key="name", shards=4)


def killed(items: Stream[Item], count: int, group: str = "g", reason: str = "failed", error: str = "Boom: {n}") -> None:
    """`count` entries published, read by the group, and dead."""
    run, ops = items.app.sync_link.run, GroupOps(items.sync.layout(), group, "w1")
    run(ops.create("0"))
    items.sync.publish_many(Item(n=n, name=f"k{n % 10}") for n in range(count))
    fetched = []
    while found := run(ops.fetch(1000)).entries:
        fetched += found
    next_millisecond(items)
    for at in range(0, len(fetched), 500):
        some = enumerate(fetched[at : at + 500], at)
        assert not run(ops.settle([Outcome(e.shard, e.id, 1, "dead", reason, error.format(n=n)) for n, e in some]))
    next_millisecond(items)


def next_millisecond(items: Stream[Any]) -> None:
    """An entry published in the millisecond in which another's letter was written could get the same id."""
    before = items.app.sync_link.run(layouts.clock())
    eventually(lambda: items.app.sync_link.run(layouts.clock()) > before)


def seen_by(raw: redis.Redis, items: Stream[Item], group: str) -> list[Any]:
    """A group's position and pending entries, per shard."""
    found: list[Any] = []
    for keys in items.sync.layout().current:
        told = next(info for info in raw.xinfo_groups(keys.stream) if info["name"] == group.encode())
        found.append((told["last-delivered-id"], told["pending"], told["entries-read"]))
        pending = raw.xpending_range(keys.stream, group, "-", "+", 1000)
        found.append([(one["message_id"], one["consumer"], one["times_delivered"]) for one in pending])
    return found


def shard_of(items: Stream[Item], id: EntryId) -> str:
    return items.sync.layout().current[id.shard].stream


# -- the whole round -----------------------------------------------------------------------------------------------


async def test_failed_looked_at_redriven_and_handled_by_that_group_alone(
    app: RStream, items: Stream[Item], raw: redis.Redis
) -> None:
    broken, seen = True, list[tuple[str, Item, int]]()

    @items.consumer("g", retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
    async def handle(event: Item, delivery: Delivery) -> None:
        if broken and event.n == 1:
            raise KeyError("the bug")
        seen.append(("g", event, delivery.attempt))

    @items.consumer("other")
    async def other(event: Item, delivery: Delivery) -> None:
        seen.append(("other", event, delivery.attempt))

    async def drain() -> Worker:
        worker = Worker(app, None, burst=True)
        async with asyncio.timeout(30):
            await worker.serve(signals=False)
        return worker

    id = await items.publish(Item(n=1, name="a"), headers={"trace": "t"})
    await items.publish(Item(n=2, name="b"))
    worker = await drain()
    dead = items.dead("g")
    (letter,) = [letter async for letter in dead.read()]

    assert (letter.entry_id, letter.reason, letter.attempts, letter.worker) == (id, "failed", 2, worker.id)
    assert (letter.key, letter.headers, letter.event) == ("a", {"trace": "t"}, Item(n=1, name="a"))
    assert "KeyError" in letter.error and len(letter.event_id) == 16 and letter.payload
    assert "the bug" in letter.traceback + letter.error
    assert letter.published_at <= letter.died_at <= letter.published_at + timedelta(seconds=30)
    assert await dead.count() == {"failed": 1}
    assert await items.dead("other").count() == {}

    before = seen_by(raw, items, "other")
    planned = await dead.redrive(ids=[letter], dry_run=True)
    assert (planned.done, planned.left, await dead.count()) == (1, [], {"failed": 1})
    done = await dead.redrive(ids=[letter])
    assert (done.done, done.gone, done.left) == (1, 0, [])
    assert await dead.count() == {}
    pending = [one for one in seen_by(raw, items, "g") if isinstance(one, list)]
    assert [one for some in pending for one in some] == [(id.redis.encode(), b"~again", 0)]

    broken = False
    seen.clear()
    await drain()
    assert seen == [("g", Item(n=1, name="a"), 1)]
    assert seen_by(raw, items, "other") == before


async def test_what_fails_again_dies_again_and_a_redrive_of_all_does_not_chase_it(
    app: RStream, items: Stream[Item]
) -> None:
    attempts: list[int] = []

    @items.consumer("g", retry=RetryPolicy(max_attempts=1))
    async def handle(event: Item, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise ValueError("still")

    await items.publish_many(Item(n=n, name=str(n)) for n in range(20))
    worker = Worker(app, None)
    task = asyncio.create_task(worker.serve(signals=False))
    dead = items.dead("g")

    async def dead_again() -> bool:
        return await dead.count() == {"failed": 20}

    await eventually_async(dead_again, 30)
    done = await dead.redrive(everything=True)
    await eventually_async(lambda: len(attempts) == 40, 30)
    await eventually_async(dead_again, 30)
    assert done.done == 20
    worker.stop()
    await task
    assert attempts == [1] * 40


# -- redrive -------------------------------------------------------------------------------------------------------


def test_a_trimmed_entry_cannot_be_redriven_and_stays(items: Stream[Item], raw: redis.Redis) -> None:
    killed(items, 3)
    dead = items.sync.dead("g")
    first, trimmed, last = dead.read()
    raw.xdel(shard_of(items, trimmed.entry_id), trimmed.entry_id.redis)
    left = [Left(trimmed.id, trimmed.entry_id, "trimmed")]

    planned = dead.redrive(everything=True, dry_run=True)
    assert (planned.done, planned.left) == (2, left)
    done = dead.redrive(everything=True)
    assert (done.done, done.left) == (2, left)
    assert "publish it again" in str(left[0])
    (stays,) = dead.read()
    assert (stays.id, stays.event) == (trimmed.id, trimmed.event)
    items.sync.publish(stays.event)
    assert dead.discard(ids=[stays]).done == 1
    assert {first.id, last.id} and list(dead.read()) == []


def test_sent_twice_it_is_done_once(items: Stream[Item], raw: redis.Redis) -> None:
    killed(items, 5)
    layout, run = items.sync.layout(), items.app.sync_link.run
    ops = DeadOps(layout, "g")
    heads = list(items.sync.dead("g").heads())
    op = ops.redrive(heads, dry=False)
    assert [verdict for _, verdict in run(op)] == ["again"] * 5
    state = seen_by(raw, items, "g")
    assert [verdict for _, verdict in run(op)] == ["gone"] * 5
    assert seen_by(raw, items, "g") == state
    assert run(ops.discard(heads)) == 0


def test_an_entry_that_is_being_handled_is_not_stolen(items: Stream[Item], raw: redis.Redis) -> None:
    killed(items, 2)
    dead = items.sync.dead("g")
    one, _ = dead.read()
    stream = shard_of(items, one.entry_id)
    raw.xclaim(stream, "g", "live", 0, [one.entry_id.redis], force=True, retrycount=2, justid=True)
    before = seen_by(raw, items, "g")
    done = dead.redrive(ids=[str(one.id)])
    assert (done.done, done.left) == (0, [Left(one.id, one.entry_id, "pending")])
    assert seen_by(raw, items, "g") == before

    # two letters of one entry, as an in-place replay may bring about: waiting for ~again already is no obstacle
    raw.xclaim(stream, "g", "~again", 0, [one.entry_id.redis], justid=True)
    assert dead.redrive(ids=[one.entry_id]).done == 1
    assert len(list(dead.read())) == 1


def test_a_group_that_was_made_anew_reads_the_entry_anyway(items: Stream[Item], raw: redis.Redis) -> None:
    killed(items, 3)
    layout, dead = items.sync.layout(), items.sync.dead("g")
    for keys in layout.current:
        raw.xgroup_destroy(keys.stream, "g")
    with pytest.raises(GroupMissing, match="start a worker"):
        dead.redrive(everything=True)
    with pytest.raises(GroupMissing):
        dead.redrive(everything=True, dry_run=True)
    items.app.sync_link.run(GroupOps(layout, "g", "w1").create("0"))
    done = dead.redrive(everything=True)
    assert (done.done, [left.why for left in done.left]) == (0, ["ahead"] * 3)
    for keys in layout.current:
        assert raw.xpending(keys.stream, "g")["pending"] == 0


def test_redrive_and_discard_go_on_when_memory_is_full(items: Stream[Item], raw: redis.Redis) -> None:
    killed(items, 4)
    dead = items.sync.dead("g")
    try:
        raw.config_set("maxmemory", 1)
        assert dead.redrive(everything=True, limit=2).done == 2
        assert dead.discard(everything=True).done == 2
    finally:
        raw.config_set("maxmemory", 0)


def test_all_of_them_are_meant_only_where_somebody_says_so(items: Stream[Item]) -> None:
    killed(items, 2)
    dead = items.sync.dead("g")
    for act in (dead.redrive, dead.discard):
        for nothing in ({}, {"limit": 1}, {"reason": None}):
            with pytest.raises(ConfigError, match="everything=True"):
                act(**nothing)  # type: ignore[arg-type]
    assert dead.discard(ids=[]).done == 0
    assert dead.discard(ids=(letter for letter in dead.read(limit=1)), dry_run=True).done == 1
    assert dead.discard(everything=True).done == 2


@pytest.mark.parametrize(
    "filters",
    [
        *({name: value} for name in ("reason", "error") for value in ("", " \n", 0, False, b"", [])),
        *({"key": value} for value in ("", 0, False, b"")),
        {"error": "", "reason": "failed"}, {"eror": "KeyError"}, {"group": "g"},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_filter_is_refused_before_it_means_all(items: Stream[Item], filters: dict[str, Any]) -> None:
    killed(items, 2)
    dead = items.sync.dead("g")
    for act in (dead.redrive, dead.discard):
        for more in ({}, {"dry_run": True}, {"everything": True}):
            with pytest.raises(ConfigError, match="dead letters") as caught:
                act(**filters, **more)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
    for look in (dead.read, dead.heads):
        with pytest.raises(ConfigError, match="dead letters"):
            list(look(**filters))  # type: ignore[arg-type]
    assert dead.count() == {"failed": 2}


async def test_the_same_for_code_in_an_event_loop(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        dead = app.stream("items", Item).dead("g")
        for act in (dead.redrive, dead.discard):
            with pytest.raises(ConfigError, match="the filter 'error' of dead letters is '', which is no filter"):
                await act(error="")
        with pytest.raises(ConfigError, match="'key'"):
            [letter async for letter in dead.read(key="")]


def test_a_blank_is_a_key_like_any_other(items: Stream[Item]) -> None:
    run, ops = items.app.sync_link.run, GroupOps(items.sync.layout(), "g", "w1")
    run(ops.create("0"))
    items.sync.publish_many(Item(n=n, name=name) for n, name in enumerate((" ", "a")))
    run(ops.settle([Outcome(e.shard, e.id, 1, "dead", "failed", "x") for e in run(ops.fetch(10)).entries]))
    assert [letter.event.n for letter in items.sync.dead("g").read(key=" ")] == [0]


# -- finding -------------------------------------------------------------------------------------------------------


def test_filters_and_ids(items: Stream[Item]) -> None:
    killed(items, 40)
    killed(items, 10, reason="invalid", error="n: Input should be an INTEGER")
    dead = items.sync.dead("g")
    letters = list(dead.read())
    assert len(letters) == 50
    assert [letter.id for letter in letters] == sorted(letter.id for letter in letters)
    assert [letter.id for letter in dead.heads()] == [letter.id for letter in letters]
    assert dead.count() == {"failed": 40, "invalid": 10}

    def ids(**filters: Any) -> list[EntryId]:
        return [letter.id for letter in dead.read(**filters)]

    def those(wanted: Any) -> list[EntryId]:
        return [letter.id for letter in letters if wanted(letter)]

    assert ids(reason="invalid") == those(lambda letter: letter.reason == "invalid")
    assert ids(key="k3") == those(lambda letter: letter.key == "k3") != []
    assert ids(error="integer", key="k3") == those(lambda x: x.key == "k3" and x.reason == "invalid") != []
    assert ids(reason="nonsense") == ids(error="%d+") == ids(limit=0) == []
    assert ids(limit=7) == [letter.id for letter in letters[:7]]
    middle = letters[20]
    assert ids(since=middle.id) == [letter.id for letter in letters[20:]]
    assert ids(until=middle.id) == [letter.id for letter in letters[:21]]
    assert ids(since="1h ago", until="now") == ids()
    assert ids(until=datetime.now(UTC) - timedelta(hours=1)) == []
    with pytest.raises(PositionError, match="swap"):
        ids(since="now", until="1h ago")

    assert ids(ids=[middle]) == ids(ids=[str(middle.id)]) == ids(ids=[middle.entry_id]) == [middle.id]
    assert ids(ids=[letters[3], letters[1].entry_id]) == [letters[1].id, letters[3].id]
    assert ids(ids=[middle], key="nobody's") == []
    with pytest.raises(PositionError, match="not an entry id"):
        ids(ids=["17636300"])
    strangers = [EntryId(1, 1, 1, 0), EntryId(1, 1, 7, 0), EntryId(1, 1, 1, 99)]
    assert [left.why for left in dead.redrive(ids=strangers).left] == ["missing"] * 3
    assert dead.discard(ids=[*strangers, middle.id]).left == [Left(id, None, "missing") for id in strangers]
    assert dead.count() == {"failed": 39, "invalid": 10}


def test_an_id_that_means_two_letters_is_refused(app: RStream, raw: redis.Redis) -> None:
    items = app.stream("lone", Item, shards=1)
    grave, dead = items.sync.layout().current[0].dead("g"), items.sync.dead("g")

    def bury(entry: str, letter: str) -> str:
        told = {"id": entry, "reason": "failed", "error": "", "attempts": 1, "worker": "w"}
        return raw.xadd(grave, told, id=letter).decode() + "@1.0"

    one, other, same, again = bury("1-0", "5-0"), bury("5-0", "6-0"), bury("7-0", "7-0"), bury("7-0", "8-0")
    with pytest.raises(PositionError, match=r"write 1-0@1\.0 for the first, 6-0@1\.0 for the second"):
        dead.discard(ids=[one])
    assert [str(letter.id) for letter in dead.read(ids=[same])] == [same, again]  # of the entry, both
    assert [str(letter.id) for letter in dead.read(ids=["1-0@1.0", other])] == [one, other]
    first = next(dead.read())
    assert [letter.id for letter in dead.read(ids=[first])] == [first.id]
    assert dead.discard(ids=[first, other, same]).done == 4


def test_thousands_are_paged_merged_and_redriven(
    items: Stream[Item], raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(items, 6000)
    dead = items.sync.dead("g")
    for page, look in ((500, 500), (7, 500), (500, 11)):
        monkeypatch.setattr(store, "PAGE", page)
        monkeypatch.setattr(store, "LOOK", look)
        amount = 6000 if page == 500 and look == 500 else 300
        ids = [head.id for head in dead.heads(limit=amount)]
        assert len(set(ids)) == amount and ids == sorted(ids)
    assert dead.count() == {"failed": 6000}
    monkeypatch.undo()
    assert len(list(dead.read(error="boom: 59"))) == 111
    assert dead.redrive(error="boom: 59").done == 111
    assert dead.redrive(everything=True).done == 6000 - 111
    assert dead.count() == {}
    assert sum(raw.xpending(keys.stream, "g")["pending"] for keys in items.sync.layout().current) == 6000


def test_large_letters_are_brought_by_the_chunk(items: Stream[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    run, ops = items.app.sync_link.run, GroupOps(items.sync.layout(), "g", "w1")
    run(ops.create("0"))
    items.sync.publish_many(Item(n=n, name=str(n), pad=bytes(900_000)) for n in range(40))
    while found := run(ops.fetch(1000)).entries:
        run(ops.settle([Outcome(entry.shard, entry.id, 1, "dead", "failed", "x") for entry in found]))
    sizes: list[int] = []
    letters = DeadOps.letters
    monkeypatch.setattr(DeadOps, "letters", lambda self, heads: sizes.append(len(heads)) or letters(self, heads))

    dead = items.sync.dead("g")
    assert sorted(letter.event.n for letter in dead.read()) == list(range(40))
    assert max(sizes) == 4

    search = Search(DeadOps(items.sync.layout(), "g"), Match())
    first = search.op()
    assert first is not None
    replies = items.app.sync_link.exchange(first.calls)
    assert max(len(found) for found, _, _ in replies) <= 8, "a call looked at more than its bytes"
    assert len(repr(replies)) < 20_000
    assert dead.redrive(everything=True).done == 40


def test_foreign_and_odd_letters_are_listed(items: Stream[Item], raw: redis.Redis) -> None:
    layout, run = items.sync.layout(), items.app.sync_link.run
    ops = GroupOps(layout, "g", "w1")
    run(ops.create("0"))
    keys = layout.current[2]
    raw.xadd(keys.stream, {"id": "7-7", "reason": "mine", "worker": "nobody", "blob": b"\xff\x00"})
    (entry,) = run(ops.fetch(10)).entries
    run(ops.settle([Outcome(entry.shard, entry.id, 1, "dead", "undecodable", "no field 'e'")]))
    raw.xadd(keys.dead("g"), {"hello": "world"})
    raw.xadd(keys.dead("g"), {"id": "99999999999999999999-0", "worker": ""})
    dead = items.sync.dead("g")

    foreign, strange, beyond = dead.read()
    assert (foreign.entry_id.redis, foreign.reason, foreign.worker) == (entry.id.decode(), "undecodable", "w1")
    assert foreign.fields == {b"id": b"7-7", b"reason": b"mine", b"worker": b"nobody", b"blob": b"\xff\x00"}
    assert (foreign.key, foreign.payload, foreign.traceback) == (None, b"", "")
    with pytest.raises(EntryInvalid):
        _ = foreign.event
    assert (strange.entry_id, strange.reason, strange.attempts) == (EntryId(0, 0, 1, 2), "", 0)
    assert beyond.published_at.year == 9999
    assert dead.count() == {"undecodable": 1, "": 2}
    done = dead.redrive(everything=True)
    assert (done.done, [left.why for left in done.left]) == (1, ["trimmed", "trimmed"])
    assert dead.discard(everything=True).done == 2


def test_the_handle_checks_names_and_shows_itself(items: Stream[Item]) -> None:
    with pytest.raises(ConfigError):
        items.dead("a group")
    killed(items, 1)
    (letter,) = items.sync.dead("g").read()
    assert isinstance(letter, DeadLetter)
    assert str(letter.id) in repr(letter) and json.dumps(letter.reason)
