"""Figures, medians, ratios, and how they are printed. Pure: no clock, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.entrants import Kind


class Mark(NamedTuple):
    """When a worker had handled how many, and what CPU time it had used by then. All in seconds."""

    at: float
    cpu: float
    total: int

    @classmethod
    def parse(cls, line: str) -> Mark:
        at, cpu, total = line.split()
        return cls(float(at), float(cpu), int(total))


class Rate(NamedTuple):
    """per_second: of wall time · cpu: microseconds of CPU time each."""

    per_second: float
    cpu: float


def rate(marks: Sequence[Mark], count: int, start: float = 0.1) -> Rate:
    """Between the first mark past `start` of the work, and the first at which all was done. Raises ValueError
    where that is not between two marks.
    """
    first = next((mark for mark in marks if mark.total >= count * start), None)
    last = next((mark for mark in marks if mark.total >= count), None)
    if first is None or last is None or last.at <= first.at:
        raise ValueError(f"{len(marks)} marks, none of them before the end: more work is needed to measure")
    done = last.total - first.total
    return Rate(done / (last.at - first.at), (last.cpu - first.cpu) / done * 1e6)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * share), 1) - 1]


@dataclass
class Series:
    """One line of a table: a figure for each round, or why there is none."""

    name: str
    kind: Kind
    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Microseconds of CPU time of its process, for each."""
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def measured(self) -> bool:
        return bool(self.values) and not self.failed


class Ratio(NamedTuple):
    """Of two series that took turns: the median of the ratios in each round, the least and the greatest."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"× {number(self.middle)} ({number(self.low)} – {number(self.high)})"


def ratio(of: Series, to: Series) -> Ratio:
    """Raises ValueError where one of them was not measured."""
    found = [a / b for a, b in zip(of.values, to.values, strict=False) if b]
    if not found or not (of.measured and to.measured):
        raise ValueError(f"{of.name!r} and {to.name!r} were not both measured")
    return Ratio(statistics.median(found), min(found), max(found))


@dataclass
class Table:
    """One workload. base: whom the others are compared with, the first one where it is empty · higher: whether more
    is better.
    """

    key: str
    title: str
    unit: str
    series: list[Series]
    base: str = ""
    higher: bool = True
    notes: list[str] = field(default_factory=list)

    def get(self, name: str) -> Series | None:
        return next((series for series in self.series if series.name == name), None)

    def best(self, kind: Kind, names: Sequence[str] = ()) -> Series | None:
        """The best one of that kind that was measured, of those named where some are."""
        found = [s for s in self.series if s.kind == kind and s.measured and (not names or s.name in names)]
        return (max if self.higher else min)(found, key=lambda s: s.median, default=None)

    def rows(self) -> list[list[str]]:
        """name, median, spread, ratio to the base, CPU."""
        base = self.get(self.base) or (self.series[0] if self.series else None)
        return [_row(series, base) for series in self.series]


HEAD = ["", "median", "from – to", "against the first", "CPU µs each"]


def _row(series: Series, base: Series | None) -> list[str]:
    if not series.measured:
        return [series.name, series.failed or "not measured", "", "", ""]
    spread = f"{number(min(series.values))} – {number(max(series.values))}"
    try:
        against = "" if base is None or base is series else str(ratio(series, base))
    except ValueError:
        against = ""
    cpu = number(statistics.median(series.cpu)) if series.cpu else ""
    return [series.name, number(series.median), spread, against, cpu]


def number(value: float) -> str:
    """Three digits that count, and all of them before the point."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"


def columns(table: Table) -> list[list[str]]:
    """Its head and its rows, without columns that would be empty."""
    rows = [HEAD, *table.rows()]
    kept = [at for at in range(len(HEAD)) if at < 2 or any(row[at] for row in rows[1:])]
    return [[row[at] for at in kept] for row in rows]


def text(table: Table) -> str:
    """For a terminal."""
    rows = columns(table)
    failed = {series.name for series in table.series if not series.measured}
    # The reason why there is no figure may be long: it goes over all columns.
    widths = [max(len(row[at]) for row in rows if at == 0 or row[0] not in failed) for at in range(len(rows[0]))]
    lines = [f"\n{table.title}  [{table.unit}]"]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*lines, *(f"  {note}" for note in table.notes)])


def markdown(table: Table) -> str:
    head, *rows = columns(table)
    ruler = "| --- |" + " ---: |" * (len(head) - 1)
    lines = [f"### {table.title}", "", f"In {table.unit}.", "", f"| {' | '.join(head)} |", ruler]
    for name, *cells in rows:
        strong = f"**{name}**" if (found := table.get(name)) and found.kind == "ours" else name
        lines.append("| " + " | ".join([strong, *cells]) + " |")
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes), ""])
