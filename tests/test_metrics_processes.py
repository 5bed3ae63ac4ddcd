"""Metrics and probes of real worker processes: killed, frozen, blocked, many under one supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rstream import RStream
from rstream.metrics.collector import STALLED
from rstream.store.steps import drive_sync
from rstream.store.workers import WorkerInfo
from rstream.store.workers import workers as look
from tests.commands import Commands, Running
from tests.scrapes import Port, Scrape
from tests.servers import Server
from tests.test_cli_worker import children
from tests.test_worker_processes import Bench
from tests.waiting import eventually
from tests.workload import FREEZE, THAW, WorkerProcess, workers

METRICS = ("--metrics-port", "0")

COUNTING = """
import os
from rstream import Event, RStream

app = RStream()

class Note(Event):
    text: str

notes = app.stream("notes", Note, shards=8)

@notes.consumer("g", concurrency=1, lease=1.0, ordered=False, prefetch=0)
async def handle(note: Note) -> None:
    if note.text == "die":
        os._exit(3)
"""


@pytest.fixture
def bench(server: Server, namespace: str, tmp_path: Path) -> Iterator[Bench]:
    with workers(server, namespace, tmp_path) as spawn:
        bench = Bench(server, namespace, spawn)
        yield bench
        bench.close()


def port_of(worker: WorkerProcess) -> Port:
    return Port(lambda: worker.log)


def shows(app: RStream) -> dict[int, WorkerInfo]:
    """By pid."""
    found = drive_sync(app.sync_link, look(app.settings.namespace), 10.0)
    return {each.said.pid: each for each in found if each.said is not None}


@pytest.mark.long
def test_a_frozen_workers_lease_is_lost_and_its_outcomes_fenced(bench: Bench) -> None:
    """And what its heir took over is counted there: as many."""
    frozen = bench.spawn(*METRICS, lease=1, concurrency=10).ready()
    port = port_of(frozen)
    eventually(lambda: port.ready)
    bench.publish(10, seconds=0.5)
    eventually(lambda: len(bench.history.running(frozen.pid)) == 10)
    frozen.signal(FREEZE)
    eventually(lambda: shows(bench.app)[frozen.pid].state == "silent")
    heir = bench.spawn(*METRICS, lease=1, concurrency=10).ready()
    heirs = port_of(heir)
    eventually(lambda: bench.all_done(10))
    eventually(lambda: heirs.scrape().total("rstream_settled_total", outcome="ack") == 10)
    assert heirs.scrape().total("rstream_redelivered_total") == 10
    eventually(lambda: shows(bench.app)[frozen.pid].state == "dead", 15)
    assert shows(bench.app)[heir.pid].state == "alive"

    frozen.signal(THAW)
    eventually(lambda: port.scrape().total("rstream_fenced_settles_total") == 10)
    found = port.scrape()
    assert found.total("rstream_lease_lost_total") == 10
    assert found.total("rstream_settled_total") == 0
    assert found.total("rstream_loop_stall_seconds") > 1  # it was not turning, whatever the reason
    eventually(lambda: port.ready)
    eventually(lambda: shows(bench.app)[frozen.pid].state == "alive")


@pytest.mark.long
def test_a_blocked_loop_answers_its_probes_and_says_so(bench: Bench) -> None:
    blocked = bench.spawn(*METRICS, concurrency=2).ready()
    port = port_of(blocked)
    eventually(lambda: port.ready)
    bench.publish(1, seconds=STALLED + 2.5, kind="block")
    eventually(lambda: port.unready("loop: blocked for"))
    assert port.get("/healthz")[0] == 200
    assert port.scrape().total("rstream_loop_stall_seconds") > STALLED - 1
    eventually(lambda: shows(bench.app)[blocked.pid].state == "blocked")
    eventually(lambda: bench.all_done(1))
    eventually(lambda: port.ready)
    assert port.scrape().total("rstream_loop_stall_seconds") > STALLED - 1
    eventually(lambda: shows(bench.app)[blocked.pid].state == "alive")


@pytest.mark.long
def test_a_worker_that_ends_is_not_ready_and_then_not_shown(bench: Bench) -> None:
    worker = bench.spawn(*METRICS, concurrency=2).ready()
    port = port_of(worker)
    eventually(lambda: port.ready)
    bench.publish(1, seconds=2.0)
    eventually(lambda: bench.history.running(worker.pid))
    worker.signal(signal.SIGTERM)
    eventually(lambda: port.unready("is ending"))
    assert port.get("/healthz")[0] == 200
    assert worker.wait() == 0
    assert not shows(bench.app)


@pytest.mark.long
def test_a_killed_worker_is_shown_for_an_hour(bench: Bench) -> None:
    worker = bench.spawn(lease=1).ready()
    eventually(lambda: worker.pid in shows(bench.app))
    worker.signal(signal.SIGKILL)
    eventually(lambda: shows(bench.app)[worker.pid].state == "dead", 30)
    (dead,) = shows(bench.app).values()
    assert dead.said is not None and dead.said.groups == ("jobs/async",)
    key = f"{bench.namespace}:worker:{dead.id}"
    assert 3500 < bench.raw.ttl(key) <= 3600
    assert bench.raw.zcard(f"{bench.namespace}:workers") == 1


def test_a_port_that_is_taken_is_said_before_anything_is_begun(rs: Commands) -> None:
    with rs.started("worker", "shop:app", *METRICS) as running:
        port = str(Port(lambda: running.err).number)
        for many in ((), ("--processes", "2")):
            refused = rs.run("worker", "shop:app", "--metrics-port", port, *many)
            assert refused.returncode == 1 and "Traceback" not in refused.stderr
            assert re.search(
                rf"Error: metrics cannot be served on 127\.0\.0\.1:{port}: the port is taken", refused.stderr
            )
            assert "ready" not in refused.stderr
    rs.env["RSTREAM_METRICS_PORT"] = "0"
    with rs.started("worker", "shop:app") as running:
        assert Port(lambda: running.err).get("/healthz") == (200, "ok   alive: it answers\n")
    assert rs.run("worker", "shop:app", "--metrics-port", "65536").returncode == 2


# -- many processes


def counted(found: Scrape) -> dict[str, float]:
    return found.by("rstream_settled_total", "process", outcome="ack")


def note(rs: Commands, *texts: str) -> None:
    rs.ok(
        "publish", "notes", "-", "--app", "counting:app", stdin="\n".join(json.dumps({"text": each}) for each in texts)
    )


@contextlib.contextmanager
def two(rs: Commands) -> Iterator[tuple[Running, Port]]:
    rs.write("counting.py", COUNTING)
    with rs.started("worker", "counting:app", "--processes", "2", *METRICS) as running:
        port = Port(lambda: running.err)
        eventually(lambda: port.ready)
        yield running, port


def number_of(rs: Commands, pid: int) -> str:
    with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"]) as app:
        said = shows(app)[pid].said
        assert said is not None
        return str(said.process)


def test_a_killed_process_keeps_its_counters_and_others_theirs(rs: Commands) -> None:
    with two(rs) as (running, port):
        shown: dict[str, float] = {}

        def scraped() -> dict[str, float]:
            """Whenever it is looked: nothing goes back, and no series is gone."""
            found = counted(port.scrape())
            for process, count in shown.items():
                assert found.get(process, 0) >= count, (shown, found)
            shown.update(found)
            return found

        note(rs, *["x"] * 200)
        eventually(lambda: sum(scraped().values()) == 200)
        before = {**shown}
        victim = max(children(running))
        victims = number_of(rs, victim)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: port.unready(f"process {victims}: does not run"))
        assert scraped() == before
        assert port.get("/healthz")[0] == 200
        eventually(lambda: port.ready)
        assert scraped() == before
        note(rs, *["x"] * 100)
        eventually(lambda: sum(scraped().values()) == 300)
        for process, count in before.items():
            assert shown[process] - count <= 100
        note(rs, "die")  # it takes one process after the other with it, until its attempts are used up
        eventually(lambda: sum(port.scrape().by("rstream_dead_letters_total", "reason").values()) == 1, 60)
        eventually(lambda: port.ready, 60)
        assert sum(scraped().values()) == 300


def test_a_frozen_process_stands_as_it_was_and_the_probes_tell(rs: Commands) -> None:
    with two(rs) as (running, port):
        note(rs, *["x"] * 100)
        eventually(lambda: sum(counted(port.scrape()).values()) == 100)
        before, frozen = counted(port.scrape()), children(running)[0]
        os.kill(frozen, signal.SIGSTOP)
        try:
            eventually(lambda: port.unready(r"process \d: does not answer"))
            assert counted(port.scrape()) == before
            eventually(lambda: port.get("/healthz")[0] == 503, 30)
            assert re.search(r"FAIL process \d: silent for \d+ s", port.get("/healthz")[1])
        finally:
            os.kill(frozen, signal.SIGCONT)
        eventually(lambda: port.get("/healthz")[0] == 200)
        eventually(lambda: port.ready)
        assert counted(port.scrape()) == before


def test_one_process_that_is_recycled_has_no_label_and_goes_on_counting(rs: Commands) -> None:
    rs.write("counting.py", COUNTING)
    with rs.started("worker", "counting:app", "--max-handled", "20", *METRICS) as running:
        port = Port(lambda: running.err)
        eventually(lambda: port.ready)
        for count in (50, 100, 150):
            note(rs, *["x"] * 50)
            eventually(lambda count=count: port.scrape().total("rstream_settled_total", outcome="ack") == count)  # type: ignore[misc]
        eventually(lambda: len(re.findall("is recycled", running.err)) >= 3)
        assert not any("process" in sample.labels for sample in port.scrape().samples)
        assert port.scrape().total("rstream_attempts_total") == 150
        running.process.terminate()
        assert running.ended() == 0
