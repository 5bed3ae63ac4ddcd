"""The loop that archives a stream: in workers, for the streams that are declared with `archive`, and in `rstream
archive run`. One archiver at a time is at work, by a short lease; see archiver.py for why none is needed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from rstream.archive.archiver import Archiver
from rstream.archive.sweep import sweep
from rstream.errors import ConfigError, RStreamError
from rstream.logs import about
from rstream.process import clock, worker_id
from rstream.store import archiving
from rstream.store.layout import Layout
from rstream.store.link import backoff
from rstream.store.steps import drive

if TYPE_CHECKING:
    from rstream.stream import Stream

log = logging.getLogger("rstream")

LOOK_EVERY = 1.0
LEASE, LEAVE = 10.0, 2.0
ABREAST = 4
"""Shards that are archived at once."""

SWEEP_EVERY = 6 * 3600.0


class ArchiveRun:
    """every: seconds after which also little is archived, default as the stream is declared. Raises `ConfigError`."""

    def __init__(self, stream: Stream[Any], every: float | None = None) -> None:
        if stream.past is None:
            raise ConfigError(
                "there is no blob store to archive to: name it by --blobs, RSTREAM_BLOBS or RStream(blobs=…)"
            )
        self._stream, self._past = stream, stream.past
        self._archiver = Archiver(stream.past, every or stream.archive or 60.0)
        self._me = worker_id()
        self._swept = clock()

    async def once(self) -> int:
        """Archive everything there is; how many entries. Raises `StoreError`, `BlobError`, `ArchiveDamaged`, and
        `ConfigError` where it was switched off.
        """
        layout = await self._stream.layout(fresh=True)
        found, holder = await self._cycle(layout, everything=True)
        await self.leave()
        if holder == archiving.STOPPED:
            raise ConfigError(
                f"archiving stream {layout.name!r} was switched off: first run `rstream archive start {layout.name}`"
            )
        return found

    async def forever(self) -> None:
        """Until cancelled; what fails is tried again."""
        try:
            await self._go_on()
        finally:
            with anyio.move_on_after(LEAVE, shield=True), suppress(RStreamError):
                await self.leave()

    async def _go_on(self) -> None:
        pauses, failed = backoff(cap=10.0), ""
        while True:
            try:
                await self._cycle(await self._stream.layout(fresh=True))
                pauses, failed = backoff(cap=10.0), ""
                await asyncio.sleep(LOOK_EVERY)
            except Exception as error:  # whatever it is, it must not end a worker
                if type(error).__name__ != failed:
                    unknown = None if isinstance(error, RStreamError) else error
                    name, extra = self._stream.name, about({"stream": self._stream.name})
                    log.error("stream %s: archiving waits: %s", name, error, exc_info=unknown, extra=extra)
                failed = type(error).__name__
                await asyncio.sleep(next(pauses))

    async def leave(self) -> None:
        """So that the next archiver need not wait."""
        layout = await self._stream.layout()
        await self._stream.app.link.run(archiving.hold(layout, "leave", self._me))

    async def _cycle(self, layout: Layout, *, everything: bool = False) -> tuple[int, str]:
        """How many entries were archived, and who holds the lease."""
        link, within = self._stream.app.link, self._stream.app.settings.publish_timeout
        holder = await link.run(archiving.hold(layout, "take", self._me, int(LEASE * 1000)))
        if holder == archiving.STOPPED or (holder != self._me and not everything):
            return 0, holder
        waiting, found = await drive(link, self._archiver.due(layout, everything=everything), within), 0

        async def some() -> None:
            nonlocal found
            while waiting:
                steps = self._archiver.shard(layout, waiting.pop(0), everything=everything)
                number = await drive(link, steps, within)
                found += number
                await link.run(archiving.hold(layout, "take", self._me, int(LEASE * 1000)))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(ABREAST, len(waiting))):
                    group.create_task(some())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if clock() - self._swept > SWEEP_EVERY:
            self._swept = clock()
            await link.run(self._past.do(lambda: sweep(self._past.vault)))
        return found, holder
