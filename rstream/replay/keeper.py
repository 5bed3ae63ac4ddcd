"""Keeps a replay's lease and stores how far it has come, from a thread and a connection of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from rstream.errors import StoreError
from rstream.process import clock
from rstream.store.connect import Endpoint
from rstream.store.link import SyncLink
from rstream.store.replays import Progress, ReplayOps


class Keeper(threading.Thread):
    """until: the lease surely holds up to this `clock()`.

    failed: told, in the thread, that the lease is lost (None), or that Redis was away for `patience` seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ops: ReplayOps,
        progress: Callable[[], Progress],
        failed: Callable[[StoreError | None], None],
        *,
        lease: float,
        patience: float,
    ) -> None:
        super().__init__(name="rstream-replay", daemon=True)
        self.lease, self.until = lease, float("-inf")
        self._ops, self._progress, self._failed, self._patience = ops, progress, failed, patience
        self._link = SyncLink(endpoint, timeout=max(0.2, lease / 4))
        self._stop_asked = threading.Event()

    def holds(self) -> bool:
        return clock() < self.until

    def run(self) -> None:
        while not self._stop_asked.wait(min(1.0, self.lease / 5)):
            sent = clock()
            try:
                held = self._link.run(self._ops.keep(self._progress()))
            except StoreError as error:
                if clock() > self.until + self._patience:
                    return self._end(error)
                continue
            if not held:
                return self._end(None)
            self.until = sent + self.lease

    def _end(self, error: StoreError | None) -> None:
        self.until = float("-inf")
        self._failed(error)

    def leave_now(self) -> None:
        """Store what is done and let go of the lease; for a process that is about to end at once. Any thread."""
        self._stop_asked.set()
        with contextlib.suppress(StoreError):
            self._link.run(self._ops.leave(self._progress()))

    def stop(self) -> None:
        self._stop_asked.set()
        if self.is_alive():
            self.join()
        self._link.close()
