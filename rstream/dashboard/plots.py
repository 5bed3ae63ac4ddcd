"""Plots: numbers over time, as SVG that a browser stretches; what is written beside them is HTML. Pure.

No style in it: classes say what is what, so that the page's style sheet decides on colours, by day and by night.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from rstream.dashboard.words import age, count, iso

WIDTH, HEIGHT = 720, 120

STEPS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 24 * 3600, 2 * 24 * 3600, 7 * 24 * 3600)
"""Seconds between two marks of the time axis."""


@dataclass(frozen=True)
class Line:
    """name: as the legend has it · kind: the class that gives it its colour · values: one a bucket, None = unknown."""

    name: str
    kind: str
    values: Sequence[float | None]
    filled: bool = False


@dataclass(frozen=True)
class Plot:
    """title · unit: "/min", "s" or "" · times: when each bucket begins (s, UTC) · step: seconds of a bucket."""

    title: str
    unit: str
    times: Sequence[int]
    step: int
    lines: Sequence[Line]
    note: str = ""

    @property
    def top(self) -> float:
        """Of the axis: a round number above all there is."""
        highest = max((value for line in self.lines for value in line.values if value is not None), default=0.0)
        return nice(highest, seconds=self.unit == "s")

    @property
    def top_text(self) -> str:
        return self.text(self.top)

    def text(self, value: float | None) -> str:
        if value is None:
            return "unknown"
        return age(value) if self.unit == "s" else f"{count(value)}{self.unit}"

    @property
    def last(self) -> list[tuple[Line, str]]:
        """What the legend says: the newest value that is known."""
        return [
            (line, self.text(next((v for v in reversed(line.values) if v is not None), None))) for line in self.lines
        ]

    @property
    def alt(self) -> str:
        told = ", ".join(f"{line.name} {text}" for line, text in self.last)
        highest = ", ".join(f"{line.name} at most {self.text(_highest(line))}" for line in self.lines)
        return f"{self.title}: {told}; {highest}"

    @property
    def marks(self) -> list[tuple[float, str]]:
        """(per cent from the left, what to write there). None at the right end: there is no room for its text."""
        if not self.times:
            return []
        start, span = self.times[0], self.step * len(self.times)
        step = next((each for each in STEPS if span / each <= 7), STEPS[-1])
        first = -(-start // step) * step
        return [(100 * (at - start) / span, _clock(at, step)) for at in range(first, start + span * 92 // 100, step)]

    @property
    def data(self) -> str:
        """For the script: what is under the pointer."""
        lines = [
            {"name": line.name, "kind": line.kind, "texts": [self.text(value) for value in line.values]}
            for line in self.lines
        ]
        return json.dumps({"start": self.times[0] if self.times else 0, "step": self.step, "lines": lines})

    @property
    def svg(self) -> str:
        top = self.top or 1.0
        grid = "".join(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (0, HEIGHT // 2, HEIGHT))
        drawn = "".join(part for line in self.lines for part in _drawn(line, top))
        label = escape(self.alt)
        return (
            f'<svg viewBox="0 -2 {WIDTH} {HEIGHT + 4}" preserveAspectRatio="none" role="img" aria-label="{label}">'
            f"{grid}{drawn}</svg>"
        )


def nice(highest: float, *, seconds: bool = False) -> float:
    """The next of 1, 2, 5, 10, …; of seconds one that people count in."""
    if highest <= 0:
        return 1.0
    if seconds and highest > 5:
        for step in (10, 30, 60, 120, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600):
            if highest <= step:
                return float(step)
        return float(math.ceil(highest / 86_400) * 86_400)
    highest = max(highest, 0.001)
    magnitude = 10.0 ** math.floor(math.log10(highest))
    return next(size * magnitude for size in (1, 2, 5, 10) if highest <= size * magnitude * (1 + 1e-9))


def _highest(line: Line) -> float | None:
    return max((value for value in line.values if value is not None), default=None)


def _drawn(line: Line, top: float) -> Sequence[str]:
    """Steps, one a bucket; broken where nothing is known."""
    pieces: list[list[tuple[float, float]]] = []
    width = WIDTH / max(1, len(line.values))
    known = False
    for n, value in enumerate(line.values):
        if value is None:
            known = False
            continue
        y = HEIGHT * (1 - min(1.0, value / top))
        if not known:
            pieces.append([])
        pieces[-1] += [(n * width, y), ((n + 1) * width, y)]
        known = True
    parts = []
    for piece in pieces:
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in piece)
        if line.filled:
            ends = f"{piece[0][0]:.1f}", f"{piece[-1][0]:.1f}"
            parts.append(f'<path class="area {line.kind}" d="M{ends[0]} {HEIGHT}L{points}L{ends[1]} {HEIGHT}Z"/>')
        parts.append(f'<path class="line {line.kind}" d="M{points}"/>')
    return parts


def spark(values: Sequence[float | None], kind: str) -> str:
    """A line without axes, of the size of a word."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    width, height = 96, 18
    step = width / max(1, len(values))
    points = [f"{(n + 0.5) * step:.1f} {height * (1 - (value or 0) / top):.1f}" for n, value in enumerate(values)]
    if not points:
        return ""
    return (
        f'<svg class="spark" viewBox="0 -1 {width} {height + 2}" width="{width}" height="{height + 2}" '
        'aria-hidden="true">'
        f'<path class="line {kind}" d="M{"L".join(points)}"/></svg>'
    )


def _clock(at: int, step: int) -> str:
    form = "%b %d" if step >= 24 * 3600 else "%H:%M"
    told = datetime.fromtimestamp(at, UTC)
    if step < 24 * 3600 and step >= 3600 and told.hour == 0:
        form = "%b %d"
    return told.strftime(form)


def window_text(start: int, end: int) -> tuple[str, str]:
    """A picked window, as it can be typed."""
    return iso(start * 1000), iso(end * 1000)
