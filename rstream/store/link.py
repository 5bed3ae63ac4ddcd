"""Sending operations to Redis: `Link` for an event loop, `SyncLink` for threads. One `Op` serves both.

Every operation may be sent twice without harm (publishes carry a sequence number, settles are fenced), so a link
may resend one whose answer never came, for as long as `within` says: those of its calls that were not answered, and
where replicas have to confirm and too few did, all that they did not confirm.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rstream.errors import StoreError, StoreUnavailable
from rstream.store.connect import Endpoint
from rstream.store.line import amiss
from rstream.store.lines import ClusterLines, Lines
from rstream.store.scripts import Call
from rstream.store.sync_lines import Posted, SyncClusterLines, SyncLines

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger("rstream")

WAIT_MS = 1000
"""How long replicas get to confirm a write before it is sent again (less where a reply is not waited for that long)."""


@dataclass(slots=True, eq=False)  # not frozen: making one would take three times as long
class Op(Generic[T]):
    """Commands that go out in one write, and what their replies mean.

    With `partial`, replies may contain errors as values, and `parse` deals with them; otherwise the first
    error is raised. A Redis that is not ready (loading, failing over) is never a value: it is asked again.

    replicas: how many of each server written to must confirm; until they do the op does not end.
    """

    calls: Sequence[Call]
    parse: Callable[[list[Any]], T]
    partial: bool = False
    replicas: int = 0

    def then(self, go_on: Callable[[T], R]) -> Op[R]:
        """The same, and what is made of what it comes to."""
        parse = self.parse
        return replace(self, parse=lambda replies: go_on(parse(replies)))  # type: ignore[arg-type, return-value]


@dataclass(slots=True, eq=False)
class Aside(Op[T]):
    """What has to be done elsewhere, by blocking calls in threads, between operations on Redis.

    begin: has them started · parse: gets what they return. What one raises is raised.
    """

    begin: Callable[[], Sequence[Future[Any]]] = tuple


def aside(begin: Callable[[], Sequence[Future[Any]]], parse: Callable[[list[Any]], T]) -> Aside[T]:
    return Aside((), parse, begin=begin)


def together(ops: Sequence[Op[T]]) -> Op[list[T]]:
    """Several operations in one write; the first error is raised."""
    ends = list(itertools.accumulate((len(op.calls) for op in ops), initial=0))

    def parse(replies: list[Any]) -> list[T]:
        return [op.parse(replies[start:end]) for op, (start, end) in zip(ops, itertools.pairwise(ends), strict=True)]

    return Op([call for op in ops for call in op.calls], parse, replicas=max((op.replicas for op in ops), default=0))


def both(one: Op[R], other: Op[T]) -> Op[tuple[R, T]]:
    """`together` for two of different kinds."""
    pair: Sequence[Op[Any]] = (one, other)
    return together(pair).then(lambda found: (found[0], found[1]))


def backoff(cap: float = 1.0) -> Iterator[float]:
    """Seconds to wait before each new try: doubling from 20 ms to `cap`, with jitter against stampedes."""
    delay = 0.02
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(cap, delay * 2)


class _Effort(Generic[T]):
    """An op on its way: what of it is answered, and what may have been applied although no answer came. No I/O.

    within: seconds to go on trying · timeout: that one exchange may take.
    """

    def __init__(self, op: Op[T], endpoint: Endpoint, within: float, timeout: float) -> None:
        self._op, self._endpoint, self._within = op, endpoint, within
        self._deadline = time.monotonic() + within
        self._delays = backoff()
        self._wait_ms = max(1, min(WAIT_MS, int(timeout * 800))) if op.replicas else 0
        self._waiting = False
        self._left: Sequence[int] = range(len(op.calls))
        self._replies: list[Any] = []  # None for those left; empty until some are answered and others not
        self._lost: set[int] = set()
        self._applied = False  # some of it, for sure

    @property
    def calls(self) -> Sequence[Call]:
        """What is to be sent now."""
        calls = self._op.calls
        if self._replies:
            calls = [calls[number] for number in self._left]
        return [*calls, ("WAIT", self._op.replicas, self._wait_ms)] if self._op.replicas else calls

    def result(self, replies: list[Any]) -> T:
        """What the op comes to by the replies to `calls`. Raises `StoreError`."""
        if self._op.replicas:
            replies = self._confirmed(replies)
        if self._replies or amiss(replies):
            replies = self._merged(replies)
        return self._op.parse(replies)

    def _confirmed(self, replies: list[Any]) -> list[Any]:
        """Without the reply to WAIT; where that was not enough, what was applied counts as not answered."""
        *replies, told = replies
        if isinstance(told, int) and told >= self._op.replicas:
            return replies
        unsure = told
        if not isinstance(told, StoreError):
            unsure = self._endpoint.unconfirmed(told, self._op.replicas, self._wait_ms)
        unsure.sent = True
        return [reply if isinstance(reply, StoreError) else unsure for reply in replies]

    def _merged(self, replies: list[Any]) -> list[Any]:
        self._replies = self._replies or [None] * len(self._op.calls)
        left, trouble = [], None
        for number, reply in zip(self._left, replies, strict=True):
            if isinstance(reply, StoreUnavailable):
                left.append(number)
                trouble = trouble or reply
                if reply.sent:
                    self._lost.add(number)
                continue
            if isinstance(reply, StoreError):
                reply.sent = reply.sent or number in self._lost
                if not self._op.partial:
                    raise reply
            else:
                self._applied = True
            self._replies[number] = reply
        self._left = left
        if trouble is not None:
            trouble = copy.copy(trouble)
            trouble.sent = False  # which calls it holds for is noted
            raise trouble
        return self._replies

    def failed(self, error: StoreError) -> float:
        """Seconds to wait before the next try. Raises the error again where there is no time for one."""
        delay = next(self._delays)
        if error.sent:
            self._lost.update(self._left)
        error.sent = bool(self._lost)
        if not isinstance(error, StoreUnavailable):
            raise error
        if time.monotonic() + delay > self._deadline:
            error.sent = error.sent or self._applied
            raise error
        if not self._waiting:
            log.warning("%s. Waiting for it, at most %.3g s", error, self._within)
        self._waiting = True
        return delay


class Link:
    """The connections of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._lines = ClusterLines(endpoint) if endpoint.clustered else Lines(endpoint)

    async def run(
        self,
        op: Op[T],
        *,
        within: float = 0.0,
        timeout: float | None = None,
        begun: Coroutine[Any, Any, list[Any]] | None = None,
    ) -> T:
        """Send `op` and parse its replies; while Redis is away, try again for `within` seconds.

        `timeout`: seconds to wait for the replies (default: the endpoint's) · begun: what `post` gave: it was sent
        once already, and this is what comes of it. Raises `StoreUnavailable`, `StoreRefused`, `MemoryFull`,
        `GroupMissing`, and what `op.parse` raises.
        """
        if isinstance(op, Aside):
            done: T = op.parse([await asyncio.wrap_future(call) for call in op.begin()])
            return done
        effort = _Effort(op, self.endpoint, within, timeout or self.endpoint.patience)
        while True:
            try:
                first, begun = begun, None
                return effort.result(await (first or self.exchange(effort.calls, timeout)))
            except StoreError as error:
                delay = effort.failed(error)
            await asyncio.sleep(delay)

    def post(self, op: Op[Any], done: Callable[[list[Any] | Coroutine[Any, Any, list[Any]]], None]) -> bool:
        """Send `op` now, without a task, where that can be done. `done` is called with the replies; or, where they are
        not as good as can be, with what `run` has to be given for `begun`. False: nothing was sent.
        """
        if op.replicas or not isinstance(self._lines, Lines):
            return False
        return self._lines.post(op.calls, done)

    async def exchange(self, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """The replies to `calls`, errors among them as values. Raises `StoreUnavailable` if the line breaks; in a
        cluster, where one of several may break, that is a value too.
        """
        return await self._lines.exchange(calls, timeout)

    async def aclose(self) -> None:
        """Close all idle connections; those in use close when they come back."""
        await self._lines.aclose()


class SyncLink:
    """The connections of one process's threads.

    timeout: seconds to wait for a reply (default: the endpoint's).
    """

    def __init__(self, endpoint: Endpoint, timeout: float | None = None) -> None:
        self.endpoint = endpoint
        self._timeout = timeout or endpoint.patience
        self._lines = SyncClusterLines(endpoint, timeout) if endpoint.clustered else SyncLines(endpoint, timeout)

    def run(self, op: Op[T], *, within: float = 0.0, begun: Posted | None = None) -> T:
        """As `Link.run`. begun: what `post` gave."""
        if isinstance(op, Aside):
            done: T = op.parse([call.result() for call in op.begin()])
            return done
        effort = _Effort(op, self.endpoint, within, self._timeout)
        while True:
            try:
                first, begun = begun, None
                return effort.result(first.replies() if first else self.exchange(effort.calls))
            except StoreError as error:
                delay = effort.failed(error)
            time.sleep(delay)

    def post(self, op: Op[Any]) -> Posted | None:
        """Send `op` now, and do not wait for the replies: `run` does, which has to be given this for `begun`. None:
        nothing was sent.
        """
        return None if op.replicas else self._lines.post(op.calls)

    def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """As `Link.exchange`."""
        return self._lines.exchange(calls)

    def servers(self) -> dict[str, Callable[[Sequence[Call]], list[Any]]]:
        """How to ask each server by itself, as `exchange` does: all masters of a cluster by `host:port`, else the one
        there is. Raises `StoreError` where a cluster does not tell its masters.
        """
        if isinstance(self._lines, SyncClusterLines):
            return {f"{host}:{port}": each.exchange for (host, port), each in self._lines.masters().items()}
        return {self.endpoint.label: self._lines.exchange}

    def server_of(self, slot: int) -> str:
        """The master that serves a slot, as `servers` calls it; "" where nobody does. Only after `servers`."""
        if isinstance(self._lines, SyncClusterLines):
            address = self._lines.owner(slot)
            return "" if address is None else f"{address[0]}:{address[1]}"
        return self.endpoint.label

    def close(self) -> None:
        """Close all idle connections."""
        self._lines.close()
