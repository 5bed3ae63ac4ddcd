"""How fast a replay goes: so many entries in a time, or a multiple of the pace at which they were published. Pure.

A pace is asked which of the next entries may go now, and when the one after them may. What was missed, because
handlers were slow or the process stood still, is made up for only as far as `SLACK` says: nothing comes in a burst.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from rstream.errors import ConfigError

RATE_SLACK = 0.25
SPEED_SLACK = 1.0
"""Seconds that are made up for. Of a speed more: what came at once then is due at once, and takes its time now."""

_RATE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:/\s*(s|m|h))?", re.ASCII)
_SPEED = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*x?", re.ASCII | re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
MOST, LEAST = 1e9, 1e-6


class Pace(Protocol):
    def grant(self, times: Sequence[int], now: float) -> tuple[int, float]:
        """times: when the next entries were published, in ms, ascending, at least one · now: a clock's seconds.

        How many of them may go now; and in how many seconds the one after these may (0.0 where that is not among them).
        """

    def seconds(self, entries: int, span_ms: int) -> float:
        """How long so many entries take at least, published over that time."""

    def __str__(self) -> str: ...


class Rate:
    """So many entries a second, evenly."""

    def __init__(self, per_second: float) -> None:
        self.per_second = _checked(per_second, "rate", "entries a second")
        self._due: float | None = None

    def grant(self, times: Sequence[int], now: float) -> tuple[int, float]:
        due = now if self._due is None else max(self._due, now - RATE_SLACK)
        # Of an entry: that the one waited for has come, whatever the fractions of a second are rounded to.
        number = min(len(times), math.floor((now - due) * self.per_second + 1e-6) + 1) if now >= due else 0
        self._due = due + number / self.per_second
        return number, max(0.0, self._due - now) if number < len(times) else 0.0

    def seconds(self, entries: int, span_ms: int) -> float:
        return max(0, entries - 1) / self.per_second

    def __str__(self) -> str:
        return f"{self.per_second:g}/s"


class Speed:
    """A multiple of the original pace: what was published a minute apart comes a minute / factor apart."""

    def __init__(self, factor: float) -> None:
        self.factor = _checked(factor, "speed", "times the original pace")
        self._began, self._first = 0.0, -1

    def grant(self, times: Sequence[int], now: float) -> tuple[int, float]:
        if self._first < 0:
            self._began, self._first = now, times[0]
        self._began = max(self._began, now - SPEED_SLACK - self._after(times[0]))
        reached = (now - self._began) * 1000 * self.factor + self._first
        number = bisect_right(times, reached + 1e-6)  # of a millisecond: that the one waited for has come
        if number == len(times):
            return number, 0.0
        return number, max(0.0, self._began + self._after(times[number]) - now)

    def _after(self, ms: int) -> float:
        return (ms - self._first) / 1000 / self.factor

    def seconds(self, entries: int, span_ms: int) -> float:
        return max(0, span_ms) / 1000 / self.factor

    def __str__(self) -> str:
        return f"{self.factor:g}x"


def pace(rate: str | float | None, speed: str | float | None) -> Pace | None:
    """None for as fast as it goes. rate: entries a second, or `200/s`, `30/m`, `10/h` · speed: 10, or `10x`.

    Raises `ConfigError`.
    """
    if rate is not None and speed is not None:
        raise ConfigError(f"a rate ({rate}) and a speed ({speed}): give one of them")
    if rate is not None:
        return Rate(_number(rate, "rate", "200/s, 30/m or 10/h"))
    return None if speed is None else Speed(_number(speed, "speed", "10x or 0.5x"))


def _number(told: str | float, what: str, such_as: str) -> float:
    if not isinstance(told, str):
        return told
    match = (_RATE if what == "rate" else _SPEED).fullmatch(told.strip())
    if match is None:
        raise ConfigError(f"{what} {told!r} cannot be read: write {such_as}")
    return float(match[1]) / (_SECONDS[match[2] or "s"] if what == "rate" else 1)


def _checked(number: float, what: str, unit: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not LEAST <= number <= MOST:
        raise ConfigError(f"{what} is {number!r}, it must be a number of {unit} between {LEAST:g} and {MOST:g}")
    return float(number)
