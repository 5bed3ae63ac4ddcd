"""Worker processes of the ordered group of tests/steps.py that come, go, die and freeze, while things happen to their
servers; and what is looked at when all is quiet again.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis
from redis.sentinel import Sentinel

from rstream import RStream
from rstream.settings import Durability
from tests.fleets import Cluster, Sentinels
from tests.servers import Server
from tests.steps import Step, Taken, many
from tests.test_torture import pause
from tests.waiting import eventually
from tests.workload import FREEZE, THAW, Spawner, WorkerProcess, workers

KEYS, EACH = 50, 400

Servers = Server | Cluster | Sentinels


class Crew:
    """Workers of the ordered group: every strike adds, removes, kills or freezes one."""

    def __init__(self, spawn: Spawner, seed: int) -> None:
        self.spawn, self.rng = spawn, random.Random(seed)
        self.live: list[WorkerProcess] = []
        self.frozen: list[WorkerProcess] = []
        self.done: list[str] = []
        spawn.target = "tests.steps:app"

    def add(self) -> None:
        self.live.append(self.spawn("--grace", "0.5", group="ordered", lease=1))

    def strike(self) -> None:
        self.calm()
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


def client(servers: Servers) -> redis.Redis | redis.RedisCluster:
    """redis-py, to look at what rstream did."""
    if isinstance(servers, Cluster):
        return redis.RedisCluster.from_url(servers.url.replace("redis+cluster", "redis").partition(",")[0])
    if isinstance(servers, Sentinels):
        asked = Sentinel([node.address for node in servers.sentinels])
        return asked.master_for(servers.name)  # type: ignore[no-any-return]
    return redis.Redis.from_url(servers.url)


class Scene:
    """Where it happens. published: how many steps, or that they are on their way."""

    def __init__(self, servers: Servers, app: RStream) -> None:
        self.servers, self.published = servers, 0
        self.steps = app.stream("steps", Step, key="key", shards=4)
        self.taken = app.stream("taken", Taken, key="key", shards=4)

    def accepted(self, raw: redis.Redis | redis.RedisCluster) -> dict[int, int]:
        """How many steps, by slot."""
        return {shard.slot: raw.xlen(shard.stream) for shard in self.taken.sync.layout().every}

    def await_accepted(self, count: int) -> dict[int, int]:
        with client(self.servers) as raw:
            eventually(lambda: sum(self.accepted(raw).values()) >= count, 120)
            return self.accepted(raw)

    def await_more(self, before: dict[int, int], count: int) -> int:
        """Until so many more are accepted in any slot; that one."""

        def more(raw: redis.Redis | redis.RedisCluster) -> list[int]:
            return [slot for slot, now in self.accepted(raw).items() if now >= before[slot] + count]

        with client(self.servers) as raw:
            return int(eventually(lambda: more(raw), 20)[0])

    def await_the_end(self) -> list[Taken]:
        """What was accepted, in its order."""
        self.await_accepted(self.published)
        with client(self.servers) as raw:
            shards = self.steps.sync.layout(fresh=True).every
            eventually(lambda: not any(raw.xpending(shard.stream, "ordered")["pending"] for shard in shards), 30)
        return [entry.event for entry in self.taken.sync.read()]


Deed = Callable[[Scene], None]
NOTHING: Mapping[int, Deed] = MappingProxyType({})


def chaos(
    servers: Servers,
    namespace: str,
    folder: Path,
    *,
    strikes: int,
    seed: int,
    each: int = EACH,
    durability: Durability = "local",
    between: Mapping[int, Deed] = NOTHING,
    during: Mapping[int, Deed] = NOTHING,
) -> tuple[list[Taken], list[str]]:
    """What was accepted of `each` steps of all keys, in its order, and what was done to the workers. between: by number
    of strikes, what is done then · during: what is begun then, while all goes on.
    """
    with (
        workers(servers, namespace, folder) as spawn,
        RStream(servers.url, namespace=namespace, durability=durability) as app,
        ThreadPoolExecutor(1) as publisher,
        ThreadPoolExecutor(1) as beside,
    ):
        spawn.environ |= {"STEPS_DIARY": str(folder), "RSTREAM_DURABILITY": durability}
        scene = Scene(servers, app)
        crew = Crew(spawn, seed)
        for _ in range(3):
            crew.add()
        for worker in crew.live:
            worker.ready()
        begun: list[Future[Any]] = []
        load = many(KEYS, each, random.Random(seed), seconds=0.02, fails=0.02)
        size = -(-len(load) // strikes)
        for at in range(0, len(load), size):  # so that there is load all the time
            part = load[at : at + size]
            begun.append(publisher.submit(scene.steps.sync.publish_many, part))
            scene.published += len(part)
            crew.strike()
            between.get(len(crew.done), lambda _: None)(scene)
            if (deed := during.get(len(crew.done))) is not None:
                begun.append(beside.submit(deed, scene))
            pause(1.0)
        crew.calm()
        for deed_begun in begun:
            deed_begun.result()
        return scene.await_the_end(), crew.done
