"""benchmarks/RESULTS.md: what was found, on what, and what cannot be compared. Pure but for the versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version

from benchmarks.entrants import ARQ, PEERS
from benchmarks.table import Table, markdown
from benchmarks.targets import rows, verdicts

OURS = ["rstream", "redis", "hiredis", "pydantic"]
THEIRS = {
    PEERS: [
        *("celery", "kombu", "dramatiq", "taskiq", "taskiq-redis"),
        *("streaq", "coredis", "faststream", "redis", "hiredis"),
    ],
    ARQ: ["arq", "redis", "hiredis"],
}
ASK = """import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))"""
LIMITS = """\
- A queue that deletes what was handled (Celery, dramatiq, arq, streaQ) and a log that keeps it (rstream, and the
  streams of taskiq and FastStream) do not do the same work; the memory table has waiting messages, which both hold.
- rstream validates each event when it is handled, keeps leases, fences each settle and routes by key to 8 shards.
  None of the peers does; where they could validate, that is off, in their favour, but for one line that says so.
- Celery, dramatiq, arq and taskiq have no call that publishes many, and no handler that takes a batch; none of the
  peers keeps order per key while it handles in parallel. So they are not in those tables.
- arq has no blocking read: its latency is its poll interval, set to 10 ms (its default: 500 ms).
- A rate is what the handlers counted. What was counted and not yet acked when the worker was stopped, at most what it
  had prefetched, is in everybody's rate.
- The raw limits are not queues: nothing is retried, nobody takes over.
- The mix and the recovery have scaled clocks; round trips and start-up are not scaled, so short times look longer there
  than they are beside a real 12 minutes, for all alike.
"""


def results(tables: list[Table], server: str, load: tuple[float, float]) -> str:
    found = verdicts({table.key: table for table in tables})
    met = sum(verdict.met is True for verdict in found)
    lines = [
        "# Results of `make bench`",
        "",
        "Written by the run itself. [How it is measured, and how to run it](../docs/benchmarks.md). All ratios are of "
        "figures of one run, of contestants that took turns; in brackets the least and the greatest of the rounds.",
        "",
        f"On {os.cpu_count()} cores, {platform.system()} {platform.machine()}, {platform.python_implementation()} "
        f"{platform.python_version()}, {server} (appendonly yes, appendfsync everysec, by TCP). "
        f"{', '.join(f'{name} {version(name)}' for name in OURS)}. Peers: {peers()}.",
        "",
        f"Before it began, {load[0]:.1f} processes of the machine wanted to run, at its end {load[1]:.1f}"
        + (": **it was busy with other work**, so wall times are of what was left to each." if load[0] > 1 else "."),
        "",
        f"## Targets: {met} of {len(found)} met",
        "",
        "| workload | target | measured | by CPU time | |",
        "| --- | --- | --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in rows(found)),
        "",
        "![Bars of all workloads](results.svg)",
        "",
        "## What cannot be compared, or not quite",
        "",
        LIMITS,
        "## All figures",
        "",
        *(markdown(table) for table in tables),
    ]
    return "\n".join(lines).rstrip() + "\n"


def peers() -> str:
    """Their versions, as their virtual environments have them."""
    told = []
    for venv, names in THEIRS.items():
        python = venv / "bin" / "python"
        if python.exists():
            done = subprocess.run([str(python), "-c", ASK, *names], capture_output=True, text=True, check=True)
            found: Mapping[str, str] = json.loads(done.stdout)
            told.append(", ".join(f"{name} {found[name]}" for name in names))
    return "; ".join(told) or "not installed"
