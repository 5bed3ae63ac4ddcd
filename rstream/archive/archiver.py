"""Writes the entries of a stream to its archive, shard by shard.

A segment is stored, then the manifest is replaced by one that names it, if it still is the one that was read, then
Redis is told that these entries may be trimmed. Whoever is killed in between leaves a segment that nobody names (see
sweep.py), or a group that stands too early, which the next cycle moves. Of two at once one loses at the manifest, reads
it again and goes on from there. So there is no hole and no double, whoever holds the lease.

Where Redis lost data it says so, never rewrites what is archived, and never lets anything be trimmed that is not there.
Memory: SEGMENT_BYTES and a page a shard. Cost: a look a second; a full shard is read once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rstream.archive.archive import Archive
from rstream.archive.manifest import Manifest, Row
from rstream.archive.reader import SegmentReader
from rstream.archive.segment import Raw, Sealed, build
from rstream.blobs.meter import METER
from rstream.event import MAX_PART, EntryId, Key
from rstream.logs import about
from rstream.process import clock
from rstream.store import archiving, keys
from rstream.store import layout as layouts
from rstream.store.archiving import Standing
from rstream.store.keys import END, Rank, Shard
from rstream.store.layout import Layout
from rstream.store.steps import Steps

log = logging.getLogger("rstream")

SEGMENT_BYTES, SEGMENT_ENTRIES = 4 * 1024 * 1024, 50_000
"""What makes a segment full: bytes of all values, or entries."""

PART = 4
"""That part of what a shard may hold is archived at once: producers must not have to wait for the clock."""

NEAR = 128
"""Archived entries that a trim may leave in a shard although it wants all of them: a node of Redis's."""

TOO_LONG = 3600.0
"""Seconds after which a segment that was stored is not named any more: it may have been swept away."""


BEHIND = (
    "Redis says that all up to {} is archived, but in {} only what is up to {} is. Is it another blob store, or did it "
    "lose something? What Redis still has is archived again; what was trimmed since is not in this archive"
)
LOST = (
    "Redis lost data (FLUSHALL, a stale replica, a deleted key): the last id that it has given is {}, and all up to {} "
    "is archived. What is archived stays; new entries get ids after it"
)
STRAY = (
    "Redis lost data and then gave ids that are archived already to other entries: {:,}, the first is {}. They cannot "
    "be archived, and stay in Redis untrimmed; docs/archive.md says what to do"
)
RENUMBERED = (
    "stream %s: Redis has given numbers to other schema versions than those of what was archived before: whoever reads "
    "that takes its payloads for versions that they are not"
)


@dataclass
class _Known:
    """What is known of a shard. position: of the group, when it was looked at · added: entries that had ever been
    added, up to where it is archived · each: bytes of an entry, about · stray: entries that cannot be archived, and the
    first · told: errors that were logged · oldest, since: the first entry that is not archived, and when it was seen
    first, by our clock: where Redis's was set back, the id does not tell how long it waits · beyond: up to where it is
    archived as Redis says, if that is not here.
    """

    position: Rank = (0, 0)
    added: int = 0
    each: float = 1024.0
    stray: tuple[int, str] | None = None
    told: set[str] = field(default_factory=set)
    oldest: Rank = (0, 0)
    since: float = 0.0
    beyond: Rank = (0, 0)


