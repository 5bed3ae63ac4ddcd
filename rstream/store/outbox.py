"""What a producer has yet to send. Publishing is exact: a flush that is sent twice is applied once.

An outbox has a producer id of its own, numbers its flushes per shard, and has one write in flight; Redis remembers the
last number beside the entries. So a resend gets the first answer back, and a packet that arrives late is refused. Where
a stream is resharded, what its shards refuse goes to those of the new generation, in order and before anything newer.

What a full shard refuses is sent again, with the same number, and what is behind it waits; so does what goes to a shard
that is nearly full. The other shards go on.
"""

from __future__ import annotations

import copy
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, overload

import msgpack

from rstream.errors import PublishUncertain, ShardLimited, ShardSealed, StoreError, StreamFull
from rstream.event import entry_ids
from rstream.process import clock
from rstream.retention import Retention, slowdown
from rstream.store.keys import Shard, rank_of
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.parcel import FIELDS, Parcel
from rstream.store.record import FLUSH_BYTES, FLUSH_ENTRIES
from rstream.store.scripts import PUBLISH, Call

WRITE_BYTES = 1024 * 1024
"""All flushes of one write: what a broken connection makes a producer send again."""

SEQ_TTL_MS = 15 * 60 * 1000
"""How long Redis remembers a producer's last flush; far more than `publish_timeout` allows a resend to take."""

TRY_AGAIN = 0.25
"""Seconds, at most, after which it is tried again to add to a shard that was full."""

_packer = msgpack.Packer

DEFAULT_SOFT = Retention().soft


@dataclass(slots=True)
class _Flush:
    """tries: how often its shard was full · unsure: an earlier packet of it may yet arrive."""

    shard: Shard
    seq: int
    parcels: list[Parcel]
    tries: int = 0
    unsure: bool = False

    @property
    def size(self) -> int:
        return sum([parcel.size for parcel in self.parcels])

    @property
    def count(self) -> int:
        return sum([len(parcel.flat) for parcel in self.parcels]) // FIELDS

    def wanted(self) -> bool:
        """Leaves out what nobody waits for any more, if no packet of it is under way: then it may be another one under
        the same number. False where nothing is left.
        """
        if not self.unsure:
            self.parcels = [parcel for parcel in self.parcels if not parcel.promise.done()]
        return bool(self.parcels)

    def call(self, producer: str, *, limited: bool) -> Call:
        # Redis's cmsgpack knows the old raw strings only, hence use_bin_type=False.
        flat = self.parcels[0].flat if len(self.parcels) == 1 else [*chain(*[parcel.flat for parcel in self.parcels])]
        packed, shard = _packer(use_bin_type=False, buf_size=self.size + 1024).pack(flat), self.shard
        if limited:
            return PUBLISH((shard.stream, shard.seq(producer), shard.size, shard.marks), self.seq, SEQ_TTL_MS, packed)
        return PUBLISH((shard.stream, shard.seq(producer)), self.seq, SEQ_TTL_MS, packed)


class _Calls(Sequence[Call]):
    """The calls of some flushes. Each is made when it is written: meanwhile, the server works on those before it."""

    def __init__(self, flushes: list[_Flush], producer: str, limited: bool) -> None:
        self._flushes, self._producer, self._limited = flushes, producer, limited

    def __len__(self) -> int:
        return len(self._flushes)

    def __iter__(self) -> Iterator[Call]:
        for flush in self._flushes:
            yield flush.call(self._producer, limited=self._limited)

    @overload
    def __getitem__(self, at: int) -> Call: ...
    @overload
    def __getitem__(self, at: slice) -> list[Call]: ...
    def __getitem__(self, at: int | slice) -> Call | list[Call]:
        if isinstance(at, slice):
            return [flush.call(self._producer, limited=self._limited) for flush in self._flushes[at]]
        return self._flushes[at].call(self._producer, limited=self._limited)


