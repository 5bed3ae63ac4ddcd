"""What the reading of a stream has to know of its archive, which is in a room above: entries that Redis has no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rstream.event import Entry, EntryId
from rstream.store import keys
from rstream.store.keys import END, Rank, Shard
from rstream.store.link import Op
from rstream.store.scripts import EDGES, Call

if TYPE_CHECKING:
    from rstream.store.layout import Layout


class Edges(NamedTuple):
    """newest: id of a window of a shard, None where it is empty · first: of the shard · doubt: whether the archive may
    have what comes before that, see edges.lua · archived: up to which id it has all, as Redis was told.
    """

    newest: Rank | None
    first: Rank
    doubt: int
    archived: Rank


def ask_edges(shard: Shard, start: EntryId, end: EntryId, *, archive: bool) -> Call:
    """Asks for `Edges`; without `archive`, for `newest` alone."""
    return EDGES([shard.stream], start.redis, end.redis, keys.ARCHIVE if archive else "")


def read_edges(replies: Sequence[tuple[bytes, bytes, int, bytes]]) -> list[Edges]:
    return [
        Edges(
            keys.rank_of(newest) if newest else None,
            begin_of(first),
            doubt,
            keys.rank_of(archived) if archived else (0, 0),
        )
        for newest, first, doubt, archived in replies
    ]


def begin_of(first: bytes) -> Rank:
    """Where a shard begins; an empty one nowhere."""
    return keys.rank_of(first) if first else END


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

    def survey(self, key: str | None, told: Mapping[Shard, Rank]) -> Op[dict[Shard, Archived]]:
        """All shards, of all times, of which something is archived, and that may hold this key. told: up to which id
        that is so, as Redis was told before. Raises `ArchiveDamaged` where it is not, `BlobError`.
        """

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


def may_be_archived(layout: Layout, start: EntryId, edges: Sequence[Edges]) -> bool:
    """Whether something of a window that begins there may be in the archive alone: something was removed from Redis, or
    may have been. (A shard that never held anything is nothing special; where none ever did, Redis may have lost all.)
    """
    told = [each.doubt for each in edges if each.first > start[:2]]
    return bool(layout.removed) or 1 in told or (bool(told) and {2} == {each.doubt for each in edges})
