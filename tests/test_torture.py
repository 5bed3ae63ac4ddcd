"""Long runs of everything at once (`make torture`), seeded; a short one is part of the suite."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import redis

from rstream import RStream
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.waiting import eventually
from tests.workload import FREEZE, THAW, Done, History, Job, Spawner, WorkerProcess, workers


class Storm:
    """Workers that are killed, frozen, stopped and started again; a Redis that is cut off and restarted."""

    blows: ClassVar = {"kill": 3, "freeze": 3, "stop": 2, "cut": 2, "blackhole": 1, "restart": 1, "pause": 1}

    def __init__(self, spawn: Spawner, proxy: ChaosProxy, server: Server, group: str, seed: int) -> None:
        self.spawn, self.proxy, self.server, self.group = spawn, proxy, server, group
        self.rng = random.Random(seed)
        self.live: list[WorkerProcess] = []
        self.done: Counter[str] = Counter()

    def start(self) -> None:
        self.live.append(self.spawn("--grace", "0.3", group=self.group, lease=1, concurrency=8))

    def strike(self) -> None:
        blow = self.rng.choices(list(self.blows), list(self.blows.values()))[0]
        self.done[blow] += 1
        getattr(self, blow)(self.rng.choice(self.live))

    def kill(self, victim: WorkerProcess) -> None:
        victim.signal(signal.SIGKILL)
        self._replace(victim)

    def stop(self, victim: WorkerProcess) -> None:
        victim.signal(signal.SIGTERM)
        self._replace(victim)

    def _replace(self, victim: WorkerProcess) -> None:
        self.live.remove(victim)
        self.start()

    def freeze(self, victim: WorkerProcess) -> None:
        victim.signal(FREEZE)
        pause(self.rng.uniform(0.1, 2.5))
        victim.signal(THAW)

    def cut(self, victim: WorkerProcess) -> None:
        self.proxy.cut_all()

    def blackhole(self, victim: WorkerProcess) -> None:
        self.proxy.blackhole(True)
        pause(self.rng.uniform(0.1, 1.5))
        self.proxy.blackhole(False)
        self.proxy.cut_all()

    def restart(self, victim: WorkerProcess) -> None:
        self.server.restart()

    def pause(self, victim: WorkerProcess) -> None:
        self.server.pause()
        pause(self.rng.uniform(0.1, 2.5))
        self.server.resume()


def pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, seconds + 5)


def weather(
    server: Server, namespace: str, folder: Path, *, jobs: int, blows: int, seed: int, group: str = "async"
) -> None:
    with (
        ChaosProxy(server.upstream) as proxy,
        workers(server, namespace, folder, url=f"{proxy.url}?socket_timeout=0.5") as spawn,
        RStream(server.url, namespace=namespace) as app,
        redis.Redis.from_url(server.url) as raw,
    ):
        storm = Storm(spawn, proxy, server, group, seed)
        stream = app.stream("jobs", Job, shards=4)
        rng = random.Random(seed)
        kinds = ["wait"] * 97 + ["fail"] * 3
        stream.sync.publish_many(
            Job(n=n, seconds=rng.choice((0, 0.02, 0.1, 0.3)), kind=rng.choice(kinds)) for n in range(jobs)
        )
        for _ in range(3):
            storm.start()
        for worker in storm.live:
            worker.ready()
        for _ in range(blows):
            pause(storm.rng.uniform(0.05, 0.8))
            storm.strike()
        history = History(raw, namespace)
        layout = stream.sync.layout()

        def settled() -> bool:
            return sum(raw.xpending(keys.stream, group)["pending"] for keys in layout.current) == 0

        eventually(lambda: len(history.counts("start")) == jobs and settled(), 120)
        for worker in storm.live:
            worker.ready().signal(signal.SIGTERM)
        assert [worker.wait() for worker in storm.live] == [0] * len(storm.live)

        starts = Counter((line.n, line.attempt) for line in history.lines() if line.what == "start")
        dead = {entry[b"e"] for keys in layout.current for _, entry in raw.xrange(keys.dead(group))}
        ended = set(history.counts("end"))
        stored = {entry.event.n: entry.payload for entry in stream.sync.read()}
        # Nothing lost: every job ended well, or was set aside; nothing that nobody published.
        assert {n for n in range(jobs) if n not in ended and stored[n] not in dead} == set(), storm.done
        assert ended <= set(range(jobs))
        # One outcome of each was accepted: what it emits is there once.
        emitted = Counter(entry.event.n for entry in app.stream("done", Done, shards=2).sync.read())
        assert emitted == Counter(n for n in range(jobs) if stored[n] not in dead), storm.done
        # Each attempt was begun once, in one place.
        twice = [line for line in history.lines() if starts[line.n, line.attempt] > 1]
        assert twice == [], storm.done


@pytest.mark.timeout(240)
@pytest.mark.parametrize("group", ["async", pytest.param("batch", marks=pytest.mark.torture)])
def test_a_short_storm(own_server: Server, namespace: str, tmp_path: Path, group: str) -> None:
    weather(own_server, namespace, tmp_path, jobs=2000, blows=12, seed=20261120, group=group)


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", ["async", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_a_long_storm(own_server: Server, namespace: str, tmp_path: Path, seed: int, group: str) -> None:
    weather(own_server, namespace, tmp_path, jobs=20_000, blows=120, seed=seed, group=group)
