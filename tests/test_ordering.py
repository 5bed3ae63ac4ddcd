"""Order per key, with real worker processes that come, go, die and freeze: what was accepted is looked at."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import redis

from rstream import RStream
from tests.servers import Server
from tests.steps import Step, Taken, faults, many
from tests.test_torture import pause
from tests.waiting import eventually
from tests.workload import FREEZE, THAW, Spawner, WorkerProcess, workers

KEYS, EACH = 50, 400


class Fleet:
    """Workers of the ordered group of tests/steps.py: every strike adds, removes, kills or freezes one."""

    def __init__(self, spawn: Spawner, seed: int) -> None:
        self.spawn, self.rng = spawn, random.Random(seed)
        self.live: list[WorkerProcess] = []
        self.frozen: list[WorkerProcess] = []
        self.done: list[str] = []
        spawn.target = "tests.steps:app"

    def add(self) -> None:
        self.live.append(self.spawn("--grace", "0.5", group="ordered", lease=1))

    def strike(self) -> None:
        for worker in self.frozen:
            worker.signal(THAW)
        self.live += self.frozen
        self.frozen = []
        blow = self.rng.choice(["add", "remove", "kill", "freeze"])
        if blow == "add" and len(self.live) >= 4:
            blow = "remove"
        self.done.append(blow)
        if blow == "add":
            return self.add()
        victim = self.live.pop(self.rng.randrange(len(self.live)))
        if blow == "freeze":
            victim.signal(FREEZE)
            self.frozen.append(victim)
        else:
            victim.signal(signal.SIGTERM if blow == "remove" else signal.SIGKILL)
        if len(self.live) < 2:
            self.add()

    def calm(self) -> None:
        for worker in self.frozen:
            worker.signal(THAW)
        self.live += self.frozen
        self.frozen = []


def all_taken(app: RStream, raw: redis.Redis, count: int) -> bool:
    taken = app.streams["taken"].sync.layout()
    return sum(raw.xlen(shard.stream) for shard in taken.every) >= count


def reshard(server: Server, namespace: str, shards: int, kill_at: str) -> None:
    """The command, killed as soon as it says that word, and run again."""
    command = [sys.executable, "-m", "rstream", "--url", server.url, "--namespace", namespace]
    command += ["streams", "reshard", "steps", "--shards", str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any(kill_at in line for line in first.stdout), "it ended before it could be killed"
        first.kill()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"-> {shards}" in done.stdout or f"{shards} shards" in done.stdout, done.stdout


def chaos(
    server: Server,
    namespace: str,
    folder: Path,
    *,
    strikes: int,
    seed: int,
    reshardings: Mapping[int, tuple[int, str]] = MappingProxyType({}),
) -> None:
    """reshardings: by number of strikes, to how many shards, and where the command is killed."""
    with (
        workers(server, namespace, folder) as spawn,
        RStream(server.url, namespace=namespace) as app,
        redis.Redis.from_url(server.url) as raw,
    ):
        steps = app.stream("steps", Step, key="key", shards=4)
        taken = app.stream("taken", Taken, key="key", shards=4)
        fleet = Fleet(spawn, seed)
        for _ in range(3):
            fleet.add()
        for worker in fleet.live:
            worker.ready()
        rng = random.Random(seed)
        load = many(KEYS, EACH, rng, seconds=0.02, fails=0.02)
        part = -(-len(load) // strikes)
        for at in range(0, len(load), part):  # so that there is load all the time
            steps.sync.publish_many(load[at : at + part])
            fleet.strike()
            if (plan := reshardings.get(len(fleet.done))) is not None:
                reshard(server, namespace, *plan)
            pause(1.0)
        fleet.calm()
        eventually(lambda: all_taken(app, raw, KEYS * EACH), 120)
        settled = steps.sync.layout(fresh=True).every
        eventually(lambda: not any(raw.xpending(shard.stream, "ordered")["pending"] for shard in settled), 30)
        assert faults((entry.event for entry in taken.sync.read()), KEYS, EACH) == {}, fleet.done


@pytest.mark.timeout(240)
def test_workers_that_come_go_die_and_freeze_never_turn_the_steps_of_a_key_around(
    own_server: Server, namespace: str, tmp_path: Path
) -> None:
    chaos(own_server, namespace, tmp_path, strikes=15, seed=20261120)


@pytest.mark.timeout(240)
def test_nor_does_a_stream_that_is_resharded_twice_by_commands_that_are_killed(
    own_server: Server, namespace: str, tmp_path: Path
) -> None:
    plan = {3: (12, "opened"), 8: (5, "planned")}
    chaos(own_server, namespace, tmp_path, strikes=12, seed=20261121, reshardings=plan)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_a_minute_of_it_and_of_reshardings(own_server: Server, namespace: str, tmp_path: Path, seed: int) -> None:
    plan = {15: (12, "opened"), 35: (5, "planned")}
    chaos(own_server, namespace, tmp_path, strikes=60, seed=seed + 100, reshardings=plan)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_a_minute_of_it(own_server: Server, namespace: str, tmp_path: Path, seed: int) -> None:
    chaos(own_server, namespace, tmp_path, strikes=60, seed=seed)
