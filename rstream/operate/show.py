"""One entry in full: what was published, where it is, and how every group stands to it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from rstream.blobs.claims import size_of
from rstream.deadletter.letter import DeadLetter
from rstream.errors import ArchiveDamaged, BlobError, EntryInvalid, UnknownEntry
from rstream.event import Entry, EntryId, jsonable
from rstream.operate.pending import Pending, completed, told
from rstream.reference import Reference, whole
from rstream.store import log
from rstream.store import pause as pauses
from rstream.store.dead import DeadOps, Match, Search
from rstream.store.keys import ARCHIVE, Shard
from rstream.store.layout import Layout
from rstream.store.link import both
from rstream.store.lost import Loss, losses
from rstream.store.pause import Pause
from rstream.store.pending import Found, Standing
from rstream.store.pending import entry as look
from rstream.store.steps import Steps, drive, flow

if TYPE_CHECKING:
    from rstream.crypto import Seal
    from rstream.stream import Stream

_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Claim:
    """What the entry refers to in the blob store. what: "payload", or the field that it is the value of · key: its name
    in the store, "" where this app has no blob store · state: "there", "missing", "altered" (another size), or
    "unknown", and then `problem` says why.
    """

    what: str
    digest: str
    size: int
    key: str
    state: Literal["there", "missing", "altered", "unknown"]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class GroupState:
    """How a group stands to an entry.

    state: "unread": nobody was given it yet · "pending": see there · "dead": given up, see letters · "lost": it was
    trimmed before it was processed · "done": settled, by an ack or as expired, a double or cancelled, or passed over,
    where the group began or was reset behind it · letters: its dead letters, also where it is pending once more.
    """

    group: str
    state: Literal["unread", "pending", "done", "dead", "lost"]
    pending: Pending | None = None
    letters: tuple[DeadLetter[Any], ...] = ()
    paused: Pause | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry. where: "redis", the "archive", or a dead "letter" that has a copy of it, where it is nowhere else ·
    event_id: as a UUID, None where it is none · size: bytes of the encoded event, wherever it is · event: as JSON has
    it, None where it was not asked for, or there is a problem that leaves nothing of it · problem: what keeps it from
    being read · fields: as stored, by name · archived: whether it is archived, None where the stream is not.
    """

    id: EntryId
    stream: str
    where: Literal["redis", "archive", "letter"]
    key: str | None
    event_id: str | None
    headers: Mapping[str, str]
    published_at: datetime | None
    size: int
    event: Any
    problem: str | None
    fields: Mapping[bytes, bytes]
    claims: tuple[Claim, ...] = ()
    archived: bool | None = None
    groups: tuple[GroupState, ...] = field(default=())


async def show(stream: Stream[Any], id: EntryId | str, *, payload: bool = True) -> Shown:
    """One entry, also one that is trimmed and archived, or of which only a dead letter is left.

    payload: False leaves its event and its headers out, and fetches nothing of it: they may be private. Raises
    `UnknownEntry` where it is nowhere, `PositionError`, `StoreError`s.
    """
    id = EntryId.parse(id) if isinstance(id, str) else id
    app, within = stream.app, stream.app.settings.publish_timeout
    layout = await stream.layout(fresh=True)
    shard = next((shard for shard in layout.every if (shard.generation, shard.number) == id[2:]), None)
    found = (
        Found(0, None, None, None, []) if shard is None else await app.link.run(look(shard, id.redis), within=within)
    )
    letters = await drive(app.link, _letters(layout, id, found.groups, stream), within)
    where, entry, flat, problem = await _entry(stream, layout, id, found)
    if entry is None:
        letter = next((letter for each in letters.values() for letter in each), None)
        if letter is None:
            raise UnknownEntry(_nowhere(layout, id, found, problem))
        where, entry, flat = "letter", letter.entry, [part for pair in letter.fields.items() for part in pair]
    states = await drive(app.link, _states(layout, entry, shard, found, letters, stream.claims.seal), within)
    size, stored = size_of(entry.payload), entry.payload
    event, trouble = await _event(stream, entry) if payload else (None, None)
    return Shown(
        id, layout.name, where, entry.key,
        str(uuid.UUID(bytes=entry.event_id)) if len(entry.event_id) == 16 else None,
        entry.headers if payload else {}, _time(id), size, event, trouble or problem,
        dict(zip(flat[::2], flat[1::2], strict=True)) if payload else {},
        tuple([await _claim(stream, *each) for each in _references(stream, stored, entry)]),
        _archived(id, found, where), states,
    )  # fmt: skip


Where = Literal["redis", "archive", "letter"]


async def _entry(
    stream: Stream[Any], layout: Layout, id: EntryId, found: Found
) -> tuple[Where, Entry[Any] | None, Sequence[bytes], str | None]:
    """(where, the entry or None, its fields, what kept it from being looked for)."""
    decode = stream.claims.decoder(stream.codec)
    if found.flat is not None:
        return "redis", log.make_entry(id, found.flat, decode), found.flat, None
    if stream.past is None:
        return "redis", None, (), None
    try:
        steps = log.read(layout, id, id, decode, None, 1)
        async for some in flow(stream.app.link, steps, stream.app.settings.publish_timeout):
            for entry in some:
                return "archive", entry, _fields(entry), None
    except (BlobError, ArchiveDamaged) as error:
        return "archive", None, (), f"the archive could not be read: {error}"
    return "archive", None, (), None


def _fields(entry: Entry[Any]) -> list[bytes]:
    """Of one that was archived, as Redis had them, but for its headers."""
    key = [] if entry.key is None else [b"k", entry.key.encode()]
    return [b"e", entry.payload, *key, b"i", entry.event_id]


