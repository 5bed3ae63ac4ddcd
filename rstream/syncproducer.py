"""`producer.py` for threads: whoever gets the lock flushes for everybody. What is said there holds here."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

from rstream.errors import PublishUncertain, StoreError
from rstream.event import EntryId
from rstream.process import clock
from rstream.producer import Sent, Target
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, SyncLink
from rstream.store.log import Record, weight_of
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel, Slip
from rstream.store.steps import drive_sync

NAP = 0.05
"""Seconds after which a thread looks again whether another one has sent what it waits for."""


_renewing = threading.Lock()


class SyncProducer:
    """The publisher of one stream for all threads of a process: whoever gets the lock flushes for everybody."""

    def __init__(
        self, target: Target, layout: Layout, link: SyncLink, timeout: float, replicas: int = 0, full_wait: float = 0.0
    ) -> None:
        self._target, self._link, self._timeout, self._replicas = target, link, timeout, replicas
        self._full_wait = full_wait
        self._renew(layout)

    def _renew(self, layout: Layout) -> None:
        self._outbox = Outbox(layout)
        self._adding, self._flushing = threading.Lock(), threading.Lock()
        self._inside: set[int] = set()  # the threads that are publishing
        self._pid = os.getpid()

    def send(self, groups: Iterable[Mapping[Shard, Sequence[Record]]]) -> Sent:
        """As `Producer.send`."""
        self._begin()
        until, coming = clock() + self._full_wait, iter(groups)
        parcels: list[Parcel] = []
        left: deque[Slip] = deque()
        failed = False

        def more() -> bool:
            """Add a group; whether there was one."""
            nonlocal failed
            while left and left[0].done():
                failed = left.popleft().error is not None or failed
            shards = None if failed else next(coming, None)
            if shards is None:
                return False
            new = [parcel for shard, batch in shards.items() for parcel in Parcel.pack(shard, batch, Slip, until)]
            parcels.extend(new)
            left.extend(cast("Slip", parcel.promise) for parcel in new)
            with self._adding:
                self._outbox.add(new)
            return True

        try:
            self._inside.add(threading.get_ident())
            while more() or left:
                self._carry(left, more)
        except BaseException as error:
            _abandon(left, error)
            raise
        finally:
            self._inside.discard(threading.get_ident())
        slips = [cast("Slip", parcel.promise) for parcel in parcels]
        return [(parcel, slip.error or slip.result) for parcel, slip in zip(parcels, slips, strict=True)]

    def send_one(self, shard: Shard, record: Record) -> EntryId:
        """As `send`, for one: its id."""
        self._begin()
        slip = Slip()
        parcel = Parcel(shard, (record,), slip, weight_of(record), clock() + self._full_wait)
        try:
            self._inside.add(threading.get_ident())
            if not self._send_alone(parcel):
                with self._adding:
                    self._outbox.add((parcel,))
            if not slip.done():
                self._carry((slip,))
        except BaseException as error:
            _abandon((slip,), error)
            raise
        finally:
            self._inside.discard(threading.get_ident())
        if slip.error is not None:
            raise slip.error
        return cast("EntryId", slip.result[0])

    def _begin(self) -> None:
        """A forked child that went on with the parent's producer id and numbers would have its events taken for
        resends. One of its threads sees to it: what the others have begun by then must not be forgotten.

        Raises `RuntimeError`, as Python's own writers do, where the thread would wait for itself.
        """
        if threading.get_ident() in self._inside:
            raise RuntimeError(
                "reentrant call: a signal or log handler publishes to the stream that its thread is publishing to. "
                "Have it publish in a thread of its own, or to another stream"
            )
        if self._pid != os.getpid():
            with _renewing:
                if self._pid != os.getpid():
                    self._renew(self._outbox.layout)

    def _send_alone(self, parcel: Parcel) -> bool:
        """Send it now; whether that was possible, for nobody else sends, or has something to be sent."""
        if not self._flushing.acquire(blocking=False):
            return False
        try:
            with self._adding:
                op = self._outbox.take_alone(parcel, self._replicas)
            if op is not None:
                self._flush(op)
            return op is not None
        finally:
            self._flushing.release()

    def _carry(self, slips: Collection[Slip], more: Callable[[], object] | None = None) -> None:
        """Flush until they are through. more: called while the server works."""
        while not all(slip.done() for slip in slips):
            pause = 0.0
            with self._flushing:
                if not all(slip.done() for slip in slips):
                    pause = self._flush_once(more)
            if pause:  # without the lock: what others have to send may go out now
                time.sleep(pause)

    def _flush_once(self, meanwhile: Callable[[], object] | None = None) -> float:
        """Seconds to wait before there is more to flush."""
        with self._adding:
            op = self._outbox.take(self._replicas)
            if op is None:
                return min(NAP, self._outbox.pause() or 0.0)
        self._flush(op, meanwhile)
        return 0.0

    def _flush(self, op: Op[None], meanwhile: Callable[[], object] | None = None) -> None:
        """What was taken; it needs the lock."""
        try:
            self._link.run(op, within=self._timeout, meanwhile=meanwhile)
            if self._outbox.troubled:
                if self._outbox.needs:
                    self._make_room()
                if (refused := self._outbox.refused) is not None:
                    self._follow(refused)
        except BaseException as error:
            uncertain = PublishUncertain(f"publish was interrupted: {type(error).__name__}")
            with self._adding:
                self._outbox.fail(error if isinstance(error, Exception) else uncertain)
            if not isinstance(error, Exception):
                raise

    def _make_room(self) -> None:
        from rstream.store.room import make_room

        outbox = self._outbox
        steps = make_room(outbox.layout, outbox.needs, outbox.hopeless)
        errors = drive_sync(self._link, steps, self._timeout)
        with self._adding:
            outbox.resend(errors)

    def _follow(self, refused: Shard) -> None:
        """As `Producer._follow`."""
        from rstream.store.reshard import follow

        try:
            steps = follow(self._target.declaration(), refused, self._timeout)
            layout = drive_sync(self._link, steps, self._timeout)
        except StoreError as error:
            error.sent = False
            raise
        self._target.adopt(layout)
        with self._adding:
            self._outbox.go_on(layout)


def _abandon(slips: Iterable[Slip], error: BaseException) -> None:
    """Whoever waited was interrupted: what was not sent by now is not sent by those who come later."""
    for slip in slips:
        if not slip.done():
            slip.set_exception(error)
