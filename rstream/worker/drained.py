"""When a worker that is to end with its work has none left. No Redis call of its own: the readers look."""

from __future__ import annotations

from collections.abc import Sequence

from rstream.worker.run import ConsumerRun


async def drained(runs: Sequence[ConsumerRun]) -> None:
    """Wait until nothing is unread and nothing pending in any of the groups.

    What one group was found to be drained of may have been emitted to another, found drained before. So all have to be
    in one round, in which nothing was in hand and nothing came in.
    """
    quiet = False
    while not quiet:
        before, idle = sum(run.taken for run in runs), not any(run.in_hand for run in runs)
        for run in runs:
            run.drained.clear()
            run.own.has_changed()  # look again now
        for run in runs:
            await run.drained.wait()
        quiet = idle and before == sum(run.taken for run in runs)
