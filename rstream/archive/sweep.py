"""Deletes what killed archivers have left: segments and pages that no manifest and no page names. Blocks.

An object has a name of its own that never comes again, and an archiver that has stored one names it within an hour or
never. So what is older than the grace, and was not named after it was listed, never will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rstream.archive.vault import Vault
from rstream.blobs.base import Found
from rstream.store.keys import Shard

GRACE = timedelta(hours=24)


@dataclass
class Swept:
    """orphans: objects that nothing names · deleted, bytes: of these, those that are older than the grace."""

    orphans: int = 0
    deleted: int = 0
    bytes: int = 0


def sweep(vault: Vault, grace: timedelta = GRACE, *, now: datetime | None = None) -> Swept:
    """Raises `BlobError`, and `ArchiveDamaged` where nobody can say what is named."""
    result, before = Swept(), (now or datetime.now(UTC)) - grace
    for shard in vault.shards():
        for found in orphans(vault, shard):
            result.orphans += 1
            if found.modified < before:
                vault.store.delete([found.key])
                result.deleted, result.bytes = result.deleted + 1, result.bytes + found.size
    return result


def orphans(vault: Vault, shard: Shard) -> list[Found]:
    """Objects of a shard that nothing names. They are listed before what names them is read."""
    there = {found.key: found for found in vault.store.list(vault.folder(shard))}
    manifest, _ = vault.load(shard)
    for pointer in vault.pointers(manifest):
        there.pop(pointer.key, None)
    for row, _ in vault.rows(manifest):
        there.pop(row.key, None)
    return [*there.values()]
