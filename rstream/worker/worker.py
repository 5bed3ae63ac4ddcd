"""A worker: a process that runs consumers. Starts their loops, and ends them in the order that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress
from functools import partial

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from rstream.app import RStream
from rstream.archive.run import ArchiveRun
from rstream.blobs.meter import metered
from rstream.calling import LEFT
from rstream.consumer import Consumer
from rstream.errors import ConfigError, StoreError
from rstream.logs import told_by
from rstream.process import clock, worker_id
from rstream.store.connect import Endpoint
from rstream.store.deliveries import GroupOps
from rstream.store.keys import ARCHIVE
from rstream.store.workers import absent
from rstream.worker import groups
from rstream.worker.adopt import audit_loop
from rstream.worker.batching import batch_slot
from rstream.worker.drained import drained
from rstream.worker.emit import Emitter
from rstream.worker.execute import slot
from rstream.worker.fetch import fetch_loop
from rstream.worker.gate import Gate
from rstream.worker.going import leave_group, let_others_go_on
from rstream.worker.hoard import hoard_loop
from rstream.worker.janitor import janitor_loop
from rstream.worker.lease import LeaseKeeper
from rstream.worker.listen import listen_loop
from rstream.worker.load import LOADERS, load_loop
from rstream.worker.own import own_loop
from rstream.worker.park import park_loop
from rstream.worker.pausing import begin_paused
from rstream.worker.presence import Presenter
from rstream.worker.recover import recover_loop
from rstream.worker.recycle import draw, recycle_loop
from rstream.worker.run import ConsumerRun
from rstream.worker.sampler import Sampler
from rstream.worker.say import say_loop, unsettled
from rstream.worker.settle import settle_loop
from rstream.worker.stall import Stall
from rstream.worker.tally import Counts, Tallies
from rstream.worker.threads import Threads
from rstream.worker.watchdog import Watchdog

log = logging.getLogger("rstream")

LEAVE = 2.0
"""Seconds that settling the last outcomes, and then leaving, may take each; Redis may be away."""


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
        self.tallies, self.stall = Tallies(), Stall()
        self._sampler = Sampler(app)
        self.consumers = _chosen(app.consumers, groups)
        if concurrency is not None and concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}, it must be at least 1")
        self.recycled: str | None = None
        self.echo = 0.0
        """Seconds within which a second signal is the first one told twice."""
        self.alone = False
        """Whether the process is there for this worker."""
        self.process = 0
        """Its number among those of a supervisor; 0 where it is the only one."""
        self.phase = "is starting"
        """For people: then it "is at work", "is ending", "has ended"."""
        self.runs: list[ConsumerRun] = []
        self._limits = draw(max_handled, max_rss_mb)
        self._concurrency = concurrency
        self._stopped = False
        self._starting: anyio.CancelScope | None = None
        self._waiting: anyio.CancelScope | None = None
        self._first_signal: float | None = None
        self._stop_asked: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def endpoints(self) -> list[Endpoint]:
        """The servers that it talks with: its own, and those that it emits to."""
        apps = {self.app: None} | {each.emits.app: None for each in self.consumers if each.emits is not None}
        return [app.endpoint for app in apps]

    @property
    def counts(self) -> Counts:
        return Counts.of(self.tallies.every)

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
                    told = Presenter(
                        self.id, self.runs, self.tallies, self.stall, lambda: self.phase == "is ending", self.process
                    )
                    keeper = LeaseKeeper(self.app.endpoint, [run.lease for run in self.runs], told)
                    # A thread that nobody waits for at the end: it may wait for a Redis that is away.
                    begin = partial(keeper.begin, groups.START_WITHIN)
                    await anyio.to_thread.run_sync(begin, abandon_on_cancel=True)
                if self._starting.cancelled_caught:  # there is nothing to finish
                    log.info("worker %s: stopped before it began", self.id)
                else:
                    await self._watched()
            finally:
                self.phase = "has ended"
                if keeper is not None:
                    await asyncio.to_thread(keeper.stop)
                    await self._say_goodbye()
                for run in self.runs:
                    if run.pool is not None:
                        run.pool.close()
        log.info("worker %s ended: %s", self.id, self.counts)

    async def _say_goodbye(self) -> None:
        with anyio.move_on_after(LEAVE), suppress(StoreError):
            await self.app.link.run(absent(self.app.settings.namespace, self.id))

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
            with told_by(run.about):
                await self._prepare(run)
        return self.runs

    async def _declared(self, consumer: Consumer, gate: Gate) -> ConsumerRun:
        for stream in (consumer.stream, consumer.emits):
            if stream is not None and stream.claims.seal is not None:  # without its keys nothing could be handled
                await anyio.to_thread.run_sync(stream.claims.seal.ring.load)
        layout = await consumer.stream.layout(fresh=True)
        ops = GroupOps(layout, consumer.group, self.id, spread=self.app.endpoint.clustered)
        target = consumer.emits
        emitter = None if target is None else Emitter(target, await target.layout(), self.app.endpoint)
        slots = self._concurrency or consumer.slots
        tally = self.tallies.of(layout.name, consumer.group)
        return ConsumerRun(consumer, slots, ops, self.app.link, tally, gate, emitter)

    async def _prepare(self, run: ConsumerRun) -> None:
        if run.pool is not None:
            await run.pool.warm()
        await groups.ensure(run)
        await begin_paused(run)

    async def _work(self, runs: list[ConsumerRun]) -> None:
        async with anyio.create_task_group() as settling:
            for run in runs:
                with told_by(run.about):
                    settling.start_soon(settle_loop, run, run.plain)
                    settling.start_soon(settle_loop, run, run.emitting)
            async with anyio.create_task_group() as handling:
                handling.start_soon(self.stall.watch)
                for run in runs:
                    with told_by(run.about), metered(run.tally):
                        for _ in range(run.concurrency):
                            handling.start_soon(slot if run.consumer.batch is None else batch_slot, run)
                        for _ in range(LOADERS):
                            handling.start_soon(load_loop, run)
                await self._take_in(runs)
                await let_others_go_on(runs, LEAVE)
                await self._finish(runs, handling)
            for run in runs:
                run.finished = True
                run.plain.wanted.set()
                run.emitting.wanted.set()
            settling.cancel_scope.deadline = anyio.current_time() + LEAVE
        for run in runs:
            run.hand.unsure = run.hand.unsure or settling.cancel_scope.cancelled_caught
            if settling.cancel_scope.cancelled_caught:
                unsettled(run, LEAVE)
        with anyio.move_on_after(LEAVE):
            async with anyio.create_task_group() as leaving:
                for run in runs:
                    with told_by(run.about):
                        leaving.start_soon(leave_group, run)
        await self._sampler.end()
        for run in runs:
            run.voice.rest()

    async def _take_in(self, runs: list[ConsumerRun]) -> None:
        """Fetch and recover until told to stop or, with burst, until all is drained."""
        assert self._stop_asked is not None
        async with anyio.create_task_group() as intake:
            for run in runs:
                with told_by(run.about):
                    self._start_intake(run, intake)
            intake.start_soon(listen_loop, self.app, runs)
            intake.start_soon(janitor_loop, self.app, self.id, runs, self._sampler)
            for stream in self.app.streams.values():
                if stream.archive is not None:
                    with metered(self.tallies.of(stream.name, ARCHIVE)):
                        intake.start_soon(ArchiveRun(stream).forever)
            log.info("worker %s ready: %s", self.id, ", ".join(run.name for run in runs))
            intake.start_soon(recycle_loop, self._limits, self.tallies.handled, self._recycle)
            if self.burst:
                intake.start_soon(self._stop_when_drained, runs)
            self.phase = "is at work"
            await self._stop_asked.wait()
            self.phase = "is ending"
            intake.cancel_scope.cancel()

    def _start_intake(self, run: ConsumerRun, intake: TaskGroup) -> None:
        intake.start_soon(self._read, run)
        for loop in (recover_loop, audit_loop, hoard_loop, say_loop):
            intake.start_soon(loop, run)
        if run.order is not None:
            intake.start_soon(own_loop, run)
            intake.start_soon(park_loop, run)

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

    async def _stop_when_drained(self, runs: list[ConsumerRun]) -> None:
        assert self._stop_asked is not None
        await drained(runs)
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
