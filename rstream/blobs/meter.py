"""Who is told what a call to a blob store took: whoever the work is done for, wherever in it the call is made.

The meter of a task goes with it into its tasks and threads (`METER`); where there is none, nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from rstream.blobs.base import BlobStore, Found, Reader
from rstream.process import clock

T = TypeVar("T")

Operation = Literal["get", "put", "head", "list", "delete"]

Spent = list[tuple[Operation, float, int]]
"""Calls to a blob store: what, seconds, bytes."""

MOST = 1000
"""Calls that a process of a handler tells of one run of it."""


class Meter(Protocol):
    """Its calls come from many threads."""

    def blob(self, operation: Operation, seconds: float, size: int) -> None:
        """A call, also one that failed."""

    def spent(self, elsewhere: Spent) -> None:
        """What another process did for it."""

    def segment(self, seconds: float, size: int) -> None:
        """A segment of the archive was written."""


METER: ContextVar[Meter | None] = ContextVar("rstream_meter", default=None)


@contextmanager
def metered(meter: Meter | None) -> Iterator[None]:
    """What is begun within is done for this one."""
    token = METER.set(meter)
    try:
        yield
    finally:
        METER.reset(token)


class Notes:
    """A meter that writes down, for another process."""

    def __init__(self) -> None:
        self.notes: Spent = []

    def blob(self, operation: Operation, seconds: float, size: int) -> None:
        if len(self.notes) < MOST:
            self.notes.append((operation, seconds, size))

    def spent(self, elsewhere: Spent) -> None:
        self.notes += elsewhere

    def segment(self, seconds: float, size: int) -> None:
        """Nobody archives in a handler's process."""


class Metered:
    """A blob store that tells the meter, where there is one."""

    def __init__(self, store: BlobStore) -> None:
        self._store, self.label = store, store.label

    def put(self, key: str, data: bytes | Path) -> None:
        _timed("put", lambda: self._store.put(key, data), lambda _: _size(data))

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        return _timed("put", lambda: self._store.put_if(key, data, tag), lambda new: 0 if new is None else len(data))

    def get(self, key: str, most: int | None = None) -> bytes:
        return _timed("get", lambda: self._store.get(key, most), len)

    def part(self, key: str, start: int, size: int) -> bytes:
        return _timed("get", lambda: self._store.part(key, start, size), len)

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        return _timed("get", lambda: self._store.get_tagged(key), lambda found: len(found[0]))

    def open(self, key: str) -> Reader:
        meter = METER.get()
        if meter is None:
            return self._store.open(key)
        began = clock()
        try:
            reader = self._store.open(key)
        except BaseException:
            meter.blob("get", clock() - began, 0)
            raise
        return _Reading(reader, meter, clock() - began)

    def find(self, key: str) -> Found | None:
        return _timed("head", lambda: self._store.find(key))

    def exists(self, key: str) -> bool:
        return _timed("head", lambda: self._store.exists(key))

    def delete(self, keys: Iterable[str]) -> None:
        _timed("delete", lambda: self._store.delete(keys))

    def list(self, prefix: str, after: str = "") -> Iterator[Found]:
        """Measured without the time that its reader takes."""
        meter, found = METER.get(), self._store.list(prefix, after)
        if meter is None:
            yield from found
            return
        seconds = 0.0
        try:
            while True:
                began = clock()
                try:
                    each = next(found, None)
                finally:
                    seconds += clock() - began
                if each is None:
                    return
                yield each
        finally:
            meter.blob("list", seconds, 0)


class _Reading:
    """A blob that is read piece by piece: one call, as long as its reads together."""

    def __init__(self, reader: Reader, meter: Meter, seconds: float) -> None:
        self._reader, self._meter = reader, meter
        self._seconds, self._size, self._told = seconds, 0, False

    def read(self, size: int, /) -> bytes:
        began = clock()
        try:
            data = self._reader.read(size)
            self._size += len(data)
        finally:
            self._seconds += clock() - began
        return data

    def close(self) -> None:
        self._reader.close()
        if not self._told:
            self._told = True
            self._meter.blob("get", self._seconds, self._size)


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _timed(operation: Operation, call: Callable[[], T], size: Callable[[T], int] = lambda _: 0) -> T:
    meter = METER.get()
    if meter is None:
        return call()
    began, moved = clock(), 0
    try:
        result = call()
        moved = size(result)
        return result
    finally:
        meter.blob(operation, clock() - began, moved)
