"""Carries what is in an `Outbox` to Redis: one write in flight, exact through broken lines and through reshardings.
Where a shard is full it makes room, or waits for it as long as the callers do; where one is nearly full of what is not
processed, it sends less often there.

A lone publish goes out at once; gathering waits for the reply before it or the next loop tick, never for a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from rstream.errors import PublishUncertain, StoreError
from rstream.process import clock
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Link, Op
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel
from rstream.store.steps import drive


class Target(Protocol):
    """A stream, as far as its producers know it."""

    def declaration(self) -> Op[Layout]: ...
    def adopt(self, layout: Layout) -> None: ...


class Courier:
    """Of one outbox, in one event loop."""

    def __init__(self, target: Target, layout: Layout, link: Link, timeout: float, replicas: int) -> None:
        self._target, self._link, self._timeout, self._replicas = target, link, timeout, replicas
        self.outbox = Outbox(layout)
        self.other: Courier | None = None
        self._flushing = self._crowded = False
        self._flusher: asyncio.Task[None] | None = None
        self._added = asyncio.Event()

    def add(self, parcels: Sequence[Parcel]) -> None:
        self.outbox.add(parcels)
        self._go()

    def add_one(self, parcel: Parcel) -> None:
        """As `add`; where nothing is in its way it is not even put into the outbox."""
        if self._flushing or self._crowded or (op := self.outbox.take_alone(parcel, self._replicas)) is None:
            self.outbox.put(parcel)
            self._go()
        else:
            self._flushing = True
            self._post(op)

    def _go(self) -> None:
        if not self._flushing:
            self._flushing = True
            if self._crowded:  # with what others add in this turn
                asyncio.get_running_loop().call_soon(self._post)
            else:
                self._post()
        elif self._flusher is not None:
            self._added.set()

    # Flushes follow each other without a task as long as nothing is in their way: one that has to be waited for, or
    # that somebody has to do something about, is taken over by a task.

    def _post(self, op: Op[None] | None = None) -> None:
        """Send this, or what is there, if that is possible at once."""
        try:
            if op is None:
                op = self.outbox.take(self._replicas)
                self._crowded = self.outbox.taken > 1
            if op is not None and self._link.post(op, partial(self._came, op, clock())):
                return
        except Exception as error:
            self.outbox.fail(error)
            op = None
        self._take_over(op)

    def _came(self, op: Op[None], begun: float, replies: list[Any] | Coroutine[Any, Any, list[Any]]) -> None:
        if not isinstance(replies, list):
            self._take_over(op, replies, clock() - begun)
            return
        try:
            op.parse(replies)
        except Exception as error:
            self.outbox.fail(error)
        if self.outbox.troubled:
            self._take_over()
        elif self.outbox.pause() is None:
            self._flushing = False
        elif self.other is not None and self.other._flushing:  # Redis has something to do: with what is added next
            asyncio.get_running_loop().call_soon(self._post)
        else:
            self._post()

    def _take_over(
        self, op: Op[None] | None = None, begun: Coroutine[Any, Any, list[Any]] | None = None, passed: float = 0.0
    ) -> None:
        # In nobody's context: it writes for all, and what it logs is not about the delivery of whoever came first.
        nobody, work = contextvars.Context(), self._flush(op, begun, passed)
        self._flusher = asyncio.get_running_loop().create_task(work, context=nobody)
        self._flusher.add_done_callback(self._ended)

    def _ended(self, flusher: asyncio.Task[None]) -> None:
        """One that is cancelled before it has begun, with all other tasks of the loop, did not even tell anybody."""
        if flusher.cancelled() and self._flusher is flusher:
            self.outbox.fail(PublishUncertain("publish was interrupted: CancelledError"))
            self._flushing, self._flusher = False, None

    async def _flush(self, op: Op[None] | None, begun: Coroutine[Any, Any, list[Any]] | None, passed: float) -> None:
        """Send this, then what there is, until nothing is left. begun, passed: `op` was sent already, that many seconds
        ago.
        """
        outbox = self.outbox
        try:
            while True:
                try:
                    if op is not None:
                        await self._link.run(op, within=self._timeout - passed, begun=begun)
                    if outbox.needs:
                        await self._make_room()
                    if (refused := outbox.refused) is not None:
                        await self._follow(refused)
                    op = begun = None
                    if (pause := outbox.pause()) is None:
                        return
                    if (op := outbox.take(self._replicas)) is None:
                        await self._wait(pause)
                except Exception as error:
                    outbox.fail(error)
                    op = begun = None
                except BaseException as error:  # the loop is ending
                    outbox.fail(PublishUncertain(f"publish was interrupted: {type(error).__name__}"))
                    raise
                passed = 0.0
        finally:
            self._flushing, self._flusher = False, None

    async def _wait(self, seconds: float) -> None:
        """Until something may go out that had to wait, or something else is to be sent."""
        self._added.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._added.wait(), seconds)

    async def _make_room(self) -> None:
        from rstream.store.room import make_room

        outbox = self.outbox
        steps = make_room(outbox.layout, outbox.needs, outbox.hopeless)
        outbox.resend(await drive(self._link, steps, self._timeout))

    async def _follow(self, refused: Shard) -> None:
        """The stream was resharded: go over to what it is now, with all that is held."""
        from rstream.store.reshard import follow

        try:
            steps = follow(self._target.declaration(), refused, self._timeout)
            layout = await drive(self._link, steps, self._timeout)
        except StoreError as error:
            error.sent = False  # what was refused was not added
            raise
        self._target.adopt(layout)
        self.outbox.go_on(layout)
