"""What archived entries refer to in the blob store. Blocks. Cost: the index of each segment that has references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rstream.archive.vault import Vault
from rstream.reference import Reference
from rstream.store.keys import Rank, Shard


def archived_references(vault: Vault, positions: Mapping[Shard, Rank]) -> Iterator[Reference]:
    """All of them, some more than once. positions: up to which id Redis says that shards are archived, asked for
    before. Raises `ArchiveDamaged` where not all of them can be told.
    """
    ends = dict[Shard, Rank]()
    for shard in vault.shards():
        manifest, _ = vault.load(shard)
        ends[shard] = manifest.last_rank
        for row, _ in vault.rows(manifest):
            if row.references:
                yield from vault.index(row).references
    vault.check_ends(ends, positions)
