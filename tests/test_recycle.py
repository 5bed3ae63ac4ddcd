"""`--max-handled` and `--max-rss`: processes are replaced before what leaks in them hurts; nothing is lost by it."""

from __future__ import annotations

import logging
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from rstream import Event, RStream
from rstream.errors import ConfigError
from rstream.worker import recycle
from rstream.worker.recycle import Limits, draw, resident
from rstream.worker.worker import Worker
from tests.commands import Commands, Running
from tests.servers import Server
from tests.waiting import eventually

LEAKY = """
import asyncio, os, pathlib
from rstream import Event, RStream

app = RStream()

class Job(Event):
    n: int
    kind: str = "quick"

jobs = app.stream("jobs", Job, shards=4)
leak = []

def remember(job):
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(f"{job.n} {os.getpid()}\\n")

@jobs.consumer("g", concurrency=4, lease=5.0)
async def handle(job: Job) -> None:
    await asyncio.sleep(0.02)
    remember(job)
    while job.kind == "wait" and not pathlib.Path("go.txt").exists():
        await asyncio.sleep(0.01)

@jobs.consumer("leak", concurrency=1, prefetch=0, lease=5.0)
def hold(job: Job) -> None:
    leak.append(b"x" * (20 << 20))
    remember(job)

@jobs.consumer("crash", concurrency=1, prefetch=0, lease=1.0)
def crash(job: Job) -> None:
    crashed = pathlib.Path("crashed.txt")
    if job.kind == "die" or job.kind == "crash" and not crashed.exists():
        crashed.touch()
        os._exit(7)
    remember(job)
"""


@pytest.fixture
def rs(rs: Commands) -> Commands:
    rs.write("leaky.py", LEAKY)
    return rs


def publish(rs: Commands, count: int, kind: str = "quick", first: int = 0) -> None:
    lines = "\n".join(f'{{"n": {n}, "kind": "{kind}"}}' for n in range(first, first + count))
    rs.ok("publish", "jobs", "-", "--app", "leaky:app", stdin=lines)


def by_process(rs: Commands) -> Counter[str]:
    """How many jobs each process handled."""
    return Counter(line.split()[1] for line in rs.handled)


def recycled(running: Running) -> int:
    return running.err.count(" is recycled: ")


# -- many processes


def test_processes_hand_on_to_the_next_generation_and_nothing_is_lost_or_done_twice(rs: Commands) -> None:
    publish(rs, 600)
    with rs.started("worker", "leaky:app", "-g", "g", "-p", "2", "--max-handled", "60") as worker:
        eventually(lambda: len(rs.handled) >= 600, 60)
        assert len(by_process(rs)) > 4  # a third generation, at least
        worker.process.terminate()
        assert worker.ended() == 0
    assert Counter(line.split()[0] for line in rs.handled) == {str(n): 1 for n in range(600)}
    assert re.search(r"it has handled \d+ deliveries and its share of max_handled is (5[4-9]|60);", worker.err)
    assert "is started again in" not in worker.err and "refused 0" in worker.err and "LeaseLost" not in worker.err


def test_burst_ends_when_all_is_handled_however_many_processes_it_took(rs: Commands) -> None:
    publish(rs, 200)
    done = rs.run("worker", "leaky:app", "-g", "g", "--burst", "--max-handled", "50")  # --processes 1, supervised too
    assert done.returncode == 0, done.stderr
    assert Counter(line.split()[0] for line in rs.handled) == {str(n): 1 for n in range(200)}
    assert len(by_process(rs)) >= 2
    starts, ends = (done.stderr.count(what) for what in ("process 1 of 1 started", " is recycled: "))
    assert starts in (ends, ends + 1) and starts >= 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks at /proc")
def test_a_handler_that_leaks_is_stopped_from_growing(rs: Commands) -> None:
    publish(rs, 40)
    with rs.started("worker", "leaky:app", "-g", "leak", "-p", "1", "--max-rss", "300") as worker:
        eventually(lambda: len(rs.handled) == 40 and recycled(worker) >= 2, 60)
        worker.process.terminate()
        assert worker.ended() == 0
    assert Counter(line.split()[0] for line in rs.handled) == {str(n): 1 for n in range(40)}
    assert re.search(r"it holds \d+ MB of memory and its share of max_rss_mb is (2[7-9]\d|300);", worker.err)
    assert "before it has handled anything" not in worker.err


def test_a_limit_below_what_the_process_needs_is_told_and_still_makes_progress(rs: Commands) -> None:
    publish(rs, 3, "quick")
    with rs.started("worker", "leaky:app", "-g", "leak", "--max-rss", "1") as worker:
        eventually(lambda: len(rs.handled) == 3 and recycled(worker), 40)
        worker.process.terminate()
        assert worker.ended() == 0
    assert "before it has handled anything" in worker.err


