"""What an event costs when the rest grows: CPU time of the worker and of the server for each that is handled.

Two sizes take turns, each from the same keys in Redis and with a fresh worker process; where a stream is too long to be
restored each time, a group that is new each time reads it from its start. Long streams are filled by the server itself,
with copies of an entry that rstream has published. Of those streams the first half of the short one's length is
measured: at its end nothing is left to be read ahead, which a long one never comes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

from benchmarks.entrants import OURS
from benchmarks.harness import Bench
from benchmarks.server import Snapshot
from benchmarks.side import MARKS
from benchmarks.table import Rate, Table, rate
from benchmarks.workloads.rounds import Entrant, Plan, take_turns
from rstream.store.keys import Shard, shard

EVENTS, MANY, PIECE = 10_000, 10, 1000
COPY = """local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][2]
for i = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', unpack(entry)) end"""


@dataclass(frozen=True, eq=False)
class Size:
    """One of two sizes. entries: in the stream · pending: of them, with another worker that lives · groups: that the
    worker runs (0: the group "async") · stays: it is not restored, each round has a group of its own."""

    name: str
    entries: int = EVENTS
    shards: int = 8
    groups: int = 0
    pending: int = 0
    stays: bool = False

    @property
    def namespace(self) -> str:
        return f"of{self.entries}"

    @property
    def environ(self) -> dict[str, str]:
        groups = MANY if self.stays else self.groups
        return {
            "BENCH_SHARDS": str(self.shards),
            "BENCH_GROUPS": str(groups),
            "RSTREAM_NAMESPACE": self.namespace,
        }

    def mode(self, turn: int) -> str:
        if self.stays:
            return f"idle{turn % MANY}"
        return f"groups{self.groups}" if self.groups else "async"


PAIRS = {
    "length": (Size("10,000 entries", stays=True), Size("1,000,000 entries", entries=1_000_000, stays=True)),
    "groups": (Size("1 group", groups=1), Size("8 groups", groups=8)),
    "shards": (Size("8 shards"), Size("64 shards", shards=64)),
    "pending": (Size("10 pending", pending=10), Size("100,000 pending", pending=100_000)),
}


def growth(bench: Bench, plan: Plan) -> list[Table]:
    tables = []
    for what, sizes in PAIRS.items():
        rounds: dict[Entrant, Callable[[], Rate]] = {}
        bench.server.raw.flushall()
        for size in sizes:
            rounds[Entrant(size.name, OURS, EVENTS)] = partial(
                once, bench, plan, size, filled(bench, plan, size), count()
            )
        title = f"Growth: an event's cost in CPU time, {sizes[0].name} and {sizes[1].name}"
        tables.append(Table(f"growth-{what}", title, "µs", take_turns(bench, plan, rounds), higher=False))
    return tables


def filled(bench: Bench, plan: Plan, size: Size) -> Snapshot | None:
    raw = bench.server.raw
    if not size.stays:
        raw.flushall()
    shards = [shard(size.namespace, "events", 1, number, size.shards) for number in range(size.shards)]
    with bench.player(OURS, **size.environ) as player:
        player.do("many", by="publish_many_sync", count=plan.count(EVENTS))
    more = plan.count(size.entries) - plan.count(EVENTS)
    held = plan.count(size.pending, 10) if size.pending else 0
    for each in shards:
        for _ in range(more // size.shards // PIECE):  # a script that runs for long looks like a server that is away
            raw.eval(COPY, 1, each.stream, PIECE)
        if held:
            hold(bench, each, held // size.shards + 1)
    return None if size.stays else bench.server.snapshot()


def hold(bench: Bench, each: Shard, count: int) -> None:
    """So many entries more, which another worker that lives has in hand."""
    raw = bench.server.raw
    raw.xgroup_create(each.stream, "async", "$")
    raw.eval(COPY, 1, each.stream, count)
    raw.xreadgroup("async", "another", {each.stream: ">"}, count=count)
    raw.set(each.alive("async", "another"), "1")
    raw.eval(COPY, 1, each.stream, EVENTS // 8 + 1)


def once(bench: Bench, plan: Plan, size: Size, snapshot: Snapshot | None, turns: Iterator[int]) -> Rate:
    """Microseconds of CPU an event: the figure that this table is of stands in the place of a rate."""
    if snapshot is None:
        bench.server.raw.delete(MARKS)
    else:
        bench.server.restore(snapshot)
    many = plan.count(EVENTS) // 2 if size.stays else plan.count(EVENTS) * max(size.groups, 1)
    before = bench.server.cpu()
    with bench.worker(OURS, size.mode(next(turns)), **size.environ) as worker:
        marks = bench.marks(worker, many)
        served = (bench.server.cpu() - before) / marks[-1].total * 1e6  # it may have handled more by now
    found = rate(marks, many)
    return Rate(found.cpu + served, found.cpu)
