"""`courier.py` for threads: whoever has the lock carries for everybody. What is said there holds here."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from rstream.courier import Target
from rstream.errors import PublishUncertain, StoreError
from rstream.process import clock
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, SyncLink
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel
from rstream.store.steps import drive_sync
from rstream.store.sync_lines import Posted


class SyncCourier:
    """Of one outbox, for all threads of a process.

    carrying: the lock that `begin`, `finish` and `abandon` need. Who waits for one while it has another one's would
    have two threads wait for each other.
    """

    def __init__(self, target: Target, layout: Layout, link: SyncLink, timeout: float, replicas: int) -> None:
        self._target, self._link, self._timeout, self._replicas = target, link, timeout, replicas
        self.outbox = Outbox(layout)
        self.carrying, self._adding = threading.RLock(), threading.Lock()  # an RLock knows whose it is: see `let_go`
        self._begun: tuple[Op[None], Posted | None, float] | None = None

    @property
    def idle(self) -> bool:
        """Whether it has nothing to send but what it has begun to."""
        with self._adding:
            return self.outbox.pause() is None

    def add(self, parcels: Sequence[Parcel]) -> None:
        with self._adding:
            self.outbox.add(parcels)

    def send_alone(self, parcel: Parcel) -> bool:
        """Send it now; whether that was possible, for nobody else sends, or has something to be sent."""
        try:
            if not self.carrying.acquire(blocking=False):
                return False
            with self._adding:
                op = self.outbox.take_alone(parcel, self._replicas)
            if op is not None:
                self._flush(op)
            return op is not None
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Release `carrying`, if this thread has it: Ctrl-C may strike when it has got it, before it notes that."""
        with contextlib.suppress(RuntimeError):
            self.carrying.release()

    def begin(self) -> float | None:
        """Send what is there; `finish` must follow. Where nothing could be sent: seconds until something may be."""
        with self._adding:
            op = self.outbox.take(self._replicas)
            if op is None:
                return self.outbox.pause() or 0.0
        since = clock()  # to connect takes of its time, too
        try:
            self._begun = op, self._link.post(op), since
        except BaseException as error:
            self._fail(error)
            raise
        return None

    @property
    def under_way(self) -> bool:
        """Whether what it has begun to send was written, and holds a connection until it is finished."""
        return self._begun is not None and self._begun[1] is not None and self._begun[1].whole

    def finish(self) -> None:
        """See what became of it. Errors are told to those who wait; interrupts are raised, too."""
        if self._begun is not None:
            (op, posted, since), self._begun = self._begun, None
            self._flush(op, posted, clock() - since)

    def abandon(self, error: BaseException) -> None:
        """Whoever has begun cannot finish."""
        if self._begun is not None:
            (_, posted, _), self._begun = self._begun, None
            if posted is not None:
                posted.drop()
            self._fail(error)

    def _flush(self, op: Op[None], posted: Posted | None = None, passed: float = 0.0) -> None:
        try:
            self._link.run(op, within=self._timeout - passed, begun=posted)
            if self.outbox.troubled:
                if self.outbox.needs:
                    self._make_room()
                if (refused := self.outbox.refused) is not None:
                    self._follow(refused)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    def _fail(self, error: BaseException) -> None:
        uncertain = PublishUncertain(f"publish was interrupted: {type(error).__name__}")
        with self._adding:
            self.outbox.fail(error if isinstance(error, Exception) else uncertain)

    def _make_room(self) -> None:
        from rstream.store.room import make_room

        outbox = self.outbox
        steps = make_room(outbox.layout, outbox.needs, outbox.hopeless)
        errors = drive_sync(self._link, steps, self._timeout)
        with self._adding:
            outbox.resend(errors)

    def _follow(self, refused: Shard) -> None:
        """As `Courier._follow`."""
        from rstream.store.reshard import follow

        try:
            steps = follow(self._target.declaration(), refused, self._timeout)
            layout = drive_sync(self._link, steps, self._timeout)
        except StoreError as error:
            error.sent = False
            raise
        self._target.adopt(layout)
        with self._adding:
            self.outbox.go_on(layout)
