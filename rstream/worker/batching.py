"""The slots of a batch consumer: each fills a batch, calls the handler with it, and settles every event by itself.

A handler that raises without saying for which event is called again with each half of the batch, until it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import NamedTuple

from rstream.batch import Batch, answers
from rstream.calling import answered
from rstream.delivery import Delivery
from rstream.errors import ConfigError
from rstream.logs import subject
from rstream.process import clock
from rstream.reference import Uploads
from rstream.retry import Retry
from rstream.store.deliveries import Fetched, Outcome
from rstream.tracing import Processing
from rstream.worker import failures
from rstream.worker.emit import Records
from rstream.worker.execute import ack_of, acked
from rstream.worker.run import ConsumerRun
from rstream.worker.say import tell_each
from rstream.worker.start import Started, delivery_of, start

OTHER_KEYS = 0.01
"""Seconds that a batch waits for entries of other keys than it has, when more of those it has wait for it."""


async def batch_slot(run: ConsumerRun) -> None:
    """Runs until cancelled."""
    while True:
        entries = await _fill(run)
        run.lanes.waits()
        run.busy += 1
        try:
            if started := await start(run, entries):
                await Bisection(run, started).work()
        finally:
            run.busy -= 1
            run.room_made.set()
            run.lanes.all_done(entries)
        await asyncio.sleep(0)  # handlers that never wait let the loop's other tasks run


async def _fill(run: ConsumerRun) -> list[Fetched]:
    """As many as the consumer wants at once, or what has come when the first has waited `max_wait`.

    An entry that failed before is put together with its like only, and a suspect with none: they may fail others. Such
    a batch does not wait: the others would wait with it. In an ordered group a batch has one entry of a key, and does
    not wait for more where those of its own keys wait for it.
    """
    lanes, size = run.lanes, run.consumer.batch or 1
    async with run.filling:  # one batch after the other: two half ones would be slower
        first = await lanes.take()
        run.room_made.set()
        if lanes.gate.suspect is first:
            return [first]
        lanes.forming.append(first)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if first.source == "~retry" else run.consumer.max_wait) as limit:
                while len(lanes.forming) < size:
                    if more := lanes.take_more(first, size - len(lanes.forming)):
                        lanes.forming += more
                        run.room_made.set()
                        continue
                    if run.order is not None and not len(lanes) and run.order.behind(lanes.forming):
                        soon = asyncio.get_running_loop().time() + OTHER_KEYS
                        limit.reschedule(min(soon, limit.when() or soon))
                    if (entry := await lanes.take_like(first)) is None:
                        break
                    lanes.forming.append(entry)
                    run.room_made.set()
        return lanes.formed()


class Part(NamedTuple):
    """Events of which at least one failed the call that they were given to. took: seconds that it lasted."""

    items: list[Started]
    error: BaseException
    took: float


class Acked(NamedTuple):
    """What a call has said of its events: the outcomes of those that went well, what these emit before that, and why
    the others failed.
    """

    acks: list[tuple[Started, Outcome]]
    emits: list[tuple[Delivery, Records]]
    failed: list[tuple[Started, BaseException]]


class Bisection:
    """One batch, from the first call to the last outcome."""

    def __init__(self, run: ConsumerRun, items: list[Started]) -> None:
        self._run, self._items = run, items
        self._open = {id(each): each for each in items}
        self._failed: list[Part] = []
        self._singles = 0
        self._called = self._any_success = False
        self._took = 0.0

    async def work(self) -> None:
        try:
            await self._try(self._items)
            while self._failed:
                items, error, self._took = self._failed.pop()
                if len(items) == 1 or self._hopeless(items, error):
                    for each in items:
                        self._fail(each, error)
                    self._singles += 1
                    continue
                middle = len(items) // 2
                for half in (items[:middle], items[middle:]):
                    await self._try(half)
        except asyncio.CancelledError:
            # The grace is over. The attempts count, and somebody else may start the next at once.
            for each in self._open.values():
                self._run.settle(Outcome(each.entry.shard, each.entry.id, each.attempt, "retry", 0))
            raise

    def _hopeless(self, items: list[Started], error: BaseException) -> bool:
        """Whether going on would be in vain: all halves have failed down to single events, so it is hardly the events
        (a database is away, say); or the handler itself asks for later. Not where it would cost an event its last
        attempt.
        """
        if not isinstance(error, Retry) and (self._any_success or self._singles < 2):
            return False
        run = self._run
        return all(failures.may_retry(run, each.entry, delivery_of(run, each), error) for each in items)

    async def _try(self, items: list[Started]) -> None:
        """Call the handler once, and settle what is known after it."""
        run = self._run
        if self._called:  # else they were started just now
            items = [each for each in items if self._still_ours(each)]
        if not items:
            return
        if not self._called:
            self._called = True
            self._begin(items)
        if run.spans is None:
            return await self._call(items)
        with run.spans.of_batch([each.entry for each in items]) as span:
            await self._call(items, span)

    async def _call(self, items: list[Started], span: Processing | None = None) -> None:
        run = self._run
        batch = Batch([delivery_of(run, each) for each in items] if run.tells else ())
        place = (items[0].entry.shard, items[0].entry.id)
        subject.set([each.entry for each in items])
        began = run.running[place] = clock()
        outcomes: list[object] = []
        run.tally.batched += len(items)
        try:
            result, error = await answered(run.call([each.event for each in items], batch))
            if error is None and run.emitter is None and not batch.failures and not isinstance(result, list | tuple):
                return self._end_all(items)
            if error is None:
                outcomes = answers(result, batch.failures, len(items), wanted=run.emitter is not None)
        except ConfigError as wrong:
            error = wrong
        finally:
            del run.running[place]
            run.tally.batched -= len(items)
            self._took = clock() - began
            run.took(self._took)
            if run.voice.each:
                tell_each(run, f"{len(items)} entries", self._took)
        if error is None:
            failed = await self._settle(list(zip(items, outcomes, strict=True)))
            if span is not None and failed:
                span.ended(failed=failed)
            return
        if span is not None:
            span.failed(error)
        for index, failure in batch.failures.items():
            self._fail(items[index], failure)
        if rest := [each for index, each in enumerate(items) if index not in batch.failures]:
            self._failed.append(Part(rest, error, self._took))

    def _begin(self, items: list[Started]) -> None:
        tally, now = self._run.tally, self._run.lease.redis_now()
        for each in items:
            tally.begins(each.entry, each.attempt, now)

    def _still_ours(self, each: Started) -> bool:
        """A further call is a further start: not of what may be somebody else's by now."""
        if self._run.may_start(each.entry, clock()):
            return True
        self._run.give_up(each.entry, begun=True)
        del self._open[id(each)]
        return False

    async def _settle(self, answered: list[tuple[Started, object]]) -> int:
        """How many failed."""
        emitter = self._run.emitter
        uploads = None if emitter is None else emitter.uploads()
        acks, emits, failed = made = self._acked(answered, uploads)
        if emitter is not None:
            try:
                acks, emits, failed = await emitter.upload(uploads, made, partial(self._acked, answered))
                if emits:
                    await emitter.before_ack(emits)
            except Exception as error:
                failed, acks = [*failed, *((each, error) for each, _ in acks)], []
        for each, why in failed:
            self._fail(each, why)
        for each, ack in acks:
            self._any_success = True
            self._run.tally.handled += 1
            self._end(each, ack)
        return len(failed)

    def _acked(self, answered: list[tuple[Started, object]], uploads: Uploads | None) -> Acked:
        acks, emits, failed = Acked([], [], [])
        for each, outcome in answered:
            try:
                if isinstance(outcome, BaseException):
                    raise outcome
                ack, records = acked(self._run, each, outcome, uploads)
            except BaseException as error:
                failed.append((each, error))
                continue
            acks.append((each, ack))
            if records:
                emits.append((delivery_of(self._run, each), records))
        return Acked(acks, emits, failed)

    def _fail(self, each: Started, error: BaseException) -> None:
        subject.set(each.entry)
        self._end(each, failures.judge(self._run, each.entry, delivery_of(self._run, each), error, self._took))

    def _end_all(self, items: list[Started]) -> None:
        """All went well, and nothing was said of any."""
        run, self._any_success = self._run, True
        run.tally.handled += len(items)
        for each in items:
            del self._open[id(each)]
        run.plain.add_all([ack_of(run, each) for each in items])

    def _end(self, each: Started, outcome: Outcome) -> None:
        del self._open[id(each)]
        self._run.settle(outcome)
