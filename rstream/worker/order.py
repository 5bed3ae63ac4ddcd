"""Order per key: which entries may be started, and which wait for an earlier one of their key. Pure: no clock, no I/O.

In every shard each key has a lane. Its entries are handed out one at a time, in id order; the next one not before the
outcome of the one before it was accepted, wherever that runs: here, at the former owner of the shard, or later, where
it waits for a retry. Lanes do not wait for each other. What waits behind one that does not move can be put aside: it is
then in Redis, and of a lane no more than `KEEP` entries are in memory.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from rstream.store.deliveries import Fetched
from rstream.store.keys import Shard

KEEP = 64
"""Entries of a lane that stay in memory when others are put aside; so many come back at once."""

Rank = tuple[int, int]
"""An id as numbers, which compare as ids do."""
Place = tuple[Shard, bytes]


@dataclass(slots=True, eq=False)
class Lane:
    """One key of one shard.

    current: the entry that was handed out · waiting: entries in hand, by id · elsewhere: ids pending, but not in hand ·
    aside: the first id that is put aside in Redis · leaving: ids on their way there · moves: rises with every start.
    """

    shard: Shard
    key: bytes
    current: bytes | None = None
    waiting: list[tuple[Rank, Fetched]] = field(default_factory=list)
    elsewhere: set[Rank] = field(default_factory=set)
    aside: Rank | None = None
    leaving: set[Rank] = field(default_factory=set)
    moves: int = 0

    @property
    def idle(self) -> bool:
        return not (self.current or self.waiting or self.elsewhere or self.aside or self.leaving)

    @property
    def wants_back(self) -> bool:
        """Whether what is put aside could start now."""
        if self.aside is None or self.current or self.waiting or self.leaving:
            return False
        return not self.elsewhere or self.aside < min(self.elsewhere)


class PerKey:
    """The lanes of one consumer.

    backlog, size: entries that wait in memory, and the bytes of their payloads · overflow: entries that belong behind
    those that are put aside, and have to follow them · hungry: lanes that want back what is put aside.
    """

    def __init__(self) -> None:
        self.backlog = self.size = 0
        self.overflow: list[Fetched] = []
        self.hungry: set[Lane] = set()
        self.aside: dict[Shard, int] = {}
        self._lanes: dict[tuple[Shard, bytes], Lane] = {}
        self._current: dict[Place, Lane] = {}
        self._leaving: dict[Place, Lane] = {}
        self._elsewhere: dict[Place, Lane] = {}

    def put(self, entry: Fetched) -> Fetched | None:
        """An entry that came in; the one that may start now because of it, if there is one."""
        key = key_of(entry)
        if key is None:
            return entry  # nothing orders it
        lane = self._lanes.get((entry.shard, key))
        if lane is None:
            lane = self._lanes[entry.shard, key] = Lane(entry.shard, key, entry.id)
            self._current[entry.shard, entry.id] = lane
            return entry
        rank = rank_of(entry.id)
        if lane.elsewhere and rank in lane.elsewhere:
            lane.elsewhere.remove(rank)
            del self._elsewhere[entry.shard, entry.id]
        if lane.aside is not None and rank >= lane.aside:
            self._leave(lane, rank, entry)
            self.overflow.append(entry)
            return None
        self._wait(lane, rank, entry)
        return self._advance(lane)

    def _wait(self, lane: Lane, rank: Rank, entry: Fetched) -> None:
        insort(lane.waiting, (rank, entry), key=_by_rank)
        self.backlog += 1
        self.size += _size(entry)

    def _advance(self, lane: Lane) -> Fetched | None:
        """The next entry of the lane, if it may start now."""
        entry = None
        if lane.current is None and lane.waiting:
            rank = lane.waiting[0][0]
            if not lane.elsewhere or rank < min(lane.elsewhere):
                entry = lane.waiting.pop(0)[1]
                self.backlog -= 1
                self.size -= _size(entry)
                lane.current, lane.moves = entry.id, lane.moves + 1
                self._current[lane.shard, entry.id] = lane
        if lane.wants_back:
            self.hungry.add(lane)
        if lane.idle:
            del self._lanes[lane.shard, lane.key]
        return entry

    def let_go(self, shard: Shard, id: bytes, *, ended: bool) -> Fetched | None:
        """An entry is not in hand any more; the one that may start now. `ended`: nothing of its key has to wait for
        it any more; else it is pending elsewhere, in a later attempt or for somebody else.
        """
        if (lane := self._current.pop((shard, id), None)) is not None:
            lane.current = None
        elif (lane := self._leaving.pop((shard, id), None)) is not None:
            lane.leaving.discard(rank_of(id))
            self.aside[shard] = self.aside.get(shard, 0) + ended
        else:
            return None
        if not ended:
            self._miss(lane, id)
        return self._advance(lane)

    # What is pending elsewhere.

    def learn(self, shard: Shard, id: bytes, key: bytes) -> None:
        """An entry of this key is pending, and not in hand."""
        self._miss(self._lane(shard, key), id)

    def _miss(self, lane: Lane, id: bytes) -> None:
        lane.elsewhere.add(rank_of(id))
        self._elsewhere[lane.shard, id] = lane

    def occupy(self, shard: Shard, id: bytes, key: bytes) -> None:
        """An entry of this key runs here since before the shard was this worker's (again)."""
        lane = self._lane(shard, key)
        if lane.current is None:
            lane.current = id
            self._current[shard, id] = lane

    def forget(self, shard: Shard, id: bytes) -> Fetched | None:
        """An entry that was pending elsewhere is settled; the one that may start now."""
        lane = self._elsewhere.pop((shard, id), None)
        if lane is None:
            return None
        lane.elsewhere.discard(rank_of(id))
        return self._advance(lane)

    @property
    def elsewhere(self) -> Collection[Place]:
        """What is pending, and not in hand."""
        return self._elsewhere.keys()

    def _lane(self, shard: Shard, key: bytes) -> Lane:
        lane = self._lanes.get((shard, key))
        if lane is None:
            lane = self._lanes[shard, key] = Lane(shard, key)
        return lane

    # Putting aside, and bringing back.

    def moves(self) -> dict[Lane, int]:
        """How often each lane in which something waits has moved."""
        return {lane: lane.moves for lane in self._lanes.values() if lane.waiting}

    def put_aside(self, moves: dict[Lane, int]) -> list[Fetched]:
        """Take what the lanes that have not moved since do not need in memory; whoever takes it has Redis keep it, and
        then lets it go. Where that is nothing, because there are too many such lanes, it is all that waits in them.
        """
        still = [lane for lane, number in moves.items() if lane.moves == number and lane.waiting]
        keep = KEEP if any(len(lane.waiting) > KEEP for lane in still) else 0
        return [entry for lane in still for entry in self._shorten(lane, keep)]

    def _shorten(self, lane: Lane, keep: int) -> list[Fetched]:
        taken = lane.waiting[keep:]
        if not taken:
            return []
        del lane.waiting[keep:]
        lane.aside = taken[0][0]  # what is aside already comes after it
        for rank, entry in taken:
            self.backlog -= 1
            self.size -= _size(entry)
            self._leave(lane, rank, entry)
        return [entry for _, entry in taken]

    def _leave(self, lane: Lane, rank: Rank, entry: Fetched) -> None:
        lane.leaving.add(rank)
        self._leaving[entry.shard, entry.id] = lane

    def take_overflow(self) -> list[Fetched]:
        taken, self.overflow = self.overflow, []
        return taken

    def is_aside(self, shard: Shard, key: bytes, first: bytes, count: int) -> None:
        """So much of a key is put aside already."""
        lane = self._lane(shard, key)
        lane.aside = rank_of(first)
        self.aside[shard] = self.aside.get(shard, 0) + count
        self._advance(lane)

    def knows(self, lane: Lane) -> bool:
        return self._lanes.get((lane.shard, lane.key)) is lane

    def came_back(self, lane: Lane, entries: Iterable[Fetched], lost: int, first: bytes | None) -> Fetched | None:
        """What was put aside of a lane is in hand again; `first`: of what still is not."""
        rest = [*lane.leaving] + ([rank_of(first)] if first else [])
        lane.aside = min(rest, default=None)
        self.hungry.discard(lane)
        back = list(entries)
        self.aside[lane.shard] = max(0, self.aside.get(lane.shard, 0) - len(back) - lost)
        for entry in back:
            self._wait(lane, rank_of(entry.id), entry)
        return self._advance(lane)

    # Losing shards.

    def drain(self) -> list[Fetched]:
        """Forget everything; the entries that wait."""
        return [entry for shard in {lane.shard for lane in self._lanes.values()} for entry in self.drop(shard)]

    def drop(self, shard: Shard) -> list[Fetched]:
        """Forget a shard; the entries that wait in its lanes."""
        lanes = [lane for lane in self._lanes.values() if lane.shard is shard]
        dropped = [entry for lane in lanes for _, entry in lane.waiting]
        self.backlog -= len(dropped)
        self.size -= sum(map(_size, dropped))
        dropped += [entry for entry in self.overflow if entry.shard is shard]
        self.overflow = [entry for entry in self.overflow if entry.shard is not shard]
        self.hungry.difference_update(lanes)
        self.aside.pop(shard, None)
        for lane in lanes:
            del self._lanes[shard, lane.key]
        for places in (self._current, self._leaving, self._elsewhere):
            for place in [place for place in places if place[0] is shard]:
                del places[place]
        return dropped

    @property
    def held(self) -> int:
        """Entries in hand that no slot could take now."""
        return self.backlog + len(self._leaving)

    def behind(self, entries: Iterable[Fetched]) -> bool:
        """Whether more entries of the keys of these, which were handed out, wait for them."""
        lanes = (self._current.get((entry.shard, entry.id)) for entry in entries)
        return any(lane is not None and lane.waiting for lane in lanes)


def key_of(entry: Fetched) -> bytes | None:
    """The key of an entry, or None."""
    flat = entry.flat
    if len(flat) >= 4 and flat[2] == b"k":  # as rstream writes them
        return flat[3]
    return dict(zip(flat[::2], flat[1::2], strict=True)).get(b"k")


def rank_of(id: bytes) -> Rank:
    ms, _, seq = id.partition(b"-")
    return int(ms), int(seq)


def _by_rank(waiting: tuple[Rank, Fetched]) -> Rank:
    return waiting[0]


def _size(entry: Fetched) -> int:
    return len(entry.flat[1]) if len(entry.flat) > 1 else 0
