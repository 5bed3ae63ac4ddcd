"""Real worker processes, killed, frozen and cut off (promises 1, 2, 9, 10): nothing lost, nothing doubled."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rstream import RStream, Stream
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.waiting import eventually
from tests.workload import FREEZE, THAW, Done, History, Job, Spawner, workers


class Bench:
    def __init__(self, server: Server, namespace: str, spawn: Spawner) -> None:
        self.spawn, self.namespace = spawn, namespace
        self.raw = redis.Redis.from_url(server.url)
        self.app = RStream(server.url, namespace=namespace)
        self.jobs: Stream[Job] = self.app.stream("jobs", Job, shards=4)
        self.done: Stream[Done] = self.app.stream("done", Done, shards=2)
        self.history = History(self.raw, namespace)

    def publish(self, count: int, seconds: float = 0.0, kind: str = "wait", first: int = 0) -> None:
        self.jobs.sync.publish_many(Job(n=n, seconds=seconds, kind=kind) for n in range(first, first + count))

    def pending(self, group: str = "async") -> int:
        layout = self.jobs.sync.layout()
        return sum(self.raw.xpending(keys.stream, group)["pending"] for keys in layout.current)

    def owners(self, group: str = "async") -> set[str]:
        """Whom deliveries are pending for."""
        found = [self.raw.xpending(keys.stream, group)["consumers"] for keys in self.jobs.sync.layout().current]
        return {each["name"].decode() for consumers in found for each in consumers}

    def all_done(self, count: int, group: str = "async") -> bool:
        return len(self.history.counts("end")) == count and self.pending(group) == 0

    def close(self) -> None:
        self.raw.close()
        self.app.close()


@pytest.fixture
def bench(own_server: Server, namespace: str, tmp_path: Path) -> Iterator[Bench]:
    with workers(own_server, namespace, tmp_path) as spawn:
        bench = Bench(own_server, namespace, spawn)
        yield bench
        bench.close()


def test_a_killed_workers_50_deliveries_run_elsewhere_within_three_seconds(bench: Bench) -> None:
    victim = bench.spawn(lease=2, concurrency=50).ready()
    bench.publish(50, seconds=60)
    eventually(lambda: len(bench.history.running(victim.pid)) == 50)
    heir = bench.spawn(lease=2, concurrency=50).ready()
    # The heir has to have been alive for a lease before it may judge others; a real fleet has.
    eventually(lambda: alive_for(bench, heir.pid) > 2.0)
    assert bench.history.running(heir.pid) == set()

    victim.signal(signal.SIGKILL)
    killed = time.time()
    eventually(lambda: len(bench.history.running(heir.pid)) == 50, 10)

    second = [line for line in bench.history.lines() if line.pid == heir.pid]
    assert {line.attempt for line in second} == {2}
    assert max(line.at for line in second) - killed < 3.0


def alive_for(bench: Bench, pid: int) -> float:
    """Seconds for which a worker process has been alive without a gap, as its first shard sees it."""
    stream = bench.jobs.sync.layout().current[0].stream
    found = bench.raw.keys(f"{stream.replace('{', '[{]')}:alive:async:*-{pid}-*")
    seconds, micros = bench.raw.time()
    return seconds + micros / 1e6 - int(bench.raw.get(found[0]) or 0) / 1000 if found else 0.0


def test_every_late_outcome_of_a_frozen_worker_is_refused_and_changes_nothing(bench: Bench) -> None:
    """Acks with what they emit, retries and dead letters; tests/test_checkpoint.py has checkpoints and steps."""
    frozen = bench.spawn(lease=1, concurrency=30).ready()
    for first, kind in enumerate(("wait", "late failure", "late reject")):
        bench.publish(10, seconds=0.5, kind=kind, first=10 * first)
    eventually(lambda: len(bench.history.running(frozen.pid)) == 30)
    frozen.signal(FREEZE)
    heir = bench.spawn(lease=1, concurrency=30).ready()
    eventually(lambda: bench.all_done(30), 20)
    alive = bench.owners()

    frozen.signal(THAW)
    eventually(lambda: frozen.log.count("LeaseLost") == 30, 15)
    for kind in ("ack", "retry", "dead"):
        assert len(re.findall(rf"LeaseLost: {kind} of entry", frozen.log)) == 10
    assert bench.pending() == 0 and bench.owners() == alive == set()
    assert bench.app.streams["jobs"].sync.dead("async").count() == {}
    assert Counter(entry.event.n for entry in bench.done.sync.read()) == dict.fromkeys(range(30), 1)
    assert {line.pid for line in bench.history.lines() if line.what == "end"} <= {heir.pid, frozen.pid}
    bench.publish(10, first=30)  # both go on working
    eventually(lambda: len(bench.history.counts("end")) == 40)
    frozen.signal(signal.SIGTERM)
    assert frozen.wait() == 0
    assert "refused 30" in frozen.log


def test_a_late_renewal_gives_nothing_back(bench: Bench) -> None:
    """A thawed worker renews its lease: it lives again, and owns nothing of what it had."""
    frozen = bench.spawn(lease=1, concurrency=10).ready()
    bench.publish(10, seconds=6)
    eventually(lambda: len(bench.history.running(frozen.pid)) == 10)
    frozen.signal(FREEZE)
    heir = bench.spawn(lease=1, concurrency=10).ready()
    eventually(lambda: len(bench.history.running(heir.pid)) == 10, 15)
    (owner,) = bench.owners()
    frozen.signal(THAW)
    eventually(lambda: alive_for(bench, frozen.pid) > 1.5, 15)  # renewed, and old enough to take over from others
    assert bench.owners() == {owner} and f"-{heir.pid}-" in owner
    eventually(lambda: bench.pending() == 0, 20)
    assert frozen.log.count("LeaseLost") == 10
    assert Counter(entry.event.n for entry in bench.done.sync.read()) == dict.fromkeys(range(10), 1)


def test_what_a_frozen_worker_had_not_started_it_does_not_start_after_the_thaw(bench: Bench) -> None:
    frozen = bench.spawn(lease=1, concurrency=1).ready()
    bench.publish(40, seconds=0.02)  # short handlers earn it a buffer
    eventually(lambda: len(bench.history.counts("end")) >= 3)
    frozen.signal(FREEZE)
    begun = set(bench.history.counts("start"))
    bench.spawn(lease=1, concurrency=10).ready()
    eventually(lambda: bench.pending() == 0 and len(bench.history.counts("end")) >= 39, 15)
    before = len(bench.history.lines())
    frozen.signal(THAW)
    bench.publish(200, seconds=0.01, first=1000)
    eventually(lambda: len(bench.history.running(frozen.pid)) == 0 and len(bench.history.counts("end")) >= 240, 15)
    late = [line for line in bench.history.lines()[before:] if line.pid == frozen.pid and line.n < 1000]
    # It may have been stopped on its way into the one call that it makes at a time; what waited behind it is not begun.
    assert len({line.n for line in late if line.what == "start"} - begun) <= 1
    assert set(bench.history.counts("end")) == {*range(40), *range(1000, 1200)}


@pytest.mark.parametrize("kind", ["wait", "block"])
def test_a_live_handler_of_five_leases_is_started_once(bench: Bench, kind: str) -> None:
    worker = bench.spawn(lease=0.5, concurrency=2).ready()
    bench.spawn(lease=0.5, concurrency=2).ready()
    bench.publish(1, seconds=2.5, kind=kind)
    eventually(lambda: bench.all_done(1), 20)
    assert bench.history.counts("start") == {0: 1}
    assert "LeaseLost" not in worker.log


def test_a_live_handler_in_a_thread_is_started_once(bench: Bench) -> None:
    for _ in range(2):
        bench.spawn(group="thread", lease=0.5, concurrency=2).ready()
    bench.publish(4, seconds=2.5)
    eventually(lambda: bench.all_done(4, "thread"), 20)
    assert bench.history.counts("start") == dict.fromkeys(range(4), 1)


def test_a_redis_that_stood_still_for_three_leases_makes_no_live_handler_run_twice(
    bench: Bench, own_server: Server
) -> None:
    first = bench.spawn(lease=1, concurrency=10).ready()
    second = bench.spawn(lease=1, concurrency=10).ready()
    eventually(lambda: min(alive_for(bench, first.pid), alive_for(bench, second.pid)) > 1.0, 10)
    bench.publish(20, seconds=8)
    eventually(lambda: len(bench.history.counts("start")) == 20)
    own_server.pause()
    # The one thing to wait for is that three leases pass: nothing can be asked while Redis stands still.
    until = time.monotonic() + 3.0
    eventually(lambda: time.monotonic() > until)
    own_server.resume()
    eventually(lambda: bench.all_done(20), 30)
    assert bench.history.counts("start") == dict.fromkeys(range(20), 1)


def test_sigterm_lets_running_handlers_finish_and_hands_over_the_rest_unburnt(bench: Bench) -> None:
    first = bench.spawn(lease=30, concurrency=4).ready()
    bench.publish(60, seconds=0.05)
    eventually(lambda: len(bench.history.counts("end")) >= 8)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert "refused 0" in first.log
    starts, ends = bench.history.counts("start"), bench.history.counts("end")
    assert starts == ends  # what ran was finished and acked
    assert len(ends) < 60
    assert {line.attempt for line in bench.history.lines()} == {1}

    second = bench.spawn("--burst", lease=30, concurrency=4)  # needs no lease to pass
    assert second.wait(20) == 0
    assert bench.history.counts("end") == dict.fromkeys(range(60), 1)
    assert {line.attempt for line in bench.history.lines()} == {1}
    assert not bench.raw.keys("*:alive:*")


def test_after_the_grace_running_handlers_are_cancelled_and_run_elsewhere_at_once(bench: Bench) -> None:
    first = bench.spawn("--grace", "0.2", lease=30, concurrency=2).ready()
    bench.publish(2, seconds=1.5)
    eventually(lambda: len(bench.history.running(first.pid)) == 2)
    first.signal(signal.SIGTERM)
    assert first.wait(10) == 0
    assert bench.history.counts("end") == {}
    second = bench.spawn("--burst", lease=30)
    assert second.wait(20) == 0
    assert bench.history.counts("end") == {0: 1, 1: 1}
    assert {line.attempt for line in bench.history.lines() if line.pid == second.pid} == {2}


def test_a_second_signal_ends_the_worker_at_once(bench: Bench) -> None:
    worker = bench.spawn(lease=1, concurrency=2).ready()
    bench.publish(2, seconds=60)
    eventually(lambda: len(bench.history.running(worker.pid)) == 2)
    worker.signal(signal.SIGTERM)
    eventually(lambda: "SIGTERM" in worker.log)
    worker.signal(signal.SIGTERM)
    assert worker.wait(5) == 128 + signal.SIGTERM


def test_a_worker_outlives_a_flushall_and_says_what_happened(bench: Bench) -> None:
    worker = bench.spawn(lease=1).ready()
    bench.publish(5)
    eventually(lambda: bench.all_done(5))
    bench.raw.flushall()
    eventually(lambda: "Redis lost data" in worker.log, 10)
    bench.publish(5, first=100)
    eventually(lambda: set(bench.history.counts("end")) == set(range(100, 105)), 10)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "resets 0" not in worker.log


def test_a_worker_outlives_restarts_of_redis_and_loses_nothing(bench: Bench, own_server: Server) -> None:
    worker = bench.spawn(lease=1, concurrency=8).ready()
    bench.publish(300, seconds=0.02)
    for done in (50, 150):
        eventually(lambda done=done: len(bench.history.counts("end")) >= done, 20)  # type: ignore[misc]
        own_server.restart()
    eventually(lambda: bench.all_done(300), 30)
    # Handlers whose history could not be written during the restart failed, and were tried again.
    assert set(bench.history.counts("end")) == set(range(300))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_black_holed_and_cut_connections_cost_neither_a_loss_nor_a_double(
    own_server: Server, namespace: str, tmp_path: Path
) -> None:
    with (
        ChaosProxy(own_server.upstream) as proxy,
        workers(own_server, namespace, tmp_path, url=f"{proxy.url}?socket_timeout=0.5") as spawn,
    ):
        bench = Bench(own_server, namespace, spawn)
        worker = spawn(lease=5, concurrency=8).ready()
        bench.publish(400, seconds=0.01)
        for done in (50, 120, 190):
            eventually(lambda done=done: len(bench.history.counts("end")) >= done, 20)  # type: ignore[misc]
            proxy.blackhole(True)
            until = time.monotonic() + 0.7
            eventually(lambda until=until: time.monotonic() > until)  # type: ignore[misc]
            proxy.blackhole(False)
            proxy.cut_all()
        eventually(lambda: bench.all_done(400), 30)
        # The lease outlasted every break, so nothing may have run twice.
        assert bench.history.counts("start") == dict.fromkeys(range(400), 1)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert "refused 0" in worker.log
        bench.close()


def test_an_entry_that_comes_back_while_its_old_attempt_still_runs_here_is_run_again(bench: Bench) -> None:
    first = bench.spawn(lease=1, concurrency=4).ready()
    bench.publish(1, seconds=6)
    eventually(lambda: bench.history.running(first.pid) == {0})
    second = bench.spawn(lease=1, concurrency=4).ready()
    eventually(lambda: alive_for(bench, second.pid) > 1.0, 10)
    first.signal(FREEZE)
    eventually(lambda: bench.history.running(second.pid) == {0}, 10)
    first.signal(THAW)
    second.signal(signal.SIGKILL)
    eventually(lambda: bench.pending() == 0, 30)
    attempts = [(line.what, line.attempt) for line in bench.history.lines()]
    assert attempts == [("start", 1), ("start", 2), ("end", 1), ("start", 3), ("end", 3)]


def test_sigterm_keeps_to_the_grace_while_redis_stands_still(bench: Bench, own_server: Server) -> None:
    worker = bench.spawn("--grace", "0.5", lease=30).ready()
    own_server.pause()
    worker.signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    own_server.resume()


def test_a_handler_in_a_thread_does_not_outlive_the_grace(bench: Bench) -> None:
    worker = bench.spawn("--grace", "0.5", group="thread", lease=30).ready()
    bench.publish(1, seconds=60)
    eventually(lambda: bench.history.running(worker.pid) == {0})
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert bench.raw.xpending_range(bench.jobs.sync.layout().current[0].stream, "thread", "-", "+", 1) is not None
    other = bench.spawn(group="thread", lease=30).ready()
    eventually(lambda: bench.history.running(other.pid) == {0}, 10)
    assert max(line.attempt for line in bench.history.lines()) == 2
