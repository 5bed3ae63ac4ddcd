"""A full queue, and a handler that does nothing but count; and one that waits for 100 ms.

Each round of each contestant begins with the same keys in Redis (they are published once, and restored) and a fresh
worker process, as its documentation starts one. From 10 % to 100 % of the work is measured, by the worker's own marks:
its start is not counted, nor are the acks of what it handled last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.entrants import ALL_PEERS, ARQ_PEER, CELERY, DRAMATIQ, FASTSTREAM, OURS, RAW, STREAQ, TASKIQ
from benchmarks.harness import Bench, Failed
from benchmarks.server import Snapshot
from benchmarks.table import Rate, Series, Table, rate
from benchmarks.workloads.rounds import Entrant, Plan, missing, take_turns

CONCURRENCY, WAIT = 100, 0.1

SINGLE = [
    Entrant("bare redis.asyncio loop, XREADGROUP 100", RAW, 40_000, "loop100", "script"),
    Entrant("rstream, async", OURS, 30_000, "async"),
    Entrant("rstream, ordered", OURS, 30_000, "ordered"),
    Entrant("rstream, threads", OURS, 10_000, "thread"),
    Entrant("Celery", CELERY, 1_500, "noop"),
    Entrant("dramatiq", DRAMATIQ, 2_500, "noop"),
    Entrant("arq", ARQ_PEER, 1_000, "noop"),
    Entrant("taskiq", TASKIQ, 2_500, "noop"),
    Entrant("streaQ", STREAQ, 3_000, "noop"),
    Entrant("FastStream", FASTSTREAM, 2_500, "noop"),
]
BATCH = [
    Entrant("XREADGROUP 500 + XACK, sync", RAW, 100_000, "sync500", "script"),
    Entrant("XREADGROUP 500 + XACK, async", RAW, 100_000, "async500", "script"),
    Entrant("rstream, batch of 500", OURS, 30_000, "batch"),
    Entrant("FastStream, batch of 500", FASTSTREAM, 30_000, "batch", handler="batch"),
    Entrant("FastStream, the same, validated", FASTSTREAM, 15_000, "validated", handler="batch"),
]
WAITING = [
    Entrant("rstream", OURS, 1_500, "wait", handler="wait"),
    *(Entrant(peer.name, peer, 1_000, "wait", handler="wait") for peer in ALL_PEERS),
]


def drain(bench: Bench, plan: Plan) -> list[Table]:
    entrants = plan.chosen([*SINGLE, *BATCH])
    found = {series.name: series for series in run(bench, plan, entrants)}
    single = [found[each.name] for each in entrants if each in SINGLE]
    batch = [found[each.name] for each in entrants if each in BATCH]
    return [
        Table("drain", "Drain, event by event: a no-op handler, concurrency 100", "events/s", single),
        Table("batch", "Drain: a no-op handler that takes 500 events at once", "events/s", batch),
    ]


def waiting(bench: Bench, plan: Plan) -> list[Table]:
    found = [Series("the ceiling", "raw", [CONCURRENCY / WAIT] * plan.rounds)]
    found += run(bench, plan, plan.chosen(WAITING), seconds=WAIT, start=0.1)
    title = f"I/O: handlers of {WAIT * 1000:.0f} ms, {CONCURRENCY} at once"
    return [Table("io", title, "events/s", found)]


def run(bench: Bench, plan: Plan, entrants: list[Entrant], seconds: float = 0.0421, start: float = 0.1) -> list[Series]:
    """Publish for each, keep that, and let them take turns at it."""
    rounds: dict[Entrant, Callable[[], Rate]] = {}
    failed = missing(entrants)
    queues: dict[tuple[str, str, str, int], Snapshot] = {}
    for entrant in entrants:
        if not entrant.contestant.installed:
            continue
        queue = (entrant.contestant.module, entrant.by, entrant.handler, entrant.count)
        try:
            if queue not in queues:
                queues[queue] = filled(bench, plan, entrant, seconds)
            rounds[entrant] = partial(once, bench, plan, entrant, queues[queue], start)
        except Failed as error:
            failed.append(Series(entrant.name, entrant.contestant.kind, failed=str(error)))
    bench.server.raw.flushall()
    found = {series.name: series for series in [*failed, *take_turns(bench, plan, rounds)]}
    return [found[entrant.name] for entrant in entrants]


def filled(bench: Bench, plan: Plan, entrant: Entrant, seconds: float) -> Snapshot:
    bench.server.raw.flushall()
    with bench.player(entrant.contestant) as player:
        player.do("many", by=entrant.by, count=plan.count(entrant.count), handler=entrant.handler, seconds=seconds)
    return bench.server.snapshot()


def once(bench: Bench, plan: Plan, entrant: Entrant, snapshot: Snapshot, start: float) -> Rate:
    bench.server.restore(snapshot)
    count = plan.count(entrant.count)
    with bench.worker(entrant.contestant, entrant.mode) as worker:
        return rate(bench.marks(worker, count), count, start)
