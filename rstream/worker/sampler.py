"""Adds up what happens to the streams of the app, for `rstream history`.

Every worker has this loop; of a stream each sample is taken by one of them, whoever comes first. So it goes on as long
as one worker lives, and what happens while none does is found by the next, which counts it to its own minute. Cost:
every `EVERY_MS`, or `IDLE` times that while there is no news or others tell it, a small call for each stream; and where
this worker takes the sample, what history.py says.
"""

from __future__ import annotations

import asyncio
import logging
import random

import anyio

from rstream.app import RStream
from rstream.errors import StoreError
from rstream.store.history import EVERY_MS, Place, Witness, look
from rstream.store.steps import drive

log = logging.getLogger("rstream")

IDLE = 2
LAST = 2.0
"""Seconds that the last look may take, of a worker that ends."""


class Sampler:
    """Remembers what it has seen: so it notices where Redis has lost it."""

    def __init__(self, app: RStream) -> None:
        self._app = app
        self._witnesses: dict[str, Witness] = {}
        self._told = ""

    async def look(self, every_ms: int = EVERY_MS) -> bool:
        """At all streams of the app; whether this told news. Raises the last `StoreError`, at the end."""
        news, failed = False, None
        for name in list(self._app.streams):
            witness = self._witnesses.setdefault(name, Witness())
            steps = look(Place(self._app.settings.namespace, name), witness, every_ms)
            try:
                done = await drive(self._app.link, steps, 0.0)
                news = news or (done.taken and done.news)
            except StoreError as error:  # the others may be on another server of the cluster
                failed = error
        if failed is not None:
            raise failed
        return news

    async def forever(self) -> None:
        """Runs until cancelled."""
        while True:
            news = await self._try(EVERY_MS)
            await asyncio.sleep(EVERY_MS / 1000 * random.uniform(1.0, 1.1) * (1 if news else IDLE))

    async def end(self) -> None:
        """What happened until now: there may be nobody to look later."""
        with anyio.move_on_after(LAST):
            await self._try(0)

    async def _try(self, every_ms: int) -> bool:
        try:
            news = await self.look(every_ms)
            self._told = ""
            return news
        except StoreError as error:  # nothing is lost by that: the next sample has it
            if self._told != str(error):
                log.warning("the history was not added to: %s", error)
            self._told = str(error)
            return False
