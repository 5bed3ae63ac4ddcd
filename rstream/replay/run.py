"""Replays a window through a handler; no group of the stream notices."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rstream.calling import Handler
from rstream.codec import ModelCodec
from rstream.consumer import MAX_BATCH, batch_of, codec_of
from rstream.errors import ConfigError, RStreamError
from rstream.event import Entry
from rstream.logs import told_by
from rstream.position import Position
from rstream.replay.backlog import Backlog
from rstream.replay.calls import Batches, Calls, Context, Singles
from rstream.replay.reading import ahead, chunks
from rstream.replay.result import ReplayResult
from rstream.replay.runner import LEASE, Runner
from rstream.replay.spec import name_of
from rstream.store import layout as layouts
from rstream.store.layout import Layout
from rstream.store.replays import Window

if TYPE_CHECKING:
    from rstream.stream import Stream

log = logging.getLogger("rstream")

CHUNK = 256
"""Entries that are begun at once."""

SPAN = 4096
"""Entries from the first that is not done to the newest that was begun: bounds what is stored beyond the position."""

TURN_SECONDS = 0.005
"""Handlers that never wait let the loop's other tasks run this often."""


class Replay(Runner):
    """See `rstream.replay.replay` for the arguments. Runs once.

    handler_name: how to name the handler, default its module and name · notice: told, in a line, why it waits ·
    lease: seconds.
    """

    way = "handler"

    def __init__(
        self,
        stream: Stream[Any],
        handler: Handler,
        start: Position,
        end: Position,
        *,
        key: str | None = None,
        where: Sequence[str] = (),
        rate: str | float | None = None,
        speed: str | float | None = None,
        name: str | None = None,
        batch: int | None = None,
        concurrency: int | None = None,
        ordered: bool = True,
        restart: bool = False,
        progress: Callable[[ReplayResult], None] | None = None,
        handler_name: str | None = None,
        notice: Callable[[str], None] = log.info,
        lease: float = LEASE,
    ) -> None:
        if batch is not None and not 1 <= batch <= MAX_BATCH:
            raise ConfigError(f"batch is {batch}, it must be between 1 and {MAX_BATCH:,}")
        size = batch_of(handler, batch)
        if concurrency is None:
            concurrency = 16 if size is None else 1
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}, it must be at least 1")
        super().__init__(
            stream, start, end, {"handler": handler_name or name_of(handler)}, key=key, where=where, rate=rate,
            speed=speed, name=name, restart=restart, progress=progress, notice=notice, lease=lease,
        )  # fmt: skip
        self.concurrency, self.batch = concurrency, size
        self._codec = codec_of(handler) or stream.codec
        self._decode = stream.claims.decoder(self._codec)
        self._context = Context(stream.name, self.name, self._ops.holder, self._log_aside)
        kind = Singles if size is None else Batches
        self._calls: Calls = kind(self._context, handler, concurrency)
        # At a pace, what waits is no more than what is handled at once: else it would come in a burst after a stall.
        self._backlog = Backlog(ordered, size or 1, None if self.pace is None else concurrency * (size or 1))
        self._span = max(SPAN, (concurrency + 2) * (size or 1))

    async def _check(self, layout: Layout) -> None:
        if isinstance(self._codec, ModelCodec):  # of a stream that may not be in use here
            self._codec.upgrades.settle(layout.name, layout.schemas)
        if self.name in await self._send(layouts.groups(layout.every)):
            raise ConfigError(
                f"{self.name!r} is a live consumer group of stream {self.stream.name!r}, and a replay touches none: "
                "name the replay otherwise, or leave the name out"
            )

    def stop(self) -> None:
        super().stop()
        self._backlog.close(drop=True)

    async def _work(self, layout: Layout, window: Window) -> None:
        try:
            async with asyncio.TaskGroup() as slots:
                with told_by(self._context.about):
                    for _ in range(self.concurrency):
                        slots.create_task(self._slot())
                await self._feed(layout, window)
                self._backlog.close()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _feed(self, layout: Layout, window: Window) -> None:
        read = ahead(self._left(layout, window))
        try:
            async for page in read:
                for chunk in chunks(page, CHUNK):
                    if not await self._admit(chunk):
                        return
            self._read_all = True
        except RStreamError as error:
            self._fail(error)  # what runs may finish
        finally:
            await read.aclose()

    async def _admit(self, chunk: Sequence[Entry[Any]]) -> bool:
        """Queue entries as soon as there is room, and at their time. False where the replay was stopped instead."""
        known = self._mark.begin(entry.id for entry in chunk)
        if known:
            chunk = [entry for entry in chunk if entry.id not in known]
        found = await self._sifted(chunk)
        if found.others:
            self._mark.end(found.others)
        async for part in self._paced(found.matching):
            while (self._backlog.full or self._mark.open > self._span) and not self._stop_asked.is_set():
                await self._backlog.room()
            if self._stop_asked.is_set():
                break
            self._backlog.put(part)
        return not self._stop_asked.is_set()

    async def _slot(self) -> None:
        yielded = time.perf_counter()
        while entries := await self._backlog.take():
            while not self._keeper.holds():
                if self._stop_asked.is_set():
                    return
                await asyncio.sleep(0.05)
            if not await self.stream.claims.open_all(entries, self._stop_asked):
                return
            self._mark.end(await self._calls.handle(entries))
            self._backlog.done(entries)
            if time.perf_counter() - yielded > TURN_SECONDS:
                await asyncio.sleep(0)
                yielded = time.perf_counter()
