"""The objects of one stream's archive, as they are stored and checked. Blocks; `Shelf` has the threads.

Below `<namespace>/<stream>/archive/`, with a shard called `<generation>.<number>-<shards of the generation>`, lie

| key                                       | what                                                               |
| ----------------------------------------- | ------------------------------------------------------------------ |
| `schemas`                                 | of all versions, as payloads number them; replaced as manifests are |
| `manifests/<shard>`                       | see manifest.py; replaced by conditional writes only               |
| `<shard>/<first id>.<random>.segment`     | see segment.py; never changed                                      |
| `<shard>/<first id>.<random>.page`        | rows that the manifest has no more; never changed                  |

Everything is read by what names it, with its digest: `ArchiveDamaged` says which object is not what it was.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from rstream.archive import manifest as manifests
from rstream.archive.manifest import Manifest, Page, Pointer, Row
from rstream.archive.segment import (
    MAGIC,
    Block,
    Columns,
    Header,
    Index,
    Sealed,
    digest,
    unpack_block,
    unpack_header,
    unpack_index,
)
from rstream.errors import ArchiveDamaged, BlobMissing
from rstream.reference import Source
from rstream.store import keys
from rstream.store.keys import Rank, Shard, rank_of

if TYPE_CHECKING:
    from rstream.blobs.base import BlobStore
    from rstream.blobs.shelf import Shelf

T = TypeVar("T")

_SHARD = re.compile(r"(\d{1,9})\.(\d{1,9})-(\d{1,9})", re.ASCII)


class Vault:
    """source: the blob store, and the prefix of this stream's archive in it."""

    def __init__(self, source: Source, namespace: str, stream: str) -> None:
        self.source, self.namespace, self.stream = source, namespace, stream

    @cached_property
    def shelf(self) -> Shelf:
        from rstream.blobs.shelf import shelf

        return shelf(self.source.url)

    @property
    def store(self) -> BlobStore:
        return self.shelf.store

    # -- names --------------------------------------------------------------------------------------------------

    def manifest_key(self, shard: Shard) -> str:
        return f"{self.source.prefix}manifests/{_name(shard)}"

    def folder(self, shard: Shard) -> str:
        return f"{self.source.prefix}{_name(shard)}/"

    def _new_key(self, shard: Shard, first: str, kind: str) -> str:
        """Of an object that was never there: what nobody names any more is nobody's either, and may be deleted."""
        ms, seq = rank_of(first.encode())
        return f"{self.folder(shard)}{ms:020d}-{seq}.{secrets.token_hex(6)}.{kind}"

    def shards(self) -> list[Shard]:
        """Those of which something is archived. One LIST for each 1,000 of them."""
        prefix = f"{self.source.prefix}manifests/"
        found = (self.shard_of(each.key.removeprefix(prefix)) for each in self.store.list(prefix))
        return [shard for shard in found if shard is not None]

    def shard_of(self, name: str) -> Shard | None:
        match = _SHARD.fullmatch(name)
        if match is None:
            return None
        generation, number, count = map(int, match.groups())
        return keys.shard(self.namespace, self.stream, generation, number, count) if number < count else None

    # -- manifests ------------------------------------------------------------------------------------

    def load(self, shard: Shard) -> tuple[Manifest, str | None]:
        """With the tag by which it is replaced; one that is empty, and None, where there is none."""
        key = self.manifest_key(shard)
        try:
            data, tag = self.store.get_tagged(key)
        except BlobMissing:
            return manifests.empty(self.stream, shard), None
        return self._read(key, manifests.unpack_manifest, data), tag

    def replace(self, shard: Shard, manifest: Manifest, tag: str | None) -> str | None:
        """The new tag; None where somebody was faster."""
        return self.store.put_if(self.manifest_key(shard), manifests.pack(manifest), tag)

    # -- schemas ------------------------------------------------------------------------------------------------

    def schemas(self) -> tuple[dict[int, Mapping[str, Any]], str | None]:
        """Of all versions, and the tag."""
        key = f"{self.source.prefix}schemas"
        try:
            data, tag = self.store.get_tagged(key)
        except BlobMissing:
            return {}, None
        return self._read(key, manifests.unpack_schemas, data), tag

    def keep_schemas(self, schemas: Mapping[int, Mapping[str, Any]]) -> bool:
        """Those of Redis; False where others had their numbers before: then these stay."""
        while True:
            found, tag = self.schemas()
            if any(number in schemas and schemas[number] != schema for number, schema in found.items()):
                return False
            if found.keys() >= schemas.keys():
                return True
            data = manifests.pack_schemas(schemas)
            if self.store.put_if(f"{self.source.prefix}schemas", data, tag) is not None:
                return True

    # -- pages --------------------------------------------------------------------------------------------------

    def page(self, pointer: Pointer) -> Page:
        return self._read(pointer.key, manifests.unpack_page, self._checked(pointer.key, pointer.sha256))

    def roll(self, shard: Shard, manifest: Manifest) -> Manifest:
        """Store its rows as a page; as it is then."""
        data = manifest.as_page()
        key = self._new_key(shard, manifest.rows[0].first, "page")
        self.store.put(key, data)
        return manifest.rolled(key, digest(data))

    def rows(self, manifest: Manifest, after: Rank = (0, 0)) -> Iterator[tuple[Row, str]]:
        """From the segment that has what comes after an id on: its row, and the SHA-256 of the one before it. Two GETs
        a page at most.
        """
        for pointer in reversed([*self.pointers(manifest, after)]):
            page = self.page(pointer)
            yield from _rows(page.rows, page.before, after)
        yield from _rows(manifest.rows, manifest.before, after)

    def pointers(self, manifest: Manifest, after: Rank = (0, 0)) -> Iterator[Pointer]:
        """Of the pages, the newest first, back to the one that has what comes after an id."""
        pointer = manifest.page
        while pointer is not None and rank_of(pointer.last.encode()) > after:
            yield pointer
            pointer = None if rank_of(pointer.first.encode()) <= after else self.page(pointer).previous

    # -- segments -----------------------------------------------------------------------------------------------

    def put(self, shard: Shard, sealed: Sealed, gap: str = "") -> Row:
        key = self._new_key(shard, sealed.header.first, "segment")
        self.store.put(key, sealed.data)
        return Row.of(key, sealed, gap)

    def whole(self, row: Row) -> bytes:
        """A segment, checked as a whole."""
        return self._checked(row.key, row.sha256)

    def loose(self, key: str) -> tuple[str, str]:
        """The SHA-256 of a segment that nothing names, and of the one before it; "" where it cannot be read."""
        try:
            data = self.store.get(key)
            size = len(MAGIC) + 4 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "big")
            return digest(data), unpack_header(data[:size]).previous
        except (BlobMissing, ValueError, TypeError, KeyError):
            return "", ""

    def header(self, row: Row, data: bytes | memoryview, previous: str) -> Header:
        """data: the beginning of the segment."""
        head = bytes(data[: row.head])
        self._check(row.key, "its header", head, row.head_sha256)
        header = unpack_header(head)
        if header.previous != previous:
            raise self.damaged(row.key, "it does not follow the segment that the manifest has before it")
        return header

    def index(self, row: Row, data: bytes | None = None) -> Index:
        """data: the index, where it was read already."""
        if data is None:
            data = self.part(row, row.tail, row.size - row.tail)
        self._check(row.key, "its index", data, row.tail_sha256)
        return unpack_index(data)

    def block(self, row: Row, block: Block, data: bytes | memoryview) -> Columns:
        self._check(row.key, f"its block from {block.first} to {block.last}", data, block.sha256)
        return unpack_block(data)

    def part(self, row: Row, start: int, size: int) -> bytes:
        return self._get(row.key, lambda key: self.store.part(key, start, size))

    # -- checking -----------------------------------------------------------------------------------------------

    def check_ends(self, ends: Mapping[Shard, Rank], told: Mapping[Shard, Rank]) -> None:
        """Whether manifests end where Redis was told that they do, before they were read, or later. Raises
        `ArchiveDamaged`.
        """
        for shard, (ms, seq) in told.items():
            if (ms, seq) > ends.get(shard, (0, 0)):
                why = f"Redis was told that all up to {ms}-{seq} is archived: it is missing, or an older one"
                raise self.damaged(self.manifest_key(shard), why)

    def _checked(self, key: str, sha256: str) -> bytes:
        data = self._get(key, self.store.get)
        self._check(key, "it", data, sha256)
        return data

    def _get(self, key: str, get: Callable[[str], bytes]) -> bytes:
        try:
            return get(key)
        except BlobMissing:
            raise self.damaged(key, "it is not there") from None

    def _check(self, key: str, what: str, data: bytes | memoryview, sha256: str) -> None:
        if digest(data) != sha256:
            raise self.damaged(key, f"{what} has another SHA-256")

    def _read(self, key: str, unpack: Callable[[bytes], T], data: bytes) -> T:
        try:
            return unpack(data)
        except (ValueError, TypeError, KeyError) as error:
            raise self.damaged(key, str(error) or type(error).__name__) from None

    def damaged(self, key: str, why: str) -> ArchiveDamaged:
        told = f"the archive of stream {self.stream!r} is damaged: {key} in {self.store.label}: {why}"
        return ArchiveDamaged(told, key, why)


def prefix(namespace: str, stream: str) -> str:
    """Of the keys of a stream's archive."""
    return f"{namespace}/{stream}/archive/"


def _name(shard: Shard) -> str:
    return f"{shard.generation}.{shard.number}-{shard.count}"


def _rows(rows: tuple[Row, ...], before: str, after: Rank) -> Iterator[tuple[Row, str]]:
    for row in rows:
        if rank_of(row.last.encode()) > after:
            yield row, before
        before = row.sha256
