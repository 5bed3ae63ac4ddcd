"""What is counted of every stream and group, with the thing itself: each kind once, and never back."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import redis

from rstream import Delivery, Event, Reject, RetryPolicy, RStream, Stream
from rstream.retention import Limits
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.deliveries import Emit, Fetched, GroupOps, Outcome, bare_ack
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.record import Record
from rstream.store.remove import remove
from rstream.store.steps import drive_sync
from rstream.store.totals import KINDS, GroupTotals, Totals, totals
from rstream.store.weigh import Losers, trim
from tests.fleets import Cluster
from tests.servers import Server
from tests.test_deliveries import Bench, bench, settle  # noqa: F401 (a fixture)
from tests.test_reshard import declare, events, retiring, take
from tests.test_worker import drain


class Thing(Event):
    name: str
    number: str


def counted(app: RStream, stream: str) -> Totals:
    layout = app.sync_link.run(layouts.load(app.settings.namespace, stream))
    assert layout is not None
    return app.sync_link.run(totals(layout))


def kinds(group: GroupTotals) -> dict[str, int]:
    """Those of which there were any."""
    return {kind: number for kind, number in asdict(group).items() if kind in KINDS and number}


def of_group(bench: Bench) -> dict[str, int]:  # noqa: F811
    return kinds(counted(bench.app, "items").groups["g"])


def test_everything_that_ends_a_delivery_is_counted_as_what_it_is(bench: Bench) -> None:  # noqa: F811
    bench.publish(14)
    found = bench.fetch("a")
    assert not bench.run(bench.ops("a").settle([bare_ack(entry) for entry in found[:4]]))
    made: list[tuple[Any, ...]] = [
        ("ack",), ("ack", "key", 60_000), ("expired",), ("skipped",), ("retry", 60_000), ("retry", 60_000, 0),
        ("dead", "failed", "why"), ("dead", "blob missing", "why"), ("lost",), ("release", 0, "~released"),
    ]  # fmt: skip
    assert not settle(bench, "a", *(Outcome(e.shard, e.id, 1, *how) for e, how in zip(found[4:], made, strict=True)))
    all_of_them = {"acked": 6, "expired": 1, "skipped": 1, "retried": 2, "dead": 2, "lost": 1}
    assert of_group(bench) == all_of_them
    group = counted(bench.app, "items").groups["g"]
    assert group.dead_letters == {"failed": 1, "blob missing": 1}

    late = [*(bare_ack(e) for e in found[:2]), Outcome(found[5].shard, found[5].id, 1, "dead", "failed", "why")]
    assert len(settle(bench, "a", *late)) == 3  # ack.lua and settle.lua
    assert of_group(bench) == all_of_them | {"fenced": 3}


def test_what_was_published_is_counted_also_when_it_is_trimmed(bench: Bench) -> None:  # noqa: F811
    bench.publish(10)
    bench.raw.xtrim(bench.key.stream, maxlen=3, approximate=False)
    assert counted(bench.app, "items").published == 10
    bench.stream.sync.reshard(2)  # a seal is no entry
    assert counted(bench.app, "items").published == 10


@pytest.mark.parametrize("kind", ["bare", "ack", "dead", "retry", "emit"])
def test_an_outcome_that_was_done_and_is_sent_again_is_not_counted_as_refused(
    bench: Bench,  # noqa: F811
    kind: str,
) -> None:
    bench.publish(3)
    found = bench.fetch("a")
    target = bench.app.stream("notes", Event, shards=1).sync.layout().current[0]
    emits = (Emit(target, Record(b"{}", b"", b"", b"")),)
    made = {
        "bare": bare_ack,
        "ack": lambda e: Outcome(e.shard, e.id, 1, "ack"),
        "dead": lambda e: Outcome(e.shard, e.id, 1, "dead", "failed", "why"),
        "retry": lambda e: Outcome(e.shard, e.id, 1, "retry", 60_000, 0),
        "emit": lambda e: Outcome(e.shard, e.id, 1, "ack", emits=emits),
    }[kind]
    outcomes = [made(entry) for entry in found]
    assert not bench.run(bench.ops("a").settle(outcomes))
    counts = of_group(bench)
    assert sum(counts.values()) == 3
    assert len(bench.run(bench.ops("a").settle(outcomes, again=True))) == 3
    assert of_group(bench) == counts
    assert len(bench.run(bench.ops("a").settle(outcomes))) == 3
    assert of_group(bench) == counts | {"fenced": 3}


def test_who_takes_over_from_a_dead_worker_counts_it_and_who_is_given_it_does_not(
    bench: Bench,  # noqa: F811
) -> None:
    bench.publish(6)
    found = bench.fetch("dead")
    ends = [("release", 0, "~released"), ("release", 0, "~again"), ("retry", 0)]
    settle(bench, "dead", *(Outcome(e.shard, e.id, 1, *how) for e, how in zip(found, ends, strict=False)))
    two = bench.alive("two")
    assert len(bench.recover(two)) == 6
    assert of_group(bench) == {"retried": 1, "redelivered": 3}
    assert bench.recover(two) == [] and of_group(bench) == {"retried": 1, "redelivered": 3}


def test_a_call_counts_each_kind_at_once(own_server: Server, namespace: str) -> None:
    with RStream(own_server.url, namespace=namespace) as app, redis.Redis.from_url(own_server.url) as raw:
        bench = Bench(app, raw, shards=2)
        bench.publish(200)
        found = bench.fetch("a", 1000)

        raw.config_resetstat()

        def increments() -> int:
            told: Any = raw.info("commandstats")
            return int(told.get("cmdstat_hincrby", {}).get("calls", 0))

        bench.run(bench.ops("a").settle([bare_ack(entry) for entry in found[:150]]))
        assert increments() == 2  # one for each shard
        rest = found[-30:]  # of one
        assert len({each.shard for each in rest}) == 1
        bench.run(bench.ops("a").settle([Outcome(e.shard, e.id, 1, "retry", 10) for e in rest[:10]]))
        assert increments() == 3
        dead = [Outcome(e.shard, e.id, 1, "dead", "failed", "x") for e in rest[10:20]]
        bench.run(bench.ops("a").settle([*dead, *(Outcome(e.shard, e.id, 1, "expired") for e in rest[20:])]))
        assert increments() == 5


def test_entries_that_were_dropped_are_in_the_totals(bench: Bench) -> None:  # noqa: F811
    bench.publish(10)
    assert bench.run(trim(bench.key, "", Limits(4, None), Losers(["g"], {}), dry=False)).lost == {"g": 6}
    assert of_group(bench) == {"lost": 6}


# -- reshard, remove ------------------------------------------------------------------------------------------------


def work(app: RStream, stream: Stream[Any], group: str = "g") -> None:
    """Of what is there: one dead letter that is gone again, three retried and acked, the rest acked."""
    layout = app.sync_link.run(layouts.load(app.settings.namespace, stream.name))
    assert layout is not None
    ops = GroupOps(layout, group, "w")
    app.sync_link.run(ops.create("0"))
    found = app.sync_link.run(ops.fetch(1000)).entries
    first, *rest = found
    app.sync_link.run(ops.settle([Outcome(first.shard, first.id, 1, "dead", "failed", "x")]))
    app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 1, "retry", 0) for e in rest[:3]]))
    again = app.sync_link.run(ops.recover(10, 0)).claimed
    assert [app.sync_link.run(ops.begin(entry)) for entry in again] == [True] * 3
    app.sync_link.run(ops.settle([Outcome(e.shard, e.id, 2, "ack") for e in again]))
    app.sync_link.run(ops.settle([bare_ack(e) for e in rest[3:]]))


def emptied(raw: redis.Redis, layout: Layout) -> None:
    for shard in layout.every:
        if shard.generation < layout.generation:
            raw.xtrim(shard.stream, maxlen=0, approximate=False)
            raw.delete(shard.dead("g"), shard.dead("other"))


@pytest.mark.parametrize("half", [False, True])
def test_totals_are_the_same_at_every_step_of_a_removal_of_old_generations(
    app: RStream, raw: redis.Redis, half: bool
) -> None:
    for operations in itertools.count():
        seen = declare(app, f"seen{operations}")
        seen.sync.publish_many(events(range(30)))
        work(app, seen)
        seen.sync.reshard(5)
        seen.sync.publish_many(events(range(30, 50)))
        work(app, seen)
        before = app.sync_link.run(layouts.load(app.settings.namespace, seen.name))
        assert before is not None
        emptied(raw, before)
        expected = {"acked": 48, "dead": 2, "retried": 6}

        def same(name: str, before: Layout, expected: dict[str, int] = expected) -> None:
            for found in (counted(app, name), app.sync_link.run(totals(before))):  # also for who heard nothing of it
                assert found.published == 50
                assert kinds(found.groups["g"]) == expected
                assert found.groups["g"].dead_letters == {"failed": 2}

        same(seen.name, before)
        ended = take(app, retiring(seen), operations, half=half)
        same(seen.name, before)
        take(app, retiring(seen))
        same(seen.name, before)
        take(app, retiring(seen))
        same(seen.name, before)
        gone = app.sync_link.run(layouts.load(app.settings.namespace, seen.name))
        assert gone is not None and gone.older == gone.retired == () and gone.removed == ((1, 3),)
        assert gone.counted == {"added": 30, "acked:g": 29, "retried:g": 3, "dead:failed:g": 1}
        assert all(raw.ttl(shard.done) > 24 * 3600 for shard in before.every[:3] if raw.exists(shard.done))
        if ended is not None:
            break
    assert operations >= 6


def test_two_that_remove_a_generation_at_once_count_it_once(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    work(app, seen)
    seen.sync.reshard(5)
    layout = seen.sync.layout(fresh=True)
    emptied(raw, layout)
    one, other = retiring(seen), retiring(seen)
    procedures: list[Any] = [one, other]
    results: list[Any] = [None, None]
    for number in itertools.cycle([0, 1]):
        try:
            results[number] = app.sync_link.run(procedures[number].send(results[number]))
        except StopIteration:
            break
    assert counted(app, "seen").published == 30
    assert kinds(counted(app, "seen").groups["g"]) == {"acked": 29, "dead": 1, "retried": 3}


def test_what_was_lost_in_a_generation_that_is_gone_is_still_counted(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app, shards=1)
    seen.sync.publish_many(events(range(10)))
    layout = seen.sync.layout()
    app.sync_link.run(GroupOps(layout, "g", "w").create("0"))
    app.sync_link.run(trim(layout.current[0], "", Limits(4, None), Losers(["g"], {}), dry=False))
    app.sync_link.run(GroupOps(layout, "g", "w").fetch(10))
    seen.sync.reshard(2)
    pending = raw.xpending_range(layout.current[0].stream, "g", "-", "+", 10)
    raw.xack(layout.current[0].stream, "g", *(each["message_id"] for each in pending))
    emptied(raw, seen.sync.layout(fresh=True))
    assert take(app, retiring(seen)) == [1]
    found = counted(app, "seen")
    assert (found.published, found.groups["g"].lost) == (10, 6)


def test_the_counters_of_a_group_go_with_it_and_no_others(app: RStream, raw: redis.Redis) -> None:
    seen = declare(app)
    seen.sync.publish_many(events(range(30)))
    work(app, seen)
    work(app, seen, "other")
    work(app, seen, "1")  # as a number of a generation
    seen.sync.reshard(2)
    emptied(raw, seen.sync.layout(fresh=True))
    raw.delete(*(shard.dead("1") for shard in seen.sync.layout().every))
    assert take(app, retiring(seen)) == [1]
    seen.sync.publish_many(events(range(30, 50)))
    for group in ("g", "other", "1"):
        work(app, seen, group)
        raw.delete(*(shard.dead(group) for shard in seen.sync.layout(fresh=True).every))
    for group in ("g", "1"):
        drive_sync(app.sync_link, remove(seen.sync.layout(fresh=True), group), 0)
    found = counted(app, "seen")
    assert {name: kinds(group) for name, group in found.groups.items()} == {
        "other": {"acked": 48, "dead": 2, "retried": 6}
    }
    assert found.published == 50
    left = [raw.hgetall(shard.done) for shard in seen.sync.layout().every]
    assert {name.rpartition(b":")[2] for each in left for name in each} == {b"other"}
    work_again = GroupOps(seen.sync.layout(), "g", "w")
    app.sync_link.run(work_again.create("0"))
    assert kinds(counted(app, "seen").groups["g"]) == {}


def test_a_group_that_is_gone_from_a_shard_keeps_what_it_counted(bench: Bench) -> None:  # noqa: F811
    bench.publish(3)
    bench.run(bench.ops("a").settle([bare_ack(entry) for entry in bench.fetch("a")]))
    bench.raw.xgroup_destroy(bench.key.stream, "g")
    assert counted(bench.app, "items").groups == {}
    bench.run(bench.ops("a").create("0"))
    assert of_group(bench) == {"acked": 3}


# -- how old what is not processed is -------------------------------------------------------------------------------


def test_the_oldest_that_is_not_processed_is_the_first_of_what_is_pending_or_unread(
    bench: Bench,  # noqa: F811
) -> None:
    assert counted(bench.app, "items").groups["g"].oldest is None
    for ms in (1000, 2000, 3000):
        bench.raw.xadd(bench.key.stream, {"e": "{}"}, id=f"{ms}-1")
    found = counted(bench.app, "items")
    assert found.groups["g"].oldest == 1000 and found.behind("g") == (found.now - 1000) / 1000
    first, second, third = bench.fetch("a", 10)
    bench.run(bench.ops("a").settle([bare_ack(first)]))
    assert counted(bench.app, "items").groups["g"].oldest == 2000
    bench.run(bench.ops("a").settle([bare_ack(second), bare_ack(third)]))
    assert counted(bench.app, "items").groups["g"].oldest is None
    bench.raw.xadd(bench.key.stream, {"e": "{}"}, id="4000-1")
    assert counted(bench.app, "items").groups["g"].oldest == 4000


def test_a_group_that_one_shard_lost_is_as_far_behind_as_that_shard_is_old(app: RStream, raw: redis.Redis) -> None:
    bench = Bench(app, raw, shards=2)  # noqa: F811
    one, two = bench.layout.current
    raw.xadd(one.stream, {"e": "{}"}, id="5000-1")
    raw.xadd(two.stream, {"e": "{}"}, id="9000-1")
    raw.xgroup_destroy(one.stream, "g")
    assert counted(app, "items").groups["g"].oldest == 5000


# -- in a worker, and on a cluster -----------------------------------------------------------------------------------


async def test_a_worker_counts_what_it_does(server: Server, namespace: str) -> None:
    async with RStream(server.url, namespace=namespace) as app:
        things = app.stream("things", Thing, key="name", shards=2)

        @things.consumer("g", once="number", retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
        async def handle(event: Thing, delivery: Delivery) -> None:
            if event.number == "reject" or (event.number == "once" and delivery.attempt == 1):
                raise Reject("no") if event.number == "reject" else ValueError("not yet")
            if event.number == "never":
                raise ValueError("never")

        for number in ("a", "a", "b", "reject", "once", "never"):
            await things.publish(Thing(name="x", number=number))
        worker = await drain(app)
        layout = await app.link.run(layouts.load(namespace, "things"))
        assert layout is not None
        found = await app.link.run(totals(layout))
        assert found.published == 6
        assert kinds(found.groups["g"]) == {"acked": 3, "skipped": 1, "retried": 2, "dead": 2}
        assert found.groups["g"].dead_letters == {"rejected": 1, "failed": 1}
        assert (worker.counts.handled, worker.counts.skipped, worker.counts.dead) == (3, 1, 2)


class Course:
    """Workers of one group that do whatever the dice say; `expected` is what should be counted of it."""

    def __init__(
        self, app: RStream, ask: Callable[[Shard, list[Any]], object], seed: int, *, spread: bool = False
    ) -> None:
        self.app, self.ask, self.rng, self.spread = app, ask, random.Random(seed), spread
        self.stream = declare(app, "course", shards=3)
        self.layout = self.stream.sync.layout()
        self.run = app.sync_link.run
        self.published = 0
        self.expected: Counter[str] = Counter()
        self.held: list[tuple[str, Fetched, int]] = []
        self.over: list[tuple[str, Fetched, int]] = []
        self.run(self.ops("maker").create("0"))

    def ops(self, worker: str) -> GroupOps:
        return GroupOps(self.layout, "g", worker, spread=self.spread)

    def go(self, turns: int) -> None:
        moves = [
            self.publish,
            self.fetch,
            self.fetch,
            self.settle,
            self.settle,
            self.settle,
            self.late,
            self.die,
            self.trim,
        ]
        for _ in range(turns):
            self.rng.choice(moves)()

    def publish(self) -> None:
        count = self.rng.randrange(20)
        self.stream.sync.publish_many(events(range(count)))
        self.published += count

    def fetch(self) -> None:
        worker = self.rng.choice("abc")
        self.held += [
            (worker, entry, 1) for entry in self.run(self.ops(worker).fetch(self.rng.randrange(1, 12))).entries
        ]

    def settle(self) -> None:
        """Some deliveries of one worker, in one call a shard."""
        worker = self.rng.choice("abc")
        some = [each for each in self.held if each[0] == worker][: self.rng.randrange(1, 12)]
        ways: list[tuple[str, tuple[Any, ...]]] = [
            ("acked", ("ack",)), ("expired", ("expired",)), ("skipped", ("skipped",)), ("retried", ("retry", 600_000)),
            ("dead", ("dead", "failed", "x")), ("dead", ("dead", "invalid", "x")), ("", ("release", 1, "~released")),
        ]  # fmt: skip
        outcomes, kinds = [], []
        for _, entry, attempt in some:
            kind, how = self.rng.choice(ways)
            bare = kind == "acked" and attempt == 1 and self.rng.random() < 0.5
            outcomes.append(bare_ack(entry) if bare else Outcome(entry.shard, entry.id, attempt, *how))
            kinds.append(kind)
        refused = {refusal.outcome[:2]: refusal.owner for refusal in self.run(self.ops(worker).settle(outcomes))}
        for kind, outcome in zip(kinds, outcomes, strict=True):
            owner = refused.get(outcome[:2])
            self.expected[kind if owner is None else "lost" if owner == "~lost" else "fenced"] += 1
        self.held = [each for each in self.held if each not in some]
        self.over += some

    def late(self) -> None:
        """Of what is settled already, or somebody else's."""
        for worker, entry, attempt in self.over[:3]:
            kind = self.rng.choice([("ack",), ("dead", "failed", "x")])
            assert len(self.run(self.ops(worker).settle([Outcome(entry.shard, entry.id, attempt, *kind)]))) == 1
            self.expected["fenced"] += 1
        del self.over[:3]

    def die(self) -> None:
        """One worker, without a word; another, which has lived for long, takes over all that it had."""
        dead, heir = self.rng.sample("abc", 2)
        ops = self.ops(heir)
        for shard in self.layout.every:
            self.ask(shard, ["DEL", shard.alive("g", dead)])
            self.ask(shard, ["SET", shard.alive("g", heir), 1, "PX", 600_000])  # for longer than any lease
        # A limit is a share of each slot: look until nothing is left.
        while True:
            found = self.run(ops.recover(1000, 1, others={s: [dead.encode()] for s in self.layout.every}))
            self.expected["lost"] += len(found.lost)
            self.expected["redelivered"] += sum(entry.source == dead for entry in found.claimed)
            for entry in found.claimed:
                if self.run(ops.begin(entry)) is None:
                    self.expected["lost"] += 1
                else:
                    self.held.append((heir, entry, entry.deliveries + 1))
            if not found.claimed and not found.lost:
                break
        self.over += [each for each in self.held if each[0] == dead]
        self.held = [each for each in self.held if each[0] != dead]

    def trim(self) -> None:
        if self.rng.random() < 0.3:
            shard = self.rng.choice(self.layout.current)
            done = self.run(trim(shard, "", Limits(self.rng.randrange(5, 40), None), Losers(["g"], {}), dry=False))
            self.expected["lost"] += done.lost.get("g", 0)

    def check(self) -> None:
        del self.expected[""]
        found = counted(self.app, "course")
        assert found.published == self.published
        assert kinds(found.groups["g"]) == {kind: number for kind, number in self.expected.items() if number}


