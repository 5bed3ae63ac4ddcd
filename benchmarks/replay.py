"""`python -m benchmarks.replay`: replay through a no-op batch handler, against the barest thing that reads and decodes.

Both read the same window of one embedded server, with validation on, and take turns over ROUNDS rounds; the median
counts. Then the older half is archived and trimmed, and replayed from there. Printed beside it: how far the memory of
this process rose over a whole replay, and its CPU time an entry.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import statistics
import tempfile
import time

import redis

from benchmarks.archive import trim
from benchmarks.contestants.ours import Sample
from rstream import Batch, RStream
from rstream.archive.archiver import Archiver
from rstream.replay import replay
from rstream.store.steps import drive

ENTRIES, ROUNDS, PAGE = 100_000, 5, 1000


def bare(app: RStream, raw: redis.Redis) -> float:
    """XRANGE and decode, shard by shard: entries a second."""
    stream = app.streams["events"]
    began, count = time.perf_counter(), 0
    for shard in stream.sync.layout().current:
        at = "-"
        while found := raw.xrange(shard.stream, at, "+", count=PAGE):
            for _, fields in found:
                stream.codec.decode(fields[b"e"])
            count += len(found)
            at = "(" + found[-1][0].decode()
    assert count == ENTRIES
    return count / (time.perf_counter() - began)


async def replayed(app: RStream, *, looks: bool) -> tuple[float, float]:
    """Entries a second, and microseconds of CPU an entry. looks: the handler wants its deliveries."""
    seen = 0

    async def plain(events: list[Sample]) -> None:
        nonlocal seen
        seen += len(events)

    async def looking(events: list[Sample], batch: Batch) -> None:
        nonlocal seen
        seen += len(batch.deliveries)

    began, cpu = time.perf_counter(), time.process_time()
    handler = looking if looks else plain
    result = await replay(app.streams["events"], handler, None, None, batch=500, ordered=True)
    assert result.handled == seen == ENTRIES
    return ENTRIES / (time.perf_counter() - began), (time.process_time() - cpu) / ENTRIES * 1e6


def publish(url: str, count: int) -> None:
    """In a process of its own, so that its memory is not taken for the replay's."""
    with RStream(url) as app:
        stream = app.stream("events", Sample, key="user", shards=8)
        for at in range(0, count, 10_000):
            stream.sync.publish_many(Sample(user=f"user-{n % 1000:06}") for n in range(at, at + 10_000))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def archive_half(app: RStream) -> None:
    stream = app.streams["events"]
    assert stream.past is not None
    await drive(app.link, Archiver(stream.past, 60).cycle(await stream.layout(), everything=True), 10)
    await asyncio.to_thread(trim, app, stream, 0.5)


async def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        async with RStream(f"embedded:{directory}/redis", blobs=f"file://{directory}/blobs") as app:
            app.stream("events", Sample, key="user", shards=8, archive=True)
            path = str(app.endpoint.kwargs()["path"])
            raw = redis.Redis(unix_socket_path=path)
            publishing = multiprocessing.get_context("spawn").Process(target=publish, args=(f"unix://{path}", ENTRIES))
            publishing.start()
            await asyncio.to_thread(publishing.join)
            assert publishing.exitcode == 0
            before = peak_mb()
            await replayed(app, looks=False)
            print(f"memory: the peak rose from {before:.1f} to {peak_mb():.1f} MB over {ENTRIES:,} entries")
            rounds = [
                (bare(app, raw), await replayed(app, looks=False), await replayed(app, looks=True))
                for _ in range(ROUNDS)
            ]
            await archive_half(app)
            before = peak_mb()
            halves = [await replayed(app, looks=False) for _ in range(ROUNDS)]
            print(f"memory: half of them archived, it rose from {before:.1f} to {peak_mb():.1f} MB")
    base = statistics.median(each[0] for each in rounds)
    print(f"bare XRANGE and decode          {base:>10,.0f} entries/s")
    tell("replay, batches of 500", base, [each[1] for each in rounds])
    tell("replay, deliveries looked at", base, [each[2] for each in rounds])
    tell("replay, half archived", base, halves)


def tell(title: str, base: float, rounds: list[tuple[float, float]]) -> None:
    rates, cpu = [each[0] for each in rounds], statistics.median(each[1] for each in rounds)
    rate = statistics.median(rates)
    print(f"{title:<31} {rate:>10,.0f} entries/s  {rate / base:5.2f} x  {cpu:5.1f} us CPU an entry")
    print(f"{'':<31} from {min(rates):,.0f} to {max(rates):,.0f}")


if __name__ == "__main__":
    asyncio.run(main())
