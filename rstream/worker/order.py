"""Order per key: which entries may be started, and which wait for an earlier one of their key. Pure: no clock, no I/O.

In every shard each key has a lane. Its entries are handed out one at a time, in id order; the next one not before the
outcome of the one before it was accepted, wherever that runs: here, at the former owner of the shard, or later, where
it waits for a retry. Lanes do not wait for each other. What waits behind one that does not move can be put aside: it is
then in Redis, and of a lane no more than `KEEP` entries are in memory.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rstream.store.deliveries import Fetched
from rstream.store.keys import Rank, Shard, rank_of

KEEP = 64
"""Entries of a lane that stay in memory when others are put aside; so many come back at once."""

BACKLOG = 2000
BACKLOG_BYTES = 32 * 1024 * 1024
"""What may wait in memory in all lanes together."""

Place = tuple[Shard, bytes]
Now = Literal["ended", "passed", "elsewhere", "aside"]
"""What has become of an entry: it is settled for good · it is pending, but nothing of its key waits for it · it is
pending, in a later attempt or for somebody else, and its key waits · Redis keeps it until its key's turn.
"""


class Lane:
    """One key of one shard.

    current: the entry that was handed out · waiting: entries in hand, by id · elsewhere: ids pending, but not in hand,
    sorted · aside, number: the first id that is put aside in Redis, and about how many are · leaving: ids on their way
    there · arrived: where some are asked back, the ids that got there since · moves: rises with every start.

    Most lanes are made for one entry and go with it: what is None for most is made when it is wanted.
    """

    waiting: list[Fetched] | None = None
    elsewhere: list[Rank] | None = None
    leaving: set[Rank] | None = None
    arrived: set[Rank] | None = None
    aside: Rank | None = None
    number = moves = 0

    def __init__(self, shard: Shard, key: bytes, current: bytes | None = None) -> None:
        self.shard, self.key, self.current = shard, key, current

    @property
    def idle(self) -> bool:
        return not (self.current or self.waiting or self.elsewhere or self.aside or self.leaving)

    @property
    def wants_back(self) -> bool:
        """Whether what is put aside could start now."""
        if self.aside is None or self.current or self.leaving or self.arrived is not None:
            return False
        if self.waiting and rank_of(self.waiting[0].id) < self.aside:
            return False
        return not self.elsewhere or self.aside < self.elsewhere[0]

    @property
    def ready(self) -> bool:
        """Whether the first that waits is the first there is."""
        if self.current or not self.waiting:
            return False
        rank = rank_of(self.waiting[0].id)
        return not (self.elsewhere and self.elsewhere[0] < rank) and (self.aside is None or rank < self.aside)


class PerKey:
    """The lanes of one consumer.

    backlog, size: entries that wait in memory, and the bytes of their payloads · overflow: entries that belong behind
    those that are put aside, and have to follow them · hungry: lanes that want back what is put aside · outside: about
    how many are pending and not in hand, by shard.
    """

    def __init__(self) -> None:
        self.backlog = self.size = 0
        self.overflow: list[Fetched] = []
        self.hungry: set[Lane] = set()
        self.outside: dict[Shard, int] = {}
        self._lanes: dict[tuple[Shard, bytes], Lane] = {}
        self._current: dict[Place, Lane] = {}
        self._leaving: dict[Place, Lane] = {}
        self._elsewhere: dict[Place, Lane] = {}

    def put(self, entry: Fetched) -> Fetched | None:
        """An entry that came in; the one that may start now because of it, if there is one."""
        return next(iter(self.put_all((entry,))), None)

    def put_all(self, entries: Sequence[Fetched]) -> list[Fetched]:
        """Entries that came in; those that may start now because of them."""
        ready, lanes = [], self._lanes
        for entry in entries:
            key = key_of(entry)
            if key is None:
                ready.append(entry)  # nothing orders it
            elif (lane := lanes.get((entry.shard, key))) is None:
                lanes[entry.shard, key] = self._current[entry[:2]] = Lane(entry.shard, key, entry.id)
                ready.append(entry)
            elif lane.current is not None and not lane.elsewhere and lane.aside is None:
                self._wait(lane, entry)
            elif (first := self._line_up(lane, entry)) is not None:
                ready.append(first)
        return ready

    def _line_up(self, lane: Lane, entry: Fetched) -> Fetched | None:
        rank = rank_of(entry.id)
        if lane.elsewhere:
            self._found(lane, rank, entry.id)
        if lane.aside is not None and rank >= lane.aside:
            self._leave(lane, rank, entry)
            self.overflow.append(entry)
            return None
        self._wait(lane, entry)
        return self._advance(lane) if lane.current is None else None

    def _found(self, lane: Lane, rank: Rank, id: bytes) -> None:
        if self._elsewhere.pop((lane.shard, id), None) is not None:
            self.outside[lane.shard] -= 1
            assert lane.elsewhere is not None
            del lane.elsewhere[bisect_left(lane.elsewhere, rank)]

    def _wait(self, lane: Lane, entry: Fetched) -> None:
        waiting = lane.waiting
        if waiting is None:
            lane.waiting = [entry]
        elif not waiting or _after(entry.id, waiting[-1].id):
            waiting.append(entry)
        else:
            insort(waiting, entry, key=_rank)
        self.backlog += 1
        self.size += _size(entry)

    def _advance(self, lane: Lane) -> Fetched | None:
        """The next entry of the lane, if it may start now."""
        entry = None
        if lane.waiting and lane.ready:
            entry = self._hand_out(lane)
        if lane.aside is not None and lane.wants_back:
            self.hungry.add(lane)
        if lane.current is None and lane.idle:
            del self._lanes[lane.shard, lane.key]
        return entry

    def _hand_out(self, lane: Lane) -> Fetched:
        assert lane.waiting is not None
        entry = lane.waiting.pop(0)
        self.backlog -= 1
        self.size -= _size(entry)
        lane.current = entry.id
        lane.moves += 1
        self._current[entry[:2]] = lane
        return entry

    def let_go(self, shard: Shard, id: bytes, now: Now) -> Fetched | None:
        """An entry is not in hand any more, and is `now` what it says; the one that may start because of it."""
        place = (shard, id)
        lane = self._current.pop(place, None)
        if lane is not None:
            lane.current = None
            if now in ("ended", "passed"):
                return self._advance(lane)
        else:
            lane = self._leaving.pop(place, None) or self._elsewhere.get(place)
        if lane is None:
            return None
        rank = rank_of(id)
        if lane.leaving is not None:
            lane.leaving.discard(rank)
        self._found(lane, rank, id)
        if now == "elsewhere":
            self._miss(lane, id)
        elif now == "aside":
            lane.aside = min(rank, lane.aside or rank)
            if lane.arrived is not None:
                lane.arrived.add(rank)
            self._count(lane, lane.number + 1)
        return self._advance(lane)

    def end_all(self, places: Iterable[Place]) -> list[Fetched]:
        """As `let_go`, of entries that were settled for good. (A way of its own because it is nearly everybody's.)"""
        follow, current = [], self._current
        for place in places:
            lane = current.pop(place, None)
            if lane is None:
                entry = self.let_go(*place, "ended")
            else:
                lane.current = None
                if lane.elsewhere or lane.aside or lane.leaving:
                    entry = self._advance(lane)
                elif lane.waiting:
                    entry = self._hand_out(lane)
                else:
                    del self._lanes[lane.shard, lane.key]
                    continue
            if entry is not None:
                follow.append(entry)
        return follow

    # What is pending elsewhere.

    def learn(self, shard: Shard, id: bytes, key: bytes) -> None:
        """An entry of this key is pending, and was not put here."""
        if (shard, id) not in self._current and (shard, id) not in self._leaving:
            self._miss(self._lane(shard, key), id)

    def _miss(self, lane: Lane, id: bytes) -> None:
        if (lane.shard, id) not in self._elsewhere:
            self._elsewhere[lane.shard, id] = lane
            self.outside[lane.shard] = self.outside.get(lane.shard, 0) + 1
            if lane.elsewhere is None:
                lane.elsewhere = []
            insort(lane.elsewhere, rank_of(id))

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
        still = [lane for lane, number in moves.items() if lane.moves == number and lane.waiting and self.knows(lane)]
        keep = KEEP if any(len(lane.waiting or ()) > KEEP for lane in still) else 0
        return [entry for lane in still for entry in self._shorten(lane, keep)]

    def _shorten(self, lane: Lane, keep: int) -> list[Fetched]:
        taken = (lane.waiting or [])[keep:]
        if not taken:
            return []
        assert lane.waiting is not None
        del lane.waiting[keep:]
        first = _rank(taken[0])
        lane.aside = min(first, lane.aside or first)
        for entry in taken:
            self.backlog -= 1
            self.size -= _size(entry)
            self._leave(lane, _rank(entry), entry)
        return taken

    def _leave(self, lane: Lane, rank: Rank, entry: Fetched) -> None:
        if lane.leaving is None:
            lane.leaving = set()
        lane.leaving.add(rank)
        self._leaving[entry.shard, entry.id] = lane

    def take_overflow(self) -> list[Fetched]:
        taken, self.overflow = self.overflow, []
        return taken

    def is_aside(self, shard: Shard, key: bytes, first: bytes, count: int) -> None:
        """So much of a key is put aside already."""
        lane = self._lane(shard, key)
        lane.aside = rank_of(first)
        self._count(lane, count)
        self._advance(lane)

    def _count(self, lane: Lane, number: int) -> None:
        self.outside[lane.shard] = self.outside.get(lane.shard, 0) + number - lane.number
        lane.number = number

    def ask_back(self) -> list[Lane]:
        """The hungry lanes; whoever takes them has what is put aside come back, or drops their shard."""
        asked, self.hungry = [*self.hungry], set()
        for lane in asked:
            lane.arrived = set()
        return asked

    def knows(self, lane: Lane) -> bool:
        return self._lanes.get((lane.shard, lane.key)) is lane

    def came_back(self, lane: Lane, entries: Iterable[Fetched], lost: int, first: bytes | None) -> Fetched | None:
        """What was put aside of a lane is in hand again; `first`: of what still is not."""
        back = list(entries)
        for entry in back:
            rank = rank_of(entry.id)
            if lane.arrived is not None:
                lane.arrived.discard(rank)
            self._found(lane, rank, entry.id)
            self._wait(lane, entry)
        # What has arrived since Redis answered is not among what it says is left.
        left = {*(lane.leaving or ()), *(lane.arrived or ())} | ({rank_of(first)} if first else set())
        lane.aside, lane.arrived = min(left, default=None), None
        # What somebody else put aside may have been counted twice: it is known again when none is.
        self._count(lane, max(1, lane.number - len(back) - lost) if left else 0)
        return self._advance(lane)

    # Losing shards.

    def drain(self) -> list[Fetched]:
        """Forget everything; the entries that wait."""
        return [entry for shard in {lane.shard for lane in self._lanes.values()} for entry in self.drop(shard)]

    def drop(self, shard: Shard) -> list[Fetched]:
        """Forget a shard; the entries that wait in its lanes."""
        lanes = [lane for lane in self._lanes.values() if lane.shard is shard]
        dropped = [entry for lane in lanes for entry in lane.waiting or ()]
        self.backlog -= len(dropped)
        self.size -= sum(map(_size, dropped))
        dropped += [entry for entry in self.overflow if entry.shard is shard]
        self.overflow = [entry for entry in self.overflow if entry.shard is not shard]
        self.hungry.difference_update(lanes)
        self.outside.pop(shard, None)
        for lane in lanes:
            del self._lanes[shard, lane.key]
            lane.waiting = None
        for places in (self._current, self._leaving, self._elsewhere):
            for place in [place for place in places if place[0] is shard]:
                del places[place]
        return dropped

    @property
    def held(self) -> int:
        """Entries in hand that no slot could take now."""
        return self.backlog + len(self._leaving)

    @property
    def space(self) -> int:
        """How many more entries may wait in memory."""
        return 0 if self.size > BACKLOG_BYTES else max(0, BACKLOG - self.held)

    @property
    def half_full(self) -> bool:
        return self.backlog > BACKLOG // 2 or self.size > BACKLOG_BYTES // 2

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


def _rank(entry: Fetched) -> Rank:
    return rank_of(entry.id)


def _after(one: bytes, other: bytes) -> bool:
    """Whether one id is behind another. (Where they are written alike, their bytes say it: that takes a third.)"""
    if len(one) == len(other) and one.find(b"-") == other.find(b"-"):
        return one > other
    return rank_of(one) > rank_of(other)


def _size(entry: Fetched) -> int:
    flat = entry.flat
    return len(flat[1]) if len(flat) > 1 else 0
