"""`python -m benchmarks.archive`: reading 100,000 entries that are in Redis, half archived, and all archived.

Entries are read, merged and checked, not decoded. CPU is that of this process, threads included; the server's is not.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from pathlib import Path

from rstream import Event, RStream, Stream
from rstream.archive.archiver import Archiver
from rstream.store.link import Op
from rstream.store.steps import drive_sync

MANY, SHARDS, ROUNDS = 100_000, 8, 5


class Sample(Event):
    user: str
    n: int
    path: str


def fill(stream: Stream[Sample], size: int) -> None:
    noise = random.Random(size)
    for at in range(0, MANY, 2000):
        stream.sync.publish_many(
            Sample(user=f"user-{n % 1000:06}", n=n, path=noise.randbytes(size // 2).hex()) for n in range(at, at + 2000)
        )


def trim(app: RStream, stream: Stream[Sample], share: float) -> None:
    for shard in stream.sync.layout().current:
        (length,) = app.sync_link.run(Op([("XLEN", shard.stream)], list))
        app.sync_link.run(Op([("XTRIM", shard.stream, "MAXLEN", round(length * share))], list))


class Peak(threading.Thread):
    """The most memory that this process held meanwhile, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most, self._ended = rss(), 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.most = max(self.most, rss())

    def grown(self) -> float:
        self._ended.set()
        self.join()
        return max(0.0, self.most - self.before)


def rss() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def measure(title: str, stream: Stream[Sample]) -> None:
    rates, cpu = [], []
    peak = Peak()
    for _ in range(ROUNDS):
        began, used = time.perf_counter(), time.process_time()
        count = sum(1 for _ in stream.sync.read())
        assert count == MANY
        rates.append(count / (time.perf_counter() - began))
        cpu.append(count / (time.process_time() - used))
    print(f"  {title:<16} {max(rates):>9,.0f} /s   {max(cpu):>9,.0f} per second of CPU   grew by {peak.grown():.0f} MB")


def main() -> None:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        RStream(f"embedded:{folder}/redis", blobs=f"file://{folder}/blobs") as app,
    ):
        for size in (40, 1000):
            stream = app.stream(f"samples{size}", Sample, key="user", shards=SHARDS, archive=True)
            fill(stream, size)
            print(f"{MANY:,} entries of {len(next(iter(stream.sync.read(limit=1))).payload)} bytes, {SHARDS} shards")
            measure("in Redis", stream)
            assert stream.past is not None
            began = time.perf_counter()
            drive_sync(app.sync_link, Archiver(stream.past, 60).cycle(stream.sync.layout(), everything=True), 10)
            print(f"  {'archiving':<16} {MANY / (time.perf_counter() - began):>9,.0f} /s")
            trim(app, stream, 0.5)
            measure("half archived", stream)
            trim(app, stream, 0.0)
            measure("archived", stream)


if __name__ == "__main__":
    main()