def test_a_process_that_crashes_is_still_restarted_with_backoff(rs: Commands) -> None:
    publish(rs, 1, "crash")
    with rs.started("worker", "leaky:app", "-g", "crash", "-p", "2", "--max-handled", "1000") as worker:
        eventually(lambda: "exit code 7, is started again in 1 s" in worker.err, 40)
        eventually(lambda: len(rs.handled) == 1, 40)
        assert not recycled(worker)
        worker.process.terminate()
        assert worker.ended() == 0


def test_sigterm_while_a_process_waits_to_be_started_again_ends_all_well(rs: Commands) -> None:
    publish(rs, 1, "die")
    with rs.started("worker", "leaky:app", "-g", "crash", "-p", "1", "--max-handled", "1000") as worker:
        eventually(lambda: "is started again in 2 s" in worker.err, 40)
        worker.process.terminate()
        assert worker.ended() == 0


def test_sigterm_while_it_is_being_recycled_is_a_first_signal_and_starts_no_successor(rs: Commands) -> None:
    publish(rs, 1, "wait")
    with rs.started("worker", "leaky:app", "-g", "g", "--max-handled", "1") as worker:
        eventually(lambda: len(rs.handled) == 1, 40)
        publish(rs, 1, "quick", first=1)
        eventually(lambda: recycled(worker), 40)
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: "SIGTERM, finishing what runs" in worker.err)
        rs.write("go.txt", "")
        assert worker.ended() == 0
    assert worker.err.count("process 1 of 1 started") == 1
    assert "second signal" not in worker.err and "handled 2" in worker.err


def test_a_recycle_waits_for_what_runs_and_its_grace_begins_with_the_signal(rs: Commands) -> None:
    publish(rs, 1, "wait")
    with rs.started("worker", "leaky:app", "-g", "g", "--max-handled", "1", "--grace", "0.1") as worker:
        eventually(lambda: len(rs.handled) == 1, 40)
        publish(rs, 1, "quick", first=1)
        eventually(lambda: "is recycled" in worker.err, 40)
        worker.process.terminate()
        assert worker.ended() == 0  # cancelled after the grace: "wait" waits for a file that nobody writes
    assert Counter(line.split()[0] for line in rs.handled)["0"] == 1


@pytest.mark.parametrize(
    "options", [("--max-handled", "0"), ("--max-handled", "many"), ("--max-rss", "0"), ("--max-rss", "-5")]
)
def test_options_that_make_no_sense_are_refused(rs: Commands, options: tuple[str, str]) -> None:
    done = rs.run("worker", "leaky:app", *options)
    assert done.returncode == 2
    assert f"Invalid value for '{options[0]}'" in done.stderr


# -- the worker in one's own process


class Item(Event):
    n: int


@pytest.mark.parametrize("fails", [False, True])
async def test_a_worker_ends_and_says_why(one_server: Server, namespace: str, fails: bool, caplog) -> None:  # type: ignore[no-untyped-def]
    caplog.set_level(logging.INFO, "rstream")
    async with RStream(one_server.url, namespace=namespace) as app:
        items = app.stream("items", Item)

        @items.consumer("g")
        async def handle(item: Item) -> None:
            if fails:
                raise ValueError

        await items.publish_many(Item(n=n) for n in range(5))
        worker = Worker(app, max_handled=5)
        await worker.serve(signals=False)
        assert worker.recycled and worker.recycled in caplog.text
        assert worker.counts.handled + worker.counts.failed == 5


@pytest.mark.parametrize("options", [{"max_handled": 0}, {"max_rss_mb": 0}, {"max_rss_mb": float("nan")}])
def test_limits_that_make_no_sense_are_refused(app: RStream, options: dict[str, float]) -> None:
    items = app.stream("items", Item)

    @items.consumer("g")
    async def handle(item: Item) -> None: ...

    with pytest.raises(ConfigError, match=next(iter(options))):
        Worker(app, **options)  # type: ignore[arg-type]


# -- limits, pure


def test_each_process_draws_limits_of_its_own_within_ten_percent() -> None:
    drawn = [draw(1000, 2000) for _ in range(500)]
    assert {900 <= (limits.handled or 0) <= 1000 and 1800 <= (limits.rss or 0) <= 2000 for limits in drawn} == {True}
    assert len({limits.handled for limits in drawn}) > 20
    assert draw(1, None, 0.9) == Limits(1, None)
    assert not draw(None, None)


def test_when_a_limit_is_passed() -> None:
    assert Limits(10, 100).passed(9, 100) is None
    assert "10 deliveries" in (Limits(10, 100).passed(10, 0) or "")
    assert "101 MB" in (Limits(10, 100).passed(1, 101) or "")
    assert Limits(10, 100).passed(0, 1000) is None  # first it has to be of some use
    assert Limits().passed(10**9, 10**9) is None


def test_the_memory_of_this_process_is_known() -> None:
    before = resident()
    held = b"x" * (64 << 20)
    assert before + 32 < resident() < before + 512
    assert len(held) == 64 << 20


def test_without_proc_it_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    now = resident()

    def no_proc(self: Path) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(recycle.Path, "read_bytes", no_proc)
    assert now * 0.9 < resident() < 100_000
