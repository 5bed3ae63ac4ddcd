"""Have a group read again, or skip: `plan` says what would be done, `execute` does it. docs/groups.md explains it.

wanted = run(link, plan(layout, "billing", "-2h"))
run(link, execute(wanted))
"""

from __future__ import annotations

from typing import TypeVar

from rstream.reset.plan import Move, Plan, Reset
from rstream.reset.steps import Steps, execute, plan
from rstream.store.link import SyncLink

__all__ = ["Move", "Plan", "Reset", "execute", "plan", "run"]

R = TypeVar("R")


def run(link: SyncLink, steps: Steps[R], *, within: float = 0.0) -> R:
    """Send what the steps ask for; what came of it. Raises what they raise, and `StoreError`."""
    try:
        op = next(steps)
        while True:
            op = steps.send(link.run(op, within=within))
    except StopIteration as end:
        result: R = end.value
        return result
