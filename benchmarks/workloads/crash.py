"""A worker is killed: how long until its work runs elsewhere, and what the short events beside it notice.

`recovery`: handlers of a minute, each contestant at its own default of how long a worker may be silent, with time
scaled 1:10. `mix`: the seed mix of 80 ms, 45 s and 12 min, 100 : 1 : 1, on two workers with 16 slots each, with time
scaled 1:60; a worker is killed in the middle, and another started at once, as any supervisor does. The contestants run
side by side, on one server: they wait more than they work.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks import history
from benchmarks.entrants import ARQ_PEER, CELERY, DRAMATIQ, OURS, STREAQ, TASKIQ, Contestant
from benchmarks.harness import Bench, Failed, Player, Process, group
from benchmarks.table import Series, Table, quantile
from benchmarks.workloads.rounds import Plan

START_WITHIN = 30.0


@dataclass(frozen=True, eq=False)
class Patience:
    """How long a contestant lets a worker be silent: as an environment for it, scaled, and in words."""

    default: str
    environ: dict[str, str] = field(default_factory=dict)


TENTH: dict[Contestant, Patience] = {
    OURS: Patience("lease 30 s, renewed", {"BENCH_LEASE": "3"}),
    CELERY: Patience("visibility_timeout 1 h, not renewed", {"BENCH_VISIBILITY": "360"}),
    DRAMATIQ: Patience("heartbeat_timeout 60 s, looked at in 1 of 1,000 calls", {"BENCH_HEARTBEAT": "6000"}),
    ARQ_PEER: Patience("job_timeout 300 s + 10 s, which ends a job", {"BENCH_TIMEOUT": "30"}),
    TASKIQ: Patience("idle_timeout 10 min, not renewed", {"BENCH_IDLE_MS": "60000"}),
    STREAQ: Patience("idle_timeout 60 s, renewed", {"BENCH_IDLE": "6"}),
}
SIXTIETH: dict[Contestant, Patience] = {
    OURS: Patience("lease 30 s, renewed", {"BENCH_LEASE": "0.5"}),
    CELERY: Patience("visibility_timeout 1 h, not renewed", {"BENCH_VISIBILITY": "60"}),
    TASKIQ: Patience("idle_timeout 10 min, not renewed", {"BENCH_IDLE_MS": "10000"}),
}
SHORT, MEDIUM, LONG = 0.08 / 60, 45 / 60, 720 / 60
LONG_RUN, TRICKLE = 60.0, 10.0


class Fleet:
    """Workers of one contestant, and its publisher."""

    def __init__(self, bench: Bench, stack: ExitStack, contestant: Contestant, patience: Patience) -> None:
        self.bench, self.contestant, self._environ, self._stack = bench, contestant, dict(patience.environ), stack
        self.player: Player = stack.enter_context(bench.player(contestant, **self._environ))
        self.workers: list[Process] = []
        self.killed: set[int] = set()
        self.killed_at = 0.0

    def start(self) -> None:
        self.workers.append(self._stack.enter_context(self.bench.worker(self.contestant, "mix", **self._environ)))

    def up(self, first: int) -> None:
        """Wait until every worker has begun something. Raises `Failed`."""
        limit = time.monotonic() + START_WITHIN
        while True:
            self.player.do("timeline", plan=[[0, first, 0.001]], handler="mix")
            ours = [set(group(worker.popen.pid)) for worker in self.workers]
            at_work = {call.pid for several in self.calls().values() for call in several}
            if all(pids & at_work for pids in ours):
                return
            if time.monotonic() > limit or not all(worker.running for worker in self.workers):
                raise Failed(f"its workers did not start: {self.workers[-1].last_line()}")
            first -= 1
            time.sleep(0.05)

    def calls(self) -> dict[int, list[history.Call]]:
        return history.calls(self.bench.notes(self.contestant.module))

    def occupy(self, handlers: int) -> None:
        """Have so many run that do not end meanwhile. Raises `Failed`."""
        self.player.do("timeline", plan=[[0, n, LONG_RUN] for n in range(handlers)], handler="mix")
        limit = time.monotonic() + START_WITHIN
        while sum(n in self.calls() for n in range(handlers)) < handlers:
            if time.monotonic() > limit:
                raise Failed(f"it did not run {handlers} handlers: {self.workers[0].last_line()}")
            time.sleep(0.02)

    def kill_first(self) -> None:
        self.killed = set(group(self.workers[0].popen.pid))
        self.killed_at = time.monotonic()
        self.workers[0].kill()


def fleets(
    bench: Bench, stack: ExitStack, patience: dict[Contestant, Patience], failed: dict[Contestant, str], count: int
) -> dict[Contestant, Fleet]:
    """All that come up."""
    found = {}
    for contestant, its in patience.items():
        if not contestant.installed:
            failed[contestant] = "not installed"
            continue
        fleet = Fleet(bench, stack, contestant, its)
        for _ in range(count):
            fleet.start()
        found[contestant] = fleet
    for contestant in [*found]:
        try:
            found[contestant].up(-1)
        except Failed as error:
            failed[contestant] = str(error)
            del found[contestant]
    return found


def recovery(bench: Bench, plan: Plan, within: float = 15.0, handlers: int = 8) -> list[Table]:
    chosen = {c: its for c, its in TENTH.items() if plan.peers or c.kind != "peer"}
    failed: dict[Contestant, str] = {}
    with ExitStack() as stack:
        found = fleets(bench, stack, chosen, failed, 1)
        for fleet in found.values():
            fleet.occupy(handlers)
        for fleet in found.values():  # the ones who are to take over
            fleet.start()
        time.sleep(3.0)
        trickle = [[n / TRICKLE, 1000 + n, 0.001] for n in range(round(within * TRICKLE))]
        for fleet in found.values():
            fleet.kill_first()
            fleet.player.tell("timeline", plan=trickle, handler="mix")
        for fleet in found.values():
            fleet.player.answer("timeline")
        series = [
            recovered(Series(f"{c.name}: {its.default}", c.kind, failed=failed.get(c, "")), found.get(c), within)
            for c, its in chosen.items()
        ]
    title = "SIGKILL of a worker: until its handlers run elsewhere (1:10)"
    notes = [
        f"Time is scaled 1:10, each has a tenth of its default; {handlers} handlers, one run; {TRICKLE:g} other events "
        "a second come in.",
        "FastStream takes over only what another subscriber, written for it, claims.",
    ]
    return [Table("recovery", title, "s", series, higher=False, notes=notes)]


def recovered(one: Series, fleet: Fleet | None, within: float) -> Series:
    if fleet is not None:
        again = history.taken_over(fleet.calls(), fleet.killed, fleet.killed_at)
        one.values = [each.after for each in again if each.after is not None]
        if missed := len(again) - len(one.values):
            one.failed = f"{missed} of {len(again)} were not running after {within:g} s"
    return one


@dataclass
class Outcome:
    """The mix, as one contestant ran it."""

    delays: list[float]
    never: int
    duplicates: int
    again: list[history.Again]

    def missing(self, watched: float) -> str:
        waiting = sum(each.after is None for each in self.again)
        if not (waiting or self.never):
            return ""
        ran = f"{waiting} of the {len(self.again)} that ran on it"
        return f"{ran}, and {self.never} that had not begun, were still waiting after {watched:.0f} s"


def mix(bench: Bench, plan: Plan, rate: float = 100.0, seconds: float = 15.0, after: float = 15.0) -> list[Table]:
    """`rate` events a second for `seconds`; a kill after half of them; watched for `after` more."""
    chosen = {c: its for c, its in SIXTIETH.items() if plan.peers or c.kind != "peer"}
    failed: dict[Contestant, str] = {}
    events = timeline(rate, seconds)
    with ExitStack() as stack:
        found = fleets(bench, stack, chosen, failed, 2)
        for fleet in found.values():
            fleet.player.tell("timeline", plan=events, handler="mix")
        time.sleep(seconds * 0.5)
        for fleet in found.values():
            fleet.kill_first()
            fleet.start()
        published = {c: dict(fleet.player.answer("timeline")["times"]) for c, fleet in found.items()}
        time.sleep(after)
        until = time.monotonic()
        outcomes = {c: outcome(fleet, events, published[c], until) for c, fleet in found.items()}
    return tables_of_mix(chosen, outcomes, failed, after + seconds * 0.5)


def outcome(fleet: Fleet, events: list[tuple[float, int, float]], published: dict[int, float], until: float) -> Outcome:
    calls = {n: several for n, several in fleet.calls().items() if n >= 0}
    shorts = {n: published[n] for _, n, length in events if length == SHORT}
    return Outcome(
        history.delays(calls, shorts, until),
        sum(n not in calls for n in published),
        history.duplicates(calls, fleet.killed, fleet.killed_at),
        history.taken_over(calls, fleet.killed, fleet.killed_at),
    )


def timeline(rate: float, seconds: float) -> list[tuple[float, int, float]]:
    """100 short ones, a medium and a long one, in an order that chance gives, the same for all."""
    chance = random.Random(6)
    lengths: list[float] = []
    while len(lengths) < rate * seconds:
        hundred = [SHORT] * 100 + [MEDIUM, LONG]
        chance.shuffle(hundred)
        lengths += hundred
    return [(n / rate, n, length) for n, length in enumerate(lengths[: round(rate * seconds)])]


def tables_of_mix(
    chosen: dict[Contestant, Patience],
    outcomes: dict[Contestant, Outcome],
    failed: dict[Contestant, str],
    watched: float,
) -> list[Table]:
    tail, twice, again = [], [], []
    for contestant, its in chosen.items():
        name = f"{contestant.name}: {its.default}"
        one, two, three = (Series(name, contestant.kind, failed=failed.get(contestant, "")) for _ in range(3))
        if outcome := outcomes.get(contestant):
            one.values, two.values = [quantile(outcome.delays, 0.99) * 1000], [float(outcome.duplicates)]
            three.values = [each.after for each in outcome.again if each.after is not None]
            three.failed = outcome.missing(watched)
        tail.append(one), twice.append(two), again.append(three)
    columns = [
        ("mix-p99", "start delay of the short ones, 99th percentile", "ms", tail),
        ("mix-twice", "handled twice, though done or alive", "events", twice),
        ("mix-again", "until what ran on the killed worker ran again", "s", again),
    ]
    return [
        Table(key, f"Mix with a SIGKILL: {title} (time scaled 1:60, one run)", unit, series, higher=False)
        for key, title, unit, series in columns
    ]
