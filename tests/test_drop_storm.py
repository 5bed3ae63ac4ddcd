"""A stream that drops what is unprocessed, while workers are killed and attempts fail: what is written down as lost is
what no worker ever settled, to the entry. (An ack and the event that says so are one call.)
"""

from __future__ import annotations

import random
import signal
import time

import pytest

from rstream import Event, Retention, RStream, Stream
from rstream.event import EntryId
from rstream.store.lost import losses
from rstream.store.stats import group_stats
from tests.commands import Commands
from tests.waiting import eventually

APP = """
import asyncio, random
from rstream import Event, RetryPolicy, RStream

app = RStream()

class Job(Event):
    key: str
    n: int

jobs = app.stream("jobs", Job, key="key", shards=2)
done = app.stream("done", Job, key="key", shards=2)
enduring = RetryPolicy(initial_delay=0.02, max_delay=0.2, max_attempts=100)

async def work(job):
    await asyncio.sleep(random.uniform(0, 0.03))
    if random.random() < 0.2:
        raise ValueError("try again")
    return job

jobs.consumer("ordered", concurrency=8, lease=1.0, retry=enduring, emits=done)(work)
"""


class Job(Event):
    key: str
    n: int


@pytest.mark.parametrize("storms", [1, pytest.param(6, marks=pytest.mark.torture)])
def test_what_is_lost_is_what_nobody_settled(rs: Commands, storms: int) -> None:
    dice = random.Random(storms)
    rs.write("jobs_app.py", APP)
    with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"]) as app:
        kept = Retention(entries=100, unprocessed="drop")
        jobs = app.stream("jobs", Job, key="key", shards=2, retention=kept)
        done = app.stream("done", Job, key="key", shards=2)
        ids: dict[EntryId, int] = {}
        for _ in range(storms):
            with rs.started("worker", "jobs_app:app") as one, rs.started("worker", "jobs_app:app") as two:
                eventually(lambda: _alive(app, jobs) == 2, 30)
                _publish(jobs, ids, 500, dice)
                one.process.send_signal(signal.SIGKILL)
                _publish(jobs, ids, 300, dice)
                two.process.send_signal(signal.SIGKILL)
            _publish(jobs, ids, 200, dice)
        rs.ok("worker", "jobs_app:app", "--burst")
        settled = {(entry.event.n) for entry in done.sync.read()}
        lost = {id for id, n in ids.items() if n not in settled}
        found = app.sync_link.run(losses(jobs.sync.layout()))
        assert len(lost) > 100 and len(settled) > 100
        assert sum(loss.count for loss in found) == len(lost)
        for part in (part for loss in found for part in loss.ranges):
            inside = [id for id in ids if id.shard == part.first.shard and part.first <= id <= part.last]
            assert part.number == len(lost.intersection(inside))


def _alive(app: RStream, jobs: Stream[Job]) -> int:
    return sum(worker.alive for group in app.sync_link.run(group_stats(jobs.sync.layout())) for worker in group.workers)


def _publish(jobs: Stream[Job], ids: dict[EntryId, int], count: int, dice: random.Random) -> None:
    """Some at a time, so that workers have some of it in hand when it is dropped."""
    for _ in range(0, count, 20):
        batch = [Job(key=f"k{dice.randrange(30)}", n=len(ids) + n) for n in range(20)]
        found = jobs.sync.publish_many(batch)
        ids |= {id: job.n for id, job in zip(found, batch, strict=True)}
        time.sleep(dice.uniform(0, 0.02))
