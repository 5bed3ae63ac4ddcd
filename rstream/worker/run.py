"""One consumer at work in this process: the state in which its loops meet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from rstream.consumer import Consumer
from rstream.event import EntryId
from rstream.processes import ProcessCall
from rstream.store.deliveries import Fetched, GroupOps, Outcome
from rstream.store.layout import Layout
from rstream.store.link import Link
from rstream.worker.counts import Counts
from rstream.worker.emit import Emitter
from rstream.worker.lanes import Gate, Lanes
from rstream.worker.lease import Lease

BUFFER_SECONDS = 0.2
"""How much handling time the buffer beyond the running deliveries should hold: a few round trips' worth."""
BUFFER_MAX = 1000

Place = tuple[int, bytes]
"""(shard, Redis id) of an entry."""


def from_the_dead(entry: Fetched) -> bool:
    """Whether its last attempt may have ended with its worker: also one that somebody took over and did not start."""
    if entry.source == "~released":
        return entry.deliveries > 0
    return not (entry.source is None or entry.source.startswith("~"))


class Outcomes:
    """What is to be settled next."""

    def __init__(self) -> None:
        self.waiting: list[Outcome] = []
        self.wanted = asyncio.Event()

    def add(self, outcome: Outcome) -> None:
        self.waiting.append(outcome)
        self.wanted.set()

    def take(self) -> list[Outcome]:
        self.wanted.clear()
        taken, self.waiting = self.waiting, []
        return taken


