"""What rstream is to reach, and whether it did. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from benchmarks.table import Ratio, Series, Table, number, ratio

PEER = "the fastest peer"
Sense = Literal["≥", "≤"]


@dataclass(frozen=True)
class Target:
    """ours, of a table, against another line of it, against PEER, or (empty) as it is. more: the difference counts,
    not the ratio."""

    what: str
    table: str
    ours: str
    sense: Sense
    bound: float
    against: str = ""
    more: bool = False

    @property
    def told(self) -> str:
        limit = number(self.bound)
        if self.more:
            return f"{self.sense} {self.against} + {limit}"
        return f"{self.sense} {limit} × {self.against}" if self.against else f"{self.sense} {limit}"


class Verdict(NamedTuple):
    """found: what was measured, with its spread · met: None where it could not be measured · cpu: the same ratio by CPU
    time of the processes, which a busy machine disturbs far less; empty where it was not measured."""

    target: Target
    found: str
    met: bool | None
    cpu: str = ""


PIPELINE, LOOP, LIMIT = (
    "redis-py pipeline(1000) of XADDs",
    "bare redis.asyncio loop, XREADGROUP 100",
    "XREADGROUP 500 + XACK, sync",
)
BLOCKED = "bare async worker, blocked XREADGROUP"
TARGETS = [
    Target("publish_many, sync", "many", "rstream, sync", "≥", 1.2, PIPELINE),
    Target("publish_many, async", "many", "rstream, async", "≥", 1.2, PIPELINE),
    Target("100 concurrent `await publish`", "concurrent", "rstream", "≥", 5, PEER),
    Target("100 concurrent `await publish`", "concurrent", "rstream", "≥", 0.6, "bare batcher, no validation"),
    Target("publish one by one, async", "publish", "rstream, async", "≥", 0.9, "redis.asyncio XADD"),
    Target("publish one by one, sync", "publish", "rstream, sync", "≥", 0.9, "redis-py XADD, sync"),
    Target("publish one by one, async", "publish", "rstream, async", "≥", 1, PEER),
    Target("publish one by one, sync", "publish", "rstream, sync", "≥", 1, PEER),
    Target("drain, async no-op handler", "drain", "rstream, async", "≥", 15, PEER),
    Target("drain, async no-op handler", "drain", "rstream, async", "≥", 0.4, LOOP),
    Target("drain, ordered", "drain", "rstream, ordered", "≥", 0.75, "rstream, async"),
    Target("drain, batch of 500", "batch", "rstream, batch of 500", "≥", 1.5, PEER),
    Target("drain, batch of 500", "batch", "rstream, batch of 500", "≥", 0.35, LIMIT),
    Target("latency at 200/s, unordered, median", "p50", "rstream, unordered", "≤", 1.5, BLOCKED),
    Target("latency at 200/s, ordered, median", "p50", "rstream, ordered", "≤", 2, BLOCKED),
    Target("latency at 200/s, unordered, p99", "p99", "rstream, unordered", "≤", 2, BLOCKED),
    Target("latency at 200/s, ordered, p99", "p99", "rstream, ordered", "≤", 2, BLOCKED),
    Target("100 ms I/O, concurrency 100", "io", "rstream", "≥", 0.97, "the ceiling"),
    Target("bytes in Redis per entry", "memory", "rstream", "≤", 40, "bare stream entry of one field", more=True),
    Target("lease renewal, 1,000 in flight, % of a core", "leases", "rstream", "≤", 1),
    Target("idle worker, round trips a second", "idle-trips", "reads from its connections (round trips)", "≤", 2),
    Target("idle worker, % of a core", "idle-cpu", "rstream", "≤", 0.5),
    Target("`import rstream`, ms", "import", "import rstream", "≤", 150),
    Target("`rstream --help`, ms", "import", "rstream --help", "≤", 250),
    Target("cost of an event, length 10⁴ → 10⁶", "growth-length", "1,000,000 entries", "≤", 1.15, "10,000 entries"),
    Target("cost of an event, groups 1 → 8", "growth-groups", "8 groups", "≤", 1.15, "1 group"),
    Target("cost of an event, shards 8 → 64", "growth-shards", "64 shards", "≤", 1.15, "8 shards"),
    Target("cost of an event, pending 10 → 100,000", "growth-pending", "100,000 pending", "≤", 1.15, "10 pending"),
]


def judge(target: Target, tables: Mapping[str, Table]) -> Verdict | None:
    """None where its workload was not run."""
    if (table := tables.get(target.table)) is None or (ours := table.get(target.ours)) is None:
        return None
    other = table.best("peer") if target.against == PEER else table.get(target.against)
    if target.against == PEER and other is None and not any(s.kind == "peer" for s in table.series):
        return None
    try:
        middle, found = _compare(target, ours, other)
    except ValueError as error:
        return Verdict(target, str(error), None)
    if target.against == PEER and other is not None:
        found += f", {other.name}"
    cpu = ""
    if table.higher and other is not None and ours.cpu and other.cpu:
        cpu = f"× {number(median(other.cpu) / median(ours.cpu))}"
    return Verdict(target, found, middle >= target.bound if target.sense == "≥" else middle <= target.bound, cpu)


def _compare(target: Target, ours: Series, other: Series | None) -> tuple[float, str]:
    """The figure that counts, and how it is told."""
    if not target.against:
        if not ours.measured:
            raise ValueError(ours.failed or "not measured")
        spread = Ratio(ours.median, min(ours.values), max(ours.values))
        return spread.middle, str(spread).removeprefix("× ")
    if other is None:
        raise ValueError(f"{target.against} was not measured")
    found = ratio(ours, other)
    if target.more:
        middle = ours.median - other.median
        return middle, f"+ {number(middle)}"
    return found.middle, str(found)


def verdicts(tables: Mapping[str, Table]) -> list[Verdict]:
    return [verdict for target in TARGETS if (verdict := judge(target, tables))]


WORD = {True: "met", False: "not met", None: "not measured"}


def rows(found: list[Verdict]) -> list[list[str]]:
    return [[v.target.what, v.target.told, v.found, v.cpu, WORD[v.met]] for v in found]
