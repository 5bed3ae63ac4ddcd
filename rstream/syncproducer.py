"""`producer.py` for threads: whoever gets an outbox's lock flushes for everybody. What is said there holds here."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from rstream.courier import Target
from rstream.event import EntryId
from rstream.process import clock
from rstream.producer import Sent, outboxes
from rstream.store.keys import Shard, half_of
from rstream.store.layout import Layout
from rstream.store.link import SyncLink
from rstream.store.parcel import Parcel, Promise, Slip, by_half
from rstream.store.record import Parts, weight_of
from rstream.synccourier import SyncCourier

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
        self.couriers = [
            SyncCourier(self._target, layout, self._link, self._timeout, self._replicas)
            for _ in range(outboxes(layout))
        ]
        self._inside: set[int] = set()  # the threads that are publishing
        self._pid = os.getpid()

    def send(self, groups: Iterable[Mapping[Shard, Sequence[bytes]]]) -> Sent:
        """As `Producer.send`."""
        self._begin()
        until, coming = clock() + self._full_wait, iter(groups)
        parcels: list[Parcel] = []
        shares = [_Share(courier) for courier in self.couriers]
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
            for share, mine in zip(shares, by_half(new, len(shares)), strict=True):
                share.add(mine)
            return True

        try:
            self._inside.add(threading.get_ident())
            while more() or left:
                _carry(shares, more)
        except BaseException as error:
            _abandon(left, error)
            raise
        finally:
            self._inside.discard(threading.get_ident())
        slips = [cast("Slip", parcel.promise) for parcel in parcels]
        return [(parcel, slip.error or slip.result) for parcel, slip in zip(parcels, slips, strict=True)]

    def send_one(self, shard: Shard, record: Parts) -> EntryId:
        """As `send`, for one: its id."""
        self._begin()
        slip = Slip()
        until = clock() + self._full_wait if self._full_wait else 0.0
        parcel = Parcel(shard, record, slip, weight_of(record), until)
        courier = self._courier(shard, record)
        try:
            self._inside.add(threading.get_ident())
            if not courier.send_alone(parcel):
                courier.add((parcel,))
            while not slip.done():
                _carry_one(courier, slip)
        except BaseException as error:
            _abandon((slip,), error)
            raise
        finally:
            self._inside.discard(threading.get_ident())
        if slip.error is not None:
            raise slip.error
        return cast("EntryId", slip.result[0])

    def _courier(self, shard: Shard, record: Parts) -> SyncCourier:
        if len(self.couriers) == 1:
            return self.couriers[0]
        return self.couriers[half_of(record[1]) if shard.half is None else shard.half]

    def _begin(self) -> None:
        """A forked child that went on with the parent's producer ids and numbers would have its events taken for
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
                    self._renew(self.couriers[0].outbox.layout)


class _Share:
    """What one courier has to carry of a publish."""

    def __init__(self, courier: SyncCourier) -> None:
        self.courier = courier
        self._left: deque[Promise] = deque()

    def add(self, parcels: Sequence[Parcel]) -> None:
        self._left.extend(parcel.promise for parcel in parcels)
        self.courier.add(parcels)

    def through(self) -> bool:
        while self._left and self._left[0].done():
            self._left.popleft()
        return not self._left


def _carry(shares: Sequence[_Share], more: Callable[[], bool]) -> None:
    """Flush until all is through, for one courier while the server works for the other; `more` adds to it meanwhile."""
    begun: deque[SyncCourier] = deque()  # whose locks are ours
    try:
        while True:
            pause, busy = NAP, None
            for courier in [share.courier for share in shares if not share.through()]:
                if courier in begun:
                    continue
                if not courier.carrying.acquire(blocking=False):
                    busy = courier
                    continue
                begun.append(courier)
                if (wait := courier.begin()) is not None:
                    begun.pop().carrying.release()
                    pause = min(pause, wait)
            made = any(share.courier.idle for share in shares) and more()
            if begun:
                # One that got no connection comes last: it may have to wait for that of the other.
                first = next((courier for courier in begun if courier.under_way), begun[0])
                first.finish()
                begun.remove(first)
                first.carrying.release()
            elif made:
                continue
            elif all(share.through() for share in shares):
                return
            elif busy is not None:
                with busy.carrying:  # until another thread has sent something
                    pass
            else:
                time.sleep(pause)  # without a lock: what others have to send may go out now
    except BaseException as error:
        for courier in begun:
            courier.abandon(error)
        for share in shares:
            share.courier.let_go()
        raise


def _carry_one(courier: SyncCourier, slip: Slip) -> None:
    """A flush that may have it in it."""
    with courier.carrying:
        try:
            wait = None if slip.done() else courier.begin()
            courier.finish()
        except BaseException as error:
            courier.abandon(error)
            raise
    if wait:
        time.sleep(min(NAP, wait))


def _abandon(slips: Iterable[Slip], error: BaseException) -> None:
    """Whoever waited was interrupted: what was not sent by now is not sent by those who come later."""
    for slip in slips:
        if not slip.done():
            slip.set_exception(error)
