"""What is archived of one shard: its manifest, a small object that is only ever replaced by the next one, and the pages
that older rows were rolled into. Pure.

    manifest → the newest page → the page before it → …          each named with its SHA-256
    a row → its segment, with the SHA-256 of that; a segment's header has the SHA-256 of the segment before

A manifest has its own SHA-256 in its last line. So everything is checked by what names it, and the chain has an end
that moves by conditional writes alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rstream.archive.segment import Sealed
from rstream.store.keys import Rank, Shard, rank_of

FORMAT = 1
PAGE_ROWS = 100
"""Rows of a page; a manifest has fewer."""


@dataclass(frozen=True, slots=True)
class Row:
    """A segment. key: of its object · size: of that, in bytes · first, last: ids · entries · payload: bytes of it ·
    head, head_sha256: size and digest of all before its blocks · tail, tail_sha256: where its index begins, and the
    digest · references: how many different ones it has into the blob store · gap: up to this id all was archived, as
    Redis was told, and of what lies between the segment before and this one, some is not here: "" = nothing is missing.
    """

    key: str
    size: int
    sha256: str
    first: str
    last: str
    entries: int
    payload: int
    head: int
    head_sha256: str
    tail: int
    tail_sha256: str
    references: int = 0
    gap: str = ""

    @classmethod
    def of(cls, key: str, sealed: Sealed, gap: str = "") -> Row:
        header = sealed.header
        return cls(
            key, len(sealed.data), hashlib.sha256(sealed.data).hexdigest(), header.first, header.last, header.entries,
            header.payload, sealed.head, sealed.head_sha256, sealed.tail, sealed.tail_sha256, sealed.references, gap,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pointer:
    """A page. begins: the first id of all pages · first, last: ids of this one · segments, entries, payload, size: of
    this page and all before it.
    """

    key: str
    sha256: str
    begins: str
    first: str
    last: str
    segments: int
    entries: int
    payload: int
    size: int


@dataclass(frozen=True, slots=True)
class Page:
    """previous: the page before, None for the first · before: SHA-256 of the segment before its first row."""

    previous: Pointer | None
    before: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Of a shard. page: the newest · before: SHA-256 of the segment before the first row here · rows: those that are in
    no page, the oldest first.
    """

    stream: str
    generation: int
    shard: int
    shards: int
    page: Pointer | None = None
    before: str = ""
    rows: tuple[Row, ...] = field(default=())

    @property
    def first(self) -> str | None:
        """The first id that is archived."""
        return self.page.begins if self.page else self.rows[0].first if self.rows else None

    @property
    def last(self) -> str:
        """Up to which id all is archived, "0-0" for nothing."""
        return self.rows[-1].last if self.rows else self.page.last if self.page else "0-0"

    @property
    def first_rank(self) -> Rank:
        return rank_of((self.first or "0-0").encode())

    @property
    def last_rank(self) -> Rank:
        return rank_of(self.last.encode())

    @property
    def sha256(self) -> str:
        """Of the last segment."""
        return self.rows[-1].sha256 if self.rows else self.before

    @property
    def segments(self) -> int:
        return len(self.rows) + (self.page.segments if self.page else 0)

    @property
    def entries(self) -> int:
        return sum(row.entries for row in self.rows) + (self.page.entries if self.page else 0)

    @property
    def payload(self) -> int:
        return sum(row.payload for row in self.rows) + (self.page.payload if self.page else 0)

    @property
    def size(self) -> int:
        return sum(row.size for row in self.rows) + (self.page.size if self.page else 0)

    def with_row(self, row: Row) -> Manifest:
        return replace(self, rows=(*self.rows, row))

    @property
    def full(self) -> bool:
        """Whether its rows have to go into a page before another comes."""
        return len(self.rows) >= PAGE_ROWS

    def as_page(self) -> bytes:
        """Its rows, as a page."""
        return pack(Page(self.page, self.before, self.rows))

    def rolled(self, key: str, sha256: str) -> Manifest:
        """As it is once its rows are in that page."""
        begins, first = self.first or "", self.rows[0].first
        pointer = Pointer(key, sha256, begins, first, self.last, self.segments, self.entries, self.payload, self.size)
        return replace(self, page=pointer, before=self.sha256, rows=())


def empty(stream: str, shard: Shard) -> Manifest:
    return Manifest(stream, shard.generation, shard.number, shard.count)


def pack(what: Manifest | Page) -> bytes:
    """JSON in one line, and its SHA-256 in the next."""
    return _packed(asdict(what))


def _packed(what: dict[str, Any]) -> bytes:
    told = json.dumps({"format": FORMAT, **what}, separators=(",", ":")).encode()
    return b"%s\n%s\n" % (told, hashlib.sha256(told).hexdigest().encode())


def pack_schemas(schemas: Mapping[int, Mapping[str, Any]]) -> bytes:
    """Of all versions, from the first on: payloads tell theirs by its number."""
    return _packed({"schemas": [schema for _, schema in sorted(schemas.items())]})


def unpack_schemas(data: bytes) -> dict[int, Mapping[str, Any]]:
    """Raises `ValueError` where it is not what was stored."""
    return dict(enumerate(_unpacked(data)["schemas"], 1))


def unpack_manifest(data: bytes) -> Manifest:
    """Raises `ValueError` where it is not what was stored."""
    told = _unpacked(data)
    return Manifest(**{**told, "page": _pointer(told["page"]), "rows": _rows(told["rows"])})


def unpack_page(data: bytes) -> Page:
    """Raises `ValueError` where it is not what was stored."""
    told = _unpacked(data)
    return Page(_pointer(told["previous"]), told["before"], _rows(told["rows"]))


def _unpacked(data: bytes) -> dict[str, Any]:
    told, _, rest = data.partition(b"\n")
    if rest != hashlib.sha256(told).hexdigest().encode() + b"\n":
        raise ValueError("it is not what its own SHA-256 says")
    found: dict[str, Any] = json.loads(told)
    if found.pop("format") != FORMAT:
        raise ValueError("it is of a later format: use a newer rstream")
    return found


def _pointer(told: dict[str, Any] | None) -> Pointer | None:
    return None if told is None else Pointer(**told)


def _rows(told: Sequence[dict[str, Any]]) -> tuple[Row, ...]:
    return tuple(Row(**row) for row in told)
