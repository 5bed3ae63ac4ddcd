"""Deletes blobs of a stream to which no entry and no dead letter refers any more, of any generation and group.

Why no reference can dangle: a publish refers only to blobs that it has stored itself, under the day of that publish
(see claims.py). A blob is a candidate when that day is over, and the blob untouched, since longer than the grace:
whoever stored it has published by then or never will, and nobody else will refer to it. What refers to it already is
looked for after it was listed. So the producers need not be asked, if none needs longer than the grace between the
upload and the entry, and clocks differ by less. The blob's own time is read once more before it is deleted, for those
whose do. What only the archive refers to is referred to; where the archive is damaged, nothing is deleted.

Memory: `MANY` candidates. Cost: for each so many, everything that is stored of the stream is looked through, and the
index of each archived segment that has references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from rstream.archive.overview import positions
from rstream.archive.references import archived_references
from rstream.blobs import owners
from rstream.blobs.base import BlobStore, Found
from rstream.blobs.shelf import shelf
from rstream.errors import ConfigError
from rstream.reference import Source
from rstream.store import archiving
from rstream.store.references import references
from rstream.store.steps import flow_sync
from rstream.stream import Stream

MANY = 20_000
SHORTEST = timedelta(hours=1)


@dataclass
class Collected:
    """looked: blobs of the stream · young: of these, within the grace · kept: referred to · deleted, bytes: or what
    would be, in a dry run.
    """

    looked: int = 0
    young: int = 0
    kept: int = 0
    deleted: int = 0
    bytes: int = 0


def collect(
    stream: Stream[Any],
    grace: timedelta = timedelta(hours=24),
    *,
    dry_run: bool = False,
    forget: str | None = None,
    now: datetime | None = None,
    progress: Callable[[Collected], None] = lambda _: None,
) -> Collected:
    """forget: the mark of another Redis, see owners.py. Blocks. Raises `ConfigError`, `BlobError`, `StoreError`,
    `ArchiveDamaged`.
    """
    source = stream.claims.source
    if source is None:
        raise ConfigError("there is no blob store to look into: name it by --blobs, RSTREAM_BLOBS or RStream(blobs=…)")
    if grace < SHORTEST:
        raise ConfigError(f"grace is {grace}, it must be at least an hour: a publish may be under way for that long")
    store, result = shelf(source.url).store, Collected()
    owners.refuse_others(stream, store, forget, dry_run=dry_run)
    before = (now or datetime.now(UTC)) - grace
    old = _old(store, source, before, result)
    while candidates := {found.key: found for found in islice(old, MANY)}:
        several = len(candidates)
        _spare(stream, source, candidates)
        result.kept += several - len(candidates)
        for found in candidates.values():
            _delete(store, found, before, dry_run, result)
        progress(result)
    return result


def _old(store: BlobStore, source: Source, before: datetime, result: Collected) -> Iterator[Found]:
    for found in store.list(source.prefix):
        day = _day(found.key.removeprefix(source.prefix))
        if day is None:
            continue  # rstream did not put it there
        result.looked += 1
        if day + timedelta(days=1) < before and found.modified < before:
            yield found
        else:
            result.young += 1


def _day(name: str) -> datetime | None:
    day, _, digest = name.partition("/")
    if len(digest) != 64:
        return None
    try:
        return datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _spare(stream: Stream[Any], source: Source, candidates: dict[str, Found]) -> None:
    """Take out what is referred to. The archive last: what is trimmed while we look was archived before."""
    app, layout = stream.app, stream.sync.layout(fresh=True)
    steps = references(layout)
    for some in flow_sync(app.sync_link, steps, app.settings.publish_timeout):
        for reference in some:
            candidates.pop(source.key(reference), None)
    if candidates and stream.past is not None:
        told = app.sync_link.run(archiving.standings(layout.every), within=app.settings.publish_timeout)
        for reference in archived_references(stream.past.vault, positions(layout, told)):
            candidates.pop(source.key(reference), None)


def _delete(store: BlobStore, found: Found, before: datetime, dry_run: bool, result: Collected) -> None:
    now = store.find(found.key)
    if now is None:
        return
    if now.modified >= before:
        result.young += 1
        return
    if not dry_run:
        store.delete([found.key])
    result.deleted, result.bytes = result.deleted + 1, result.bytes + found.size
