"""Says that this worker lives: a thread with its own connection, so that a blocked event loop loses no lease.

The lease of a (worker, group) is its `alive` key in every shard, set again every lease/3; in an ordered group also its
`owner` key in those that it owns. Cost: one round trip every lease/3 for all groups together, with a Lua call for each
(on a cluster: for each slot), O(shards). How much is in hand costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence, Sized
from typing import Any, Protocol

from rstream.errors import StoreError, StoreUnavailable
from rstream.process import clock
from rstream.store.connect import Endpoint
from rstream.store.deliveries import Beat, GroupOps, Tokens
from rstream.store.link import Op, SyncLink, backoff
from rstream.store.scripts import Call

log = logging.getLogger("rstream")

LAPSED = (
    "%s: the lease was lost and is taken anew: nothing was heard of this worker for %g s (the process or Redis was "
    "frozen or cut off, or Redis lost data). What it had not started is looked for again, others may have taken it over"
)


class Lease:
    """One group's lease. Written by the keeper's thread, read by the loop.

    until: the lease surely holds up to this `clock()` · term: rises whenever the lease was lost in between · ahead:
    how many seconds Redis's clock is ahead of `clock()`, give or take a round trip · owned: in an ordered group, the
    shards that are this worker's, never changed but replaced · hand: what it has in hand · lost: deliveries that
    were in hand still when the keeper found the lease lost.
    """

    def __init__(self, ops: GroupOps, seconds: float) -> None:
        self.ops, self.seconds = ops, seconds
        self.owned: Tokens = {}
        self.until = float("-inf")
        self.term = 0
        self.ahead = 0.0
        self.hand: Sized = ()
        self.lost = 0
        self.next_beat = float("-inf")
        self.told_until = float("-inf")

    @property
    def name(self) -> str:
        return f"{self.ops.layout.name}/{self.ops.group}"

    def holds(self) -> bool:
        return clock() < self.until

    def redis_now(self) -> float:
        """Seconds since the epoch by Redis's clock, the one that ids and ages are measured by."""
        return clock() + self.ahead

    async def held(self) -> None:
        """Wait until the lease holds. It is lost so seldom that looking again now and then will do."""
        while not self.holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def beat(self) -> Op[Beat]:
        """What renews it, if the answer is told to `renewed`."""
        return self.ops.beat(int(self.seconds * 1000), self.owned)

    def renewed(self, answer: Beat, sent: float) -> None:
        """sent: when `beat` was."""
        self.ahead = answer.now / 1000 - clock()
        if not answer.known or sent >= self.until:
            if self.term:
                log.warning(LAPSED, self.name, self.seconds)
            self.term += 1
            self.lost += len(self.hand)
        self.until = sent + self.seconds
        self.next_beat = sent + self.seconds / 3


class Told(Protocol):
    """What else goes along with the beats: calls that nothing depends on."""

    def calls(self) -> Sequence[Call]: ...

    def answered(self, replies: Sequence[Any]) -> None:
        """Errors among them are values."""


def renew(leases: Sequence[Lease], link: SyncLink, told: Told | None = None) -> dict[Lease, StoreError]:
    """In one round trip; those that could not be renewed, and why. In a cluster one server may be away, or one slot be
    half moved: the leases of groups that lie elsewhere must not run out for that.
    """
    along = told.calls() if told is not None else ()
    beats, sent = [lease.beat() for lease in leases], clock()
    try:
        replies = iter(link.exchange([*(call for beat in beats for call in beat.calls), *along]))
    except StoreError as error:
        return dict.fromkeys(leases, error)
    failed = {}
    for lease, beat in zip(leases, beats, strict=True):
        answers = [next(replies) for _ in beat.calls]
        if errors := [answer for answer in answers if isinstance(answer, StoreError)]:
            failed[lease] = errors[0]
        else:
            lease.renewed(beat.parse(answers), sent)
    if told is not None:
        told.answered([*replies])
    return failed


def in_vain(name: str, what: str, within: float, error: StoreUnavailable) -> StoreUnavailable:
    """What a worker says that cannot start."""
    return StoreUnavailable(f"{name}: the worker waited {within:g} s {what}, in vain. {error}")


class LeaseKeeper(threading.Thread):
    """Renews the leases of a worker until it is stopped. told: what goes along."""

    def __init__(self, endpoint: Endpoint, leases: list[Lease], told: Told | None = None) -> None:
        super().__init__(name="rstream-lease", daemon=True)
        self._leases, self._told = leases, told
        shortest = min(lease.seconds for lease in leases)
        self._link = SyncLink(endpoint, timeout=max(0.2, shortest / 4))
        self._retry_after = min(1.0, shortest / 20)
        self._stop_asked = threading.Event()

    def begin(self, within: float = 0.0) -> None:
        """Take all leases, then keep them in the background. Blocks, where Redis is away for up to `within` seconds;
        raises `StoreError`.
        """
        deadline = clock() + within
        for lease in self._leases:
            self._take(lease, within, deadline)
            if self._stop_asked.is_set():
                return
        if self._told is not None:  # now: the first beat knows of no clock but ours
            renew([], self._link, self._told)
        self.start()

    def _take(self, lease: Lease, within: float, deadline: float) -> None:
        """The first beat: tried anew, not sent again by the link, for a lease runs from when its beat was sent."""
        waiting = False
        for delay in backoff():
            error = renew([lease], self._link).get(lease)
            if error is None:
                return
            if not isinstance(error, StoreUnavailable):
                raise error
            if clock() + delay > deadline:
                raise in_vain(lease.name, "to take the lease", within, error) from None
            if not waiting:
                log.warning("%s. Waiting for it, at most %.0f s", error, deadline - clock())
            waiting = True
            if self._stop_asked.wait(delay):
                return

    def run(self) -> None:
        while not self._stop_asked.wait(max(0.0, min(lease.next_beat for lease in self._leases) - clock())):
            now = clock()
            # Whoever is due soon goes along, so that leases that are as long are renewed together for ever after.
            due = [lease for lease in self._leases if lease.next_beat <= now + lease.seconds / 30]
            if due and not self._stop_asked.is_set():
                self._beat(due)

    def _beat(self, leases: Sequence[Lease]) -> None:
        for lease, error in renew(leases, self._link, self._told).items():
            lease.next_beat = clock() + self._retry_after
            if not lease.holds() and lease.told_until != lease.until:  # once for each time that it runs out
                lease.told_until = lease.until
                log.warning("group %s: the lease ran out and could not be renewed: %s", lease.ops.group, error)

    def stop(self) -> None:
        """End the renewals. A beat that waits for a Redis that is away is not waited for."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(timeout=1.0)
        self._link.close()
