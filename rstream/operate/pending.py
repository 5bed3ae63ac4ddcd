"""Who holds what: the pending entries of a group, the oldest first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from rstream.errors import ConfigError, EntryInvalid, MemoInvalid
from rstream.event import MAX_PART, EntryId
from rstream.memo import CHECKPOINT, unpack
from rstream.store import layout as layouts
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op, together
from rstream.store.memo import opened
from rstream.store.pending import Held, Page, PendingOps, Which, beats
from rstream.store.stats import no_such_group
from rstream.store.steps import Steps, drive

if TYPE_CHECKING:
    from rstream.crypto import Seal
    from rstream.stream import Stream

State = Literal["held", "silent", "released", "again", "retry", "parked"]
STATES: tuple[State, ...] = get_args(State)
LIMIT = 50
PAGE = 200
"""Entries that one call brings, at most."""
LANES = 20
"""Keys of which is found out what their parked entries wait for."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that a group was given and has not settled.

    key: None where it has none, or is trimmed · size: bytes of its payload in Redis · state: "held" by a worker whose
    lease holds; by one that is "silent", from which others take it over; or waiting for any worker: "released" by one
    that ended, "again": given once more (redriven, replayed, reset), "retry": for its next attempt, "parked": for its
    key's turn · worker: who holds it, None where it waits · attempt: how many were begun; one that was read and waits
    in a worker's memory counts · since: seconds since it came to whoever has it, or its attempt was begun · age:
    seconds since it was published · lease: seconds that its worker's lease has left · heartbeat: seconds since its
    worker was last heard of, None where nobody knows · due: seconds until its next attempt, negative: it is overdue ·
    behind: the entry of its key that has to be settled first, where it is parked and that could be found · checkpoint:
    what the attempts kept last; None without one, or where it has more than 4 KiB · checkpoint_bytes, steps: the size
    of that, and how many steps are finished · trimmed: it is not stored any more, and lost when its turn comes.
    """

    id: EntryId
    key: str | None
    size: int
    state: State
    worker: str | None
    attempt: int
    since: float
    age: float
    lease: float | None = None
    heartbeat: float | None = None
    due: float | None = None
    behind: EntryId | None = None
    checkpoint: Any = None
    checkpoint_bytes: int = 0
    steps: int = 0
    trimmed: bool = False


@dataclass(frozen=True, slots=True)
class PendingPage:
    """more: whether there are others behind the last of these, that match."""

    entries: list[Pending]
    more: bool


async def pending(
    stream: Stream[Any],
    group: str,
    *,
    worker: str | None = None,
    key: str | None = None,
    state: str | None = None,
    older_than: float = 0.0,
    held_for: float = 0.0,
    limit: int = LIMIT,
    after: EntryId | None = None,
) -> PendingPage:
    """The oldest pending entries of a group that match all of these.

    worker: held by this one · state: one of `STATES` · older_than: published at least so many seconds ago · held_for:
    that whoever has them has for at least so many seconds · after: page on behind this id. However many there are,
    Redis is asked in short calls, and no more than is wanted is in memory. Raises `ConfigError`, `StoreError`s.
    """
    layout, seal = await stream.layout(fresh=True), stream.claims.seal
    steps = find(layout, group, worker, key, state, older_than, held_for, limit, after, seal)
    return await drive(stream.app.link, steps, stream.app.settings.publish_timeout)


def find(
    layout: Layout,
    group: str,
    worker: str | None,
    key: str | None,
    state: str | None,
    older_than: float,
    held_for: float,
    limit: int,
    after: EntryId | None,
    seal: Seal | None,
) -> Steps[PendingPage]:
    """As `pending`, in steps. seal: that of the stream, where its checkpoints are encrypted."""
    if state not in (None, *STATES):
        raise ConfigError(f"there is no state {state!r} of pending entries: there are {', '.join(STATES)}")
    if group not in (known := (yield layouts.groups(layout.every))):
        raise no_such_group(group, layout, known)
    which = Which(
        end=f"{max(0, (yield layouts.clock()) - int(older_than * 1000))}-{MAX_PART}" if older_than else "+",
        holder=worker or (f"~{state}" if state and state not in ("held", "silent") else ""),
        key=(key or "").encode(),
        held=int(held_for * 1000),
        limit=max(1, min(PAGE, limit + 1)),
    )
    search = Search(PendingOps(layout, group), which, layout.holding(key), after)
    found: list[Pending] = []
    while len(found) <= limit and search.going:
        search.take((yield search.op()))
        ready = (told(each, group, seal) for each in search.ready())
        found += [each for each in ready if state in (None, each.state)]
    return PendingPage((yield from completed(layout, group, found[:limit])), len(found) > limit)


class Search:
    """The shards of a stream, merged, the oldest entry first. In memory: a page of each."""

    def __init__(self, ops: PendingOps, which: Which, shards: Iterable[Shard], after: EntryId | None) -> None:
        self.ops, self._which, self._after = ops, which, after
        start = "-" if after is None else after.redis
        self._starts: dict[Shard, str] = dict.fromkeys(shards, start)
        self._pages: dict[Shard, list[Held]] = {shard: [] for shard in self._starts}

    @property
    def going(self) -> bool:
        return bool(self._starts)

    def op(self) -> Op[dict[Shard, Page]]:
        """The next page of every shard of which nothing is in hand, and that has more."""
        hungry = {shard: start for shard, start in self._starts.items() if not self._pages[shard]}
        return self.ops.look(hungry, self._which)

    def take(self, found: Mapping[Shard, Page]) -> None:
        for shard, (page, following) in found.items():
            self._pages[shard] += [one for one in page if self._after is None or shard.entry_id(one.id) > self._after]
            if following:
                self._starts[shard] = following
            else:
                del self._starts[shard]

    def ready(self) -> list[Held]:
        """Those whose turn has come: no shard may still have an older one."""
        ends = [
            shard.entry_id(page[-1].id) if (page := self._pages[shard]) else _before(shard, start)
            for shard, start in self._starts.items()
        ]
        stop = min(ends, default=None)
        merged = []
        for shard, page in self._pages.items():
            taken = [one for one in page if stop is None or shard.entry_id(one.id) <= stop]
            self._pages[shard] = page[len(taken) :]
            merged += taken
        return sorted(merged, key=lambda one: one.shard.entry_id(one.id))


def _before(shard: Shard, start: str) -> EntryId:
    """Up to where a shard was looked through, where nothing of it is in hand."""
    return shard.entry_id(start.lstrip("(").encode()) if start != "-" else EntryId(0, 0, 0, 0)


def told(held: Held, group: str = "", seal: Seal | None = None) -> Pending:
    """What users are told of it. seal: without that of the stream, a checkpoint that is encrypted is not read."""
    waits = held.holder.startswith("~")
    state: Any = held.holder.lstrip("~") if waits else "held" if held.lease >= 0 else "silent"
    current = bool(held.by) and int(held.by.split()[0]) <= held.deliveries  # else left by an earlier life of the group
    return Pending(
        held.shard.entry_id(held.id),
        None if held.key is None else held.key.decode(errors="replace"),
        max(0, held.size),
        state if state in STATES else "released",
        None if waits else held.holder,
        held.deliveries,
        held.held / 1000,
        max(0.0, (held.now - int(held.id.split(b"-")[0])) / 1000),
        lease=held.lease / 1000 if held.lease >= 0 else None,
        due=None if held.due is None else (held.due - held.now) / 1000,
        checkpoint=_checkpoint(held, group, seal) if current else None,
        checkpoint_bytes=held.checkpoint_bytes if current else 0,
        steps=held.steps if current else 0,
        trimmed=held.size < 0,
    )


def _checkpoint(held: Held, group: str, seal: Seal | None) -> Any:
    if held.checkpoint is None:
        return None
    try:
        return unpack(opened(seal, held.checkpoint, held.shard, held.id, group, CHECKPOINT), "the checkpoint")
    except (EntryInvalid, MemoInvalid) as error:
        return f"({error})"


def completed(layout: Layout, group: str, found: list[Pending]) -> Steps[list[Pending]]:
    """The same, with what is known beside their shards."""
    return (yield from _behind(PendingOps(layout, group), (yield from _heard_of(layout, found))))


def _heard_of(layout: Layout, found: list[Pending]) -> Steps[list[Pending]]:
    """The same, with when their workers were last heard of."""
    names = sorted({one.worker for one in found if one.worker})
    if not names:
        return found
    ages = yield beats(layout.namespace, names)
    return [replace(one, heartbeat=ages.get(one.worker)) if one.worker else one for one in found]


def _behind(ops: PendingOps, found: list[Pending]) -> Steps[list[Pending]]:
    """The same, with what those wait for that are parked: the oldest pending entry of their key."""
    shards = {(shard.generation, shard.number): shard for shard in ops.layout.every}
    parked = [(one.id[2:], one.key) for one in found if one.state == "parked" and one.key]
    lanes = [*dict.fromkeys(parked)][:LANES]
    if not lanes:
        return found
    looks = [ops.look({shards[place]: "-"}, Which(key=key.encode(), limit=1)) for place, key in lanes]
    heads = {
        lane: one.shard.entry_id(one.id)
        for lane, look in zip(lanes, (yield together(looks)), strict=True)
        for page, _ in look.values()
        for one in page
    }
    return [
        replace(one, behind=head) if (head := heads.get((one.id[2:], one.key or ""))) and head != one.id else one
        for one in found
    ]
