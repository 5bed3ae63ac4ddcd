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
    for shard, position in positions.items():
        if position > ends.get(shard, (0, 0)):
            raise vault.damaged(
                vault.manifest_key(shard), f"Redis was told that all up to {position[0]}-{position[1]} is archived"
            )
