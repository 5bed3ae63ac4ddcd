"""Records on their way to one shard, and the promise to tell their caller what became of them.

Where the stream is resharded meanwhile, a parcel is cut up; its caller does not notice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from rstream.errors import StoreError
from rstream.event import EntryId
from rstream.store.keys import Shard, half_of
from rstream.store.layout import Layout
from rstream.store.record import FLUSH_BYTES, FLUSH_ENTRIES, Record, place_of, weight_of

S = TypeVar("S")

FIELDS = len(Record._fields)


def weights_of(flat: Sequence[bytes]) -> int:
    """What `weight_of` says of records, all together: their parts, those of one after those of the other."""
    return sum(map(len, flat)) + 48 * (len(flat) // FIELDS)


def records_of(flat: Sequence[bytes]) -> list[Record]:
    """The same, each by itself."""
    return [*map(Record._make, zip(*[iter(flat)] * FIELDS, strict=True))]


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
    """Records that go to one shard together; `promise` gets the EntryId of each. flat: payload, key, event id, headers
    of the first, those of the second, and so on (objects of their own for each would keep the garbage collector busy) ·
    size: `weights_of` them · until: when to give up waiting for room, by the process's clock.
    """

    shard: Shard
    flat: Sequence[bytes]
    promise: Promise
    size: int
    until: float = 0.0

    @classmethod
    def pack(
        cls, shard: Shard, flat: Sequence[bytes], promise: Callable[[], Promise], until: float = 0.0
    ) -> list[Parcel]:
        """Cut records into parcels of at most one flush each."""
        parcels: list[Parcel] = []
        for at in range(0, len(flat), FIELDS * FLUSH_ENTRIES):
            batch = flat[at : at + FIELDS * FLUSH_ENTRIES]
            if (size := weights_of(batch)) <= FLUSH_BYTES or len(batch) == FIELDS:
                parcels.append(cls(shard, batch, promise(), size, until))
            else:
                parcels += cls._cut_up(shard, batch, promise, until)
        return parcels

    @classmethod
    def _cut_up(cls, shard: Shard, flat: Sequence[bytes], promise: Callable[[], Promise], until: float) -> list[Parcel]:
        """What is too large for one."""
        parcels: list[Parcel] = []
        batch: list[bytes] = []
        size = 0
        for record in records_of(flat):
            weight = weight_of(record)
            if batch and size + weight > FLUSH_BYTES:
                parcels.append(cls(shard, batch, promise(), size, until))
                batch, size = [], 0
            batch += record
            size += weight
        parcels.append(cls(shard, batch, promise(), size, until))
        return parcels

    @property
    def count(self) -> int:
        return len(self.flat) // FIELDS

    def cut(self, layout: Layout) -> Iterator[Parcel]:
        """The same records for the shards of another layout; the promise is kept when all of them are through."""
        for shard, piece in self._sorted_by(partial(place_of, layout)):
            yield replace(piece, shard=shard)

    def halves(self) -> Iterator[tuple[int, Parcel]]:
        """The same records by the half of the hashes that their keys are in."""
        if (half := self.shard.half) is not None:
            yield half, self
        else:
            yield from self._sorted_by(lambda record: half_of(record.key))

    def _sorted_by(self, sort: Callable[[Record], S]) -> Iterator[tuple[S, Parcel]]:
        records = records_of(self.flat)
        sorts = [*map(sort, records)]
        kinds = dict.fromkeys(sorts)
        if len(kinds) == 1:
            yield sorts[0], self
            return
        whole = _Whole(self.promise, len(sorts), len(kinds))
        for kind in kinds:
            places = [n for n, each in enumerate(sorts) if each == kind]
            flat = [*chain.from_iterable([records[n] for n in places])]
            yield kind, Parcel(self.shard, flat, _Piece(whole, places), weights_of(flat), self.until)


def by_half(parcels: Sequence[Parcel], outboxes: int) -> list[Sequence[Parcel]]:
    """What goes to each of one or two outboxes."""
    if outboxes == 1:
        return [parcels]
    halves: tuple[list[Parcel], list[Parcel]] = ([], [])
    for parcel in parcels:
        for half, piece in parcel.halves():
            halves[half].append(piece)
    return [*halves]


class _Whole:
    """A parcel that was cut up. What became of its pieces."""

    def __init__(self, promise: Promise, count: int, pieces: int) -> None:
        self.promise, self.open = promise, pieces
        self.ids: list[EntryId | None] = [None] * count
        self.error: BaseException | None = None
        self._counting = threading.Lock()  # of two halves, each may be sent by another thread

    def end_piece(self) -> None:
        with self._counting:
            self.open -= 1
            left = self.open
        if left or self.promise.done():
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
