"""`make bench`: rstream beside its peers and the raw limits. Prints the tables; writes RESULTS.md and results.svg.

`python -m benchmarks --quick`: rstream and the raw limits alone, in a minute, nothing written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import chart, report
from benchmarks.harness import Bench, Failed, bench
from benchmarks.table import Series, Table, text
from benchmarks.targets import rows, verdicts
from benchmarks.workloads.cost import idle, imports, memory
from benchmarks.workloads.crash import mix, recovery
from benchmarks.workloads.drain import drain, waiting
from benchmarks.workloads.growth import growth
from benchmarks.workloads.latency import latency
from benchmarks.workloads.publish import publish
from benchmarks.workloads.rounds import Plan

WORKLOADS: dict[str, Callable[[Bench, Plan], list[Table]]] = {
    "publish": publish,
    "drain": drain,
    "latency": latency,
    "io": waiting,
    "mix": mix,
    "recovery": recovery,
    "memory": memory,
    "idle": idle,
    "import": imports,
    "growth": growth,
}
QUICK = ["publish", "drain", "latency"]
CHARTED = ["publish", "concurrent", "many", "drain", "batch", "io", "p50", "p99", "memory", "recovery"]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rstream and the raw limits alone, nothing written")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each contestant (5)")
    parser.add_argument("--scale", type=float, metavar="X", help="of all counts (1; quick: 0.5)")
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(WORKLOADS)}; nothing is written then")
    parser.add_argument("--verbose", action="store_true", help="tell each round")
    given = parser.parse_args(arguments)
    names = given.only.split(",") if given.only else QUICK if given.quick else [*WORKLOADS]
    if unknown := set(names) - set(WORKLOADS):
        parser.error(f"there is no {', '.join(sorted(unknown))}: there are {', '.join(WORKLOADS)}")
    plan = Plan(given.rounds, given.scale or (0.5 if given.quick else 1.0), peers=not given.quick)
    load, began, server, tables = os.getloadavg()[0], time.monotonic(), "", list[Table]()
    for name in names:
        with bench(quiet=not given.verbose) as one:
            server = one.server.version
            found = attempt(name, one, plan)
        for table in found:
            print(text(table), flush=True)
        tables += found
    tell(tables)
    print(f"\n{time.monotonic() - began:.0f} s")
    if not (given.quick or given.only):
        write(Path(__file__).parent, tables, server, (load, os.getloadavg()[0]))
    return tables


def attempt(name: str, one: Bench, plan: Plan) -> list[Table]:
    """What could not be run at all is a table, too: the others shall not be lost for it."""
    try:
        return WORKLOADS[name](one, plan)
    except Failed as error:
        return [Table(name, name.capitalize(), "", [Series("rstream", "ours", failed=str(error))])]


def tell(tables: list[Table]) -> None:
    """The targets, in columns."""
    lines = rows(verdicts({table.key: table for table in tables}))
    if not lines:
        return
    lines.insert(0, ["Targets", "", "measured", "by CPU time", ""])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    print()
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(folder: Path, tables: list[Table], server: str, load: tuple[float, float]) -> None:
    (folder / "RESULTS.md").write_text(report.results(tables, server, load), "utf-8")
    charted = [table for key in CHARTED for table in tables if table.key == key]
    (folder / "results.svg").write_text(chart.svg(charted), "utf-8")
    print(f"written: {folder.name}/RESULTS.md, {folder.name}/results.svg", file=sys.stderr)


if __name__ == "__main__":
    main()
