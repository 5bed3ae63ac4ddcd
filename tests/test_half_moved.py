"""Slots of a cluster that are on their way, some of their keys here and some there: nobody is robbed, and who starts
meanwhile waits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest

from rstream import Retention, RStream, Stream
from rstream.errors import StoreUnavailable
from rstream.store.deliveries import GroupOps
from rstream.store.keys import Shard
from rstream.store.owners import OwnerOps
from rstream.store.weigh import weigh
from rstream.worker.lease import Lease, LeaseKeeper
from tests.fleets import Cluster, ClusterNode
from tests.steps import Step
from tests.waiting import eventually
from tests.workload import workers

LIFE = 60_000


def of(app: RStream) -> tuple[Stream[Step], Shard]:
    steps = app.stream("steps", Step, key="key", shards=1)
    return steps, steps.sync.layout().current[0]


def way(cluster: Cluster, shard: Shard) -> tuple[ClusterNode, ClusterNode]:
    source = cluster.master_of(shard.slot)
    return source, next(node for node in cluster.nodes if node.is_master() and node is not source)


@pytest.mark.parametrize("ordered", [True, False])
def test_who_lives_is_not_robbed_while_its_alive_key_is_not_there_yet(
    own_cluster: Cluster, namespace: str, ordered: bool
) -> None:
    with RStream(own_cluster.url, namespace=namespace) as app:
        steps, shard = of(app)
        source, target = way(own_cluster, shard)
        run = app.sync_link.run
        one, two = (GroupOps(steps.sync.layout(), "g", name, spread=True) for name in ("one", "two"))
        run(one.create("0"))
        steps.sync.publish_many([Step(key="ada", n=n) for n in range(3)])
        for ops in (one, two):
            run(ops.beat(LIFE))
        assert len(run(one.fetch(10)).entries) == 3
        source.ask("SET", shard.alive("g", "two"), 1, "PX", LIFE)  # it has lived for long
        token = run(OwnerOps(two).own({shard: 0}, LIFE))
        owned = token if ordered else None
        here = [
            shard.stream,
            shard.retry("g"),
            shard.owner("g"),
            shard.parked("g"),
            shard.lost,
            shard.done,
            shard.alive("g", "two"),
        ]

        def search() -> list[str | None]:
            others = run(two.others([shard]))
            return [entry.source for entry in run(two.recover(10, 400, [shard], owned, others=others)).claimed]

        assert search() == []
        source.ask("ZADD", shard.retry("g"), 10**15, "9-9")  # there is something under every other name
        source.ask("SADD", shard.parked("g"), "ada")
        source.ask("HSET", shard.lost, "other", msgpack.packb([0, "", [], 0]))
        source.ask("HSET", shard.done, "acked:other", 1)
        with own_cluster.moving(shard.slot, source, target):
            own_cluster.hand_over(source, target, *here)
            with pytest.raises(StoreUnavailable, match="is moving a slot to another node"):
                search()
            own_cluster.hand_over(source, target, shard.alive("g", "one"))
            assert search() == []
        assert search() == []
        own_cluster.master_of(shard.slot).ask("DEL", shard.alive("g", "one"))
        assert search() == ["one"] * 3


def test_a_lease_is_waited_for_by_who_starts_and_said_to_be(
    own_cluster: Cluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RStream(own_cluster.url, namespace=namespace) as app, ThreadPoolExecutor(1) as pool:
        steps, shard = of(app)
        source, target = way(own_cluster, shard)
        ops = GroupOps(steps.sync.layout(), "g", "two", spread=True)
        app.sync_link.run(ops.create("0"))
        source.ask("SET", shard.owner("g"), "one|1", "PX", LIFE)
        hurried, keeper = (LeaseKeeper(app.endpoint, [Lease(ops, 0.5)]) for _ in range(2))
        try:
            with own_cluster.moving(shard.slot, source, target):
                why = (
                    "^steps/g: the worker waited 0.1 s to take the lease, in vain. Redis .* is moving a slot to another"
                )
                with pytest.raises(StoreUnavailable, match=why):
                    hurried.begin(0.1)
                caplog.clear()
                begun = pool.submit(keeper.begin, 30)
                eventually(lambda: "Waiting for it, at most 30 s" in caplog.text)
            begun.result()
            assert keeper.is_alive()
            eventually(keeper._leases[0].holds)
        finally:
            hurried.stop()
            keeper.stop()


def test_a_lease_does_not_run_out_for_a_slot_in_which_its_group_has_nothing(
    own_cluster: Cluster, namespace: str
) -> None:
    """Though all leases of a worker are renewed together."""
    with RStream(own_cluster.url, namespace=namespace) as app:
        steps, shard = of(app)
        other = app.stream("elsewhere", Step, shards=2)
        assert shard.slot not in [each.slot for each in other.sync.layout().current]
        source, target = way(own_cluster, shard)
        half, whole = leases = [
            Lease(GroupOps(stream.sync.layout(), "g", "two", spread=True), 0.5) for stream in (steps, other)
        ]
        source.ask("SET", shard.owner("g"), "one|1", "PX", LIFE)
        keeper = LeaseKeeper(app.endpoint, leases)
        try:
            keeper.begin(5)
            with own_cluster.moving(shard.slot, source, target):
                own_cluster.hand_over(source, target, shard.owner("g"))
                eventually(lambda: not half.holds())
                since = whole.until
                eventually(lambda: whole.until > since + 1)
                assert whole.term == 1 and not half.holds()
            eventually(half.holds)
        finally:
            keeper.stop()


def test_who_is_told_to_end_while_it_waits_for_its_lease_does(own_cluster: Cluster, namespace: str) -> None:
    with RStream(own_cluster.url, namespace=namespace) as app, ThreadPoolExecutor(1) as pool:
        steps, shard = of(app)
        source, target = way(own_cluster, shard)
        source.ask("SET", shard.owner("g"), "one|1", "PX", LIFE)
        keeper = LeaseKeeper(app.endpoint, [Lease(GroupOps(steps.sync.layout(), "g", "two", spread=True), 0.5)])
        with own_cluster.moving(shard.slot, source, target):
            begun = pool.submit(keeper.begin, 30)
            keeper.stop()
            begun.result(5)
        assert not keeper.is_alive()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("moved", ["nothing", "stream", "owner"])
def test_a_worker_that_starts_meanwhile_works_afterwards(
    own_cluster: Cluster, namespace: str, tmp_path: Path, moved: str
) -> None:
    with workers(own_cluster, namespace, tmp_path) as spawn, RStream(own_cluster.url, namespace=namespace) as app:
        spawn.target = "tests.steps:app"
        steps = app.stream("steps", Step, key="key", shards=4)
        steps.sync.publish(Step(key="ada", n=0))
        first = spawn(group="ordered", lease=5).ready()
        shard = steps.sync.layout().current[0]
        source, target = way(own_cluster, shard)
        eventually(lambda: source.ask("EXISTS", shard.owner("ordered")) == 1, 20)
        with own_cluster.moving(shard.slot, source, target):
            gone = {"nothing": [], "stream": [shard.stream], "owner": [shard.owner("ordered")]}[moved]
            if gone:
                own_cluster.hand_over(source, target, *gone)
            second = spawn(group="ordered", lease=5)
            eventually(lambda: "is moving a slot" in second.log or second.process.poll() is not None, 20)
            assert second.process.poll() is None, second.log
        second.ready()
        assert first.process.poll() is None


def test_a_full_shard_is_looked_at_while_its_slot_moves(own_cluster: Cluster, namespace: str) -> None:
    """A janitor, and a producer that met a limit, ask for alive keys that no call declares: here a dead worker's."""
    with RStream(own_cluster.url, namespace=namespace) as app:
        steps = app.stream("steps", Step, key="key", shards=1, retention=Retention(entries=100))
        steps.sync.publish_many([Step(key="ada", n=n) for n in range(3)])
        shard = steps.sync.layout().current[0]
        ops = GroupOps(steps.sync.layout(), "g", "dead", spread=True)
        app.sync_link.run(ops.create("0"))
        assert len(app.sync_link.run(ops.fetch(10)).entries) == 3

        def silent() -> list[list[bytes]]:
            (weight,) = app.sync_link.run(weigh([shard]))
            return [list(group.silent) for group in weight.groups]

        assert silent() == [[b"dead"]]
        with own_cluster.moving(shard.slot, *way(own_cluster, shard)):
            assert silent() == [[]], "nobody knows: then nobody is judged"
        assert silent() == [[b"dead"]]
