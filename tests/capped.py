"""A stream that is capped, and a consumer that writes down what it has settled. `run` sends much more through it than
it may hold, while the consumer stops for a while.

Run as a real worker process: `rstream worker tests.capped:app`.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import redis

from rstream import EntryId, Event, Retention, RStream
from rstream.errors import StreamFull
from rstream.producer import clock
from tests.commands import Commands
from tests.waiting import eventually_async

DIARY = os.environ.get("CAPPED_DIARY", "")
BATCH = 200
TASKS = 8


class Row(Event):
    key: str
    n: int
    pad: bytes = b""


app = RStream()
rows = app.stream("rows", Row, key="key", shards=8)


@rows.consumer("slow", batch=BATCH, max_wait=0.05, ordered=False, lease=5)
def take(events: list[Row]) -> None:
    with Path(DIARY, f"{os.getpid()}").open("ab") as out:
        out.write(b"".join(struct.pack("<I", event.n) for event in events))


def taken(folder: Path) -> list[int]:
    return [n for file in folder.iterdir() for (n,) in struct.iter_unpack("<I", file.read_bytes())]


@dataclass
class Course:
    """What came of it. base, peak: Redis's used_memory · slowed: publishes before the first refusal that took at least
    20 ms longer than the fastest · refused: publishes that raised `StreamFull` · ids: of what was published, by number.
    """

    base: int = 0
    peak: int = 0
    seconds: float = 0.0
    slowed: int = 0
    refused: int = 0
    after: int = 0
    message: str = ""
    ids: dict[int, EntryId] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        growth = (self.peak - self.base) / 1e6
        told = f"{len(self.ids):,} entries in {self.seconds:.1f} s, used_memory grew by {growth:.1f} MB at most"
        return f"{told}, {self.slowed} publishes slowed, {self.refused} refused, {self.after} went on after that"


@contextmanager
def sampled(url: str, course: Course) -> Iterator[None]:
    """Watch Redis's memory meanwhile."""
    done = threading.Event()

    def watch() -> None:
        with redis.Redis.from_url(url) as client:
            while not done.wait(0.02):
                course.peak = max(course.peak, client.info("memory")["used_memory"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def run(commands: Commands, entries: int, size: int, retention: Retention) -> Course:
    """Send so many entries of so many bytes through the stream; the worker runs in the first third, and then again when
    producers were refused, or in the last third.
    """
    course, url = Course(), commands.env["RSTREAM_URL"]
    numbers = iter(range(entries))
    pad = bytes(size)
    async with RStream(url, namespace=commands.env["RSTREAM_NAMESPACE"]) as mine:
        stream = mine.stream("rows", Row, key="key", shards=8, retention=retention)
        await stream.layout()
        with redis.Redis.from_url(url) as client:
            for shard in (await stream.layout()).current:
                client.xgroup_create(shard.stream, "slow", "0")
            course.base = client.info("memory")["used_memory"]

        async def produce(task: int) -> None:
            while some := list(islice(numbers, BATCH)):  # of one key: all of it is added, or nothing
                chunk = [Row(key=f"{task}-{some[0] % 61}", n=n, pad=pad) for n in some]
                while True:
                    began = clock()
                    try:
                        ids = await stream.publish_many(chunk)
                    except StreamFull as error:
                        assert not error.published
                        course.refused, course.message = course.refused + 1, str(error)
                        await asyncio.sleep(0.1)
                    else:
                        break
                if not course.refused:
                    course.times.append(clock() - began)
                course.after += course.refused > 0
                course.ids |= {row.n: id for row, id in zip(chunk, ids, strict=True)}

        began = time.monotonic()
        with sampled(url, course):
            producing = [asyncio.create_task(produce(n)) for n in range(TASKS)]

            async def until(part: float) -> None:
                await eventually_async(lambda: course.refused or len(course.ids) >= part * entries, 600)

            with commands.started("worker", "tests.capped:app", "--grace", "5") as worker:
                await until(0.3)
                worker.process.terminate()
                await asyncio.to_thread(worker.ended)
            await until(0.7)
            with commands.started("worker", "tests.capped:app", "--grace", "5") as worker:
                await asyncio.gather(*producing)
                worker.process.terminate()
                await asyncio.to_thread(worker.ended)
            course.seconds = time.monotonic() - began
            with commands.started("worker", "tests.capped:app", "--burst") as worker:
                assert await asyncio.to_thread(worker.ended, 120) == 0
    course.slowed = sum(each > min(course.times) + 0.02 for each in course.times)
    return course
