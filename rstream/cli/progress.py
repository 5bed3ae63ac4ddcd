"""How far a replay is, on stderr: one line that is written over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rstream.replay import ReplayResult
    from rstream.replay.pace import Pace

LINE_EVERY = 10.0
"""Seconds between two lines where nobody watches the progress on a terminal."""

RATE_OVER = 5.0
"""Seconds over which the rate that is shown is measured."""


class Bar:
    """first: to be said before anything else, once it runs · pace: to be kept, None = as fast as it goes."""

    def __init__(self, first: str | None = None) -> None:
        self._first = first
        self.pace: Pace | None = None
        self._live = sys.stderr.isatty()
        self._began: tuple[float, float] | None = None  # when, and how far it was
        self._done: deque[tuple[float, int]] = deque()
        self._next = time.monotonic() + LINE_EVERY

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, result: ReplayResult) -> None:
        if self._first:
            click.echo(self._first, err=True)
            self._first = None
        now = time.monotonic()
        self._began = self._began or (now, result.fraction)
        counts = f"{result.done:,} done" + (f", {result.failed:,} failed" if result.failed else "")
        counts += f", {result.invalid:,} invalid" if result.invalid else ""
        counts += self._rate(result, now) + self._left(result, now)
        if self._live:
            size = max(10, min(30, shutil.get_terminal_size().columns - 75))
            full = int(result.fraction * size)
            bar = f"[{'#' * full}{'.' * (size - full)}] {result.fraction:4.0%}  {counts}"
            click.echo(f"\r{bar}\x1b[K", nl=False, err=True)
        elif now >= self._next:
            self._next = now + LINE_EVERY
            click.echo(f"{result.name}: {result.fraction:.0%}, {counts}", err=True)

    def _rate(self, result: ReplayResult, now: float) -> str:
        done = self._done
        done.append((now, result.done))
        while now - done[0][0] > RATE_OVER:
            done.popleft()
        seconds, number = now - done[0][0], result.done - done[0][1]
        if seconds < 1:
            return ""
        rate = number / seconds
        return f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.1f}/s"

    def _left(self, result: ReplayResult, now: float) -> str:
        """By the time that the window covers: of a multiple of the original pace that is exact."""
        from rstream.replay.pace import Speed

        assert self._began is not None
        seconds, share = now - self._began[0], result.fraction - self._began[1]
        if isinstance(self.pace, Speed) and result.start and result.end:
            left = int(self.pace.seconds(0, result.end.ms - (result.read_to or result.position or result.start).ms))
        elif seconds < 2 or share <= 0:
            return ""
        else:
            left = int(seconds / share * (1 - result.fraction))
        hours = f"{left // 3600}:{left // 60 % 60:02}" if left >= 3600 else f"{left // 60}"
        return f", {hours}:{left % 60:02} left"
