"""Have a group read again, or skip: `plan` says what would be done, `execute` does it. docs/groups.md explains it.

wanted = drive_sync(link, plan(layout, "billing", "-2h"), within)
drive_sync(link, execute(wanted), within)
"""

from __future__ import annotations

from rstream.reset.plan import Move, Plan, Reset
from rstream.reset.steps import execute, plan

__all__ = ["Move", "Plan", "Reset", "execute", "plan"]
