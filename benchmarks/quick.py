"""`make bench-quick`: rstream against the rawest thing redis-py can do, as ratios measured in one run.

Nothing is switched off for it: events are validated, settles are fenced, leases are kept. Contestants take turns over
ROUNDS rounds on one embedded server; the median counts, the spread is printed beside it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable

import redis
import redis.asyncio

from rstream import Event, RStream
from rstream.worker.worker import Worker

ROUNDS = 5
MANY, SINGLE, DRAIN = 20_000, 1_500, 20_000


class Sample(Event):
    """Ten fields, about 180 bytes encoded."""

    user: str = "user-000123"
    session: str = "b3f1c2d4e5f60718"
    kind: str = "page_view"
    path: str = "/products/42/reviews?sort=recent"
    status: int = 200
    seconds: float = 0.0421
    size: int = 18_231
    cached: bool = False
    agent: str = "Mozilla/5.0 (X11; Linux x86_64)"
    region: str = "eu-central-1"


Contest = dict[str, Callable[[], Awaitable[float]]]
"""name -> one round: operations per second."""


class Bench:
    def __init__(self, app: RStream, raw: redis.Redis, araw: redis.asyncio.Redis) -> None:
        self.app, self.raw, self.araw = app, raw, araw
        self.events = app.stream("events", Sample, key="user", shards=8)
        self.samples = [Sample(user=f"user-{n % 1000:06}") for n in range(MANY)]
        self.bytes = self.events.codec.encode(self.samples[0], 1)
        self._drains = 0

    async def raw_pipeline(self) -> float:
        def run() -> None:
            for _ in range(MANY // 1000):
                pipe = self.raw.pipeline(transaction=False)
                for _ in range(1000):
                    pipe.xadd("raw", {"e": self.bytes})
                pipe.execute()

        return await timed(MANY, asyncio.to_thread(run))

    async def sync_many(self) -> float:
        return await timed(MANY, asyncio.to_thread(self.events.sync.publish_many, self.samples))

    async def async_many(self) -> float:
        return await timed(MANY, self.events.publish_many(self.samples))

    async def raw_single(self) -> float:
        async def run() -> None:
            for _ in range(SINGLE):
                await self.araw.xadd("raw", {"e": self.bytes})

        return await timed(SINGLE, run())

    async def single(self) -> float:
        async def run() -> None:
            for sample in self.samples[:SINGLE]:
                await self.events.publish(sample)

        return await timed(SINGLE, run())

    async def raw_loop(self) -> float:
        """The shortest async worker one can write: read 100, a task each, one XACK."""
        await self.araw.delete("drain")
        pipe = self.araw.pipeline(transaction=False)
        for _ in range(DRAIN):
            pipe.xadd("drain", {"e": self.bytes})
        await pipe.execute()
        await self.araw.xgroup_create("drain", "g", "0")

        async def handle(fields: object) -> None: ...

        async def run() -> None:
            while found := await self.araw.xreadgroup("g", "c", {"drain": ">"}, count=100):
                ids = [id for _, entries in found for id, _ in entries]
                await asyncio.gather(*(handle(fields) for _, entries in found for _, fields in entries))
                await self.araw.xack("drain", "g", *ids)

        return await timed(DRAIN, run())

    async def drain(self) -> float:
        self._drains += 1
        app = RStream(self.app.settings.url, namespace=f"drain{self._drains}")
        events = app.stream("events", Sample, key="user", shards=8)

        @events.consumer("g", concurrency=100)
        async def handle(event: Sample) -> None: ...

        await events.publish_many(self.samples[:DRAIN])
        async with app:
            return await timed(DRAIN, Worker(app, burst=True).serve(signals=False))


async def timed(count: int, work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return count / (time.perf_counter() - started)


async def contest(title: str, entrants: Contest) -> None:
    rates: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(ROUNDS):
        for name, run in entrants.items():
            rates[name].append(await run())
    print(f"\n{title}")
    base = statistics.median(next(iter(rates.values())))
    for name, found in rates.items():
        middle = statistics.median(found)
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"  {name:<44} {middle:>10,.0f} /s   × {middle / base:.2f}   ({spread})")


async def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with RStream(f"embedded:{folder}") as app:
            address = str(app.endpoint.kwargs()["path"])
            raw = redis.Redis(unix_socket_path=address)
            araw = redis.asyncio.Redis(unix_socket_path=address)
            bench = Bench(app, raw, araw)
            await bench.events.layout()
            await contest(
                "publish many, validated events (against a pipeline of 1,000 XADDs of the same bytes)",
                {
                    "redis-py pipeline(1000)": bench.raw_pipeline,
                    "publish_many, sync": bench.sync_many,
                    "publish_many, async": bench.async_many,
                },
            )
            await contest(
                "publish one by one (against a bare redis.asyncio XADD)",
                {"redis.asyncio XADD": bench.raw_single, "await publish": bench.single},
            )
            await contest(
                "drain, no-op async handler, concurrency 100 (against a bare redis.asyncio loop)",
                {"XREADGROUP 100 + tasks + XACK": bench.raw_loop, "rstream worker": bench.drain},
            )
            raw.close()
            await araw.aclose()


if __name__ == "__main__":
    asyncio.run(main())
