"""What a reset would do, shard by shard, and where a group is put. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rstream.errors import ConfigError, PositionError
from rstream.event import MAX_PART, EntryId
from rstream.position import Position, bound
from rstream.store.keys import Rank, Shard
from rstream.store.layout import Layout
from rstream.store.stats import ShardStats

NOTHING: Rank = (0, 0)
LAST: Rank = (MAX_PART, MAX_PART)


@dataclass(frozen=True)
class Move:
    """A shard. old, new: the last entries that count as read; old None: the group is missing there.

    again: entries that were read, and will be once more · skipped: that were not, and will not be · returning, dropped:
    pending deliveries that end unsettled, of entries that come again and of others · left: entries of the key that are
    pending, and are left alone · older: the shard is of a generation that is not written to any more.
    """

    shard: Shard
    older: bool
    old: EntryId | None
    new: EntryId
    again: int = 0
    skipped: int = 0
    returning: int = 0
    dropped: int = 0
    left: int = 0
    pages: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Plan:
    """What a reset would do.

    at: the first entry to be read, None = what is published from now on · now: Redis's clock in ms · live: workers of
    the group that are alive · dead: dead letters, which stay.
    """

    layout: Layout = field(repr=False)
    group: str
    to: Position
    key: str | None
    at: EntryId | None
    now: int
    moves: Sequence[Move]
    live: Sequence[str]
    dead: int

    @property
    def again(self) -> int:
        return sum(move.again for move in self.moves)

    @property
    def skipped(self) -> int:
        return sum(move.skipped for move in self.moves)

    @property
    def returning(self) -> int:
        return sum(move.returning for move in self.moves)

    @property
    def dropped(self) -> int:
        return sum(move.dropped for move in self.moves)

    @property
    def left(self) -> int:
        return sum(move.left for move in self.moves)


@dataclass(frozen=True)
class Reset:
    """What was done. settled: deliveries that were pending, and ended without being run · given: entries of the key
    that the group gets again · left: of the key, pending and left alone.
    """

    settled: int = 0
    given: int = 0
    left: int = 0


def start_of(to: Position, shards: Sequence[ShardStats], now: int, key: str | None) -> EntryId | None:
    """The first entry to be read; None for what is published from now on. Raises `PositionError`, `ConfigError`."""
    latest = isinstance(to, str) and to.strip() in ("latest", "+")
    if latest and key is not None:
        raise ConfigError(
            f"'latest' with key {key!r} would give nothing again, and a reset by key skips nothing: say from where on "
            "its entries are to be handled again, or leave the key out"
        )
    if latest:
        return None
    at = bound(to, "start", now)
    newest = max((given_in(shard) for shard in shards), default=NOTHING)
    if key is None and at.ms > now and (at.ms, at.seq) > newest:
        raise PositionError(
            f"{to!r} lies in the future: what is published until then would be skipped. 'latest' skips all there is now"
        )
    return at


def read_up_to(at: EntryId | None, stats: ShardStats, old: EntryId | None) -> EntryId:
    """The last entry of a shard that counts as read, where `at` is the first that does not. It is never beyond what
    the shard has had: else something yet to come could be skipped.
    """
    shard = stats.shard
    if at is None:
        wanted = LAST
    elif (shard.generation, shard.number) >= (at.generation, at.shard):
        wanted = before((at.ms, at.seq))
    else:  # of entries with this very id, those of earlier shards come before it
        wanted = at.ms, at.seq
    top = given_in(stats)
    if stats.entries == 0 and _is_sealed(stats):
        top = NOTHING if old is None else old[:2]
    return EntryId(*min(wanted, top), shard.generation, shard.number)


def given_in(stats: ShardStats) -> Rank:
    """The last id that an entry has or had; in a shard that is sealed, of those that are left."""
    id = stats.last if _is_sealed(stats) else stats.given
    return NOTHING if id is None else id[:2]


def _is_sealed(stats: ShardStats) -> bool:
    return stats.given is not None and stats.given[:2] == LAST


def before(id: Rank) -> Rank:
    """The highest id that is lower."""
    ms, seq = id
    if seq:
        return ms, seq - 1
    return (ms - 1, MAX_PART) if ms else NOTHING
