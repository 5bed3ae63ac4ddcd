"""Sums up what happened to single entries: when not each was told (see `rstream.logs.Voice`), or at the end."""

from __future__ import annotations

import asyncio

from rstream.logs import WINDOW, about
from rstream.worker.about import log
from rstream.worker.run import ConsumerRun

UNSETTLED = (
    "%s: %d outcomes were not settled when the worker ended, %g s after Redis stopped answering: whoever takes these "
    "entries over handles them again"
)


async def say_loop(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    while True:
        await asyncio.sleep(WINDOW)
        run.voice.rest(all=False)


def unsettled(run: ConsumerRun, waited: float) -> None:
    """What is in hand at the end has an outcome, which Redis was not told of in so many seconds."""
    if run.in_hand:
        log.warning(UNSETTLED, run.name, run.in_hand, waited, extra={"rstream": run.about(None)})


def tell_each(run: ConsumerRun, what: str, took: float) -> None:
    """A call of the handler has ended, well or not; where somebody wants to know of each."""
    extra = about({"duration_ms": round(took * 1000, 3)})
    log.debug("%s: the call with %s ended after %.1f ms", run.name, what, took * 1000, extra=extra)
