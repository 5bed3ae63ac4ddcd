"""Adds up what happens to the streams of the app, for `rstream history`.

Every worker has one, and of a stream each sample is taken by one of them, whoever comes first. So it goes on as long as
one worker lives, and what happens while none does is found by the next, which counts it to its own minute.
"""

from __future__ import annotations

import logging

import anyio

from rstream.app import RStream
from rstream.errors import RStreamError, StoreError, one_line
from rstream.store.history import Peek, Place, Witness, look, sample
from rstream.store.steps import Steps, drive

log = logging.getLogger("rstream")

LAST = 2.0
"""Seconds that the last look may take, of a worker that ends."""


class Sampler:
    """Remembers what it has seen: so it notices where Redis has lost it."""

    def __init__(self, app: RStream) -> None:
        self._app = app
        self._witnesses: dict[str, Witness] = {}
        self._told: dict[str, str] = {}

    async def take(self, stream: str, seen: Peek | StoreError) -> None:
        """Take a sample, where it is time for one."""
        if isinstance(seen, StoreError):
            self._tell(stream, seen)
        else:
            witness = self._witnesses.setdefault(stream, Witness())
            await self._go(stream, sample(self._place(stream), witness, seen))

    async def end(self) -> None:
        """Take one of each stream, whatever the time: there may be nobody to do it later. Those that could not be
        looked at before are left to others: this user may have no right to them.
        """
        with anyio.move_on_after(LAST):
            for stream in [name for name in self._app.streams if name not in self._told]:
                await self._go(stream, look(self._place(stream), Witness(), 0))

    def _place(self, stream: str) -> Place:
        return Place(self._app.settings.namespace, stream)

    async def _go(self, stream: str, steps: Steps[object]) -> None:
        try:
            await drive(self._app.link, steps, 0.0)
            self._told.pop(stream, None)
        except (RStreamError, LookupError, ValueError, TypeError, OverflowError) as error:
            # Also a declaration that cannot be read, or what somebody wrote where numbers should be. Nothing is lost by
            # it: the next sample that can be taken has it.
            self._tell(stream, error)

    def _tell(self, stream: str, error: Exception) -> None:
        text = one_line(error)
        if self._told.get(stream) != text:
            log.warning("stream %r: its history was not added to: %s", stream, text)
        self._told[stream] = text
