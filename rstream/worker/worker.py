"""A worker: a process that runs consumers. Starts their loops, and ends them in the order that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from rstream.app import RStream
from rstream.archive.run import ArchiveRun
from rstream.calling import LEFT
from rstream.consumer import Consumer
from rstream.errors import ConfigError, StoreError
from rstream.process import clock, worker_id
from rstream.store.deliveries import Fetched, GroupOps
from rstream.worker import groups
from rstream.worker.adopt import audit_loop
from rstream.worker.batching import batch_slot
from rstream.worker.counts import Counts
from rstream.worker.emit import Emitter
from rstream.worker.execute import slot
from rstream.worker.fetch import fetch_loop
from rstream.worker.gate import Gate
from rstream.worker.hoard import hoard_loop
from rstream.worker.janitor import janitor_loop
from rstream.worker.lease import LeaseKeeper
from rstream.worker.listen import listen_loop
from rstream.worker.load import LOADERS, load_loop
from rstream.worker.own import leave, own_loop, tell
from rstream.worker.park import park_loop
from rstream.worker.pausing import begin_paused
from rstream.worker.recover import PAGE, recover_loop
from rstream.worker.recycle import draw, recycle_loop
from rstream.worker.run import ConsumerRun
from rstream.worker.settle import flush, settle_loop
from rstream.worker.watchdog import Watchdog

T = TypeVar("T")

log = logging.getLogger("rstream")

LEAVE = 2.0
"""Seconds that settling the last outcomes, and then leaving, may take each; Redis may be away."""


class Threads(ThreadPoolExecutor):
    """Those of `asyncio.to_thread`, for which asyncio waits at the end, however long a handler's call goes on."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._calls: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        call = super().submit(fn, *args, **kwargs)
        self._calls.add(call)
        return call

    @property
    def at_work(self) -> bool:
        return not all(call.done() for call in [*self._calls])


