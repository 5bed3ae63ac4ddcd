"""Heeds what somebody did by hand to a group: paused or resumed it, or cancelled some of its deliveries.

While a group is paused nothing new is read, taken over or begun; what runs ends and is settled, and what is in hand
stays there, unbegun (in a group without order it goes back after half a second, as what waits too long does). Leases
and shards are kept. What Redis says of it decides, whatever was heard. Cost: nothing on the way of an entry but a look
at a flag.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from rstream.event import EntryId
from rstream.store.pause import Pause, are_paused
from rstream.worker.groups import START_WITHIN
from rstream.worker.order import Place
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")


async def begin_paused(run: ConsumerRun) -> None:
    """Before anything is read: a group may be paused already. Raises `StoreUnavailable`."""
    group = (run.layout.name, run.ops.group)
    found = await run.link.run(are_paused(run.layout.namespace, [group]), within=START_WITHIN)
    heed(run, found.get(group))


def heed_all(runs: Iterable[ConsumerRun], found: Mapping[tuple[str, str], Pause]) -> None:
    """What Redis says of the groups of these."""
    for run in runs:
        heed(run, found.get((run.layout.name, run.ops.group)))


def heed(run: ConsumerRun, pause: Pause | None) -> None:
    """The group is paused, or is not."""
    if (pause is None) is not run.lanes.paused:
        return
    if pause is not None:
        told = f": {pause.why}" if pause.why else ""
        log.warning("%s: paused by %s%s. Nothing new is begun until it is resumed", run.name, pause.by, told)
    else:
        log.info("%s: resumed", run.name)
    run.lanes.pause(pause is not None)
    run.own.has_changed()  # who waits for entries waits in vain, or has waited long enough
    run.look_in(0)


async def heed_cancelled(run: ConsumerRun, ids: Sequence[EntryId]) -> None:
    """Somebody settled these by hand. Raises `StoreError`.

    What runs on the loop is cancelled; what waits is not begun; what runs elsewhere runs on, its outcome is not sent.
    """
    shards = {(shard.generation, shard.number): shard for shard in run.layout.every}
    named: list[Place] = [(shards[id[2:]], id.redis.encode()) for id in ids if id[2:] in shards]
    elsewhere = run.order.elsewhere if run.order is not None else ()
    known = [place for place in named if place in run.hand.terms or place in elsewhere]
    if not known:
        return
    # It may have been given to the group again since.
    holders = await run.link.run(run.owners.holders(known))
    for place, holder in zip(known, holders, strict=True):
        if not holder:
            _cancel(run, place)


def _cancel(run: ConsumerRun, place: Place) -> None:
    if place not in run.hand.terms:
        if run.order is not None and place in run.order.elsewhere:
            run.now_is(*place, "ended")
        return
    run.hand.cancel(place)
    handler = run.on_loop.get(place)
    if handler is not None:
        handler.cancel()
    what = (
        "its handler is stopped" if handler is not None else "it is not begun; where it was, its outcome is not taken"
    )
    log.warning("%s: entry %s was cancelled by hand: %s", run.name, place[0].entry_id(place[1]), what)
