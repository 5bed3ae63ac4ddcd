"""What a check says. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "problem"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
"""From the least to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """level: "note" is good to know, "warning" will hurt some day, "problem" hurts now, or the next time that
    something fails · code: a name that stays, as docs/doctor.md lists it · where: server, stream, group · what: was
    found · why: that matters · do: what to do, commands among it.
    """

    level: Level
    code: str
    where: str
    what: str
    why: str = ""
    do: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        return LEVELS.index(self.level)

    def of_app(self, spec: str) -> Finding:
        """With the app's name in what to do."""
        return replace(self, do=tuple(line.replace("MODULE:APP", spec) for line in self.do))

    def to_json(self) -> dict[str, Any]:
        told = {"level": self.level, "code": self.code, "where": self.where, "what": self.what}
        return told | {"why": self.why or None, "do": list(self.do)}


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """1 where something is a problem; where strict, also for a warning."""
    worst = max((finding.rank for finding in findings), default=0)
    return int(worst >= LEVELS.index("warning" if strict else "problem"))


def some(names: Iterable[object], most: int = 5) -> str:
    """The first few, and how many more."""
    every = [str(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
