"""The archive of a stream, for those who read the stream: see `rstream.store.past`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rstream.archive.manifest import Manifest
from rstream.archive.reader import SegmentReader
from rstream.archive.vault import Vault, prefix
from rstream.event import Decode, EntryId
from rstream.process import clock
from rstream.reference import Source
from rstream.store import keys
from rstream.store.keys import Rank, Shard
from rstream.store.link import Op, aside
from rstream.store.past import Archived

if TYPE_CHECKING:
    from rstream.settings import Settings

T = TypeVar("T")

REMEMBERED = 10.0
"""Seconds for which it is remembered that nothing is archived, of a stream that is not being archived."""


class Archive:
    """Of one stream. Nothing is asked of the blob store before it is read."""

    def __init__(self, url: str, namespace: str, stream: str) -> None:
        self.vault = Vault(Source(url, prefix(namespace, stream)), namespace, stream)
        self._nothing_until = float("-inf")

    @classmethod
    def of(cls, settings: Settings, stream: str) -> Archive | None:
        """None where the app has no blob store."""
        return None if settings.blobs is None else cls(settings.blobs, settings.namespace, stream)

    def do(self, call: Callable[[], T]) -> Op[T]:
        """Have a blocking call done in a thread."""
        return aside(lambda: [self.vault.shelf.submit(call)], _first)

    def schemas(self) -> Op[dict[int, Mapping[str, Any]]]:
        """Of what is archived, by version. One GET. Raises `BlobError`, `ArchiveDamaged`."""
        return self.do(lambda: self.vault.schemas()[0])

    def survey(self, key: str | None, told: Mapping[Shard, Rank]) -> Op[dict[Shard, Archived]]:
        """One LIST, and a GET for each shard that it names."""

        def call() -> dict[Shard, Archived]:
            if not told and clock() < self._nothing_until:
                return {}
            shards = [s for s in self.vault.shards() if key is None or s.number == keys.number_of(key, s.count)]
            found = self._loaded(shards)
            if key is None and not found and not told:
                self._nothing_until = clock() + REMEMBERED
            self.vault.check_ends({shard: archived.last_rank for shard, archived in found.items()}, told)
            return found

        return self.do(call)

    def look(self, shards: Iterable[Shard]) -> Op[dict[Shard, Archived]]:
        """A GET each."""
        return self.do(partial(self._loaded, [*shards]))

    def _loaded(self, shards: Sequence[Shard]) -> dict[Shard, Archived]:
        """Side by side where threads are free; here, in one of them, where none is."""
        begun = [(shard, self.vault.shelf.submit(partial(self.vault.load, shard))) for shard in shards[1:]]
        found = {shard: self.vault.load(shard)[0] for shard in shards[:1]}
        for shard, future in begun:
            found[shard] = (self.vault.load(shard) if future.cancel() else future.result())[0]
        return {**found}

    def read(
        self,
        shard: Shard,
        archived: Archived,
        start: EntryId,
        end: EntryId,
        before: Rank,
        key: str | None,
        decode: Decode[Any],
        window: int,
    ) -> SegmentReader:
        """See `rstream.store.past.Past.read`."""
        manifest = cast(Manifest, archived)
        return SegmentReader(self.vault, shard, manifest, start, end, before, key, decode, window)


def _first(results: list[T]) -> T:
    return results[0]