@pytest.mark.parametrize("seed", range(4))
def test_any_course_of_kills_retries_dead_letters_and_trims_is_counted_as_it_was(
    app: RStream, raw: redis.Redis, seed: int
) -> None:
    course = Course(app, lambda shard, call: raw.execute_command(*call), seed)
    for _ in range(8):
        course.go(40)
        course.check()
    assert {"acked", "dead", "retried", "fenced", "redelivered", "lost"} <= {*course.expected}


def test_so_it_is_on_a_cluster(cluster: Cluster, namespace: str) -> None:
    with RStream(cluster.url, namespace=namespace) as app:
        course = Course(app, lambda shard, call: cluster.master_of(shard.slot).ask(*call), 7, spread=True)
        course.go(200)
        course.check()


async def test_on_a_cluster_all_masters_are_counted(cluster: Cluster, namespace: str) -> None:
    async with RStream(cluster.url, namespace=namespace) as app:
        seen = declare(app, shards=6)
        await seen.publish_many(events(range(60)))

        @seen.consumer("g")
        async def handle(event: Any) -> None: ...

        await drain(app)
        before = seen.sync.layout(fresh=True)
        assert len({cluster.master_of(shard.slot).port for shard in before.current}) == 3
        found = counted(app, "seen")
        assert (found.published, kinds(found.groups["g"])) == (60, {"acked": 60})
        await seen.reshard(2)
        for shard in before.current:
            cluster.master_of(shard.slot).ask("XTRIM", shard.stream, "MAXLEN", 0)
        assert (await seen.reshard(2)).removed == (1,)
        found = counted(app, "seen")
        assert (found.published, kinds(found.groups["g"])) == (60, {"acked": 60})
        assert app.sync_link.run(totals(before)).published == 60


def test_the_keys_are_told() -> None:
    shard = keys.shard("ns", "s", 1, 0, 1)
    part = keys.part_of("ns", shard.done.encode())
    assert part is not None and part.kind == "done"