@dataclass
class Outbox:
    """What a producer has yet to send (all of it, or that of one half of the keys), per shard of one layout. No I/O:
    `take` gives an Op, its driver sends it.

    A producer id is never shared: whoever forks makes a new Outbox. Where a shard took nothing, for it is sealed or not
    there, it is `refused`: the driver finds out what has become of the stream, and then calls `go_on`. Where a shard is
    full, it `needs` room: the driver makes some, if it can, and then calls `resend`.
    """

    layout: Layout
    producer: str = field(default_factory=lambda: secrets.token_hex(8))
    _waiting: dict[Shard, deque[Parcel]] = field(default_factory=dict)
    _seq: dict[Shard, int] = field(default_factory=dict)
    _taken: list[_Flush] = field(default_factory=list)
    _refused: list[_Flush] = field(default_factory=list)
    _again: list[_Flush] = field(default_factory=list)
    _full: list[_Flush] = field(default_factory=list)
    _limited: bool = False
    _hold: dict[Shard, float] = field(default_factory=dict)  # nothing goes there before that time

    def add(self, parcels: Iterable[Parcel]) -> None:
        """Also such as another layout has them: nothing goes to a newer generation before what is held is refused."""
        for parcel in parcels:
            self.put(parcel)

    def put(self, parcel: Parcel) -> None:
        """As `add`, for one."""
        if not self.layout.writes(parcel.shard):
            self.add(parcel.cut(self.layout))
        elif (waiting := self._waiting.get(parcel.shard)) is not None:
            waiting.append(parcel)
        else:
            self._waiting[parcel.shard] = deque((parcel,))

    def take(self, replicas: int = 0) -> Op[None] | None:
        """One flush of every shard that has something waiting, in one write, which so many replicas have to confirm.
        None when nothing waits, or all that does has to wait for some more seconds: see `pause`.

        The Op must end, by `finish` or by `fail`, before the next `take`; so must a refusal, by `go_on` or by `fail`.
        """
        busy: Iterable[Shard] = self._take_again() if self._again or self._hold else ()
        size = sum([flush.size for flush in self._taken]) if self._taken else 0
        for shard in [shard for shard in self._waiting if shard not in busy]:
            if size >= WRITE_BYTES or self._refused:
                break
            if (new := self._cut(shard)) is not None:
                self._taken.append(new)
                size += new.size
        return self._op(replicas) if self._taken else None

    def take_alone(self, parcel: Parcel, replicas: int = 0) -> Op[None] | None:
        """As `add` and `take`, where nothing else is held: a lone publish needs no queue. None, and it was not taken,
        where something is.
        """
        if self._taken or self._waiting or self._hold or self._again or self._refused or self._full:
            return None
        if not self.layout.writes(parcel.shard):
            return None
        self._taken = [self._numbered(parcel.shard, [parcel])]
        return self._op(replicas)

    def _op(self, replicas: int) -> Op[None]:
        retention = self.layout.retention
        limited = self._limited or (retention is not None and retention.counts)
        calls: Sequence[Call]
        if len(self._taken) == 1:  # then there is nothing to be made meanwhile
            calls = (self._taken[0].call(self.producer, limited=limited),)
        else:
            calls = _Calls(self._taken, self.producer, limited)
        return Op(calls, self._finish, partial=True, replicas=replicas)

    def _take_again(self) -> set[Shard]:
        """Take what is to be sent again; the shards for which nothing else may be taken."""
        held = self._held()
        again, self._again = [flush for flush in self._again if flush.wanted()], []
        for flush in again:
            (self._again if flush.shard in held else self._taken).append(flush)
        return {flush.shard for flush in again} | held

    def _held(self) -> set[Shard]:
        now = clock()
        self._hold = {shard: until for shard, until in self._hold.items() if until > now}
        return set(self._hold)

    def pause(self) -> float | None:
        """Seconds until there is something to take; None when nothing waits."""
        if not self._hold and not self._again:
            return 0.0 if self._waiting and not self._refused else None
        waiting = {flush.shard for flush in self._again}
        if not self._refused:
            waiting |= self._waiting.keys()
        return max(0.0, min(self._hold.get(shard, 0.0) for shard in waiting) - clock()) if waiting else None

    def _cut(self, shard: Shard) -> _Flush | None:
        """What nobody waits for any more, a publish that was cancelled, is left out."""
        parcels = [parcel for parcel in self._waiting.pop(shard) if not parcel.promise.done()]
        count = sum([len(parcel.flat) for parcel in parcels])
        if count > FIELDS * FLUSH_ENTRIES or sum([parcel.size for parcel in parcels]) > FLUSH_BYTES:
            fitting = _fitting(parcels)
            self._waiting[shard] = deque(parcels[fitting:])  # at the end again: shards take turns
            del parcels[fitting:]
            if not self._waiting[shard]:
                del self._waiting[shard]
        return self._numbered(shard, parcels) if parcels else None

    def _numbered(self, shard: Shard, parcels: list[Parcel]) -> _Flush:
        self._seq[shard] = number = self._seq.get(shard, 0) + 1
        return _Flush(shard, number, parcels)

    def _finish(self, replies: list[Any]) -> None:
        for flush, reply in zip(self._taken, replies, strict=True):
            if type(reply) is bytes:
                _answer(flush, reply)
            elif isinstance(reply, ShardSealed):
                self._refused.append(flush)
            elif isinstance(reply, ShardLimited):  # somebody has given it limits since
                self._limited = True
                flush.unsure = flush.unsure or reply.sent
                self._again.append(flush)
            elif isinstance(reply, StreamFull):
                flush.unsure = flush.unsure or reply.sent
                self._full.append(flush)
            elif isinstance(reply, StoreError):
                _reject(flush.parcels, reply)
            else:
                _answer(flush, reply[0])
                self._hold[flush.shard] = clock() + slowdown(reply[1], self._soft)
        self._taken = []

    @property
    def taken(self) -> int:
        """Callers whose records are on their way."""
        return sum([len(flush.parcels) for flush in self._taken])

    @property
    def troubled(self) -> bool:
        """Whether something was refused."""
        return bool(self._full or self._refused)

    @property
    def _soft(self) -> float:
        retention = self.layout.retention
        return DEFAULT_SOFT if retention is None else retention.soft

    @property
    def needs(self) -> dict[Shard, tuple[int, int]]:
        """Shards that were full; entries, and bytes of them, that wait for room there."""
        return {flush.shard: (flush.count, flush.size) for flush in self._full}

    @property
    def hopeless(self) -> dict[Shard, int]:
        """Shards that were full again, how often, and whose callers do not wait any longer."""
        now = clock()
        return {f.shard: f.tries for f in self._full if f.tries and min(parcel.until for parcel in f.parcels) <= now}

    def resend(self, errors: Mapping[Shard, StreamFull]) -> None:
        """Try it again: what was full for the first time at once. Tell the callers of these shards instead, as far as
        they do not wait any longer.
        """
        full, self._full = self._full, []
        for flush in full:
            if error := errors.get(flush.shard):
                self._give_up(flush, error)
            if not flush.wanted():
                self._hold.pop(flush.shard, None)
                continue
            if flush.tries:
                self._hold[flush.shard] = clock() + min(TRY_AGAIN, 0.02 * 2 ** min(flush.tries, 8))
            flush.tries += 1
            self._again.append(flush)

    def _give_up(self, flush: _Flush, error: StreamFull) -> None:
        """Of one that may yet arrive, all of it."""
        now = clock()
        left = [] if flush.unsure else [parcel for parcel in flush.parcels if parcel.until > now]
        _reject((p for p in flush.parcels if flush.unsure or p.until <= now), _known(error, flush.unsure))
        flush.parcels = left
        if not left:
            self._turn_away(flush.shard, error)

    def _turn_away(self, shard: Shard, error: StreamFull) -> None:
        """Those behind a flush that was refused, as far as they do not wait for room any longer either."""
        now = clock()
        waiting = self._waiting.pop(shard, deque())
        _reject([parcel for parcel in waiting if parcel.until <= now], error)
        if left := deque(parcel for parcel in waiting if parcel.until > now):
            self._waiting[shard] = left

    @property
    def refused(self) -> Shard | None:
        """A shard that took nothing. What was full elsewhere goes where the others go, ahead of what came later; but
        what of it may yet arrive has to be tried before.
        """
        if not self._refused:
            return None
        for flush in self._again:
            if not flush.unsure:
                self._waiting.setdefault(flush.shard, deque()).extendleft(reversed(flush.parcels))
        self._again = [flush for flush in self._again if flush.unsure]
        return None if self._again else self._refused[0].shard

    def go_on(self, layout: Layout) -> None:
        """What has become of the stream. A shard that is still written to gets the same flush with the same number: an
        earlier packet of it may yet arrive. One that is sealed will never take it.
        """
        refused, self._refused = self._refused, []
        if layout.writes(refused[0].shard):
            self._again = refused
        else:
            self._lay_out(layout, [parcel for flush in refused for parcel in flush.parcels])

    def _lay_out(self, layout: Layout, first: Iterable[Parcel] = ()) -> None:
        """Have everything go to the shards of this layout: `first`, then what waits."""
        held = [*first, *(parcel for waiting in self._waiting.values() for parcel in waiting)]
        self.layout, self._waiting = layout, {}
        for parcel in held:
            self.put(parcel)

    def fail(self, error: BaseException) -> None:
        """The Op raised: its callers learn it, and so does everybody still waiting (order would break)."""
        for flush in self._taken:
            _reject(flush.parcels, error)
        for flush in (*self._refused, *self._full, *self._again):
            _reject(flush.parcels, _known(error, flush.unsure))
        for waiting in self._waiting.values():
            _reject(waiting, _known(error, False))
        self._taken, self._refused, self._again, self._full = [], [], [], []
        self._waiting.clear()


