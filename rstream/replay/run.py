"""One run of a replay, from taking the lease to letting go of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from rstream.blobs.claims import size_of
from rstream.calling import Handler
from rstream.codec import ModelCodec
from rstream.consumer import codec_of, one_by_one
from rstream.delivery import Delivery
from rstream.errors import ConfigError, EntryInvalid, PositionError, ReplayBusy, RStreamError, StoreError, one_line
from rstream.event import Entry, EntryId
from rstream.position import Position, bound
from rstream.process import clock, worker_id
from rstream.replay.backlog import Backlog
from rstream.replay.keeper import Keeper
from rstream.replay.mark import ASIDE, Mark
from rstream.replay.result import ReplayPlan, ReplayResult
from rstream.replay.spec import default_name, name_of, refuse_other, spec_of
from rstream.settings import check_name
from rstream.store import layout as layouts
from rstream.store import replays
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.log import Cursor
from rstream.store.replays import Held, Outcome, Progress, ReplayOps, Saved, Window

if TYPE_CHECKING:
    from rstream.stream import Stream

T = TypeVar("T")

log = logging.getLogger("rstream")

LEASE = 5.0
"""Seconds until a runner that was killed can be followed by the next."""

SPAN = 4096
"""Entries from the first that is not done to the newest that was begun: bounds what is stored beyond the position."""

TURN_SECONDS = 0.005
"""Handlers that never wait let the loop's other tasks run this often."""