class Archiver:
    """every: seconds after which also what fills no segment is archived · segment_bytes: see SEGMENT_BYTES."""

    def __init__(self, archive: Archive, every: float, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._archive, self._vault = archive, archive.vault
        self._every, self._segment_bytes = every, segment_bytes
        self._known: dict[Shard, _Known] = {}
        self._schemas: Mapping[int, Mapping[str, Any]] = {}

    def cycle(self, layout: Layout, *, everything: bool = False) -> Steps[int]:
        """Archive what is due, or everything there is; how many entries. Raises `StoreError`, `BlobError`,
        `ArchiveDamaged`.
        """
        found = 0
        for shard in (yield from self.due(layout, everything=everything)):
            found += yield from self.shard(layout, shard, everything=everything)
        return found

    def due(self, layout: Layout, *, everything: bool = False) -> Steps[list[Shard]]:
        """The shards that have something to be archived now. Makes the group where it is missing."""
        shards = layout.every
        standings: list[Standing] = yield archiving.standings(shards)
        lacking = [shard for shard, at in zip(shards, standings, strict=True) if at.position is None]
        if lacking and (yield from archiving.begin(layout, lacking)):
            log.info("stream %s: archived from now on", layout.name)
            standings = yield archiving.standings(shards)
        due = [
            shard
            for shard, at in zip(shards, standings, strict=True)
            if at.position is not None and (everything or self._is_due(shard, at, layout.writes(shard)))
        ]
        if due:
            yield from self._keep_schemas(layout)
        return due

    def _keep_schemas(self, layout: Layout) -> Steps[None]:
        """Payloads tell their version by a number that Redis gave: whoever reads them when it has lost all needs it."""
        stored: Layout | None = yield layouts.load(layout.namespace, layout.name)
        if stored is None or stored.schemas == self._schemas:
            return
        self._schemas = stored.schemas
        if not (yield self._archive.do(partial(self._vault.keep_schemas, stored.schemas))):
            log.error(RENUMBERED, layout.name, extra=about({"stream": layout.name}))

    def _is_due(self, shard: Shard, at: Standing, written: bool) -> bool:
        known = self._known.get(shard)
        if known is None or at.position is None or at.position < known.position:
            return True  # nobody has compared it with its manifest yet, or Redis lost data
        known.position = at.position
        if at.following is None:
            return False
        if known.stray is None and (not written or self._is_old(at, at.following, known)):
            return True
        waiting = at.added - known.added
        return waiting * known.each >= self._segment_bytes or _is_much(at, waiting, known)

    def _is_old(self, at: Standing, id: Rank, known: _Known) -> bool:
        """Where the trimming has caught up with the archive, producers may soon have to wait for it: then earlier."""
        waiting = at.added - known.added
        pressed = at.added > at.length and at.length - waiting <= NEAR
        if known.oldest != id:
            known.oldest, known.since = id, clock()
        waited = max((at.now - id[0]) / 1000, clock() - known.since)
        return waited >= self._every * (0.1 if pressed else 1.0)

    def _is_full(self, entries: list[Raw]) -> bool:
        return len(entries) >= SEGMENT_ENTRIES or sum(map(_size, entries)) >= self._segment_bytes

    # -- one shard ----------------------------------------------------------------------------------------------

    def shard(self, layout: Layout, shard: Shard, *, everything: bool = False) -> Steps[int]:
        """Archive what fills segments, and the rest where it is old enough, or everything is wanted."""
        (at,) = yield archiving.standings([shard])
        manifest, tag = yield self._archive.do(partial(self._vault.load, shard))
        known = self._known.get(shard) or _Known()
        if not (yield from self._agree(layout, shard, at, manifest, known)):
            return 0
        known.position = at.position or known.position
        self._known[shard] = known
        archived, full, forced = 0, True, everything or not layout.writes(shard)
        while full and (entries := (yield from self._gather(shard, manifest.last, known))):
            full = self._is_full(entries)
            due = full or forced or _is_much(at, len(entries), known)
            if not (due or self._is_old(at, keys.rank_of(entries[0][0]), known)):
                known.added = at.added - len(entries)
                break
            gap = yield from self._gap(shard, manifest, known)
            next = yield from self._append(shard, manifest, tag, entries, gap)
            if next is None:  # somebody else was faster
                full = True
                manifest, tag = yield self._archive.do(partial(self._vault.load, shard))
                continue
            manifest, tag = next
            archived += len(entries)
            known.added = at.added
            if known.stray is None and not (yield archiving.advance(shard, manifest.last)):
                break  # it was switched off
        return archived

    def _gather(self, shard: Shard, after: str, known: _Known) -> Steps[list[Raw]]:
        """A segment of what comes after an id, or what there is."""
        entries, held, more = list[Raw](), 0, True
        while more and held < self._segment_bytes and len(entries) < SEGMENT_ENTRIES:
            page, more = yield archiving.page(shard, after)
            if not page:
                break
            entries += page
            held += sum(map(_size, page))
            after = page[-1][0].decode()
        if entries:
            known.each = held / len(entries)
        return entries

    def _append(
        self, shard: Shard, manifest: Manifest, tag: str | None, entries: list[Raw], gap: str
    ) -> Steps[tuple[Manifest, str] | None]:
        """Store a segment, and have the manifest name it; None where it is another one by now."""
        began = clock()
        if manifest.full:
            manifest = yield self._archive.do(partial(self._vault.roll, shard, manifest))
        build_it = partial(build, self._vault.stream, shard, entries, manifest.sha256)
        sealed: Sealed = yield self._archive.do(build_it)
        row: Row = yield self._archive.do(partial(self._vault.put, shard, sealed, gap))
        if clock() - began > TOO_LONG:
            return None
        manifest = manifest.with_row(row)
        new_tag = yield self._archive.do(partial(self._vault.replace, shard, manifest, tag))
        if new_tag is None:
            return None
        if (meter := METER.get()) is not None:
            meter.segment(clock() - began, len(sealed.data))
        return manifest, new_tag

    # -- where Redis and the archive differ -------------------------------------------------------------------------

    def _agree(self, layout: Layout, shard: Shard, at: Standing, manifest: Manifest, known: _Known) -> Steps[bool]:
        """Whether the shard is there to be archived; sees to it that Redis and the archive go together."""
        if at.position is None:
            return False
        last = manifest.last_rank
        known.beyond = max(at.position, last)
        if at.position > last:
            # Redis was asked before the manifest was read: what it says was in there, if it still were what it was.
            place = f"{at.position[0]}-{at.position[1]}"
            self._tell(known, layout, shard, BEHIND.format(place, self._vault.store.label, manifest.last))
        if at.last < last:  # asked again: in between somebody else may have archived what came since
            (now,) = yield archiving.standings([shard])
            if now.last < last:
                self._tell(known, layout, shard, LOST.format(f"{now.last[0]}-{now.last[1]}", manifest.last))
                yield archiving.lift(shard, manifest.last)
        known.stray = None
        if at.position < last:
            known.stray = yield from self._strays(shard, manifest, at.position)
            if known.stray is None:
                return bool((yield archiving.advance(shard, manifest.last)))
            self._tell(known, layout, shard, STRAY.format(*known.stray))
        return True

    def _gap(self, shard: Shard, manifest: Manifest, known: _Known) -> Steps[str]:
        """Whether something may have been trimmed that is archived, and not here: up to which id, else "". Asked when
        the entries were read that come after it: trims begin at the oldest.
        """
        if known.beyond <= manifest.last_rank:
            return ""
        (at,) = yield archiving.standings([shard])
        whole = at.added == at.length or (at.first is not None and at.first <= manifest.last_rank)
        return "" if whole else f"{known.beyond[0]}-{known.beyond[1]}"

    def _tell(self, known: _Known, layout: Layout, shard: Shard, text: str) -> None:
        """Once."""
        if text not in known.told:
            known.told.add(text)
            extra = about({"stream": layout.name})
            log.error("stream %s, shard %s: %s", layout.name, shard, text, extra=extra)

    def _strays(self, shard: Shard, manifest: Manifest, after: Rank) -> Steps[tuple[int, str] | None]:
        """What Redis has between an id and the end of the archive that is not in it: how many, and the first."""
        low, high = EntryId(*after, MAX_PART, MAX_PART), EntryId(*manifest.last_rank, MAX_PART, MAX_PART)
        size = self._segment_bytes
        reader = SegmentReader(self._vault, shard, manifest, low, high, END, None, _as_stored, size)
        blocks, known, upto = reader.blocks(), dict[Rank, list[bytes]](), after
        count, first, at, more = 0, "", f"{after[0]}-{after[1]}", True
        while more:
            page, more = yield archiving.page(shard, at)
            for id, flat in page:
                rank = keys.rank_of(id)
                if rank > high[:2]:
                    more = False
                    break
                while rank > upto:
                    columns = yield self._archive.do(lambda: next(blocks, None))
                    known, upto = {}, high[:2]
                    if columns is not None:
                        known, upto = dict(columns.raw()), (columns.ms[-1], columns.seq[-1])
                if known.get(rank) != list(flat):
                    count, first = count + 1, first or id.decode()
            at = page[-1][0].decode() if page else at
            more = more and bool(page)
        return (count, first) if count else None


def _is_much(at: Standing, waiting: int, known: _Known) -> bool:
    """Beside what retention lets the shard hold: producers wait for it, if nobody else keeps it any longer."""
    entries, size = PART * waiting, PART * waiting * known.each
    return waiting > 0 and (
        (at.maxlen is not None and entries >= at.maxlen) or (at.maxbytes is not None and size >= at.maxbytes)
    )


def _size(entry: Raw) -> int:
    return sum(map(len, entry[1]))


def _as_stored(payload: bytes, key: Key) -> bytes:
    return payload
