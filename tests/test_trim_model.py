"""Trimming against a brute-force model of groups: seeded random histories on real servers.

With `keep`, nothing that any group has not processed goes, and all else that retention asks for. With `drop`, what is
written down as lost is what was lost: to the entry, by group, in ranges that hold nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
import redis

from rstream import Event, Retention, RStream
from rstream.retention import Limits, Unprocessed
from rstream.store import trim as trimming
from rstream.store.deliveries import Fetched, GroupOps, Outcome
from rstream.store.keys import Shard, rank_of
from rstream.store.lost import losses
from rstream.store.steps import drive_sync
from rstream.store.trim import Tidied, tidy
from rstream.store.weigh import Losers, trim
from tests.servers import Server

GROUPS = ("a", "b", "c")
LEASE = 60_000


class Item(Event):
    key: str
    n: int
    pad: bytes = b""


@dataclass
class Worker:
    """hand: what it was given, and has not settled."""

    group: str
    name: str
    alive: bool = True
    hand: dict[bytes, Fetched] = field(default_factory=dict)


class World:
    """A stream of one shard. left: by group, the entries that it has not processed."""

    def __init__(self, app: RStream, raw: redis.Redis, dice: random.Random) -> None:
        self.app, self.raw, self.dice = app, raw, dice
        self.stream = app.stream("items", Item, key="key", shards=1)
        self.layout = self.stream.sync.layout()
        self.shard: Shard = self.layout.current[0]
        self.ids: list[bytes] = []
        self.left: dict[str, set[bytes]] = {group: set() for group in GROUPS}
        self.workers: list[Worker] = []
        self.number = 0
        for group in GROUPS:
            app.sync_link.run(GroupOps(self.layout, group, "maker").create("0"))

    def ops(self, worker: Worker) -> GroupOps:
        return GroupOps(self.layout, worker.group, worker.name)

    def stored(self) -> set[bytes]:
        return {id for id, _ in self.raw.xrange(self.shard.stream)}

    # What may happen.

    def publish(self) -> None:
        events = [
            Item(key=f"k{self.dice.randrange(3)}", n=n, pad=bytes(self.dice.randrange(400)))
            for n in range(self.dice.randrange(1, 30))
        ]
        ids = [id.redis.encode() for id in self.stream.sync.publish_many(events)]
        self.ids += ids
        for left in self.left.values():
            left.update(ids)

    def join(self) -> None:
        self.number += 1
        worker = Worker(self.dice.choice(GROUPS), f"w{self.number}")
        self.workers.append(worker)
        self.app.sync_link.run(self.ops(worker).beat(LEASE))
        self.raw.set(self.shard.alive(worker.group, worker.name), 1, px=LEASE)  # for longer than any lease

    def _living(self) -> Worker | None:
        return self.dice.choice([w for w in self.workers if w.alive] or [None])

    def fetch(self) -> None:
        if worker := self._living():
            found = self.app.sync_link.run(self.ops(worker).fetch(self.dice.randrange(1, 15)))
            worker.hand |= {entry.id: entry for entry in found.entries}

    def kill(self) -> None:
        if worker := self._living():
            worker.alive = False
            self.raw.delete(self.shard.alive(worker.group, worker.name))

    def settle(self) -> None:
        if not (worker := self._living()) or not worker.hand:
            return
        chosen = self.dice.sample(sorted(worker.hand), self.dice.randrange(1, len(worker.hand) + 1))
        outcomes = [self._outcome(worker, worker.hand.pop(id)) for id in chosen]
        refused = {refusal.outcome.id for refusal in self.app.sync_link.run(self.ops(worker).settle(outcomes))}
        assert refused <= self.recorded(worker.group), "refused, and not lost"
        done = {outcome.id for outcome in outcomes if outcome.kind in ("ack", "dead")}
        self.left[worker.group] -= done - refused

    def _outcome(self, worker: Worker, entry: Fetched) -> Outcome:
        shard, id, flat, count, source = entry
        attempt = count if source is None else count + 1
        if source is not None and not self.app.sync_link.run(self.ops(worker).begin(entry)):
            return Outcome(shard, id, attempt, "ack")  # it was dropped meanwhile: refused
        kind = self.dice.choice(["ack", "ack", "ack", "dead", "retry", "release", "park"])
        match kind:
            case "retry":
                return Outcome(shard, id, attempt, "retry", self.dice.choice([0, 3_600_000]))
            case "release":
                return Outcome(shard, id, attempt, "release", attempt - 1, self.dice.choice(["~released", "~again"]))
            case "park":
                key = dict(zip(flat[::2], flat[1::2], strict=True))[b"k"]
                return Outcome(shard, id, attempt, "park", attempt - 1, key)
            case "dead":
                return Outcome(shard, id, attempt, "dead", "reason", "error", "traceback")
        return Outcome(shard, id, attempt, "ack")

    def recover(self) -> None:
        if worker := self._living():
            ops = self.ops(worker)
            found = self.app.sync_link.run(ops.recover(20, 1, others=self.app.sync_link.run(ops.others())))
            for entry in found.claimed:
                for other in self.workers:
                    if other.group == worker.group:
                        other.hand.pop(entry.id, None)
                worker.hand[entry.id] = entry

    # Trimming, and what has to be true then.

    def tidy(self, retention: Retention) -> Tidied:
        return drive_sync(self.app.sync_link, tidy(self.layout, retention), 5)

    def pending(self, group: str) -> set[bytes]:
        """What may yet come back: it is counted when it does, and is not found."""
        return {each["message_id"] for each in self.raw.xpending_range(self.shard.stream, group, "-", "+", 10_000)}

    def recorded(self, group: str) -> set[bytes]:
        """What is written down as lost; of the ranges, that they are exact."""
        found: list[bytes] = []
        for loss in self.app.sync_link.run(losses(self.layout)):
            if loss.group != group:
                continue
            assert loss.count == sum(part.number for part in loss.ranges)
            for part in loss.ranges:
                bounds = rank_of(part.first.redis.encode()), rank_of(part.last.redis.encode())
                inside = [id for id in self.ids if bounds[0] <= rank_of(id) <= bounds[1]]
                assert len(inside) == part.number, part
                found += inside
        assert len(found) == len(set(found)), "something was counted twice"
        return set(found)

    def gone(self, group: str) -> set[bytes]:
        """What is not stored any more, and was not processed by the group."""
        return self.left[group] - self.stored()


def limits(dice: random.Random, unprocessed: str) -> Retention:
    kind = dice.choice(["entries", "bytes", "both", "age"])
    return Retention(
        entries=dice.randrange(1, 80) if kind in ("entries", "both") else None,
        bytes=dice.randrange(2_000, 60_000) if kind in ("bytes", "both") else None,
        age="0.001s" if kind == "age" else None,
        unprocessed=unprocessed,  # type: ignore[arg-type]
    )


STEPS = ("publish", "publish", "join", "fetch", "fetch", "settle", "settle", "recover", "kill", "trim", "trim")


def live(world: World, steps: int, retention: Retention | None, check: str) -> None:
    for _ in range(steps):
        step = world.dice.choice(STEPS)
        if step == "trim":
            checked_trim(world, retention or limits(world.dice, check), check)
        else:
            getattr(world, step)()


def checked_trim(world: World, retention: Retention, check: str) -> None:
    before = world.stored()
    done = world.tidy(retention)
    after = world.stored()
    unprocessed = set.union(*world.left.values())
    if check == "keep":
        assert before - after <= before - unprocessed, "something unprocessed was trimmed"
        floor = min((rank_of(id) for id in unprocessed & before), default=(2**64, 0))
        processed = sorted((id for id in after if rank_of(id) < floor), key=rank_of)
        if retention.entries is not None and processed:
            assert len(after) <= retention.entries, "something processed was left beyond the limit"
        assert not done.lost
    elif retention.entries is not None:
        assert len(after) <= retention.entries
    elif retention.age is not None:
        assert not after or max(map(rank_of, after))[0] >= 0
    for group in GROUPS:
        recorded, gone = world.recorded(group), world.gone(group)
        assert recorded <= gone, "counted, but not lost"
        assert gone - recorded <= world.pending(group), "lost, but not counted"


@pytest.mark.parametrize("seed", range(4))
def test_keep_trims_nothing_unprocessed_and_all_else(app: RStream, raw: redis.Redis, seed: int) -> None:
    dice = random.Random(seed)
    live(World(app, raw, dice), 150, None, "keep")


@pytest.mark.parametrize("seed", range(6))
def test_drop_counts_what_it_loses(app: RStream, raw: redis.Redis, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "DEAD_MS", 0 if seed % 2 else 60_000)
    dice = random.Random(1000 + seed)
    world = World(app, raw, dice)
    live(world, 150, None, "drop")
    everything_comes_back(world)
    for group in GROUPS:
        assert world.recorded(group) == world.gone(group)


def everything_comes_back(world: World) -> None:
    """All workers die, and others take over what is left: what they do not find any more is lost."""
    for worker in world.workers:
        worker.alive = False
        worker.hand.clear()
        world.raw.delete(world.shard.alive(worker.group, worker.name))
    for group in GROUPS:
        heir = Worker(group, f"heir-{group}")
        world.app.sync_link.run(world.ops(heir).beat(LEASE))
        world.raw.set(world.shard.alive(group, heir.name), 1, px=LEASE)
        ops = world.ops(heir)
        for _ in range(5):
            world.app.sync_link.run(ops.recover(10_000, 1, others=world.app.sync_link.run(ops.others())))
        for item in world.raw.zrange(world.shard.retry(group), 0, -1):  # those that are due in an hour
            world.raw.zadd(world.shard.retry(group), {item: 1})
        world.app.sync_link.run(ops.recover(10_000, 1, others=world.app.sync_link.run(ops.others())))


def test_a_group_that_may_not_lose_anything_stops_the_others(app: RStream, raw: redis.Redis) -> None:
    world = World(app, raw, random.Random(1))
    for _ in range(3):
        world.publish()
    losers = Losers(["a", "b"], {})
    done = app.sync_link.run(trim(world.shard, "", Limits(1, None), losers, dry=False))
    assert (done.removed, done.stopped) == (0, "c")
    assert len(world.stored()) == len(world.ids)


@pytest.mark.parametrize("kept", [Retention(age="0.001s"), Retention(entries=100), Retention(bytes=20_000)], ids=str)
@pytest.mark.parametrize("unprocessed", ["keep", "drop"])
def test_much_is_trimmed_in_steps(
    one_server: Server, namespace: str, unprocessed: Unprocessed, kept: Retention
) -> None:
    """More than one call takes: what nobody is behind, and what a group loses."""
    with RStream(one_server.url, namespace=namespace) as app, redis.Redis.from_url(one_server.url) as raw:
        world = World(app, raw, random.Random(1))
        pads = [Item(key="k", n=n) for n in range(60_000)]
        world.ids = [id.redis.encode() for id in world.stream.sync.publish_many(pads)]
        for group in GROUPS if unprocessed == "keep" else GROUPS[:1]:
            raw.xgroup_setid(world.shard.stream, group, "$")
        world.tidy(replace(kept, unprocessed=unprocessed))
        left = len(world.stored())
        assert left <= 200
        world.left = {group: set(world.ids) for group in GROUPS}
        for group in GROUPS[1:] if unprocessed == "drop" else ():
            assert len(world.recorded(group)) == 60_000 - left