class Replay:
    """See `rstream.replay.replay` for the arguments. Runs once.

    handler_name: how to name the handler, default its module and name · notice: told, in a line, why it waits ·
    lease: seconds.
    """

    def __init__(
        self,
        stream: Stream[Any],
        handler: Handler,
        start: Position,
        end: Position,
        *,
        key: str | None = None,
        name: str | None = None,
        concurrency: int = 16,
        ordered: bool = True,
        restart: bool = False,
        progress: Callable[[ReplayResult], None] | None = None,
        handler_name: str | None = None,
        notice: Callable[[str], None] = log.info,
        lease: float = LEASE,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}, it must be at least 1")
        settings = stream.app.settings
        self.stream, self.key, self.concurrency = stream, key, concurrency
        self._start, self._end = start, end
        self._spec = spec_of(start, end, key, handler_name or name_of(handler))
        self.name = check_name("replay", name or default_name(stream.name, self._spec))
        self._codec = codec_of(handler) or stream.codec
        self._decode = stream.claims.decoder(self._codec)
        self._call = one_by_one(handler, concurrency)
        self._restart, self._progress, self._notice = restart, progress, notice
        self._ops = ReplayOps(settings.namespace, stream.name, self.name, worker_id(), int(lease * 1000))
        self._keeper = Keeper(
            stream.app.endpoint, self._ops, lambda: self._mark.progress(), self._kept_no_more,
            lease=lease, patience=settings.publish_timeout,
        )  # fmt: skip
        self._mark = Mark(Progress())
        self._backlog = Backlog(ordered)
        self._window: Window | None = None
        self._resumed = Progress()
        self._read_all = False
        self._set_aside = 0
        self._stop_asked = asyncio.Event()
        self._error: RStreamError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = clock()

    # -- for whoever runs it ------------------------------------------------------------------------------------

    async def run(self) -> ReplayResult:
        """Run to the end of the window, or until `stop()`."""
        self._loop, self._began = asyncio.get_running_loop(), clock()
        layout = await self.stream.layout(fresh=True)
        if isinstance(self._codec, ModelCodec):  # of a stream that may not be in use here
            self._codec.upgrades.settle(layout.name, layout.schemas)
        await self._refuse_group(layout)
        saved = await self._take()
        if saved is None:
            return self.result()
        try:
            await self._open(layout, saved)
            await self._work(layout)
        except BaseException:
            await self._leave()
            raise
        await self._end_well()
        return self.result()

    def stop(self) -> None:
        """End gracefully: what runs may finish, and what is done is stored exactly. To be called in the loop."""
        self._stop_asked.set()
        self._backlog.close(drop=True)

    def abandon(self) -> None:
        """Store what is done, for a process that is about to end at once. Any thread; blocks."""
        self._keeper.leave_now()

    def result(self) -> ReplayResult:
        """How far it is."""
        now, before, window = self._mark.progress(), self._resumed, self._window
        counts = {outcome: now.counts[outcome] for outcome in replays.OUTCOMES}
        for outcome in now.beyond.values():
            counts[outcome] += 1
        aside = sorted(now.aside.items())
        return ReplayResult(
            name=self.name,
            stream=self.stream.name,
            start=window and window.start,
            end=window and window.end,
            finished=self._finished,
            position=now.position,
            handled=counts["handled"],
            failed=counts["failed"],
            invalid=counts["invalid"],
            failed_ids=tuple(id for id, outcome in aside if outcome == "failed"),
            invalid_ids=tuple(id for id, outcome in aside if outcome == "invalid"),
            resumed_from=before.position,
            earlier=sum(before.counts.values()) + len(before.beyond),
            seconds=clock() - self._began,
        )

    async def plan(self) -> ReplayPlan:
        """What `run` would do; changes nothing and calls no handler. Reads the window."""
        layout = await self.stream.layout(fresh=True)
        await self._refuse_group(layout)
        saved = Saved({}, None, Progress()) if self._restart else await self._send(self._ops.load())
        window = await self._resolve(layout, saved)
        done, at = saved.progress.beyond, saved.progress.position
        entries = size = left = 0
        first = last = None
        shards = set()
        async for page in self._pages(layout, window, window and window.start):
            for entry in page:
                entries, size = entries + 1, size + size_of(entry.payload)
                left += (at is None or entry.id > at) and entry.id not in done
                shards.add(entry.id.shard)
                first, last = first or entry.id, entry.id
        return ReplayPlan(self.name, self.stream.name, first, last, entries, size, len(shards), at, left)

    # -- beginning ----------------------------------------------------------------------------------------------

    async def _send(self, op: Op[T]) -> T:
        return await self.stream.app.link.run(op, within=self.stream.app.settings.publish_timeout)

    async def _refuse_group(self, layout: Layout) -> None:
        if self.name in await self._send(layouts.groups(layout.every)):
            raise ConfigError(
                f"{self.name!r} is a live consumer group of stream {self.stream.name!r}, and a replay touches none: "
                "name the replay otherwise, or leave the name out"
            )

    async def _take(self) -> Saved | None:
        """Become the runner, once a dead one's lease has run out. None where we were stopped meanwhile.

        A holder whose lease is renewed while we watch is alive: `ReplayBusy`.
        """
        seen: Held | None = None
        while not self._stop_asked.is_set():
            sent = clock()
            answer = await self._send(self._ops.take(restart=self._restart))
            if isinstance(answer, Saved):
                self._keeper.until = sent + self._keeper.lease
                return answer
            if seen and answer.until != seen.until:
                raise ReplayBusy(
                    f"replay {self.name!r} of stream {self.stream.name!r} is running already, in {answer.holder}: "
                    "let it finish, stop it, or run yours under another name"
                )
            if not seen:
                self._notice(
                    f"replay {self.name!r} was last run by {answer.holder}, which never said that it ended: "
                    f"going on in {answer.left / 1000:.1f} s, unless it is alive"
                )
            seen = answer
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), min(0.25, answer.left / 1000 + 0.01))
        return None

    async def _open(self, layout: Layout, saved: Saved) -> None:
        """Go on from what is stored."""
        self._window = await self._resolve(layout, saved)
        self._resumed = saved.progress
        self._mark = Mark(saved.progress)
        self._set_aside = len(saved.progress.aside)
        if self._window and not saved.window and not await self._send(self._ops.open(self._spec, self._window)):
            raise self._lost()

    async def _resolve(self, layout: Layout, saved: Saved) -> Window | None:
        """The window, as it was resolved when the replay first started; None where nothing is in it."""
        refuse_other(self.name, self.stream.name, saved.spec, self._spec)
        if saved.window:
            start, end = saved.window.start, saved.window.end
        else:
            now = await self._send(layouts.clock())
            start, end = bound(self._start, "start", now), bound(self._end, "end", now)
        if start > end:
            raise PositionError(
                f"the window from {self._spec['from']!r} to {self._spec['to']!r} ends before it begins: swap them"
            )
        return saved.window or await self._send(replays.window(layout, start, end, self.key))

    # -- running ------------------------------------------------------------------------------------------------

    async def _work(self, layout: Layout) -> None:
        if self._window is None:
            self._read_all = True
            return
        self._keeper.start()
        async with self._reporting():
            try:
                async with asyncio.TaskGroup() as slots:
                    for _ in range(self.concurrency):
                        slots.create_task(self._slot())
                    await self._feed(layout, self._window)
                    self._backlog.close()
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
        if self._error:
            raise self._error

    async def _feed(self, layout: Layout, window: Window) -> None:
        at = self._mark.progress().position
        start = window.start if at is None else at._replace(shard=at.shard + 1)  # the next id there can be
        try:
            async for page in self._pages(layout, window, start):
                for entry in page:
                    if not await self._admit(entry):
                        return
            self._read_all = True
        except RStreamError as error:
            self._fail(error)  # what runs may finish

    async def _admit(self, entry: Entry[Any]) -> bool:
        """Queue an entry as soon as there is room. False where the replay was stopped instead."""
        if self._mark.begin(entry.id):
            while (self._backlog.full or self._mark.open > SPAN) and not self._stop_asked.is_set():
                await self._backlog.room()
            if not self._stop_asked.is_set():
                self._backlog.put(entry)
        return not self._stop_asked.is_set()

    async def _pages(
        self, layout: Layout, window: Window | None, start: EntryId | None
    ) -> AsyncIterator[list[Entry[Any]]]:
        """The window from `start` on, in id order."""
        if window is None or start is None:
            return
        cursor = Cursor(layout, start, window.end, self._decode, self.key)
        while op := cursor.op():
            await self._send(op)
            yield cursor.ready()

    async def _slot(self) -> None:
        yielded = time.perf_counter()
        while (entry := await self._backlog.take()) is not None:
            while not self._keeper.holds():
                if self._stop_asked.is_set():
                    return
                await asyncio.sleep(0.05)
            if not await self.stream.claims.open_at_last(entry, self._stop_asked):
                return
            self._mark.end(entry.id, await self._handle(entry))
            self._backlog.done(entry)
            if time.perf_counter() - yielded > TURN_SECONDS:
                await asyncio.sleep(0)
                yielded = time.perf_counter()

    async def _handle(self, entry: Entry[Any]) -> Outcome:
        try:
            event = entry.event
        except EntryInvalid as error:
            self._log_aside(f"entry {entry.id} is {error.reason} and was not handled: {error}")
            return "invalid"
        delivery = Delivery(
            id=entry.id,
            stream=self.stream.name,
            group=self.name,
            key=entry.key,
            event_id=entry.event_id,
            headers=entry.headers,
            attempt=1,
            worker=self._ops.holder,
        )
        raised = (await self._call(event, delivery)).error
        if isinstance(raised, KeyboardInterrupt):
            raise raised
        if raised is not None:
            self._log_aside(f"entry {entry.id} failed: {one_line(raised)}", raised)
            return "failed"
        return "handled"

    def _log_aside(self, text: str, error: BaseException | None = None) -> None:
        self._set_aside += 1
        if self._set_aside <= ASIDE:
            log.error("replay %s: %s", self.name, text, exc_info=error)
        elif self._set_aside == ASIDE + 1:
            log.error("replay %s: over %d entries failed or are invalid; more are only counted", self.name, ASIDE)

    @asynccontextmanager
    async def _reporting(self) -> AsyncIterator[None]:
        ticker = asyncio.create_task(self._report(self._progress)) if self._progress else None
        try:
            yield
        finally:
            if ticker:
                ticker.cancel()
                await asyncio.wait([ticker])

    async def _report(self, progress: Callable[[ReplayResult], None]) -> None:
        while True:
            try:
                progress(self.result())
            except Exception:
                log.exception("replay %s: its progress function failed and is not called any more", self.name)
                return
            await asyncio.sleep(0.2)

    # -- ending -------------------------------------------------------------------------------------------------

    @property
    def _finished(self) -> bool:
        return self._read_all and not self._mark.open

    def _kept_no_more(self, error: StoreError | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._fail, error or self._lost())

    def _fail(self, error: RStreamError) -> None:
        """End with this error, once what runs has finished."""
        self._error = self._error or error
        self.stop()

    def _lost(self) -> ReplayBusy:
        return ReplayBusy(
            f"replay {self.name!r} of stream {self.stream.name!r} was taken over by another runner when this one was "
            "silent for too long, or Redis lost what was stored of it: this one stopped; run it again to go on"
        )

    def _done(self) -> Progress | None:
        return self._mark.progress() if self._window else None

    async def _leave(self) -> None:
        """Store what is done and let the next runner in, as far as Redis allows."""
        await asyncio.to_thread(self._keeper.stop)
        try:
            await self.stream.app.link.run(self._ops.leave(self._done()), within=1.0)
        except StoreError as error:
            log.warning("replay %s: what it did last was not stored and will run again: %s", self.name, error)

    async def _end_well(self) -> None:
        await asyncio.to_thread(self._keeper.stop)
        if not await self._send(self._ops.finish() if self._finished else self._ops.leave(self._done())):
            raise self._lost()
