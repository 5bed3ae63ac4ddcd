"""Order per key while Redis is cut off, restarted and frozen, and answers are lost: what was accepted is looked at.

Little is kept in memory, so that much is put aside in Redis and brought back meanwhile.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import redis

from rstream import RStream
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.steps import Step, Taken, faults, many
from tests.test_torture import Storm, pause
from tests.waiting import eventually
from tests.workload import WorkerProcess, workers

KEYS, EACH = 20, 300


class Gale(Storm):
    """Also connections that are cut after a request was passed on, before its answer came."""

    blows = Storm.blows | {"snip": 8}

    def snip(self, victim: WorkerProcess) -> None:
        self.proxy.cut_after_request(6, self.rng, mean_bytes=3000)


def weather(server: Server, namespace: str, folder: Path, *, blows: int, seed: int) -> None:
    with (
        ChaosProxy(server.upstream) as proxy,
        workers(server, namespace, folder, url=f"{proxy.url}?socket_timeout=0.5") as spawn,
        RStream(server.url, namespace=namespace) as app,
        redis.Redis.from_url(server.url) as raw,
    ):
        spawn.target = "tests.crowded:app"
        gale = Gale(spawn, proxy, server, "ordered", seed)
        steps = app.stream("steps", Step, key="key", shards=4)
        taken = app.stream("taken", Taken, key="key", shards=4)
        for _ in range(3):
            gale.start()
        for worker in gale.live:
            worker.ready()
        load = many(KEYS, EACH, random.Random(seed), seconds=0.02, fails=0.02)
        part = -(-len(load) // blows)
        for at in range(0, len(load), part):  # so that there is load all the time
            steps.sync.publish_many(load[at : at + part])
            gale.strike()
            pause(gale.rng.uniform(0.1, 1.0))
        eventually(lambda: sum(raw.xlen(shard.stream) for shard in taken.sync.layout().every) >= KEYS * EACH, 120)
        eventually(lambda: not any(raw.xpending(s.stream, "ordered")["pending"] for s in steps.sync.layout().every), 30)
        assert faults((entry.event for entry in taken.sync.read()), KEYS, EACH) == {}, gale.done


@pytest.mark.timeout(240)
def test_lost_answers_do_not_turn_the_steps_of_a_key_around(own_server: Server, namespace: str, tmp_path: Path) -> None:
    weather(own_server, namespace, tmp_path, blows=15, seed=20261120)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
def test_a_long_gale(own_server: Server, namespace: str, tmp_path: Path, seed: int) -> None:
    weather(own_server, namespace, tmp_path, blows=100, seed=seed)
