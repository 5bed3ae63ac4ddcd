"""The queue half against real servers: fences, leases, take-over, release (promises 1 and 2)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import redis

from rstream import Event, RStream
from rstream.errors import GroupMissing
from rstream.store.deliveries import Fetched, GroupOps, Outcome, Recovered, bare_ack
from rstream.store.keys import Shard, rotated
from tests.waiting import eventually

LEASE = 400  # ms


class Item(Event):
    n: int


SHARD: Any = None  # `settle` fills in the first one


class Bench:
    """A stream of one or more shards, and workers of one group at the level of the store."""

    def __init__(self, app: RStream, raw: redis.Redis, shards: int = 1) -> None:
        self.app, self.raw = app, raw
        self.stream = app.stream("items", Item, shards=shards)
        self.layout = self.stream.sync.layout()
        self.key = self.layout.current[0]
        self.run = app.sync_link.run
        self.run(self.ops("maker").create("0"))

    def ops(self, worker: str) -> GroupOps:
        return GroupOps(self.layout, "g", worker)

    def publish(self, count: int) -> None:
        self.stream.sync.publish_many(Item(n=n) for n in range(count))

    def alive(self, worker: str, lease: int = 60_000) -> GroupOps:
        """A worker that has been alive for longer than any lease here, so that it may claim from silent ones."""
        ops = self.ops(worker)
        self.run(ops.beat(lease))
        for keys in self.layout.current:
            self.raw.set(keys.alive("g", worker), 1, px=lease)
        return ops

    def fetch(self, worker: str, count: int = 100) -> list[Fetched]:
        return self.run(self.ops(worker).fetch(count)).entries

    def recover(self, ops: GroupOps, limit: int = 1000, lease: int = LEASE) -> list[Fetched]:
        return self.search(ops, limit, lease).claimed

    def search(self, ops: GroupOps, limit: int = 10, lease: int = LEASE) -> Recovered:
        """Also among the deliveries of silent workers."""
        return self.run(ops.recover(limit, lease, others=self.run(ops.others())))

    def pending(self) -> dict[bytes, tuple[bytes, int]]:
        """id -> (owner, deliveries)."""
        found = self.raw.xpending_range(self.key.stream, "g", "-", "+", 10_000)
        return {item["message_id"]: (item["consumer"], item["times_delivered"]) for item in found}


@pytest.fixture
def bench(app: RStream, raw: redis.Redis) -> Bench:
    return Bench(app, raw)


@pytest.mark.parametrize("limit", [1, 7, 32, 40, 64])
def test_a_read_says_that_there_may_be_more_where_it_brought_as_much_as_it_was_asked_for(
    bench: Bench, limit: int
) -> None:
    bench.publish(100)
    reads = [bench.run(bench.ops("a").fetch(limit)) for _ in range(100 // limit)]
    assert [(len(read.entries), read.more) for read in reads] == [(limit, True)] * (100 // limit)
    last = bench.run(bench.ops("a").fetch(limit))
    assert (len(last.entries), last.more) == (100 % limit, False)


def settle(bench: Bench, worker: str, *outcomes: Outcome) -> list[tuple[str, int]]:
    refused = bench.run(bench.ops(worker).settle([outcome._replace(shard=bench.key) for outcome in outcomes]))
    return [(refusal.owner, refusal.deliveries) for refusal in refused]


# -- fetch ----------------------------------------------------------------------------------------------------------


def test_fetch_never_brings_more_than_asked_for_over_all_shards(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw, shards=16)
    bench.publish(1600)
    got = bench.run(bench.ops("a").fetch(100, rotated(bench.layout.current, 5))).entries
    assert len(got) == 100
    assert {entry.shard for entry in got} == {bench.layout.current[5]}
    rest = [len(bench.fetch("a", 1000)), len(bench.fetch("a", 1000))]
    assert rest == [1000, 500]


def test_a_blocked_read_is_woken_and_a_missing_group_is_told(bench: Bench) -> None:
    assert bench.run(bench.ops("a").wait(10, 50, bench.layout.current)) == []
    bench.publish(3)
    assert len(bench.run(bench.ops("a").wait(10, 1000, bench.layout.current))) == 3
    bench.raw.delete(bench.key.stream)
    with pytest.raises(GroupMissing):
        bench.run(bench.ops("a").wait(10, 50, bench.layout.current))
    with pytest.raises(GroupMissing):
        bench.fetch("a")
    with pytest.raises(GroupMissing):
        settle(bench, "a", Outcome(SHARD, b"1-1", 1, "ack"))


# -- settle and its fence -------------------------------------------------------------------------------------------

OUTCOMES: list[Callable[[bytes, int], Outcome]] = [
    lambda id, attempt: Outcome(SHARD, id, attempt, "ack"),
    lambda id, attempt: Outcome(SHARD, id, attempt, "retry", 10),
    lambda id, attempt: Outcome(SHARD, id, attempt, "dead", "failed", "why"),
    lambda id, attempt: Outcome(SHARD, id, attempt, "release", 0, "~released"),
]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_who_lost_the_delivery_changes_nothing(bench: Bench, outcome: Callable[[bytes, int], Outcome]) -> None:
    bench.publish(3)
    taken, acked, rerun = (entry.id for entry in bench.fetch("a"))
    bench.raw.xclaim(bench.key.stream, "g", "b", 0, [taken])  # another worker has it
    bench.raw.xack(bench.key.stream, "g", acked)  # somebody settled it
    bench.raw.execute_command("XCLAIM", bench.key.stream, "g", "a", 0, rerun, "RETRYCOUNT", 2)  # our own later attempt
    before = bench.pending()

    refused = settle(bench, "a", outcome(taken, 1), outcome(acked, 1), outcome(rerun, 1))

    assert refused == [("b", 2), ("", 0), ("a", 2)]
    assert bench.pending() == before
    assert bench.raw.exists(bench.key.retry("g"), bench.key.dead("g")) == 0


def test_each_outcome_does_what_it_says(bench: Bench) -> None:
    bench.publish(4)
    ack, retry, dead, release = (entry.id for entry in bench.fetch("a"))
    assert not settle(
        bench,
        "a",
        Outcome(SHARD, ack, 1, "ack"),
        Outcome(SHARD, retry, 1, "retry", 60_000),
        Outcome(SHARD, dead, 1, "dead", "failed", "Traceback …"),
        Outcome(SHARD, release, 1, "release", 0, "~released"),
    )
    assert bench.pending() == {retry: (b"~retry", 1), release: (b"~released", 0)}
    seconds, micros = bench.raw.time()
    due = bench.raw.zscore(bench.key.retry("g"), retry)
    assert due is not None and 50_000 < due - (seconds * 1000 + micros / 1000) <= 60_000
    ((_, letter),) = bench.raw.xrange(bench.key.dead("g"))
    assert letter[b"id"] == dead
    assert (letter[b"reason"], letter[b"error"]) == (b"failed", "Traceback …".encode())
    assert (letter[b"attempts"], letter[b"worker"]) == (b"1", b"a")
    assert letter[b"e"] == bench.raw.xrange(bench.key.stream, dead, dead)[0][1][b"e"]


def test_a_settle_sent_twice_is_refused_the_second_time_and_changes_nothing(bench: Bench) -> None:
    bench.publish(2)
    first, second = (entry.id for entry in bench.fetch("a"))
    outcomes = Outcome(SHARD, first, 1, "dead", "failed", "x"), Outcome(SHARD, second, 1, "retry", 5)
    assert settle(bench, "a", *outcomes) == []
    assert settle(bench, "a", *outcomes) == [("", 0), ("~retry", 1)]
    assert bench.raw.xlen(bench.key.dead("g")) == 1


def test_thousands_of_outcomes_fit_in_one_call(bench: Bench) -> None:
    bench.publish(5000)
    got = bench.fetch("a", 5000)
    assert settle(bench, "a", *(Outcome(SHARD, entry.id, 1, "ack") for entry in got)) == []
    assert bench.pending() == {}


@pytest.mark.parametrize("seed", range(5))
def test_of_plain_acks_that_go_together_each_is_fenced(app: RStream, raw: redis.Redis, seed: int) -> None:
    dice = random.Random(seed)
    bench = Bench(app, raw, shards=3)
    bench.publish(300)
    fetched = bench.fetch("a", 300)
    expected: dict[tuple[Shard, bytes], tuple[str, int]] = {}
    acked, left = [], []
    for entry in fetched:
        place, stream = (entry.shard, entry.id), entry.shard.stream
        fate = dice.choice(["ours", "ours", "ours", "kept", "taken", "again", "done"])
        if fate == "taken":
            raw.xclaim(stream, "g", "b", 0, [entry.id], justid=True)
            expected[place] = ("b", 1)
        elif fate == "again":  # this worker runs its next attempt
            raw.xclaim(stream, "g", "a", 0, [entry.id], retrycount=2, justid=True)
            expected[place] = ("a", 2)
        elif fate == "done":
            raw.xack(stream, "g", entry.id)
            expected[place] = ("", 0)
        elif fate == "kept":
            left.append(place)
        else:
            acked.append(place)
    acks = [bare_ack(entry) for entry in fetched if (entry.shard, entry.id) not in left]
    if seed % 2:
        dice.shuffle(acks)
    refused = bench.run(bench.ops("a").settle(acks))
    assert {each.outcome[:2]: (each.owner, each.deliveries) for each in refused} == expected
    pending = {
        (shard, item["message_id"]): item["consumer"].decode()
        for shard in bench.layout.current
        for item in raw.xpending_range(shard.stream, "g", "-", "+", 1000)
    }
    theirs = {place: owner for place, (owner, _) in expected.items() if owner}
    assert pending == theirs | dict.fromkeys(left, "a") and acked


# -- leases and take-over -------------------------------------------------------------------------------------------


def test_what_is_pending_for_a_live_worker_is_nobody_elses_business(bench: Bench) -> None:
    bench.publish(3)
    bench.alive("a")
    bench.fetch("a")
    assert bench.recover(bench.alive("b")) == []


def test_a_silent_workers_deliveries_are_claimed_without_burning_an_attempt(bench: Bench) -> None:
    bench.publish(3)
    ids = [entry.id for entry in bench.fetch("silent")]
    got = bench.recover(bench.alive("b"))
    assert [(entry.id, entry.deliveries, entry.source) for entry in got] == [(id, 1, "silent") for id in ids]
    assert bench.pending() == dict.fromkeys(ids, (b"b", 1))
    assert all(b"e" in entry.flat for entry in got)


def test_only_those_are_judged_who_were_named(bench: Bench) -> None:
    bench.publish(2)
    (first,) = bench.fetch("silent", 1)
    ops = bench.alive("b")
    others = bench.run(ops.others())
    assert others == {bench.key: [b"maker", b"silent"]}
    (late,) = bench.fetch("later", 1)
    assert bench.run(ops.recover(10, LEASE)).claimed == []
    assert [entry.id for entry in bench.run(ops.recover(10, LEASE, others=others)).claimed] == [first.id]
    assert [entry.id for entry in bench.recover(ops)] == [late.id]


def test_a_worker_of_any_name_is_judged_and_a_missing_group_has_none(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw, shards=2)
    bench.publish(4)
    name = b"\xff:a|b\x00"
    for shard in bench.layout.current:
        raw.xreadgroup("g", name, {shard.stream: ">"})  # type: ignore[arg-type]
    ops = bench.alive("b")
    one, two = bench.layout.current
    raw.set(one.alive("g", "").encode() + name, 1)
    assert {entry.shard for entry in bench.recover(ops)} == {two}
    raw.xgroup_destroy(one.stream, "g")
    assert bench.run(ops.others()) == {one: [], two: [name]}
    assert bench.recover(ops) == []


def test_a_worker_claims_from_silent_ones_only_after_it_was_alive_for_a_lease(bench: Bench) -> None:
    bench.publish(1)
    bench.fetch("silent")
    ops = bench.ops("new")
    assert bench.recover(ops) == []  # not alive itself, as seen from the shard

    bench.run(ops.beat(LEASE))
    assert bench.recover(ops) == []  # alive, but only just: the other may be about to say that it lives

    def grown_up() -> list[Fetched]:
        bench.run(ops.beat(LEASE))
        return bench.recover(ops)

    assert len(eventually(grown_up)) == 1


def test_a_gap_in_the_own_heartbeat_begins_the_wait_anew(bench: Bench) -> None:
    ops = bench.alive("b")
    assert bench.run(ops.beat(LEASE)).known
    bench.raw.delete(bench.key.alive("g", "b"))  # as if Redis had stood still, or its clock had jumped
    bench.publish(1)
    bench.fetch("silent")
    assert not bench.run(ops.beat(LEASE)).known
    assert bench.recover(ops) == []


def test_a_clock_set_back_does_not_make_a_worker_alive_since_the_future(bench: Bench) -> None:
    ops = bench.ops("b")
    bench.raw.set(bench.key.alive("g", "b"), 2**45)
    bench.run(ops.beat(LEASE))
    since = int(bench.raw.get(bench.key.alive("g", "b")) or 0)
    assert since <= bench.raw.time()[0] * 1000 + 1000


def test_released_deliveries_need_no_waiting_and_keep_their_attempts(bench: Bench) -> None:
    bench.publish(1)
    (entry,) = bench.fetch("a")
    settle(bench, "a", Outcome(SHARD, entry.id, 1, "release", 0, "~released"))
    (got,) = bench.recover(bench.ops("b"))
    assert (got.deliveries, got.source) == (0, "~released")
    assert bench.run(bench.ops("b").begin(got)) is True
    assert bench.pending() == {entry.id: (b"b", 1)}


def test_a_retry_is_claimed_when_it_is_due_and_not_before(bench: Bench) -> None:
    bench.publish(2)
    now, later = bench.fetch("a")
    settle(bench, "a", Outcome(SHARD, now.id, 1, "retry", 0), Outcome(SHARD, later.id, 1, "retry", 60_000))
    found = bench.search(bench.ops("b"))
    assert [entry.id for entry in found.claimed] == [now.id]
    assert found.next_due is not None and 50 < found.next_due <= 60
    bench.raw.zadd(bench.key.retry("g"), {later.id: 1})
    assert [entry.id for entry in bench.recover(bench.ops("b"))] == [later.id]
    assert bench.raw.exists(bench.key.retry("g")) == 0


def test_a_retry_whose_due_time_was_lost_does_not_wait_for_ever(bench: Bench) -> None:
    bench.publish(1)
    (entry,) = bench.fetch("a")
    settle(bench, "a", Outcome(SHARD, entry.id, 1, "retry", 60_000))
    bench.raw.delete(bench.key.retry("g"))
    assert [found.id for found in bench.recover(bench.ops("b"))] == [entry.id]


def test_an_attempt_is_burnt_once_and_only_by_its_owner(bench: Bench) -> None:
    bench.publish(1)
    bench.fetch("silent")
    (entry,) = bench.recover(bench.alive("b"))
    assert bench.run(bench.ops("b").begin(entry)) is True
    assert bench.run(bench.ops("b").begin(entry)) is True  # a resend
    assert bench.pending() == {entry.id: (b"b", 2)}
    assert bench.run(bench.ops("silent").begin(entry)) is False
    settle(bench, "b", Outcome(SHARD, entry.id, 2, "ack"))
    assert bench.run(bench.ops("b").begin(entry)) is False
    assert bench.pending() == {}


def test_recovery_takes_no_more_than_it_has_room_for(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw, shards=4)
    bench.publish(100)
    bench.fetch("silent")
    ops = bench.alive("b")
    taken = [len(bench.recover(ops, limit=30)) for _ in range(5)]
    assert taken == [30, 30, 30, 10, 0]


def test_what_was_trimmed_while_pending_is_reported_lost_once(bench: Bench) -> None:
    bench.publish(3)
    ids = [entry.id for entry in bench.fetch("silent")]
    bench.raw.xdel(bench.key.stream, ids[1])
    found = bench.search(bench.alive("b"))
    assert [entry.id for entry in found.claimed] == [ids[0], ids[2]]
    assert found.lost == [(bench.key, ids[1])]
    assert bench.search(bench.ops("b")).lost == []


def test_dead_consumers_without_pending_entries_are_removed_and_live_ones_are_not(bench: Bench) -> None:
    bench.publish(1)
    bench.alive("a")
    (entry,) = bench.fetch("a")
    settle(bench, "a", Outcome(SHARD, entry.id, 1, "ack"))
    bench.fetch("idle-and-dead")
    bench.recover(bench.alive("b"))
    names = {consumer["name"] for consumer in bench.raw.xinfo_consumers(bench.key.stream, "g")}
    assert b"a" in names
    assert b"idle-and-dead" not in names


# -- finding again, and leaving -------------------------------------------------------------------------------------


def test_mine_pages_through_what_is_pending_for_a_worker(bench: Bench) -> None:
    bench.publish(5)
    ids = [entry.id for entry in bench.fetch("a", 3)]
    bench.fetch("b")
    bench.raw.xdel(bench.key.stream, ids[1])
    first = bench.run(bench.ops("a").mine(bench.key, "-", 2))
    rest = bench.run(bench.ops("a").mine(bench.key, "(" + first[-1][0].decode(), 2))
    assert [(id, count, flat is None) for id, count, flat in first + rest] == [
        (ids[0], 1, False),
        (ids[1], 1, True),
        (ids[2], 1, False),
    ]


def test_leaving_deletes_the_consumer_only_when_nothing_is_pending(bench: Bench) -> None:
    bench.publish(1)
    ops = bench.alive("a")
    (entry,) = bench.fetch("a")
    assert bench.run(ops.leave()) == 1
    assert bench.pending() == {entry.id: (b"a", 1)}
    settle(bench, "a", Outcome(SHARD, entry.id, 1, "ack"))
    assert bench.run(ops.leave()) == 0
    assert b"a" not in {c["name"] for c in bench.raw.xinfo_consumers(bench.key.stream, "g")}
    assert not bench.raw.exists(bench.key.alive("g", "a"))


def test_draining_goes_on_when_memory_is_full(bench: Bench) -> None:
    bench.publish(5)
    try:
        bench.raw.config_set("maxmemory", 1)
        first, second, third = bench.fetch("a", 3)
        done = [
            Outcome(SHARD, first.id, 1, "ack"),
            Outcome(SHARD, second.id, 1, "dead", "failed", "x"),
            Outcome(SHARD, third.id, 1, "retry", 0),
        ]
        assert settle(bench, "a", *done) == []
        assert not bench.run(bench.ops("a").beat(LEASE)).known
        assert len(bench.recover(bench.ops("b"))) == 1
        assert len(bench.fetch("b")) == 2
    finally:
        bench.raw.config_set("maxmemory", 0)


class Big(Event):
    pad: bytes


def test_calls_are_bounded_in_bytes(app: RStream, raw: redis.Redis) -> None:
    stream = app.stream("big", Big, shards=2)
    stream.sync.publish_many(Big(pad=bytes(400_000)) for _ in range(200))
    layout = stream.sync.layout()
    ops, other = GroupOps(layout, "g", "a"), GroupOps(layout, "g", "b")
    run = app.sync_link.run
    run(ops.create("0"))
    fetched = run(ops.fetch(1000)).entries
    assert 10 <= len(fetched) <= 64
    while more := run(ops.fetch(1000)).entries:
        fetched += more
    assert len(fetched) == 200

    pages, start = [], "-"
    while page := run(ops.mine(layout.current[0], start, 500)):
        pages.append(len(page))
        start = "(" + page[-1][0].decode()
    assert max(pages) <= 12
    raw.set(layout.current[0].alive("g", "b"), 1)
    raw.set(layout.current[1].alive("g", "b"), 1)
    assert 0 < len(run(other.recover(1000, LEASE, others=run(other.others()))).claimed) <= 24


def test_an_entry_with_thousands_of_fields_is_buried_and_spoils_nothing(bench: Bench) -> None:
    bench.publish(1)
    bench.raw.xadd(bench.key.stream, {f"field{n}": n for n in range(5000)})
    bench.publish(1)
    first, wide, last = (entry.id for entry in bench.fetch("a"))
    outcomes = (
        Outcome(SHARD, first, 1, "ack"),
        Outcome(SHARD, wide, 1, "dead", "undecodable", "x"),
        Outcome(SHARD, last, 1, "ack"),
    )
    assert settle(bench, "a", *outcomes) == []
    assert bench.pending() == {}
    assert bench.raw.xlen(bench.key.dead("g")) == 1
