"""What is archived of a stream, and how far behind the archive is. Cost: 3 round trips, a LIST and a GET a shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from rstream.archive.archive import Archive
from rstream.archive.manifest import Manifest
from rstream.store import archiving, keys
from rstream.store.archiving import Standing
from rstream.store.keys import Rank, Shard
from rstream.store.layout import Layout
from rstream.store.past import Archived
from rstream.store.stats import GroupStats, group_stats
from rstream.store.steps import Steps


@dataclass(frozen=True, slots=True)
class ShardArchive:
    """on: whether it is being archived; None for a shard that Redis has no more · segments, entries · payload: bytes of
    it · size: bytes in the blob store · first, last: ids, None for nothing · lag: entries that are not archived, None
    where Redis cannot tell · behind: seconds since the oldest of them was published · wrong: what does not go together.
    """

    shard: Shard
    on: bool | None
    segments: int
    entries: int
    payload: int
    size: int
    first: str | None
    last: str | None
    lag: int | None
    behind: float
    wrong: str = ""


def overview(archive: Archive, layout: Layout) -> Steps[list[ShardArchive]]:
    """Raises `BlobError`, `StoreError`, `ArchiveDamaged`."""
    groups: list[GroupStats] = yield group_stats(layout)
    standings: list[Standing] = yield archiving.standings(layout.every)
    found: Mapping[Shard, Archived] = yield archive.survey(None, {})
    later: list[Standing] = yield archiving.standings(layout.every)
    group = next((each for each in groups if each.name == keys.ARCHIVE), None)
    at = dict(zip(layout.every, zip(standings, later, strict=True), strict=True))
    lags = {} if group is None else {each.shard: each for each in group.shards}
    shards = sorted({*found, *at}, key=lambda each: (each.generation, each.count, each.number))
    rows = []
    for shard in shards:
        manifest = cast(Manifest | None, found.get(shard))
        first = None if manifest is None else manifest.first
        lag = lags.get(shard)
        standing, after = at.get(shard, (None, None))
        rows.append(
            ShardArchive(
                shard,
                None if standing is None else standing.position is not None,
                manifest.segments if manifest else 0,
                manifest.entries if manifest else 0,
                manifest.payload if manifest else 0,
                manifest.size if manifest else 0,
                first,
                manifest.last if manifest and manifest.entries else None,
                lag.lag if lag else None,
                lag.behind if lag else 0.0,
                _wrong(manifest, standing, after),
            )
        )
    return rows


def _wrong(manifest: Manifest | None, before: Standing | None, after: Standing | None) -> str:
    """before, after: Redis, as it was before the manifest was read, and then: it is archived all the while."""
    last: Rank = manifest.last_rank if manifest else (0, 0)
    if before is None or before.position is None or after is None or after.position is None:
        return ""
    if before.position > last:
        return "Redis says that more is archived: the manifest is missing, or an older one"
    if after.last < last:
        return "Redis lost data: it has given no ids as high as those that are archived"
    if after.following is not None and after.following <= last:
        return "Redis has entries that should be archived, and are not known to be: see the archiver's log"
    return ""


def positions(layout: Layout, standings: list[Standing]) -> dict[Shard, Rank]:
    """Up to which id Redis says that shards are archived."""
    pairs = zip(layout.every, standings, strict=True)
    return {shard: at.position for shard, at in pairs if at.position is not None}
