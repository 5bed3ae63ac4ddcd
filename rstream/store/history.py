"""The history of a stream in Redis: one hash, `ns:history:<stream>`, in which workers add up what has happened.

| field            | what                                                                                           |
| ---------------- | ---------------------------------------------------------------------------------------------- |
| `birth`          | an id, of who began it                                                                         |
| `seq`            | rises with every sample: what was read before it rose is not added any more                    |
| `at`             | ms of the last sample                                                                          |
| `resets`         | times that Redis was found to have lost data                                                   |
| `state`          | the totals of the last sample, and the minute and the hour that go on, see buckets.py          |
| `m<hour>:<group>`, `h<day>:<group>` | closed minutes and hours, see buckets.py                                    |
| `gone:<group>`   | it was removed since the last sample                                                           |

Any worker takes the sample that is due; the one whose call comes first has it. Where Redis loses data the hash goes, or
goes back, too: that is seen by those who remember it (`Witness`). Cost of a look: one small call. Of a sample: three
round trips, among them a read-only Lua call a shard, and one small write.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgpack

from rstream import buckets
from rstream.buckets import COUNTED, Sample, State
from rstream.errors import StoreError
from rstream.retention import Retention
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.scripts import FORGET, PEEK, RESETS, SAMPLE
from rstream.store.steps import Steps
from rstream.store.totals import Totals, totals

EVERY_MS = 5000
"""From one sample to the next, while there is something to count."""

FIELD_BYTES = 8192
"""Of one field, at most: the largest records are 55 bytes, and those of an hour 60."""


class Place(NamedTuple):
    """Whose history it is."""

    namespace: str
    stream: str

    @property
    def key(self) -> str:
        return keys.history(*self)


@dataclass(frozen=True, slots=True)
class Peek:
    """now: Redis's clock in ms · seq, birth, resets: see above; birth "" where there is no history · due: whether it is
    time for a sample; only then state, fields.
    """

    now: int
    seq: int
    birth: str
    resets: int
    due: bool
    state: bytes = b""
    fields: Sequence[str] = ()


@dataclass(slots=True)
class Witness:
    """What somebody remembers of a history, and so knows when Redis lost it, or went back. resets: that it knows of."""

    birth: str = ""
    seq: int = 0
    resets: int = 0

    def look(self, birth: str, seq: int, resets: int) -> int:
        """What it finds now; how many times Redis has lost data by then. Of several that remember the same each says
        the same, so it is enough that the highest number counts.
        """
        lost = self.birth != "" and (birth != self.birth or seq < self.seq)
        self.resets = self.resets + 1 if lost and resets <= self.resets else max(self.resets, resets)
        self.birth, self.seq = birth, seq
        return self.resets


def peek(place: Place, every_ms: int) -> Op[Peek]:
    """every_ms: from one sample to the next."""
    return Op([PEEK([place.key], every_ms)], lambda replies: _peek(replies[0]))


def _peek(reply: Sequence[Any]) -> Peek:
    now, seq, birth, resets, *rest = reply
    state, names = rest or (b"", ())
    return Peek(now, seq, _text(birth), resets, bool(rest), state, [_text(name) for name in names])


Glance = tuple[Retention | StoreError | None, Peek | StoreError]


def glance(namespace: str, names: Sequence[str], every_ms: int) -> Op[list[Glance]]:
    """What a janitor asks of all streams, in one round trip: their retentions, and `peek`; the error of what it may
    not look at.
    """
    stored = layouts.retentions(namespace, names)
    peeks = [PEEK([keys.history(namespace, name)], every_ms) for name in names]

    def parse(replies: list[Any]) -> list[Glance]:
        first, rest = replies[: len(names)], replies[len(names) :]
        retentions = [reply if isinstance(reply, StoreError) else stored.parse([reply])[0] for reply in first]
        return list(zip(retentions, (r if isinstance(r, StoreError) else _peek(r) for r in rest), strict=True))

    return Op([*stored.calls, *peeks], parse, partial=True)


class Looked(NamedTuple):
    """taken: a sample, and by this look · news: whether there was anything to add."""

    taken: bool = False
    news: bool = False


def look(place: Place, witness: Witness, every_ms: int = EVERY_MS) -> Steps[Looked]:
    """Take a sample, if it is time for one."""
    seen: Peek = yield peek(place, every_ms)
    return (yield from sample(place, witness, seen))


def sample(place: Place, witness: Witness, seen: Peek) -> Steps[Looked]:
    """The same, for who has peeked."""
    known = witness.look(seen.birth, seen.seq, seen.resets)
    if known > seen.resets:
        yield Op([RESETS([place.key], known)], lambda replies: None)
    if not seen.due:
        return Looked()
    layout: Layout | None = yield layouts.load(*place)
    if layout is None:
        return Looked()
    found: Totals = yield totals(layout)
    forgotten = [name.partition(":")[2] for name in seen.fields if name.startswith("gone:")]
    done = buckets.advance(buckets.unpack(seen.state), sample_of(seen.now, found), known, forgotten)
    state = done.state.pack()
    seen = replace(seen, birth=seen.birth or secrets.token_hex(8))
    added: bool = yield _add(place, seen, done, state, [*found.groups], [f"gone:{group}" for group in forgotten])
    if added:  # who began it remembers it from then on, not only from the next look on
        witness.birth, witness.seq = seen.birth, seen.seq + 1
    return Looked(added, state != seen.state or bool(done.closed))


def sample_of(now: int, found: Totals) -> Sample:
    """now: by the clock of the server that keeps the history."""
    return Sample(
        now,
        found.published - sum(found.shards.values()),
        {str(shard): number for shard, number in found.shards.items()},
        {name: [getattr(group, kind) for kind in COUNTED] for name, group in found.groups.items()},
        {name: int(found.behind(name) * 1000) for name in found.groups},
    )


def _add(
    place: Place, seen: Peek, done: buckets.Advance, state: bytes, groups: Sequence[str], gone: Sequence[str]
) -> Op[bool]:
    closed = msgpack.packb([part for pair in done.closed.items() for part in pair], use_bin_type=False)
    old = buckets.outdated({*seen.fields, *done.closed}, seen.now, groups) if done.closed else []
    call = SAMPLE(
        [place.key], seen.seq, seen.birth, seen.now, done.resets, b"" if state == seen.state else state,
        closed, FIELD_BYTES, *gone, *old,
    )  # fmt: skip
    return Op([call], lambda replies: bool(replies[0]))


def forget(layout: Layout, group: str) -> Op[None]:
    """A group was removed: what was counted of it is gone, and no loss. What is in buckets stays."""
    return Op([FORGET([keys.history(layout.namespace, layout.name)], group)], lambda replies: None)


class History(NamedTuple):
    """As it is stored. now: Redis's clock in ms."""

    now: int
    state: State | None
    fields: Mapping[str, bytes]

    @property
    def at(self) -> int | None:
        """ms of the last sample; None where there is none."""
        at = self.fields.get("at", b"")
        return int(at) if at.isdigit() else None


def load(place: Place) -> Op[History]:
    """All of it: some 20 KB a group."""

    def parse(replies: list[Any]) -> History:
        (seconds, micros), flat = replies
        fields = {_text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        now = int(seconds) * 1000 + int(micros) // 1000
        return History(now, buckets.unpack(fields.get("state", b"")), fields)

    return Op([("TIME",), ("HGETALL", place.key)], parse)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
