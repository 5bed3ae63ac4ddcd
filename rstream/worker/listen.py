"""Listens to the bell for all consumers of a worker, and notices when a stream was resharded, a group paused, and when
deliveries were cancelled.

Cost: a blocked read every `BLOCK_MS`; a small call for all streams when one of them was resharded or a group of it
paused, and every `LOOK`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from rstream.app import RStream
from rstream.errors import StoreError, StoreUnavailable
from rstream.event import EntryId
from rstream.store import bell
from rstream.store import layout as layouts
from rstream.store.bell import Ring
from rstream.store.link import backoff, both
from rstream.store.pause import are_paused
from rstream.worker.groups import extend
from rstream.worker.pausing import heed_all, heed_cancelled
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

BLOCK_MS = 5000
LOOK = 5.0
"""Seconds after which streams are looked at unasked: a ring may get lost, with what Redis has lost."""


async def listen_loop(app: RStream, runs: Sequence[ConsumerRun]) -> None:
    """Runs until cancelled."""
    namespace, pauses = app.settings.namespace, backoff()
    after: bytes | None = None
    before = b""  # where the bell could not be heard: the last ring before that
    looked = float("-inf")
    while True:
        try:
            if after is None:
                after, rings = bell.from_where(before, await app.link.run(bell.last(namespace))), set[Ring]()
            else:
                heard = await app.link.run(bell.listen(namespace, after, BLOCK_MS), timeout=BLOCK_MS / 1000 + 5)
                await _stop(runs, heard.cancelled)
                after, rings = heard.last, heard.rings
            pauses = backoff()
        except StoreError as error:
            log.warning("the bell is not heard: %s", error)
            before, after = after or before or b"0-0", None  # where none was heard, from the first on
            rings = {Ring(run.layout.name, "") for run in runs}  # look at once
            await asyncio.sleep(next(pauses))
        _wake(runs, rings)
        now = asyncio.get_running_loop().time()
        followed = any(ring.group == "" for ring in rings) or any(run.layout.older for run in runs)
        if not followed and now - looked < LOOK:
            continue
        try:
            await _follow_layouts(app, runs)
            looked = now
        except StoreError as error:
            log.warning("layouts not looked at: %s", error)


def _wake(runs: Sequence[ConsumerRun], rings: set[Ring]) -> None:
    for run in runs:
        if rings & {Ring(run.layout.name, run.ops.group), Ring(run.layout.name, "")}:
            run.own.look.set()
            run.look_in(0)


async def _stop(runs: Sequence[ConsumerRun], cancelled: Mapping[Ring, Sequence[EntryId]]) -> None:
    """Raises `StoreUnavailable`: then the same rings are to be heard again."""
    for run in runs:
        if ids := cancelled.get(Ring(run.layout.name, run.ops.group)):
            try:
                await heed_cancelled(run, ids)
            except StoreUnavailable:
                raise
            except StoreError as error:
                log.warning("%s: what was cancelled runs on, its outcome will be refused: %s", run.name, error)


async def _follow_layouts(app: RStream, runs: Sequence[ConsumerRun]) -> None:
    names = sorted({run.layout.name for run in runs})
    groups = [(run.layout.name, run.ops.group) for run in runs]
    namespace = app.settings.namespace
    found, pauses = await app.link.run(both(layouts.generations(namespace, names), are_paused(namespace, groups)))
    heed_all(runs, pauses)
    now = dict(zip(names, found, strict=True))
    for run in runs:
        known = {*dict(run.layout.older), run.layout.generation}
        if (stored := now[run.layout.name]) and stored != known:
            layout = await app.link.run(run.consumer.stream.declaration())
            run.consumer.stream.adopt(layout)
            await extend(run, layout)
        if run.order is None and run.layout.older:
            await _pass_over_drained(run)


async def _pass_over_drained(run: ConsumerRun) -> None:
    """Read no more from shards of older generations in which nothing is left. (A redrive may put something back there:
    then they are looked at again.)
    """
    looks = await run.link.run(run.owners.look(run.layout.every))
    run.shards = tuple(s for s, look in looks.items() if s.generation == run.layout.generation or not look.drained)
