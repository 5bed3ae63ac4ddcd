"""From just before a publish to the first statement of the handler, at 200 events a second.

The workers of all contestants are up and idle throughout; one publishes at a time, from a process of its own. So what
the others cost while they are idle is in everybody's figures alike.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.entrants import ALL_PEERS, OURS, RAW
from benchmarks.harness import Bench, Failed, Player, Process
from benchmarks.table import Series, Table, quantile
from benchmarks.workloads.rounds import Entrant, Plan, missing

RATE, START_WITHIN, END_WITHIN = 200.0, 20.0, 10.0

ENTRANTS = [
    Entrant("bare async worker, blocked XREADGROUP", RAW, 300, "stamp", by="publish"),
    Entrant("rstream, unordered", OURS, 300, "stamp", by="publish"),
    Entrant("rstream, ordered", OURS, 300, "stamp-ordered", by="publish"),
    *(Entrant(peer.name, peer, 300, "stamp", by="publish") for peer in ALL_PEERS),
]


@dataclass
class Line:
    """A worker and its publisher, and what came of it: milliseconds."""

    entrant: Entrant
    name: str
    worker: Process
    player: Player
    median: Series
    tail: Series

    def round(self, bench: Bench, count: int, within: float = END_WITHIN) -> None:
        """One round: `count` events. Raises `Failed`."""
        bench.forget(self.name)
        self.player.do("paced", rate=RATE, count=count)
        limit = time.monotonic() + within
        while len(notes := bench.notes(self.name)) < count:
            if not self.worker.running:
                raise Failed(f"its worker ended: {self.worker.last_line()}")
            if time.monotonic() > limit:
                raise Failed(f"{len(notes)} of {count} events had come {within:g} s after the last was published")
            time.sleep(0.02)
        delays = [float(delay) * 1000 for (delay,) in notes]
        self.median.values.append(quantile(delays, 0.5))
        self.tail.values.append(quantile(delays, 0.99))


def latency(bench: Bench, plan: Plan) -> list[Table]:
    entrants = plan.chosen(ENTRANTS)
    away = {series.name: series for series in missing(entrants)}
    with ExitStack() as stack:
        lines = [open_line(bench, stack, entrant) for entrant in entrants if entrant.contestant.installed]
        for line in lines:
            attempt(bench, line, 20, START_WITHIN)  # until the worker is up
            line.median.values.clear(), line.tail.values.clear()
        for turn in range(plan.rounds):
            for line in lines:
                attempt(bench, line, plan.count(line.entrant.count, 20), END_WITHIN)
                if line.median.measured:
                    bench.say(f"    {turn + 1} {line.entrant.name}: {line.median.values[-1]:.2f} ms")
    found = {line.entrant.name: line for line in lines}
    medians = [found[e.name].median if e.name in found else away[e.name] for e in entrants]
    tails = [found[e.name].tail if e.name in found else away[e.name] for e in entrants]
    return [
        Table("p50", f"End-to-end latency at {RATE:g}/s, median", "ms", medians, higher=False),
        Table("p99", f"End-to-end latency at {RATE:g}/s, 99th percentile", "ms", tails, higher=False),
    ]


def open_line(bench: Bench, stack: ExitStack, entrant: Entrant) -> Line:
    contestant = entrant.contestant
    name = f"{contestant.module}-{entrant.mode}"
    environ = {"BENCH_NAME": name, "RSTREAM_NAMESPACE": entrant.mode}
    worker = stack.enter_context(bench.worker(contestant, entrant.mode, **environ))
    player = stack.enter_context(bench.player(contestant, **environ))
    median, tail = (Series(entrant.name, contestant.kind) for _ in range(2))
    return Line(entrant, name, worker, player, median, tail)


def attempt(bench: Bench, line: Line, count: int, within: float) -> None:
    if line.median.failed:
        return
    try:
        line.round(bench, count, within)
    except Failed as error:
        line.median.failed = line.tail.failed = str(error)
        bench.say(f"    {line.entrant.name}: {error}")