class Worker:
    """Runs the consumers of an app in this process.

    groups: only these, as `group` or `stream/group` (default: all) · concurrency: overrides what the consumers
    declare · burst: end when the groups are drained, i.e. nothing is unread and nothing pending · grace: seconds that
    running handlers get to finish after SIGTERM (a `def` handler that runs on is left to its thread); a second signal
    ends the process at once · max_handled, max_rss_mb: end, as after SIGTERM, once this process has handled so many
    deliveries or holds so many MB (each process draws its own limit, up to 10 % lower); `recycled` then says why, and
    whoever runs the worker starts another. Raises `ConfigError`.
    """

    def __init__(
        self,
        app: RStream,
        groups: Sequence[str] | None = None,
        *,
        concurrency: int | None = None,
        burst: bool = False,
        grace: float = 30.0,
        max_handled: int | None = None,
        max_rss_mb: float | None = None,
    ) -> None:
        self.app, self.burst, self.grace = app, burst, grace
        self.id = worker_id()
        self.counts = Counts()
        self.consumers = _chosen(app.consumers, groups)
        if concurrency is not None and concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}, it must be at least 1")
        self.recycled: str | None = None
        self.echo = 0.0
        """Seconds within which a second signal is the first one told twice."""
        self.alone = False
        """Whether the process is there for this worker."""
        self.runs: list[ConsumerRun] = []
        self._limits = draw(max_handled, max_rss_mb)
        self._concurrency = concurrency
        self._stopped = False
        self._starting: anyio.CancelScope | None = None
        self._waiting: anyio.CancelScope | None = None
        self._first_signal: float | None = None
        self._stop_asked: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, leave: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM, SIGINT or `stop()`, then close the app's connections. Blocks.

        leave: called at the end where handlers go on that did not heed their cancellation; it should end the process,
        for an event loop waits for all its tasks. Raises `StoreError` where Redis cannot be reached at the start.
        """

        async def main() -> None:
            threads = Threads()
            asyncio.get_running_loop().set_default_executor(threads)
            async with AsyncExitStack() as open_apps:
                targets = [consumer.emits.app for consumer in self.consumers if consumer.emits is not None]
                for app in {self.app, *targets}:
                    await open_apps.enter_async_context(app)
                await self.serve(signals=False)
            if leave is not None and (LEFT or threads.at_work):
                leave()

        with self._signals():
            anyio.run(main)

    def stop(self) -> None:
        """End gracefully; may be called from any thread, also before `run`."""
        self._stopped, self.recycled = True, None
        if self._loop is not None and self._stop_asked is not None:
            self._loop.call_soon_threadsafe(self._stop_asked.set)

    async def serve(self, *, signals: bool = True) -> None:
        """As `run`, in a running event loop and leaving the app open; without `signals`, only `stop()` ends it."""
        self._loop, self._stop_asked = asyncio.get_running_loop(), asyncio.Event()
        if self._stopped:
            self._stop_asked.set()
        keeper: LeaseKeeper | None = None
        with self._signals() if signals else nullcontext():
            try:
                with anyio.CancelScope() as self._starting:
                    if self._first_signal is not None:  # it came before there was a loop
                        self._starting.cancel()
                    self.runs = await self._prepared()
                    keeper = LeaseKeeper(self.app.endpoint, [run.lease for run in self.runs])
                    # A thread that nobody waits for at the end: it may wait for a Redis that is away.
                    begin = partial(keeper.begin, groups.START_WITHIN)
                    await anyio.to_thread.run_sync(begin, abandon_on_cancel=True)
                if self._starting.cancelled_caught:  # there is nothing to finish
                    log.info("worker %s: stopped before it began", self.id)
                else:
                    await self._watched()
            finally:
                if keeper is not None:
                    await asyncio.to_thread(keeper.stop)
                for run in self.runs:
                    if run.pool is not None:
                        run.pool.close()
        log.info("worker %s ended: %s", self.id, self.counts)

    async def _watched(self) -> None:
        if self.alone:
            # What is loaded by now stays. To look through it again and again takes a sixth of the time of a worker that
            # handles batches, and stops all handlers for some 20 ms each time.
            gc.freeze()
        watchdog = Watchdog(self.runs)
        watchdog.start()
        try:
            await self._work(self.runs)
        finally:
            watchdog.stop()

    async def _prepared(self) -> list[ConsumerRun]:
        gate = Gate()
        self.runs = [await self._declared(consumer, gate) for consumer in self.consumers]
        for run in self.runs:
            await self._prepare(run)
        return self.runs

    async def _declared(self, consumer: Consumer, gate: Gate) -> ConsumerRun:
        layout = await consumer.stream.layout(fresh=True)
        ops = GroupOps(layout, consumer.group, self.id, spread=self.app.endpoint.clustered)
        target = consumer.emits
        emitter = None if target is None else Emitter(target, await target.layout(), self.app.endpoint)
        slots = self._concurrency or consumer.slots
        return ConsumerRun(consumer, slots, ops, self.app.link, self.counts, gate, emitter)

    async def _prepare(self, run: ConsumerRun) -> None:
        if run.pool is not None:
            await run.pool.warm()
        await groups.ensure(run)
        await begin_paused(run)

    async def _work(self, runs: list[ConsumerRun]) -> None:
        async with anyio.create_task_group() as settling:
            for run in runs:
                settling.start_soon(settle_loop, run, run.plain)
                settling.start_soon(settle_loop, run, run.emitting)
            async with anyio.create_task_group() as handling:
                for run in runs:
                    for _ in range(run.concurrency):
                        handling.start_soon(slot if run.consumer.batch is None else batch_slot, run)
                    for _ in range(LOADERS):
                        handling.start_soon(load_loop, run)
                await self._take_in(runs)
                await self._let_others_go_on(runs)
                await self._finish(runs, handling)
            for run in runs:
                run.finished = True
                run.plain.wanted.set()
                run.emitting.wanted.set()
            settling.cancel_scope.deadline = anyio.current_time() + LEAVE
        for run in runs:
            run.hand.unsure = run.hand.unsure or settling.cancel_scope.cancelled_caught
        with anyio.move_on_after(LEAVE):
            async with anyio.create_task_group() as leaving:
                for run in runs:
                    leaving.start_soon(self._leave, run)

    async def _take_in(self, runs: list[ConsumerRun]) -> None:
        """Fetch and recover until told to stop or, with burst, until all is drained."""
        assert self._stop_asked is not None
        async with anyio.create_task_group() as intake:
            for run in runs:
                intake.start_soon(self._read, run)
                intake.start_soon(recover_loop, run)
                intake.start_soon(audit_loop, run)
                intake.start_soon(hoard_loop, run)
                if run.order is not None:
                    intake.start_soon(own_loop, run)
                    intake.start_soon(park_loop, run)
            intake.start_soon(listen_loop, self.app, runs)
            intake.start_soon(janitor_loop, self.app, self.id)
            for stream in self.app.streams.values():
                if stream.archive is not None:
                    intake.start_soon(ArchiveRun(stream).forever)
            log.info("worker %s ready: %s", self.id, ", ".join(run.name for run in runs))
            intake.start_soon(recycle_loop, self._limits, self.counts, self._recycle)
            if self.burst:
                intake.start_soon(self._stop_when_drained, runs)
            await self._stop_asked.wait()
            intake.cancel_scope.cancel()

    async def _read(self, run: ConsumerRun) -> None:
        """A reader for all shards, or on a cluster one for each slot, also for those that come with a resharding."""
        if not run.ops.spread:
            return await fetch_loop(run, None, self.burst)
        async with anyio.create_task_group() as readers:
            slots: set[int] = set()
            while True:
                for slot in {shard.slot for shard in run.layout.every} - slots:
                    slots.add(slot)
                    readers.start_soon(fetch_loop, run, slot, self.burst)
                run.resharded.clear()
                await run.resharded.wait()

    async def _let_others_go_on(self, runs: list[ConsumerRun]) -> None:
        """Hand over what was not started, and the shards: at once, and without burning an attempt."""
        for run in runs:
            waiting = [*run.lanes.drain(), *run.loads.drain()]
            run.hand_over([*waiting, *(run.order.drain() if run.order is not None else ())])
        with anyio.move_on_after(LEAVE):
            async with anyio.create_task_group() as leaving:
                for run in runs:
                    if run.order is not None:
                        leaving.start_soon(leave, run)

    async def _stop_when_drained(self, runs: list[ConsumerRun]) -> None:
        """What one group was found to be drained of may have been emitted to another, found drained before. So all have
        to be in one round, in which nothing was in hand and nothing came in.
        """
        quiet = False
        while not quiet:
            before, idle = sum(run.taken for run in runs), not any(run.in_hand for run in runs)
            for run in runs:
                run.drained.clear()
                run.own.has_changed()  # look again now
            for run in runs:
                await run.drained.wait()
            quiet = idle and before == sum(run.taken for run in runs)
        assert self._stop_asked is not None
        self._stop_asked.set()

    def _recycle(self, why: str) -> None:
        assert self._stop_asked is not None
        if not (self._stopped or self._stop_asked.is_set()):
            self.recycled = why
            log.info("worker %s is recycled: %s; finishing what runs", self.id, why)
            self._stop_asked.set()

    async def _finish(self, runs: list[ConsumerRun], handling: TaskGroup) -> None:
        """Running handlers get the grace to return and be settled; what runs on is cancelled.

        A process that is only recycled has no such haste: its grace begins when it is told to end, or when no handler
        runs any more and what is left waits for a Redis.
        """
        with anyio.CancelScope() as scope:
            self._waiting = scope
            if self.recycled is None:
                scope.deadline = anyio.current_time() + self.grace
            for run in runs:
                while run.in_hand:
                    run.room_made.clear()
                    with anyio.move_on_after(1.0):
                        await run.room_made.wait()
                    if scope.deadline == math.inf and not any(other.running for other in runs):
                        scope.deadline = anyio.current_time() + self.grace
        handling.cancel_scope.cancel()

    async def _leave(self, run: ConsumerRun) -> None:
        """Settle what is left, hand over what a cancelled read may have brought, and go."""
        try:
            for shard in run.layout.every:
                mine = await run.link.run(run.ops.mine(shard, "-", PAGE))
                run.hand_over(
                    [Fetched(shard, id, (), count, run.hand.source((shard, id), count)) for id, count, _ in mine]
                )
            await flush(run, run.plain)
            await run.link.run(run.ops.leave())
            await tell(run)
        except StoreError as error:
            log.warning("%s: left without saying so, others take over after the lease: %s", run.name, error)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Listen to them, from before there is a loop: what a handler raises while one runs may be lost in it."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        # Not loop.add_signal_handler: a handler that blocks the loop must not hold up a second signal.
        before = {number: signal.signal(number, self._signalled) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: object) -> None:
        """Runs in the main thread, between any two lines of whatever is running there."""
        now = clock()
        if self._first_signal is None:
            self._first_signal = now
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end_for_good, signal.Signals(number).name)
        elif now - self._first_signal > self.echo:
            os.write(2, f"worker {self.id}: second signal, ends at once; others take over after the lease\n".encode())
            os._exit(128 + number)

    def _end_for_good(self, name: str) -> None:
        assert self._stop_asked is not None
        self.recycled = None
        if self._waiting is not None:
            self._waiting.deadline = anyio.current_time() + self.grace
        log.info("worker %s: %s, finishing what runs (at most %g s)", self.id, name, self.grace)
        self._stop_asked.set()
        if self._starting is not None:  # over, where it has begun
            self._starting.cancel()


def _chosen(consumers: Sequence[Consumer], wanted: Sequence[str] | None) -> list[Consumer]:
    """The consumers that were asked for. Raises `ConfigError` naming those there are."""
    known = ", ".join(f"{consumer.stream.name}/{consumer.group}" for consumer in consumers)
    if not consumers:
        raise ConfigError("the app declares no consumer: decorate a handler with @stream.consumer('group')")
    if not wanted:
        return list(consumers)
    chosen: dict[int, Consumer] = {}
    for name in wanted:
        found = [c for c in consumers if name in (c.group, f"{c.stream.name}/{c.group}")]
        if not found:
            raise ConfigError(f"no consumer of the app is for group {name!r}: there are {known}")
        chosen.update((id(consumer), consumer) for consumer in found)
    return list(chosen.values())
