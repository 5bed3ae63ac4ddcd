"""What rstream costs beside its work: memory in Redis, an idle worker, leases that are renewed, imports."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.entrants import ALL_PEERS, OURS, RAW, Contestant
from benchmarks.harness import Bench, Failed, Process
from benchmarks.table import Series, Table
from benchmarks.workloads.rounds import Plan

ENTRIES, QUEUED, WATCHED, IN_FLIGHT = 100_000, 1_000, 10.0, 1_000
READY_WITHIN = 30.0
OURS_READS = 3
"""Reads from our own connection between the two figures of `watch`."""


def memory(bench: Bench, plan: Plan) -> list[Table]:
    """Bytes for an entry that waits, by MEMORY USAGE of all keys; and what a group adds that has handled them."""
    count = plan.count(ENTRIES)
    bare = Series("bare stream entry of one field", "raw", [held(bench, RAW, "script", count)])
    ours = Series("rstream", "ours", [held(bench, OURS, "publish_many_sync", count)])
    before = bench.server.size()
    with bench.worker(OURS, "async") as worker:
        bench.marks(worker, count)
        wait_until_acked(bench)
    handled = Series("rstream, more once a group has handled it", "ours", [(bench.server.size() - before) / count])
    series = [bare, ours, handled]
    for peer in ALL_PEERS if plan.peers else []:
        one = Series(f"{peer.name}, a waiting message", "peer")
        try:
            one.values = [held(bench, peer, "publish_many", plan.count(QUEUED))] if peer.installed else []
        except Failed as error:
            one.failed = str(error)
        series.append(one)
    notes = [f"{count:,} entries on 8 shards: a million take {ours.median:,.0f} MB. Peers delete what was handled."]
    return [Table("memory", "Memory in Redis for each event of 180 bytes", "bytes", series, higher=False, notes=notes)]


def held(bench: Bench, contestant: Contestant, by: str, count: int) -> float:
    bench.server.raw.flushall()
    with bench.player(contestant) as player:
        player.do("many", by=by, count=count)
    return bench.server.size() / count


def wait_until_acked(bench: Bench, within: float = 30.0) -> None:
    limit = time.monotonic() + within
    while pending(bench) and time.monotonic() < limit:
        time.sleep(0.05)


def pending(bench: Bench) -> int:
    raw = bench.server.raw
    return sum(group["pending"] for key in raw.scan_iter(_type="stream") for group in raw.xinfo_groups(key))


def idle(bench: Bench, plan: Plan) -> list[Table]:
    """Two workers of apps that have nothing to do with each other: one idle, one with 1,000 handlers that wait."""
    bench.server.raw.flushall()
    with ExitStack() as stack:
        busy = {"RSTREAM_NAMESPACE": "busy", "BENCH_SLOTS": str(IN_FLIGHT)}
        with bench.player(OURS, **busy) as player:
            player.do("many", by="publish_many_sync", count=IN_FLIGHT, seconds=3600.0)
        renewing = stack.enter_context(bench.worker(OURS, "wait", **busy))
        limit = time.monotonic() + READY_WITHIN
        while pending(bench) < IN_FLIGHT:
            if time.monotonic() > limit or not renewing.running:
                raise Failed(f"{pending(bench)} of {IN_FLIGHT} were in flight: {renewing.last_line()}")
            time.sleep(0.05)
        ready(renewing)
        leases = watch(bench, [renewing], plan.count(10, 1))
        renewing.kill()
        shards = {"BENCH_SHARDS": "16", "BENCH_GROUPS": "2", "RSTREAM_NAMESPACE": "idle"}
        lazy = stack.enter_context(bench.worker(OURS, "groups2", **shards))
        ready(lazy)
        rest = watch(bench, [lazy], plan.count(10, 1))
    return [
        Table("leases", f"Leases of {IN_FLIGHT:,} handlers that wait: CPU of the worker", "% of a core",
              [Series("rstream", "ours", [leases[0]])], higher=False),
        Table("idle-cpu", "Idle worker, 16 shards, 2 ordered groups: CPU", "% of a core",
              [Series("rstream", "ours", [rest[0]])], higher=False),
        Table("idle-trips", "Idle worker, 16 shards, 2 ordered groups: Redis", "a second",
              [Series("reads from its connections (round trips)", "ours", [rest[1]]),
               Series("commands, also those within scripts", "ours", [rest[2]])], higher=False),
    ]  # fmt: skip


def ready(worker: Process) -> None:
    limit = time.monotonic() + READY_WITHIN
    while " ready: " not in worker.log():
        if time.monotonic() > limit or not worker.running:
            raise Failed(f"it did not become ready: {worker.last_line()}")
        time.sleep(0.05)
    time.sleep(1.0)  # what it does at first is not idling


def watch(bench: Bench, workers: Sequence[Process], seconds: float) -> tuple[float, float, float]:
    """Over so many seconds: % of a core, reads a second, commands a second; ours are not counted."""
    cpu, reads, calls = sum(w.cpu() for w in workers), bench.server.reads(), bench.server.commands()
    time.sleep(seconds)
    used = sum(w.cpu() for w in workers) - cpu
    more = {name: count - calls.get(name, 0) for name, count in bench.server.commands().items() if name != "info"}
    return used / seconds * 100, (bench.server.reads() - reads - OURS_READS) / seconds, sum(more.values()) / seconds


TIMED = "import time; began = time.perf_counter(); {}; print((time.perf_counter() - began) * 1000)"


def imports(bench: Bench, plan: Plan) -> list[Table]:
    """`import rstream`, measured within the process; `rstream --help`, all of it; beside them Python's own start."""
    start = Series("Python alone", "raw")
    loaded, told = Series("import rstream", "ours"), Series("rstream --help", "ours")
    for _ in range(plan.rounds):
        start.values.append(took([sys.executable, "-c", "pass"]))
        done = subprocess.run([sys.executable, "-c", TIMED.format("import rstream")], capture_output=True, text=True)
        loaded.values.append(float(done.stdout))
        told.values.append(took([sys.executable, "-m", "rstream", "--help"]))
    return [Table("import", "Start-up", "ms", [start, loaded, told], higher=False)]


def took(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000
