"""Both links behind one face, so that a test of one is a test of both."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from rstream import Event, RStream
from rstream.store.connect import Endpoint
from rstream.store.link import Link, Op, SyncLink
from rstream.store.scripts import Call
from tests.waiting import eventually

T = TypeVar("T")


class Item(Event):
    n: int


faces = pytest.mark.parametrize("face", ["sync", "async"])


class Face:
    """A link, used by blocking calls; the one of coroutines runs in a loop of its own."""

    def __init__(self, url: str, portal: BlockingPortal | None) -> None:
        self.endpoint, self._portal = Endpoint(url), portal
        self.name = "sync" if portal is None else "async"
        self.link: Link | SyncLink = SyncLink(self.endpoint) if portal is None else portal.call(self._link)

    async def _link(self) -> Link:
        return Link(self.endpoint)

    def run(self, op: Op[T], *, within: float = 0.0) -> T:
        if isinstance(self.link, SyncLink):
            return self.link.run(op, within=within)
        assert self._portal is not None
        return self._portal.call(partial(self.link.run, op, within=within))

    def ask(self, *calls: Call, within: float = 0.0) -> list[Any]:
        return self.run(Op(calls, list), within=within)

    def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """As if it had been the first try of `run`."""
        if isinstance(self.link, SyncLink):
            return self.link.exchange(calls)
        assert self._portal is not None
        return self._portal.call(self.link.exchange, calls)

    def close(self) -> None:
        if isinstance(self.link, SyncLink):
            self.link.close()
        elif self._portal is not None:
            self._portal.call(self.link.aclose)


@contextlib.contextmanager
def linked(url: str, face: str) -> Iterator[Face]:
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal()) if face == "async" else None
        link = Face(url, portal)
        stack.callback(link.close)
        yield link


@contextlib.contextmanager
def both(url: str) -> Iterator[tuple[Face, Face]]:
    """For tests in which much is broken: one of each kind, to see the same."""
    with linked(url, "sync") as one, linked(url, "async") as other:
        yield one, other


RESUMES = 3.0
"""Seconds after a promotion within which operations go on."""


def through(promoted: Callable[[], Any], *trying: Callable[[], T]) -> list[T]:
    """What calls come to that begin before a promotion; they must end soon after it."""
    with ThreadPoolExecutor(len(trying)) as pool:
        began = time.monotonic()
        running = [pool.submit(each) for each in trying]
        promoted()
        known = time.monotonic()
        results = [each.result() for each in running]
    late = time.monotonic() - known
    print(f"promoted {known - began:.2f} s after the failure, answered {late:.2f} s after that")
    assert late < RESUMES
    return results


@contextlib.contextmanager
def publishing(url: str, namespace: str, face: str) -> Iterator[Callable[[], int]]:
    """Publishes the numbers from 0 on, all the while; gives how many were accepted so far. None may be refused."""
    accepted, stop = 0, threading.Event()

    def batch() -> list[Item]:
        return [Item(n=n) for n in range(accepted, accepted + 20)]

    async def on_the_loop() -> None:
        nonlocal accepted
        async with RStream(url, namespace=namespace) as app:
            items = app.stream("items", Item, key="n")
            while not stop.is_set():
                accepted += len(await items.publish_many(batch()))

    def in_threads() -> None:
        nonlocal accepted
        with RStream(url, namespace=namespace) as app:
            items = app.stream("items", Item, key="n")
            while not stop.is_set():
                accepted += len(items.sync.publish_many(batch()))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(partial(anyio.run, on_the_loop) if face == "async" else in_threads)
        try:
            eventually(lambda: accepted > 100 or running.done())
            yield lambda: accepted
        finally:
            stop.set()
            running.result()


def published(url: str, namespace: str) -> list[int]:
    """What is there of it, sorted."""
    with RStream(url, namespace=namespace) as app:
        return sorted(entry.event.n for entry in app.stream("items", Item, key="n").sync.read())