class ConsumerRun:
    """What is in hand, what waits, what is to be settled; and the signals between the loops."""

    def __init__(
        self,
        consumer: Consumer,
        concurrency: int,
        ops: GroupOps,
        link: Link,
        counts: Counts,
        gate: Gate,
        emitter: Emitter | None = None,
    ) -> None:
        self.consumer, self.concurrency, self.ops, self.link, self.counts = consumer, concurrency, ops, link, counts
        self.call = consumer.call(concurrency)
        self.pool = self.call if isinstance(self.call, ProcessCall) else None
        self.size = consumer.batch or 1
        self.emitter = emitter
        self.lease = Lease(ops, consumer.lease)
        self.lanes = Lanes(gate)
        gate.listeners.append(self._gate_opened)
        self.running: dict[Place, float] = {}
        self.filling = asyncio.Lock()
        self.plain, self.emitting = Outcomes(), Outcomes()
        self.room_made = asyncio.Event()
        # Whether an entry pending for us that is not in hand may be one that was begun elsewhere: then the attempt
        # that its delivery count names is used up, and its next run is another one.
        self.unsure = False
        self.look = asyncio.Event()
        self.look_at = float("-inf")
        self.drained = asyncio.Event()
        self.intake = asyncio.Lock()
        self.finished = False
        # What the running handlers show before they end: how many of them take long, and whether nothing that waits
        # for a slot moves.
        self.slow = 0
        self.stuck = False
        self.busy = 0  # slots of a batch consumer that are at work
        self.taken = 0  # entries, in all
        self.adoptions_asked = 0
        self.adopted = asyncio.Event()
        self.adopted.set()
        self._in_hand: dict[Place, int] = {}
        self._back: dict[Place, tuple[Fetched, int]] = {}
        self._let_go: set[Place] | None = None
        self._mean_seconds = float("inf")
        self._samples = 0

    @property
    def layout(self) -> Layout:
        return self.ops.layout

    @property
    def name(self) -> str:
        return f"{self.layout.name}/{self.ops.group}"

    def entry_id(self, shard: int, id: bytes) -> EntryId:
        """The full id of an entry."""
        ms, seq = id.split(b"-")
        return EntryId(int(ms), int(seq), self.layout.generation, shard)

    def age(self, id: bytes) -> float:
        """Seconds since the entry was published, by Redis's clock."""
        return self.lease.redis_now() - int(id.split(b"-")[0]) / 1000

    # What is in hand: from fetch to the answer to its settle.

    def take(self, entries: Iterable[Fetched], term: int) -> None:
        """Entries that are this worker's.

        `term`: the lease's when they were asked for. An answer may have waited in a socket while this process was
        frozen, and a buffer may have: what came in under an earlier term is not started.
        """
        new = []
        for entry in entries:
            place = (entry.shard, entry.id)
            if place not in self._in_hand:
                self._in_hand[place] = term
                new.append(entry)
            elif entry.source is not None:
                # Claimed back while an earlier attempt still runs here, or before the answer to its settle came:
                # the next attempt begins when that one is let go.
                self._back[place] = (entry, term)
        self.taken += len(new)
        suspects = [entry for entry in new if self._suspect(entry)]
        self.lanes.put([entry for entry in new if entry not in suspects] if suspects else new)
        if suspects:
            self.lanes.put_suspects([(entry, self._last(entry)) for entry in suspects])

    @property
    def doubt(self) -> int:
        """Deliveries from which an entry may be what killed its workers: it was taken over before, or has only the last
        attempt that its policy allows. Run alone, it cannot take others with it.
        """
        return max(1, min(2, self.consumer.policy.max_attempts - 1))

    def _suspect(self, entry: Fetched) -> bool:
        # With no attempt left it is not run at all.
        return from_the_dead(entry) and self.doubt <= entry.deliveries < self.consumer.policy.max_attempts

    def _last(self, entry: Fetched) -> bool:
        return entry.deliveries + 1 >= self.consumer.policy.max_attempts

    def may_start(self, entry: Fetched) -> bool:
        """Whether the entry is surely still this worker's."""
        return self.lease.holds() and self._in_hand.get((entry.shard, entry.id)) == self.lease.term

    def let_go(self, shard: int, id: bytes, *, ended: bool = False) -> None:
        """An entry that was settled, or that this worker may not start any more. `ended`: acked or dead."""
        place = (shard, id)
        self._in_hand.pop(place, None)
        if self._let_go is not None:
            self._let_go.add(place)
        back = self._back.pop(place, None)
        if back is not None and not ended:
            self.take([back[0]], back[1])
        self.room_made.set()

    def has(self, shard: int, id: bytes) -> bool:
        """Whether the entry is in hand, or was at any time since `watch` began."""
        return (shard, id) in self._in_hand or (self._let_go is not None and (shard, id) in self._let_go)

    def watch(self, on: bool) -> None:
        """Remember what is let go while somebody compares Redis's list of our deliveries with ours."""
        self._let_go = set() if on else None

    @property
    def in_hand(self) -> int:
        return len(self._in_hand)

    # How much to hold.

    @property
    def buffer(self) -> int:
        """Deliveries to hold beyond those being handled: long handlers must not hoard, short ones must not wait."""
        if self.consumer.prefetch is not None:
            return self.consumer.prefetch
        if self.stuck:
            return 0
        if self.consumer.policy.max_attempts == 1:
            return 0  # what a dead worker had read counts as begun, and would have no attempt left
        if self._samples < self.concurrency:
            return 0  # those that end first are the short ones
        calls = int(min(BUFFER_MAX, (self.concurrency - self.slow) * BUFFER_SECONDS / self._mean_seconds))
        return min(max(BUFFER_MAX, self.size), calls * self.size)

    @property
    def handled_at_once(self) -> int:
        """Deliveries, at most."""
        return self.concurrency * self.size

    def took(self, seconds: float) -> None:
        """A call of the handler took this long. The mean follows a slower handler at once and a faster one by steps."""
        self.stuck = False
        self._samples += 1
        seconds = max(seconds, 1e-6)
        if self._mean_seconds == float("inf") or seconds > self._mean_seconds:
            self._mean_seconds = seconds if seconds > 2 * self._mean_seconds else self._mix(seconds)
        else:
            self._mean_seconds = self._mix(seconds)

    def _mix(self, seconds: float) -> float:
        return seconds if self._mean_seconds == float("inf") else 0.9 * self._mean_seconds + 0.1 * seconds

    @property
    def room(self) -> int:
        """How many more deliveries may come in: all there is room for, once half the buffer is used up."""
        buffer = self.buffer
        if len(self.lanes) > buffer // 2 or self.lanes.gate.quiet_for is not None:
            return 0
        # A slot that is at work has no room, however small its batch was.
        for_slots = (self.concurrency - self.busy) * self.size + buffer - len(self.lanes) - len(self.lanes.forming)
        return max(0, min(for_slots, self.handled_at_once + buffer - self.in_hand + self.lanes.suspects))

    async def wait_for_room(self) -> int:
        while not (room := self.room):
            self.room_made.clear()
            await self.room_made.wait()
        return room

    def settle(self, outcome: Outcome) -> None:
        (self.emitting if outcome.emits else self.plain).add(outcome)

    def _gate_opened(self) -> None:
        self.room_made.set()
        self.look_in(0)  # others may have left suspects to us

    # When the recovery has to look.

    def look_in(self, seconds: float) -> None:
        """Have the recovery look in so many seconds, unless it does so earlier anyway."""
        at = asyncio.get_running_loop().time() + seconds
        if at < self.look_at:
            self.look_at = at
            self.look.set()

    def give_up(self, entry: Fetched) -> None:
        """Do not start this entry: whoever has it by now does; if that is us, adoption brings it back."""
        if entry.source is not None:
            self.unsure = True
        self.let_go(entry.shard, entry.id)
        self.adopt()

    def adopt(self) -> None:
        """Something may be pending for this worker that it does not have in hand: have the recovery find it."""
        self.ask_adoption()
        self.look_in(0)

    def ask_adoption(self) -> None:
        """As `adopt`, at the recovery's next look: for when Redis just did not answer."""
        self.adoptions_asked += 1
        self.adopted.clear()
