"""What the reading of a stream has to know of its archive, which is in a room above: entries that Redis has no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rstream.event import Decode, Entry, EntryId
from rstream.store import keys
from rstream.store.keys import END, Rank, Shard
from rstream.store.link import Op
from rstream.store.scripts import EDGES, Call

if TYPE_CHECKING:
    from rstream.store.layout import Layout


class Edges(NamedTuple):
    """newest: id of a window of a shard, None where it is empty · first: of the shard · doubt: whether the archive may
    have what comes before that, see edges.lua · archived: up to which id it has all, as Redis was told; None where it
    is not being archived.
    """

    newest: Rank | None
    first: Rank
    doubt: int
    archived: Rank | None


def ask_edges(shard: Shard, start: EntryId, end: EntryId, *, archive: bool) -> Call:
    """Asks for `Edges`; without `archive`, for `newest` alone."""
    return EDGES([shard.stream], start.redis, end.redis, keys.ARCHIVE if archive else "")


def read_edges(replies: Sequence[tuple[bytes, bytes, int, bytes]]) -> list[Edges]:
    return [
        Edges(
            keys.rank_of(newest) if newest else None,
            begin_of(first),
            doubt,
            keys.rank_of(archived) if archived else None,
        )
        for newest, first, doubt, archived in replies
    ]


def told_of(shards: Iterable[Shard], edges: Iterable[Edges]) -> dict[Shard, Rank]:
    """Up to which id those are archived that are being archived."""
    return {shard: each.archived for shard, each in zip(shards, edges, strict=True) if each.archived is not None}


def begin_of(first: bytes) -> Rank:
    """Where a shard begins; an empty one nowhere."""
    return keys.rank_of(first) if first else END


class Archived(Protocol):
    """What is archived of a shard. first_rank, last_rank: ids of the first entry and the last, (0, 0) for nothing."""

    @property
    def first_rank(self) -> Rank: ...
    @property
    def last_rank(self) -> Rank: ...


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
        decode: Decode[Any],
        window: int,
    ) -> Reading:
        """What is between two bounds, both included, and before an id. window: bytes that may be fetched at once."""


def may_be_archived(layout: Layout, start: EntryId, edges: Sequence[Edges]) -> bool:
    """Whether something of a window that begins there may be in the archive alone. edges: of the shards that may hold
    it, the current generation last.

    A shard may have had something that was removed, unless its archive ends before the window. Where none ever held
    anything, Redis may have lost it all. And what was in a generation that was removed came before the current one.
    """
    doubts = [
        edge.doubt for edge in edges if edge.first > start[:2] and not (0, 0) < (edge.archived or (0, 0)) < start[:2]
    ]
    if 1 in doubts or (doubts and {2} == {edge.doubt for edge in edges}):
        return True
    current = edges[-layout.shards :] if len(edges) == len(layout.every) else edges[-1:]
    return bool(layout.removed) and all(edge.first > start[:2] for edge in current)
