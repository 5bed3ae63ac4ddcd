"""A segment: some entries of one shard, in order, as one immutable object. Pure. docs/archive.md has it for others.

    MAGIC · size of the header, 4 bytes · header, JSON · blocks · index

A block is a few hundred entries in columns, deflated, and has its digest in the header, as the header and the index
have theirs in the row of the manifest (see manifest.py): so any part of a segment can be read, and checked, alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgpack
import xxhash

from rstream.reference import CODE, Reference, unpacked
from rstream.store.keys import Rank, Shard, rank_of

MAGIC = b"rstream segment 1\n"
INDEX_MAGIC = b"rstream index 1\n"

BLOCK_ENTRIES, BLOCK_BYTES = 512, 256 * 1024
"""What ends a block; a reader has one of each shard in memory."""

LEVEL = 3
_HEAD, _REFERENCE = b"\xc7\x2c" + bytes([CODE]), 44
"""How msgpack begins a reference, and how long it is after that."""

Raw = tuple[bytes, Sequence[bytes]]
"""An entry as Redis gives it: id, and its fields and values by turns."""


class Block(NamedTuple):
    """entries · at, size: where it lies in the segment · sha256 · first, last: ids · payload: bytes of it."""

    entries: int
    at: int
    size: int
    sha256: str
    first: str
    last: str
    payload: int


class Header(NamedTuple):
    """previous: SHA-256 of the segment before, "" for the first."""

    stream: str
    generation: int
    shard: int
    shards: int
    first: str
    last: str
    entries: int
    payload: int
    previous: str
    blocks: tuple[Block, ...]


class Columns(NamedTuple):
    """The entries of a block. key, headers: None where an entry has none · others: what rstream did not write, with all
    its fields and values by turns, by its place.
    """

    ms: list[int]
    seq: list[int]
    payload: list[bytes]
    key: list[bytes | None]
    event_id: list[bytes]
    headers: list[bytes | None]
    others: dict[int, list[bytes]]

    def raw(self) -> Iterator[tuple[Rank, list[bytes]]]:
        """Each entry as it was in Redis."""
        for n, (ms, seq, payload, key, event_id, headers) in enumerate(zip(*self[:6], strict=True)):
            flat = self.others.get(n)
            if flat is None:
                flat = [b"e", payload]
                flat += [] if key is None else [b"k", key]
                flat += [b"i", event_id]
                flat += [] if headers is None else [b"h", headers]
            yield (ms, seq), flat


class Sealed(NamedTuple):
    """A segment ready to be stored. head: size of all before the blocks · tail: where the index begins."""

    data: bytes
    header: Header
    head: int
    head_sha256: str
    tail: int
    tail_sha256: str
    references: int


def digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def build(stream: str, shard: Shard, entries: Sequence[Raw], previous: str) -> Sealed:
    """A segment of these entries, which are in order and at least one."""
    blocks, pieces, at, total = list[Block](), list[bytes](), 0, 0
    places: set[tuple[int, int]] = set()
    references: dict[bytes, None] = {}
    for part, size in _cut(entries):
        columns = _columns(part)
        piece = zlib.compress(msgpack.packb(list(columns), use_bin_type=True), LEVEL)
        places |= {(key_hash(key), len(blocks)) for key in set(columns.key) if key is not None}
        places |= {(key_hash(key), len(blocks)) for flat in columns.others.values() if (key := _key(flat)) is not None}
        for _, flat in part:
            references |= dict.fromkeys(_references(flat))
        blocks.append(Block(len(part), at, len(piece), digest(piece), _text(part[0]), _text(part[-1]), size))
        pieces.append(piece)
        at, total = at + len(piece), total + size
    header = Header(
        stream, shard.generation, shard.number, shard.count,
        _text(entries[0]), _text(entries[-1]), len(entries), total, previous, tuple(blocks),
    )  # fmt: skip
    head = _pack_header(header)
    index = _pack_index(sorted(places), references)
    return Sealed(
        b"".join((head, *pieces, index)),
        header,
        len(head),
        digest(head),
        len(head) + at,
        digest(index),
        len(references),
    )


def _cut(entries: Sequence[Raw]) -> Iterator[tuple[list[Raw], int]]:
    """Blocks of entries, and the bytes of payload of each."""
    part, size, held = list[Raw](), 0, 0
    for entry in entries:
        part.append(entry)
        size += len(payload_of(entry[1]))
        held += sum(map(len, entry[1]))
        if len(part) >= BLOCK_ENTRIES or held >= BLOCK_BYTES:
            yield part, size
            part, size, held = [], 0, 0
    if part:
        yield part, size


def payload_of(flat: Sequence[bytes]) -> bytes:
    return flat[1] if flat[0] == b"e" else dict(zip(flat[::2], flat[1::2], strict=True)).get(b"e", b"")


def _key(flat: Sequence[bytes]) -> bytes | None:
    return dict(zip(flat[::2], flat[1::2], strict=True)).get(b"k")


def _text(entry: Raw) -> str:
    return entry[0].decode()


_SHAPES = {
    (b"e", b"k", b"i"): (3, 5, 0),
    (b"e", b"i"): (0, 3, 0),
    (b"e", b"k", b"i", b"h"): (3, 5, 7),
    (b"e", b"i", b"h"): (0, 3, 5),
}
"""Where key, event id and headers are, by the names of the fields; 0 for what is not there."""


def _columns(entries: Sequence[Raw]) -> Columns:
    columns = Columns([], [], [], [], [], [], {})
    for n, (id, flat) in enumerate(entries):
        ms, seq = rank_of(id)
        columns.ms.append(ms)
        columns.seq.append(seq)
        shape = _SHAPES.get(tuple(flat[::2]))
        if shape is None:
            columns.others[n] = list(flat)
            shape, flat = (0, 0, 0), (b"", b"")
        key, event_id, headers = shape
        columns.payload.append(flat[1])
        columns.key.append(flat[key] if key else None)
        columns.event_id.append(flat[event_id] if event_id else b"")
        columns.headers.append(flat[headers] if headers else None)
    return columns


def unpack_block(piece: bytes | memoryview) -> Columns:
    """Of a block whose digest was checked."""
    return Columns(*msgpack.unpackb(zlib.decompress(piece), strict_map_key=False))


# -- header -----------------------------------------------------------------------------------------------------


def _pack_header(header: Header) -> bytes:
    told = json.dumps(header._asdict(), separators=(",", ":")).encode()
    return b"".join((MAGIC, len(told).to_bytes(4, "big"), told))


def unpack_header(head: bytes) -> Header:
    """Of a head whose digest was checked. In it, blocks lie where they do from its end on; here, in the segment."""
    told = json.loads(head[len(MAGIC) + 4 :])
    blocks = tuple(Block(*each)._replace(at=each[1] + len(head)) for each in told.pop("blocks"))
    return Header(**told, blocks=blocks)


# -- index ------------------------------------------------------------------------------------------------------


def key_hash(key: bytes) -> int:
    """64-bit xxHash, seed 0."""
    return int(xxhash.xxh64_intdigest(key))


class Index(NamedTuple):
    """hashes: of keys, sorted · blocks: the number of the block that each is in · references: into the blob store."""

    hashes: Sequence[int]
    blocks: Sequence[int]
    references: list[Reference]

    def blocks_of(self, key: bytes) -> list[int]:
        """The numbers of the blocks that may have entries of the key."""
        wanted = key_hash(key)
        return sorted(self.blocks[bisect_left(self.hashes, wanted) : bisect_right(self.hashes, wanted)])


def _pack_index(places: Sequence[tuple[int, int]], references: dict[bytes, None]) -> bytes:
    hashes = struct.pack(f">{len(places)}Q", *(hash for hash, _ in places))
    blocks = struct.pack(f">{len(places)}I", *(block for _, block in places))
    return INDEX_MAGIC + zlib.compress(msgpack.packb([hashes, blocks, b"".join(references)], use_bin_type=True), LEVEL)


def unpack_index(data: bytes) -> Index:
    """Of an index whose digest was checked."""
    hashes, blocks, references = msgpack.unpackb(zlib.decompress(data[len(INDEX_MAGIC) :]))
    return Index(
        struct.unpack(f">{len(hashes) // 8}Q", hashes),
        struct.unpack(f">{len(blocks) // 4}I", blocks),
        [unpacked(references[at : at + _REFERENCE]) for at in range(0, len(references), _REFERENCE)],
    )


def _references(flat: Sequence[bytes]) -> Iterator[bytes]:
    """As references.lua finds them: in any value."""
    for value in flat[1::2]:
        at = value.find(_HEAD)
        while at >= 0:
            found = value[at + len(_HEAD) : at + len(_HEAD) + _REFERENCE]
            if len(found) == _REFERENCE:
                yield found
            at = value.find(_HEAD, at + 1)
