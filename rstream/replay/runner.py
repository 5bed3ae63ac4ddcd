"""One run of a replay, from taking the lease to letting go of it, whatever becomes of the entries."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rstream.errors import PositionError, ReplayBusy, RStreamError, StoreError
from rstream.event import Decode, Entry, EntryId
from rstream.position import Position, bound
from rstream.process import clock, worker_id
from rstream.replay.keeper import Keeper
from rstream.replay.mark import ASIDE, Mark
from rstream.replay.pace import pace
from rstream.replay.reading import Page, pages
from rstream.replay.result import ReplayPlan, ReplayResult, Way
from rstream.replay.sift import Sift, Sifted
from rstream.replay.spec import default_name, refuse_other, spec_of
from rstream.replay.survey import Survey, plan_of
from rstream.settings import check_name
from rstream.store import layout as layouts
from rstream.store import replays
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.replays import Held, Progress, ReplayOps, Saved, Window
from rstream.store.stats import stream_stats
from rstream.store.steps import drive

if TYPE_CHECKING:
    from rstream.stream import Stream

T = TypeVar("T")

log = logging.getLogger("rstream")

LEASE = 5.0
"""Seconds until a runner that was killed can be followed by the next."""


class Runner:
    """Takes the lease, finds the window, reads and sifts, and stores how far it has come; what becomes of the entries
    is said by `_work` of the classes below it. Runs once.
    """

    way: ClassVar[Way]

    def __init__(
        self,
        stream: Stream[Any],
        start: Position,
        end: Position,
        to: Mapping[str, str],
        *,
        key: str | None,
        where: Sequence[str],
        rate: str | float | None,
        speed: str | float | None,
        name: str | None,
        restart: bool,
        progress: Callable[[ReplayResult], None] | None,
        notice: Callable[[str], None],
        lease: float,
    ) -> None:
        settings = stream.app.settings
        self.stream, self.key, self.pace = stream, key, pace(rate, speed)
        self._start, self._end = start, end
        self._spec = spec_of(start, end, key, to, where)
        self.name = check_name("replay", name or default_name(stream.name, self._spec))
        self._sift = Sift(stream.claims, list(where))
        self._decode: Decode[Any] = stream.claims.decoder(stream.codec)
        self._restart, self._progress, self._notice = restart, progress, notice
        self._ops = ReplayOps(settings.namespace, stream.name, self.name, worker_id(), int(lease * 1000))
        self._keeper = Keeper(
            stream.app.endpoint, self._ops, lambda: self._mark.progress(), self._kept_no_more,
            lease=lease, patience=settings.publish_timeout,
        )  # fmt: skip
        self._mark = Mark(Progress())
        self._window: Window | None = None
        self._resumed = Progress()
        self._run = ""
        self._read_all = False
        self._read_to: EntryId | None = None
        self._set_aside = 0
        self._trimmed: list[EntryId] = []
        self._stop_asked = asyncio.Event()
        self._error: RStreamError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = clock()

    # -- said by the ways ---------------------------------------------------------------------------------------

    async def _check(self, layout: Layout) -> None:
        """Refuse what cannot be done, before anything is. Raises `ConfigError`."""

    async def _work(self, layout: Layout, window: Window) -> None:
        """Go through the window, until the end or until it is asked to stop; sets `_read_all` at the end."""
        raise NotImplementedError

    async def _look(self, layout: Layout, ids: Sequence[EntryId]) -> Mapping[str, int]:
        """For a plan: what would become of these entries."""
        return {}

    # -- for whoever runs it ------------------------------------------------------------------------------------

    async def run(self) -> ReplayResult:
        """Run to the end of the window, or until `stop()`."""
        self._loop, self._began = asyncio.get_running_loop(), clock()
        layout = await self._opened()
        saved = await self._take()
        if saved is None:
            return self.result()
        try:
            await self._open(layout, saved)
            await self._go(layout)
        except BaseException:
            await self._leave()
            raise
        await self._end_well()
        return self.result()

    def stop(self) -> None:
        """End gracefully: what runs may finish, and what is done is stored exactly. To be called in the loop."""
        self._stop_asked.set()

    def abandon(self) -> None:
        """Store what is done, for a process that is about to end at once. Any thread; blocks."""
        self._keeper.leave_now()

    def result(self) -> ReplayResult:
        """How far it is."""
        now, before, window = self._mark.progress(), self._resumed, self._window
        counts = dict(now.counts)
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
            failed_ids=tuple(id for id, outcome in aside if outcome == "failed"),
            invalid_ids=tuple(id for id, outcome in aside if outcome == "invalid"),
            resumed_from=before.position,
            earlier=sum(before.counts.values()) + len(before.beyond),
            seconds=clock() - self._began,
            way=self.way,
            read_to=self._read_to,
            trimmed=tuple(self._trimmed),
            **counts,
        )

    async def plan(self) -> ReplayPlan:
        """What `run` would do; changes nothing and calls no handler. Reads the window."""
        layout = await self._opened()
        saved = Saved({}, None, Progress()) if self._restart else await self._send(self._ops.load())
        window = await self._resolve(layout, saved)
        survey = Survey(saved.progress, await self._send(stream_stats(layout)))
        found = dict.fromkeys(("given", "pending", "unread", "gone"), 0)
        if window is not None:
            async for page in self._pages(layout, window.start, window.end):
                left = survey.add(page, await self._sift.sift(page, self._stop_asked))
                for outcome, number in (await self._look(layout, left)).items():
                    found[outcome] += number
        return plan_of(survey, self.name, self.stream.name, self.way, self.pace, found)

    # -- beginning ----------------------------------------------------------------------------------------------

    async def _send(self, op: Op[T]) -> T:
        return await self.stream.app.link.run(op, within=self.stream.app.settings.publish_timeout)

    async def _opened(self) -> Layout:
        layout = await self.stream.layout(fresh=True)
        self._sift.check(layout)
        await self._check(layout)
        return layout

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
            await self._pause(min(0.25, answer.left / 1000 + 0.01))
        return None

    async def _open(self, layout: Layout, saved: Saved) -> None:
        """Go on from what is stored."""
        self._window = await self._resolve(layout, saved)
        self._resumed = saved.progress
        self._mark = Mark(saved.progress)
        self._set_aside = len(saved.progress.aside)
        self._run = saved.run or secrets.token_hex(8)
        if self._window is None or saved.window:
            return
        if not await self._send(self._ops.open(self._spec, self._window, self._run)):
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
        if saved.window:
            return saved.window
        app = self.stream.app
        return await drive(app.link, replays.find_window(layout, start, end, self.key), app.settings.publish_timeout)

    # -- running ------------------------------------------------------------------------------------------------

    async def _go(self, layout: Layout) -> None:
        if self._window is None:
            self._read_all = True
            return
        self._keeper.start()
        async with self._reporting():
            await self._work(layout, self._window)
        if self._error:
            raise self._error

    def _pages(self, layout: Layout, start: EntryId, end: EntryId) -> AsyncGenerator[Page, None]:
        return pages(self.stream, layout, start, end, self.key, self._decode)

    def _overtaken(self, id: EntryId) -> None:
        if not self._trimmed:
            log.warning(
                "replay %s: entries of %s were trimmed before they were read, the first of them %s: archive the "
                "stream, or keep more of it while it is replayed", self.name, self.stream.name, id
            )  # fmt: skip
        if len(self._trimmed) < ASIDE:
            self._trimmed.append(id)

    def _left(self, layout: Layout, window: Window) -> AsyncGenerator[Page, None]:
        """The pages from where it goes on."""
        done = self._mark.progress()
        if done.next is not None:
            start, seen = done.next, True
        elif (at := done.position) is not None:
            start, seen = at._replace(shard=at.shard + 1), False  # the next id there can be
        else:
            start, seen = window.start, layout.past is None
        end = window.end
        return pages(self.stream, layout, start, end, self.key, self._decode, self._overtaken, seen=seen)

    async def _sifted(self, entries: Sequence[Entry[Any]]) -> Sifted:
        found = await self._sift.sift(entries, self._stop_asked)
        for id, error in found.invalid:
            self._log_aside(f"entry {id} is {error.reason} and was not looked at: {error}")
        return found

    async def _pause(self, seconds: float) -> bool:
        """Wait; False where it was asked to stop."""
        if not self._stop_asked.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stop_asked.wait()
        return not self._stop_asked.is_set()

    async def _paced(self, entries: Sequence[Entry[Any]], tick: float = 0.0) -> AsyncIterator[Sequence[Entry[Any]]]:
        """Parts of these, each when its time has come; ends early where it was asked to stop. tick: seconds between two
        parts at least, while one has to wait.
        """
        if self.pace is None:
            yield entries
            return
        times, at = [entry.id.ms for entry in entries], 0
        while at < len(times):
            number, wait = self.pace.grant(times[at:], clock())
            if number:
                yield entries[at : at + number]
            at += number
            if at < len(times) and not await self._pause(max(wait, tick)):
                return

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
