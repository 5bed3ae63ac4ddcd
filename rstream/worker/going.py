"""What a worker that ends leaves to others: at once, and without burning an attempt. A few Redis calls a group."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio

from rstream.errors import StoreError
from rstream.logs import told_by
from rstream.store.deliveries import Fetched
from rstream.worker.own import leave, tell
from rstream.worker.recover import PAGE
from rstream.worker.run import ConsumerRun
from rstream.worker.settle import flush

log = logging.getLogger("rstream")


async def let_others_go_on(runs: Sequence[ConsumerRun], within: float) -> None:
    """Hand over what was not started, and the shards. within: seconds; Redis may be away."""
    for run in runs:
        waiting = [*run.lanes.drain(), *run.loads.drain()]
        run.hand_over([*waiting, *(run.order.drain() if run.order is not None else ())])
    with anyio.move_on_after(within):
        async with anyio.create_task_group() as leaving:
            for run in runs:
                if run.order is not None:
                    with told_by(run.about):
                        leaving.start_soon(leave, run)


async def leave_group(run: ConsumerRun) -> None:
    """Settle what is left, hand over what a cancelled read may have brought, and go."""
    try:
        for shard in run.layout.every:
            mine = await run.link.run(run.ops.mine(shard, "-", PAGE))
            run.hand_over([Fetched(shard, id, (), count, run.hand.source((shard, id), count)) for id, count, _ in mine])
        await flush(run, run.plain)
        await run.link.run(run.ops.leave())
        await tell(run)
    except StoreError as error:
        log.warning("%s: left without saying so, others take over after the lease: %s", run.name, error)