async def _event(stream: Stream[Any], entry: Entry[Any]) -> tuple[Any, str | None]:
    """(the event as JSON has it, None), or (at least its fields or None, what is wrong)."""
    try:
        await stream.claims.open(entry)
        return jsonable(entry.event), None
    except BlobError as error:
        return None, str(error)
    except EntryInvalid as error:
        problem = f"{error.reason}: {error}"
    try:
        return jsonable(stream.claims.fields(entry)), problem
    except EntryInvalid:
        return None, problem


# -- how groups stand to it ----------------------------------------------------------------------------------------


def _letters(
    layout: Layout, id: EntryId, groups: Sequence[Standing], stream: Stream[Any]
) -> Steps[dict[str, list[DeadLetter[Any]]]]:
    """By group. They died after it was published (by a clock that may have been set back since, by less than a day)."""
    decode, found = stream.claims.decoder(stream.codec), dict[str, list[DeadLetter[Any]]]()
    wanted = Match(start=EntryId(max(0, id.ms - _DAY_MS), 0, 0, 0), entries=frozenset([id]))
    for standing in groups:
        ops = DeadOps(layout, standing.group)
        search, heads = Search(ops, wanted), []
        while op := search.op():
            yield op
            heads += [head for head in search.ready() if head.entry_id == id]
        heads += [head for head in search.ready() if head.entry_id == id]
        if heads:
            found[standing.group] = [DeadLetter(letter, decode) for letter in (yield ops.letters(heads))]
    return found


def _states(
    layout: Layout,
    entry: Entry[Any],
    shard: Shard | None,
    found: Found,
    letters: Mapping[str, list[DeadLetter[Any]]],
    seal: Seal | None,
) -> Steps[tuple[GroupState, ...]]:
    id, groups = entry.id, [standing for standing in found.groups if standing.group != ARCHIVE]
    if not groups:
        return ()
    pending = {each.group: told(each.held, each.group, seal) for each in groups if each.held is not None}
    ask = pauses.paused(layout.namespace, layout.name, [each.group for each in groups])
    paused, lost = cast("tuple[dict[str, Pause], list[Loss]]", (yield both(ask, losses(layout))))
    states = []
    for standing in groups:
        name, one = standing.group, pending.get(standing.group)
        mine = tuple(letters.get(name, ()))
        state: Any = "pending" if one else "unread" if id[:2] > standing.read else "dead" if mine else "done"
        if state == "done" and any(_is_in(id, loss) for loss in lost if loss.group == name and loss.shard is shard):
            state = "lost"
        if one is not None:
            one = replace(one, key=entry.key, size=len(entry.payload), trimmed=found.flat is None)
            (one,) = yield from completed(layout, name, [one])
        states.append(GroupState(name, state, one, mine, paused.get(name)))
    return tuple(sorted(states, key=lambda each: each.group))


def _is_in(id: EntryId, loss: Loss) -> bool:
    return any(first <= id <= last for first, last, _ in loss.ranges)


def _archived(id: EntryId, found: Found, where: Where) -> bool | None:
    if where == "archive":
        return True
    return next((id[:2] <= standing.read for standing in found.groups if standing.group == ARCHIVE), None)


# -- what it refers to ---------------------------------------------------------------------------------------------


def _references(stream: Stream[Any], stored: bytes, entry: Entry[Any]) -> Iterator[tuple[str, Reference]]:
    """(what it is, the reference) of all that are in a payload as it is stored, and in what was fetched of it."""
    try:
        if (reference := whole(stored)) is not None:
            yield "payload", reference
        yield from _inside(stream.claims.fields(entry), "")
    except EntryInvalid:  # it is broken, or was not fetched, or nobody here can read it
        return


def _inside(value: Any, path: str) -> Iterator[tuple[str, Reference]]:
    if isinstance(value, Reference):
        yield path, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _inside(each, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _inside(each, f"{path}[{number}]")


async def _claim(stream: Stream[Any], what: str, reference: Reference) -> Claim:
    source = stream.claims.source
    if source is None:
        none = "this app has no blob store: give it RSTREAM_BLOBS, as its publishers have"
        return Claim(what, reference.digest, reference.size, "", "unknown", none)
    from rstream.blobs.shelf import shelf

    key = source.key(reference)
    made = partial(Claim, what, reference.digest, reference.size, key)
    held = shelf(source.url)
    try:
        there = await held.run(partial(held.store.find, key))
    except BlobError as error:
        return made("unknown", str(error))
    return made("missing" if there is None else "there" if there.size == reference.size else "altered")


# -- where it is not -----------------------------------------------------------------------------------------------


def _nowhere(layout: Layout, id: EntryId, found: Found, problem: str | None) -> str:
    text = f"stream {layout.name!r} has no entry {id}: "
    if found.given is None:
        known = ", ".join(f"{generation}.0 to {generation}.{count - 1}" for generation, count in _generations(layout))
        text += f"its shards are {known}"
    elif id[:2] > found.given:
        text += "none was published by that id"
    elif found.first is None or id[:2] < found.first:
        text += "it was trimmed, if it ever was there, and no dead letter of it is left"
        text += "" if layout.past is not None else "; where it may be archived, give --blobs"
    else:
        text += "it was never there, or was deleted by hand"
    return text + (f" ({problem})" if problem else "")


def _generations(layout: Layout) -> list[tuple[int, int]]:
    return [*layout.older, (layout.generation, layout.shards)]


def _time(id: EntryId) -> datetime | None:
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=id.ms)
    except OverflowError:  # an id that is no time
        return None
