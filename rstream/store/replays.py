"""What is stored of a replay: who runs it, its window, and how far it has come. Also what it asks of the stream.

One hash a replay, `ns:replay:<stream>:<name>`: `holder`, `until` (ms, by Redis's clock), `spec` (JSON: what was
asked for), `run` (drawn when the replay first started), `start`, `end` (the window, resolved then), `position`
(everything up to it is done), `next` (the entry after it, where it was read), `beyond` (what is done above it), counts
of all outcomes up to `position`, `aside` (the first ids that failed or were invalid). Only the holder writes; it is
forgotten 30 days after its last runner.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rstream.event import EntryId
from rstream.store import keys
from rstream.store.keys import Shard
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.past import Archived, Edges, ask_edges, may_be_archived, read_edges, told_of
from rstream.store.scripts import REPLAY, Arg, Call
from rstream.store.steps import Steps

Outcome = Literal["handled", "failed", "invalid", "skipped", "given", "pending", "unread", "gone"]
OUTCOMES: tuple[Outcome, ...] = ("handled", "failed", "invalid", "skipped", "given", "pending", "unread", "gone")
"""What becomes of an entry. skipped: no condition held · and where it is given to a group: given, or what it was found
to be there (gone: not stored in Redis any more).
"""

TTL_MS = 30 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """position: everything of the window up to it is done, None = nothing yet · beyond: what is done above it ·
    counts: outcomes up to `position` · aside: the first that failed or were invalid · next: the first entry that was
    read and is not done, None = nobody knows.
    """

    position: EntryId | None = None
    beyond: Mapping[EntryId, Outcome] = field(default_factory=dict)
    counts: Mapping[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    aside: Mapping[EntryId, Outcome] = field(default_factory=dict)
    next: EntryId | None = None

    def fields(self) -> list[Arg]:
        flat: list[Arg] = ["position", _id_text(self.position), "next", _id_text(self.next)]
        flat += ["beyond", _outcomes_text(self.beyond), "aside", _outcomes_text(self.aside)]
        return [*flat, *(part for name, count in self.counts.items() for part in (name, count))]


class Window(NamedTuple):
    """Inclusive bounds."""

    start: EntryId
    end: EntryId


@dataclass(frozen=True, slots=True)
class Saved:
    """spec: what was asked for, {} where nothing is stored · window: None where it was not resolved yet · run: the
    same as long as it goes on, "" where it has not begun.
    """

    spec: Mapping[str, str]
    window: Window | None
    progress: Progress
    run: str = ""


class Held(NamedTuple):
    """Somebody else runs the replay, and holds it until then (ms), which is so many ms from now."""

    holder: str
    until: int
    left: int


class ReplayOps:
    """The operations of one runner on the stored state of one replay."""

    def __init__(self, namespace: str, stream: str, name: str, holder: str, lease_ms: int) -> None:
        self.holder = holder
        self._key = keys.replay(namespace, stream, name)
        self._lease_ms = lease_ms

    def load(self) -> Op[Saved]:
        """What is stored, changing nothing."""
        return Op([("HGETALL", self._key)], lambda replies: _saved(replies[0]))

    def take(self, *, restart: bool = False) -> Op[Saved | Held]:
        """Become its only runner; with `restart`, forget what was stored."""

        def parse(replies: list[Any]) -> Saved | Held:
            if replies[0][0]:
                return _saved(replies[0][1])
            _, holder, until, left = replies[0]
            return Held(holder.decode(), until, left)

        return Op([self._call("restart" if restart else "take")], parse)

    def open(self, spec: Mapping[str, str], window: Window, run: str = "") -> Op[bool]:
        """Store what this replay is. False, here and below: it is not ours any more, nothing was changed."""
        bounds: list[Arg] = ["start", _id_text(window.start), "end", _id_text(window.end)]
        return Op([self._call("keep", "spec", json.dumps(spec), "run", run, *bounds)], _done)

    def keep(self, progress: Progress) -> Op[bool]:
        """Hold it for another lease, and store how far it has come."""
        return Op([self._call("keep", *progress.fields())], _done)

    def leave(self, progress: Progress | None) -> Op[bool]:
        """Let go of it, so that the next runner need not wait."""
        return Op([self._call("leave", *(progress.fields() if progress else ()))], _done)

    def finish(self) -> Op[bool]:
        """Remove it: all is done, and the same replay starts anew the next time."""
        return Op([self._call("finish")], _done)

    def _call(self, step: str, *fields: Arg) -> Call:
        return REPLAY([self._key], step, self.holder, self._lease_ms, TTL_MS, *fields)


def _done(replies: list[Any]) -> bool:
    return bool(replies[0][0])


def _saved(flat: Sequence[bytes]) -> Saved:
    stored = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    window = Window(_id(stored["start"]), _id(stored["end"])) if "start" in stored else None
    position, next = stored.get("position"), stored.get("next")
    progress = Progress(
        _id(position) if position else None,
        _outcomes(stored.get("beyond", "")),
        {name: int(stored.get(name, 0)) for name in OUTCOMES},
        _outcomes(stored.get("aside", "")),
        _id(next) if next else None,
    )
    return Saved(json.loads(stored.get("spec", "{}")), window, progress, stored.get("run", ""))


def _id_text(id: EntryId | None) -> str:
    return "" if id is None else str(id)


def _id(text: str) -> EntryId:
    """The reverse of `str(id)` for bounds, too: unlike entries, they may have parts up to 2**64 - 1."""
    ms, seq, generation, shard = map(int, re.split("[-@.]", text))
    return EntryId(ms, seq, generation, shard)


def _outcomes_text(outcomes: Mapping[EntryId, Outcome]) -> str:
    return " ".join(f"{id}={outcome}" for id, outcome in outcomes.items())


def _outcomes(text: str) -> dict[EntryId, Outcome]:
    pairs = (pair.split("=") for pair in text.split())
    return {_id(id): _OUTCOME[outcome] for id, outcome in pairs}


_OUTCOME: dict[str, Outcome] = {outcome: outcome for outcome in OUTCOMES}


# -- what a replay asks of the stream ---------------------------------------------------------------------------


def _in_redis(shards: Sequence[Shard], start: EntryId, end: EntryId) -> Op[Window | None]:
    """The window of what Redis has between the bounds."""
    calls: list[Call] = []
    for shard in shards:
        calls.append(("XRANGE", shard.stream, start.redis, end.redis, "COUNT", 1))
        calls.append(("XREVRANGE", shard.stream, end.redis, start.redis, "COUNT", 1))

    def parse(replies: list[Any]) -> Window | None:
        ids = [shards[n // 2].entry_id(reply[0][0]) for n, reply in enumerate(replies) if reply]
        return Window(max(start, min(ids)), min(end, max(ids))) if ids else None

    return Op(calls, parse)


def find_window(layout: Layout, start: EntryId, end: EntryId, key: str | None = None) -> Steps[Window | None]:
    """The window between the bounds, narrowed to what is there now, in Redis or the archive; None where nothing is.

    Two XRANGE COUNT 1 a shard; of the archive, a LIST and a GET a shard. Raises `StoreError`, `BlobError`,
    `ArchiveDamaged`.
    """
    shards = layout.holding(key)
    here: Window | None = yield _in_redis(shards, start, end)
    if layout.past is None:
        return here
    told: list[Edges] = yield Op([ask_edges(shard, start, end, archive=True) for shard in shards], read_edges)
    found: Mapping[Shard, Archived] = {}
    if may_be_archived(layout, start, told):
        found = yield layout.past.survey(key, told_of(shards, told))
    ends = [here] if here is not None else []
    for shard, archived in found.items():
        first, last = (
            EntryId(*rank, shard.generation, shard.number) for rank in (archived.first_rank, archived.last_rank)
        )
        if first <= end and last >= start and last[:2] > (0, 0):
            ends.append(Window(max(start, first), min(end, last)))
    return Window(min(each.start for each in ends), max(each.end for each in ends)) if ends else None
