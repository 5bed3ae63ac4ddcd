"""A blob store in use: the threads that talk with it, and the check of what it gives.

Stores block, so an event loop has their calls run by threads, a bounded number of them, which end when they are idle or
the loop does. Code without one calls them directly, or, for many at once, by threads that end with the call. Who reads
ahead has its calls begun before it waits for them, by threads that end when nothing is left to do.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import cache
from typing import IO, Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from rstream.blobs.base import CHUNK, BlobStore
from rstream.blobs.meter import Metered
from rstream.blobs.url import open_store
from rstream.errors import BlobAltered
from rstream.perloop import PerLoop
from rstream.reference import Reference, Source

T = TypeVar("T")

THREADS = 16
"""Calls at once, of all streams of an event loop on one store."""

AT_ONCE = 8
"""Of these, those of one call of `publish_many`."""


class Shelf:
    """Made by `shelf`: one for each URL in a process."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self._limits: PerLoop[CapacityLimiter] = PerLoop()
        self._renew()

    def _renew(self) -> None:
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._begun = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Who is cancelled does not wait for the call to end."""
        limit = self._limits.get(lambda: CapacityLimiter(THREADS))
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limit)

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Begin it where a thread is free. Who waits for it in such a thread has to cancel it first."""
        if self._pid != os.getpid():  # threads do not survive a fork
            self._renew()
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(THREADS, "rstream-blobs")
            self._begun += 1
            future = self._pool.submit(copy_context().run, call)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        with self._lock:
            self._begun -= 1
            if not self._begun and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None

    async def all(self, calls: Iterable[Callable[[], None]]) -> None:
        """So many at once; raises the first error once all of them have ended."""
        left = iter(calls)

        async def some() -> None:
            for call in left:
                await self.run(call)

        ended = await asyncio.gather(*(some() for _ in range(AT_ONCE)), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error

    def all_sync(self, calls: Iterable[Callable[[], None]]) -> None:
        """As `all`, in a thread."""
        several = [*calls]
        if len(several) < 2:
            for call in several:
                call()
            return
        pool = ThreadPoolExecutor(AT_ONCE, "rstream-blobs")
        try:
            ended = [pool.submit(copy_context().run, call) for call in several]
            wait(ended)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for each in ended:
            each.result()

    def fetch(self, source: Source, reference: Reference) -> bytes:
        """The bytes, if they are those that were stored. Raises `BlobMissing`, `BlobAltered` and `BlobError`s."""
        key = source.key(reference)
        data = self.store.get(key, reference.size + 1)  # what somebody put there may be of any size
        if len(data) != reference.size:
            raise self._altered(key, f"it does not have {reference.size:,} bytes")
        if hashlib.sha256(data).hexdigest() != reference.digest:
            raise self._altered(key, "its SHA-256 is another one")
        return data

    def download(self, source: Source, reference: Reference, to: IO[bytes]) -> None:
        """As `fetch`, into a file, piece by piece."""
        key = source.key(reference)
        digest, size = hashlib.sha256(), 0
        reader = self.store.open(key)
        try:
            while piece := reader.read(CHUNK):
                size += len(piece)
                if size > reference.size:
                    break
                digest.update(piece)
                to.write(piece)
        finally:
            reader.close()
        if size != reference.size or digest.hexdigest() != reference.digest:
            raise self._altered(key, "its size or its SHA-256 is another one")
        to.flush()

    def temporary(self, source: Source, reference: Reference) -> IO[bytes]:
        """A file of its own that nobody else sees, with the bytes, to be read from its beginning."""
        file: IO[bytes] = tempfile.TemporaryFile(prefix="rstream-")  # noqa: SIM115 - the caller closes it
        try:
            self.download(source, reference, file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _altered(self, key: str, why: str) -> BlobAltered:
        return BlobAltered(f"blob {key} in {self.store.label} is not what was stored: {why}")


@cache
def shelf(url: str) -> Shelf:
    """Raises `ConfigError`."""
    return Shelf(Metered(open_store(url)))
