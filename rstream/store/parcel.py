"""Records on their way to one shard, and the promise to tell their caller what became of them.

Where the stream is resharded meanwhile, a parcel is cut up; its caller does not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rstream.errors import StoreError
from rstream.event import EntryId
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.log import FLUSH_BYTES, FLUSH_ENTRIES, Record, place_of, weight_of, weights_of


class Promise(Protocol):
    """A future of asyncio, or a `Slip`."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class Slip:
    """The promise to a thread, which comes and looks, holding a lock: nobody has to be woken."""

    __slots__ = ("_done", "error", "result")

    def __init__(self) -> None:
        self._done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any, /) -> None:
        self.result, self._done = result, True

    def set_exception(self, exception: BaseException, /) -> None:
        self.error, self._done = exception, True


@dataclass(slots=True)
class Parcel:
    """Records that go to one shard together; `promise` gets the EntryId of each. until: when to give up waiting for
    room, by the process's clock.
    """

    shard: Shard
    records: Sequence[Record]
    promise: Promise
    size: int
    until: float = 0.0

    @classmethod
    def pack(
        cls, shard: Shard, records: Iterable[Record], promise: Callable[[], Promise], until: float = 0.0
    ) -> list[Parcel]:
        """Cut records into parcels of at most one flush each."""
        records = [*records]
        parcels: list[Parcel] = []
        for at in range(0, len(records), FLUSH_ENTRIES):
            batch = records[at : at + FLUSH_ENTRIES]
            if (size := weights_of(batch)) <= FLUSH_BYTES or len(batch) == 1:
                parcels.append(cls(shard, batch, promise(), size, until))
            else:
                parcels += cls._cut_up(shard, batch, promise, until)
        return parcels

    @classmethod
    def _cut_up(
        cls, shard: Shard, records: Sequence[Record], promise: Callable[[], Promise], until: float
    ) -> list[Parcel]:
        """What is too large for one."""
        parcels: list[Parcel] = []
        batch: list[Record] = []
        size = 0
        for record in records:
            weight = weight_of(record)
            if batch and size + weight > FLUSH_BYTES:
                parcels.append(cls(shard, batch, promise(), size, until))
                batch, size = [], 0
            batch.append(record)
            size += weight
        parcels.append(cls(shard, batch, promise(), size, until))
        return parcels

    def cut(self, layout: Layout) -> Iterator[Parcel]:
        """The same records for the shards of another layout; the promise is kept when all of them are through."""
        by_shard: dict[Shard, list[int]] = {}
        for n, record in enumerate(self.records):
            by_shard.setdefault(place_of(layout, record), []).append(n)
        whole = _Whole(self.promise, len(self.records), len(by_shard))
        for shard, places in by_shard.items():
            records = [self.records[n] for n in places]
            yield Parcel(shard, records, _Piece(whole, places), weights_of(records), self.until)


class _Whole:
    """A parcel that was cut up. What became of its pieces."""

    def __init__(self, promise: Promise, count: int, pieces: int) -> None:
        self.promise, self.open = promise, pieces
        self.ids: list[EntryId | None] = [None] * count
        self.error: BaseException | None = None

    def end_piece(self) -> None:
        self.open -= 1
        if self.open or self.promise.done():
            return
        if self.error is None:
            self.promise.set_result(self.ids)
            return
        if isinstance(self.error, StoreError):
            self.error.published = [id for id in self.ids if id is not None]
        self.promise.set_exception(self.error)


class _Piece:
    """The promise of one of them."""

    def __init__(self, whole: _Whole, places: Sequence[int]) -> None:
        self._whole, self._places, self._done = whole, places, False

    def done(self) -> bool:
        return self._done or self._whole.promise.done()

    def set_result(self, ids: Sequence[EntryId], /) -> None:
        self._done = True
        for place, id in zip(self._places, ids, strict=True):
            self._whole.ids[place] = id
        self._whole.end_piece()

    def set_exception(self, error: BaseException, /) -> None:
        self._done = True
        for place, id in zip(self._places, getattr(error, "published", ()), strict=False):
            self._whole.ids[place] = id
        self._whole.error = self._whole.error or error
        self._whole.end_piece()
