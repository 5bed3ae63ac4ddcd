"""What the reading of a stream has to know of its archive, which is in a room above: entries that Redis has no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from rstream.event import Entry, EntryId
from rstream.store.keys import Rank, Shard
from rstream.store.link import Op


class Archived(Protocol):
    """What is archived of a shard. first_rank, last_rank: ids of the first entry and the last, (0, 0) for nothing."""

    @property
    def first_rank(self) -> Rank: ...
    @property
    def last_rank(self) -> Rank: ...


class Extent(NamedTuple):
    """first, last: ids, None where there are none · payload: bytes of it."""

    first: EntryId | None
    last: EntryId | None
    entries: int
    payload: int


class Reading(Protocol):
    """Some of it, being read in order."""

    def next(self) -> Future[list[Entry[Any]] | None]:
        """The next entries, maybe none; None at the end. Not before the last one has come. Raises `BlobError`s and
        `ArchiveDamaged`.
        """


class Past(Protocol):
    """The archive of a stream."""

    def survey(self, key: str | None) -> Op[dict[Shard, Archived]]:
        """All shards, of all times, of which something is archived, and that may hold this key."""

    def look(self, shards: Iterable[Shard]) -> Op[dict[Shard, Archived]]:
        """These, as they are now."""

    def read(
        self,
        shard: Shard,
        archived: Archived,
        start: EntryId,
        end: EntryId,
        before: Rank,
        key: str | None,
        decode: Callable[[bytes], Any],
        window: int,
    ) -> Reading:
        """What is between two bounds, both included, and before an id. window: bytes that may be fetched at once."""

    def measure(
        self, shard: Shard, archived: Archived, start: EntryId, end: EntryId, before: Rank, key: str | None
    ) -> Op[Extent]:
        """How much of it that is."""
