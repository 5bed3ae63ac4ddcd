"""What handlers wrote down, and what it says of a worker that was killed. Pure.

A line is `begin n seconds time pid` or `end n seconds time pid`; all times are of the machine's monotonic clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple


class Call(NamedTuple):
    """One call of a handler. seconds: what it was to last · end: None where none was written down."""

    n: int
    seconds: float
    pid: int
    begin: float
    end: float | None

    def ran_at(self, time: float) -> bool:
        return self.begin < time and (self.end is None or self.end > time)


class Again(NamedTuple):
    """What ran on the killed worker, and seconds from the kill until it began elsewhere; None: it had not."""

    n: int
    after: float | None


def calls(lines: Iterable[Sequence[str]]) -> dict[int, list[Call]]:
    """The calls for each event, as they began."""
    open_at: dict[tuple[int, int], list[Call]] = defaultdict(list)
    for what, n, seconds, time, pid in sorted(lines, key=lambda line: float(line[3])):
        mine = open_at[int(n), int(pid)]
        if what == "begin":
            mine.append(Call(int(n), float(seconds), int(pid), float(time), None))
        elif mine:
            mine[-1] = mine[-1]._replace(end=float(time))
    found: dict[int, list[Call]] = defaultdict(list)
    for (n, _), several in open_at.items():
        found[n] += several
    return {n: sorted(several, key=lambda call: call.begin) for n, several in found.items()}


def taken_over(history: dict[int, list[Call]], killed: Collection[int], at: float) -> list[Again]:
    """Of each event that a killed process handled at the time of its death."""
    found = []
    for n, several in history.items():
        if any(call.pid in killed and call.ran_at(at) for call in several):
            later = [call.begin - at for call in several if call.pid not in killed and call.begin > at]
            found.append(Again(n, min(later, default=None)))
    return found


def duplicates(history: dict[int, list[Call]], killed: Collection[int], at: float) -> int:
    """Calls that began although an earlier one had ended, or ran in a process that was alive."""
    found = 0
    for several in history.values():
        for index, call in enumerate(several):
            found += any(before.end is not None or before.pid not in killed or call.begin < at
                         for before in several[:index])  # fmt: skip
    return found


def delays(history: dict[int, list[Call]], published: dict[int, float], until: float) -> list[float]:
    """Seconds from publishing to the first call; up to `until` for those that had none."""
    return [(history[n][0].begin if n in history else until) - time for n, time in published.items()]