def _known(error: BaseException, sent: bool) -> BaseException:
    """The same error, for what may have been sent, or surely has not."""
    twin: BaseException = copy.copy(error)
    if isinstance(twin, StoreError):
        twin.sent = sent
    return twin


def _fitting(parcels: Sequence[Parcel]) -> int:
    """How many of them make one flush."""
    counts = accumulate([len(parcel.flat) for parcel in parcels])
    sizes = accumulate([parcel.size for parcel in parcels])
    for n, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        if n and (count > FIELDS * FLUSH_ENTRIES or size > FLUSH_BYTES):
            return n
    return len(parcels)


def _answer(flush: _Flush, reply: bytes) -> None:
    """Redis's answer is the id of the first entry; the others follow it."""
    ms, seq = rank_of(reply)
    ids = entry_ids(ms, seq, flush.count, flush.shard.generation, flush.shard.number)
    if len(ids) == len(flush.parcels):
        for parcel, id in zip(flush.parcels, ids, strict=True):
            if not parcel.promise.done():
                parcel.promise.set_result((id,))
        return
    at = 0
    for parcel in flush.parcels:
        start, at = at, at + len(parcel.flat) // FIELDS
        if not parcel.promise.done():
            parcel.promise.set_result(ids[start:at])


def _reject(parcels: Iterable[Parcel], error: BaseException) -> None:
    """Tell callers, each with an error of its own: they put into it what they had published."""
    for parcel in parcels:
        if not parcel.promise.done():
            parcel.promise.set_exception(_verdict(error))


def _verdict(error: BaseException) -> BaseException:
    if isinstance(error, StoreError) and error.sent and not isinstance(error, PublishUncertain):
        return PublishUncertain(
            f"{error}. The connection broke before that: what was sent last may or may not have been added. "
            "Publish it again only if twice is better than never"
        )
    twin: BaseException = copy.copy(error)
    return twin
