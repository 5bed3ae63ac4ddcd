"""Order per key on servers that belong together: masters die and slots move, while workers come, go, die and freeze.

A replica has a prefix of what its master did, and all that decides about a key is in one slot: what is pending for
whom, who owns the shard, the ack and what is emitted with it. So whatever a failover loses, no step is lost and none is
accepted twice in the log that is left: its ack and the event that says so went or stayed together. And with
`durability="replicated"` no step of a key is begun before a replica has the outcome of the one before it, so what is
lost and handled again is not passed by later ones.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.fleets import Cluster, Sentinels
from tests.ordering import KEYS, NOTHING, Deed, Scene, chaos
from tests.steps import Line, diary, faults

EACH, LONG = 240, 1200
STRIKES = 8
PART = KEYS * EACH // STRIKES
"""Steps that are published between two strikes."""

LAG = 2
"""Outcomes that no replica has when the master dies, at least."""


class Crashes:
    """Kills a master in the midst of work; where `lag`, one whose replicas had got nothing for a while."""

    def __init__(self, *, lag: bool) -> None:
        self.lag = lag
        self.times: list[float] = []

    def __call__(self, scene: Scene) -> None:
        fleet = scene.servers
        assert isinstance(fleet, Cluster | Sentinels)
        accepted = scene.await_accepted(scene.published - PART // 2)
        with fleet.lagging() if self.lag else contextlib.nullcontext():
            slot = scene.await_more(accepted, LAG)
            dead = fleet.depose(slot)
        self.times.append(dead.ended_at)
        fleet.bring_back(dead)


def moved(scene: Scene) -> None:
    """Every shard goes to the next master, while it is in use."""
    cluster = scene.servers
    assert isinstance(cluster, Cluster)
    for slot in (shard.slot for shard in scene.steps.sync.layout().current):
        masters = [node for node in cluster.nodes if node.is_master()]
        cluster.migrate(slot, masters[(masters.index(cluster.master_of(slot)) + 1) % len(masters)])


def first_ends(lines: Iterable[Line]) -> dict[str, dict[int, float]]:
    """When the steps of each key were handled well for the first time, in that order."""
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line.what == "end":
            found[line.key].setdefault(line.n, line.at)
    return found


def redone(lines: Iterable[Line], times: Iterable[float]) -> set[tuple[str, int]]:
    """The steps that had been handled well when a master died, and were so again after that."""
    ends: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for line in lines:
        if line.what == "end":
            ends[line.key, line.n].append(line.at)
    return {step for step, at in ends.items() if any(min(at) < time < max(at) for time in times)}


def crashing(
    fleet: Cluster | Sentinels,
    namespace: str,
    folder: Path,
    *,
    lag: bool,
    seed: int,
    crashes: int = 1,
    each: int = EACH,
    also: Mapping[int, Deed] = NOTHING,
) -> None:
    crash = Crashes(lag=lag)
    plan = {3 + STRIKES * n: crash for n in range(crashes)} | also
    strikes = KEYS * each // PART
    found, done = chaos(
        fleet, namespace, folder, strikes=strikes, seed=seed, each=each, durability="replicated", during=plan
    )
    lines = diary(folder)
    assert len(crash.times) == crashes
    again = redone(lines, crash.times)
    print(f"{type(fleet).__name__}, lag {lag}: {len(again)} steps were handled again")
    assert faults(found, KEYS, each) == {}, done
    for key, ends in first_ends(lines).items():
        assert [*ends] == [*range(each)], key


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lag", [pytest.param(False, marks=pytest.mark.torture), True])
def test_a_master_of_a_cluster_dies(own_cluster: Cluster, namespace: str, tmp_path: Path, lag: bool) -> None:
    crashing(own_cluster, namespace, tmp_path, lag=lag, seed=20261122)


@pytest.mark.torture
@pytest.mark.timeout(240)
@pytest.mark.parametrize("lag", [pytest.param(False, marks=pytest.mark.torture), True])
def test_the_master_that_sentinels_watch_dies(
    own_sentinels: Sentinels, namespace: str, tmp_path: Path, lag: bool
) -> None:
    crashing(own_sentinels, namespace, tmp_path, lag=lag, seed=20261123)


@pytest.mark.torture
@pytest.mark.timeout(240)
def test_slots_move_and_nothing_is_lost_or_turned_around(own_cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    plan = dict.fromkeys(range(2, STRIKES), moved)
    found, done = chaos(
        own_cluster,
        namespace,
        tmp_path,
        strikes=STRIKES,
        seed=20261124,
        each=EACH,
        durability="replicated",
        during=plan,
    )
    assert faults(found, KEYS, EACH) == {}, done


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_masters_die_one_after_the_other_and_slots_move_in_between(
    own_cluster: Cluster, namespace: str, tmp_path: Path, seed: int, lag: bool
) -> None:
    moves = {7 + STRIKES * n: moved for n in range(4)}
    crashing(own_cluster, namespace, tmp_path, lag=lag, seed=seed, crashes=4, each=LONG, also=moves)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_sentinels_promote_one_master_after_the_other(
    own_sentinels: Sentinels, namespace: str, tmp_path: Path, seed: int, lag: bool
) -> None:
    crashing(own_sentinels, namespace, tmp_path, lag=lag, seed=seed + 100, crashes=4, each=LONG)
