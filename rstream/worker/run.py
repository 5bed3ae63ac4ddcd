"""One consumer at work in this process: the state in which its loops meet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from rstream.calling import OnLoop
from rstream.consumer import Consumer
from rstream.logs import Voice
from rstream.processes import ProcessCall
from rstream.store.deliveries import Fetched, GroupOps, Outcome, Tokens
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Link
from rstream.store.owners import OwnerOps, Unparked
from rstream.worker.about import KINDS, About, log
from rstream.worker.emit import Emitter
from rstream.worker.gate import Gate
from rstream.worker.hand import Hand, from_the_dead
from rstream.worker.lanes import Lanes
from rstream.worker.lease import Lease
from rstream.worker.loads import Loads
from rstream.worker.order import Lane, Now, PerKey, Place, key_of
from rstream.worker.outcomes import Outcomes
from rstream.worker.owned import Own
from rstream.worker.pace import Pace
from rstream.worker.spans import spans_of
from rstream.worker.tally import Tally

WORTH_READING = 250
"""Entries: an ordered group that has something to do does not read less, as long as it has no space for more."""


class ConsumerRun:
    """What is in hand, what waits, what is to be settled; and the signals between the loops."""

    def __init__(
        self,
        consumer: Consumer,
        concurrency: int,
        ops: GroupOps,
        link: Link,
        tally: Tally,
        gate: Gate,
        emitter: Emitter | None = None,
    ) -> None:
        self.consumer, self.concurrency, self.ops, self.link, self.tally = consumer, concurrency, ops, link, tally
        self.call = consumer.call(concurrency)
        self.decode = consumer.stream.claims.decoder(consumer.stream.codec)
        self.pool = self.call if isinstance(self.call, ProcessCall) else None
        self.size = consumer.batch or 1
        self.tells = consumer.tells
        self.emitter = emitter
        self.owners = OwnerOps(ops)
        self.lease = Lease(ops, consumer.lease)
        self.about, self.voice, self.spans = About(ops), Voice(log, self.name, KINDS), spans_of(consumer, ops)
        # Where a failover must not take back what was accepted, no later event of a key is handled before a replica has
        # the outcome of the one before it.
        self.replicas = consumer.stream.app.settings.replicas if consumer.in_order else 0
        self.lanes = Lanes(gate)
        self.loads = Loads()
        self.order = PerKey() if consumer.in_order else None
        self.own = Own()
        self.shards = self.layout.every  # those in which there may be something to do
        gate.listeners.append(self._gate_opened)
        self.running: dict[Place, float] = {}
        self.on_loop: dict[Place, OnLoop] = {}  # of these, those whose handlers can be cancelled
        self.filling = asyncio.Lock()
        self.plain, self.emitting = Outcomes(), Outcomes()
        self.room_made = asyncio.Event()
        self.look = asyncio.Event()
        self.look_at = float("-inf")
        self.drained = asyncio.Event()
        self.resharded = asyncio.Event()
        self.crowded = asyncio.Event()  # something has to be put aside, or brought back
        self.intake = asyncio.Lock()  # who may bring something in
        self.reading = asyncio.Lock()  # an answer that brings something is on its way
        self.finished = False
        self.pace = Pace(concurrency, self.size)
        self.busy = 0  # slots of a batch consumer that are at work
        self.taken = 0  # entries, in all
        self.came = asyncio.Event()  # since somebody began to wait for some
        self.flushes = 0  # of outcomes, answered
        self.adoptions_asked = 0
        self.adopted = asyncio.Event()
        self.adopted.set()
        self.hand = self.lease.hand = Hand()

    @property
    def layout(self) -> Layout:
        return self.ops.layout

    @property
    def name(self) -> str:
        return f"{self.layout.name}/{self.ops.group}"

    def age(self, id: bytes) -> float:
        """Seconds since the entry was published, by Redis's clock."""
        return self.lease.redis_now() - int(id.split(b"-")[0]) / 1000

    # What is in hand: from fetch to the answer to its settle.

    def take(self, entries: Iterable[Fetched], term: int, owned: Tokens | None = None) -> None:
        """Entries that are this worker's.

        `term`: the lease's when they were asked for. An answer may have waited in a socket while this process was
        frozen, and a buffer may have: what came in under an earlier term is not started.
        `owned`: the lease's then; what came from shards that were given up since is handed over.
        """
        new: list[Fetched] = []
        astray: list[Fetched] = []
        terms, shard, lane = self.hand.terms, None, new
        for entry in entries:
            place = entry[:2]
            if place not in terms:
                terms[place] = term
                if entry.shard is not shard:
                    shard = entry.shard
                    lane = new if self._still_owned(shard, owned) else astray
                lane.append(entry)
            elif entry.source is not None:
                # Claimed back while an earlier attempt still runs here, or before the answer to its settle came:
                # the next attempt begins when that one is let go.
                self.hand.back[place] = ([entry], term, owned)
            elif self.order is not None and (key := key_of(entry)) is not None:
                # Read again: Redis lost what it knew, or the group was reset. The run that goes on may be its end.
                self.order.learn(*place, key)
        self.taken += len(new)
        self.came.set()
        if self.order is not None:
            new = self.order.put_all(new)
            if self.is_crowded:
                self.crowded.set()
        self.line_up(new)
        self.hand_over(astray)

    def _still_owned(self, shard: Shard, owned: Tokens | None = None) -> bool:
        if self.order is None:
            return True
        if shard not in self.own.known or self.own.term != self.lease.term:
            return False
        return owned is None or owned.get(shard) == self.lease.owned[shard]

    def line_up(self, entries: Sequence[Fetched]) -> None:
        """Entries that may be started, once their payloads are here."""
        self.queue(self.loads.sort_out(entries))

    def queue(self, entries: Sequence[Fetched]) -> None:
        """Entries that wait for nothing but a slot."""
        if len(entries) == 1 and entries[0].source is None:  # the next of a key: of those there are many
            self.lanes.put(entries)
            return
        suspects = [entry for entry in entries if entry.source is not None and self._suspect(entry)]
        self.lanes.put([entry for entry in entries if entry not in suspects] if suspects else entries)
        if suspects:
            self.lanes.put_suspects([(entry, self._last(entry)) for entry in suspects])

    def hand_over(self, entries: Iterable[Fetched]) -> None:
        """Let somebody else start these, who shall know of them what is known here."""
        for shard, id, _, deliveries, source in entries:
            if source in ("~retry", "~unsure") or (source == "~parked" and deliveries):
                self.give_back(Outcome(shard, id, deliveries, "retry", 0))
            elif source is None:
                self.give_back(Outcome(shard, id, deliveries, "release", deliveries - 1, "~released"))
            else:
                to = source if source == "~again" else "~released"
                self.give_back(Outcome(shard, id, deliveries, "release", deliveries, to))

    def give_back(self, outcome: Outcome) -> None:
        """The outcome of an entry that was not started."""
        self.hand.returning.add((outcome.shard, outcome.id))
        self.settle(outcome)

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

    def readable(self, slot: int | None = None) -> list[Shard]:
        """The shards that this worker may read and take over from now; on a cluster, those of one slot."""
        shards = () if self.lanes.paused else self.shards if self.order is None else self.tokens(self.own.open)
        return [shard for shard in shards if slot is None or shard.slot == slot]

    def tokens(self, shards: Iterable[Shard]) -> Tokens:
        """Those of these shards of an ordered group that may be read and taken over from now, and by what."""
        if self.order is not None and self.own.term != self.lease.term:  # they are about to be lost
            self.own.look.set()
            return {}
        return {shard: self.lease.owned[shard] for shard in shards if shard in self.own.open}

    def may_start(self, entry: Fetched, now: float) -> bool:
        """Whether the entry is surely still this worker's to start. now: by `clock()`."""
        lease = self.lease
        # In this order: a lease that is taken anew raises the term before it holds.
        if now >= lease.until or self.hand.terms.get(entry[:2]) != lease.term:
            return False
        return self.order is None or self._still_owned(entry.shard)

    def startable(self, entries: Sequence[Fetched], now: float) -> list[Fetched]:
        """Those that may be started."""
        if now >= self.lease.until:
            return []
        term, terms = self.lease.term, self.hand.terms
        held = [entry for entry in entries if terms.get(entry[:2]) == term]
        return held if self.order is None else [entry for entry in held if self._still_owned(entry.shard)]

    def let_go(self, shard: Shard, id: bytes, now: Now = "elsewhere") -> None:
        """An entry that was settled, or that this worker may not start any more."""
        place = (shard, id)
        now = self.hand.really(place, now)
        self.hand.let_go(place)
        self.loads.let_go(place)
        if self.order is not None:
            self._next_of_key(self.order.let_go(shard, id, now))
        back = self.hand.back.pop(place, None)
        if back is not None and now != "ended":
            self.take(*back)
        self.room_made.set()

    def let_all_go(self, ended: Sequence[Place]) -> None:
        """As `let_go`, of entries that were settled for good."""
        self.hand.let_all_go(ended)
        self.loads.let_all_go(ended)
        for place in self.hand.back.keys() & ended if self.hand.back else ():
            del self.hand.back[place]
        if self.order is not None:
            follow = self.order.end_all(ended)
            if self.is_crowded:
                self.crowded.set()
            self.line_up(follow)
        self.room_made.set()

    def _next_of_key(self, entry: Fetched | None) -> None:
        if entry is not None:
            self.line_up([entry])
        elif self.is_crowded:
            self.crowded.set()

    def now_is(self, shard: Shard, id: bytes, now: Now) -> None:
        """What has become of an entry that others of its key waited for, and that was not in hand."""
        assert self.order is not None
        self._next_of_key(self.order.let_go(shard, id, now))

    def take_back(self, lane: Lane, back: Unparked, term: int, owned: Tokens) -> None:
        """Entries of one key that had been put aside."""
        assert self.order is not None
        if not self.order.knows(lane):  # its shard was lost meanwhile
            self.take(back.entries, term, owned)
            return
        new = [entry for entry in back.entries if (entry.shard, entry.id) not in self.hand.terms]
        for entry in back.entries:  # the answer to its putting aside has not come yet
            if entry not in new:
                self.order.learn(entry.shard, entry.id, lane.key)
                self.hand.back[entry.shard, entry.id] = ([entry], term, owned)
        self.hand.terms.update(((entry.shard, entry.id), term) for entry in new)
        self.taken += len(new)
        self.came.set()
        self._next_of_key(self.order.came_back(lane, new, len(back.entries) - len(new) + len(back.lost), back.first))

    def drop(self, shard: Shard) -> list[Fetched]:
        """Forget a shard that is not this worker's any more; what it had not started of it. That stays in hand until
        it is let go.
        """
        assert self.order is not None
        self.room_made.set()
        return self.lanes.drop(shard) + self.loads.drop(shard) + self.order.drop(shard)

    @property
    def in_hand(self) -> int:
        return len(self.hand)

    async def some_came(self) -> None:
        """Wait for the next entries."""
        self.came.clear()
        await self.came.wait()

    # How much to hold.

    @property
    def buffer(self) -> int:
        """Deliveries to hold beyond those being handled: long handlers must not hoard, short ones must not wait."""
        if self.consumer.prefetch is not None:
            return self.consumer.prefetch
        if self.consumer.policy.max_attempts == 1:
            return 0  # what a dead worker had read counts as begun, and would have no attempt left
        return self.pace.ahead

    @property
    def begins_by_reading(self) -> bool:
        """Whether what is read counts as begun, which saves a call an event. In ordered groups much is read that waits
        for its key; where few attempts are allowed it must not lose one when this worker dies before it is started.
        """
        return self.order is None or self.consumer.policy.max_attempts > 2

    @property
    def handled_at_once(self) -> int:
        """Deliveries, at most."""
        return self.concurrency * self.size

    def took(self, seconds: float) -> None:
        """A call of the handler took this long."""
        self.tally.took(seconds)
        self.pace.took(seconds)

    @property
    def room(self) -> int:
        """How many more deliveries may come in: all there is room for, once half the buffer is used up."""
        buffer = self.buffer
        if len(self.lanes) > buffer // 2 or self.lanes.gate.quiet_for is not None:
            return 0
        # A slot that is at work has no room, however small its batch was.
        for_slots = (self.concurrency - self.busy) * self.size + buffer - len(self.lanes) - len(self.lanes.forming)
        in_work, space = self.in_hand - self.loads.aside, for_slots
        if self.order is not None:
            in_work -= self.order.held
            space = self.order.space
            if space < WORTH_READING and len(self.lanes):
                return 0  # what is ready is handled meanwhile; the little that could be read would mostly wait
        return max(0, min(for_slots, space, self.handled_at_once + buffer - in_work + self.lanes.suspects))

    @property
    def is_full(self) -> bool:
        """Whether what waits in memory keeps others from coming in, or soon will, and nothing is there to be begun."""
        return self.order is not None and not len(self.lanes) and self.order.half_full

    @property
    def is_crowded(self) -> bool:
        return self.order is not None and bool(self.order.overflow or self.order.hungry or self.is_full)

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

    def give_up(self, entry: Fetched, *, begun: bool = False) -> None:
        """Do not start this entry (any more): whoever has it by now does; if that is us, adoption brings it back.

        begun: its attempt was.
        """
        self.tally.unheld += not self.lease.holds()
        if begun or entry.source is not None:
            self.hand.sources[entry.shard, entry.id] = "~unsure"
        self.let_go(entry.shard, entry.id)
        self.adopt()

    def forget(self, entry: Fetched) -> None:
        """As `give_up`, of an entry that nobody wanted to start."""
        if entry.source is not None:
            self.hand.sources[entry.shard, entry.id] = entry.source
        self.let_go(entry.shard, entry.id)

    def adopt(self) -> None:
        """Something may be pending for this worker that it does not have in hand: have the recovery find it."""
        self.ask_adoption()
        self.look_in(0)

    def ask_adoption(self) -> None:
        """As `adopt`, at the recovery's next look: for when Redis just did not answer."""
        self.adoptions_asked += 1
        self.adopted.clear()
