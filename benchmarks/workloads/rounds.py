"""Contestants take turns: one round of each, then the next round. One that fails is out, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.entrants import Contestant
from benchmarks.harness import Bench, Failed
from benchmarks.table import Rate, Series


@dataclass(frozen=True, eq=False)
class Plan:
    """rounds: of each contestant · scale: of all counts · peers: whether they take part."""

    rounds: int = 5
    scale: float = 1.0
    peers: bool = True

    def count(self, many: int, least: int = 100) -> int:
        return max(round(many * self.scale), least)

    def chosen(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        return [each for each in entrants if self.peers or each.contestant.kind != "peer"]


@dataclass(frozen=True, eq=False)
class Entrant:
    """name: as the table has it · mode: of its worker · count: how much of the work is enough for about a second ·
    by: the function that publishes · handler: to whom."""

    name: str
    contestant: Contestant
    count: int
    mode: str = ""
    by: str = "publish_many"
    handler: str = "noop"


def take_turns(bench: Bench, plan: Plan, rounds: dict[Entrant, Callable[[], Rate]]) -> list[Series]:
    """The figures of all, in their order."""
    series = {entrant: Series(entrant.name, entrant.contestant.kind) for entrant in rounds}
    for turn in range(plan.rounds):
        for entrant, run in rounds.items():
            if series[entrant].failed:
                continue
            try:
                found = run()
            except (Failed, ValueError) as error:
                series[entrant].failed = str(error)
                bench.say(f"    {entrant.name}: {error}")
                continue
            series[entrant].values.append(found.per_second)
            series[entrant].cpu.append(found.cpu)
            bench.say(f"    {turn + 1} {entrant.name}: {found.per_second:,.0f}")
    return [*series.values()]


def missing(entrants: Sequence[Entrant]) -> list[Series]:
    """Those whose virtual environment is not there."""
    reason = "not installed (`make bench` does it)"
    return [Series(e.name, e.contestant.kind, failed=reason) for e in entrants if not e.contestant.installed]
