"""Segments and manifests: what goes in comes out, and a program that knows only docs/archive.md can read them."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from typing import Any

import msgpack
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream.archive import manifest as manifests
from rstream.archive import segment as segments
from rstream.archive.manifest import Row, empty, pack, unpack_manifest, unpack_page
from rstream.archive.segment import build, unpack_block, unpack_header, unpack_index
from rstream.reference import Reference
from rstream.store import keys

SHARD = keys.shard("ns", "s", 3, 1, 4)
values = st.binary(max_size=40)
fields = st.one_of(
    st.tuples(values, values, values).map(lambda v: [b"e", v[0], b"k", v[1], b"i", v[2]]),
    st.tuples(values, values).map(lambda v: [b"e", v[0], b"i", v[1]]),
    st.tuples(values, values, values, values).map(lambda v: [b"e", v[0], b"k", v[1], b"i", v[2], b"h", v[3]]),
    st.lists(st.tuples(st.binary(min_size=1, max_size=3), values), min_size=1, max_size=4).map(
        lambda pairs: [part for pair in pairs for part in pair]
    ),
)
ids = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=30, unique=True)


@settings(max_examples=200, deadline=None)
@given(ids=ids, data=st.data())
def test_what_goes_in_comes_out(ids: list[tuple[int, int]], data: Any) -> None:
    entries = [(b"%d-%d" % id, data.draw(fields)) for id in sorted(ids)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK_ENTRIES", 7)
        sealed = build("s", SHARD, entries, "before")
    header = unpack_header(sealed.data[: sealed.head])
    assert (header.first, header.last) == (entries[0][0].decode(), entries[-1][0].decode())
    assert (header.entries, header.previous, header.stream) == (len(entries), "before", "s")
    out, of_key = [], list[set[bytes]]()
    for block in header.blocks:
        columns = unpack_block(sealed.data[block.at : block.at + block.size])
        found = [*columns.raw()]
        assert len(found) == block.entries
        out += [(b"%d-%d" % id, flat) for id, flat in found]
        of_key.append({dict(zip(flat[::2], flat[1::2], strict=True)).get(b"k", b"\0none") for _, flat in found})
    assert out == entries
    index = unpack_index(sealed.data[sealed.tail :])
    for key in set().union(*of_key) - {b"\0none"}:
        assert set(index.blocks_of(key)) >= {n for n, there in enumerate(of_key) if key in there}


def test_references_are_listed() -> None:
    one, other = (Reference.of(bytes([n]) * 9, 20260101) for n in range(2))
    inner = msgpack.packb([1, {"a": one.packed, "b": [other.packed], "c": b"\xc7\x2cB"}])
    sealed = build("s", SHARD, [(b"1-0", [b"e", inner, b"i", b""]), (b"2-0", [b"e", inner, b"i", b""])], "")
    assert unpack_index(sealed.data[sealed.tail :]).references == [one, other] and sealed.references == 2


def test_the_documented_format() -> None:
    """Read with nothing of rstream's."""
    entries = [
        (b"%d-0" % n, [b"e", b"payload%d" % n, b"k", b"key%d" % (n % 3), b"i", bytes(16)]) for n in range(1, 1201)
    ]
    sealed = build("s", SHARD, entries, "")
    data = sealed.data
    assert data.startswith(b"rstream segment 1\n")
    size = int.from_bytes(data[18:22], "big")
    header = json.loads(data[22 : 22 + size])
    assert (header["stream"], header["generation"], header["shard"], header["shards"]) == ("s", 3, 1, 4)
    found = []
    for count, at, length, sha256, first, last, _payload in header["blocks"]:
        piece = data[22 + size + at :][:length]
        assert hashlib.sha256(piece).hexdigest() == sha256
        ms, seq, payload, key, event_id, headers, others = msgpack.unpackb(zlib.decompress(piece), strict_map_key=False)
        assert len(ms) == count and f"{ms[0]}-{seq[0]}" == first and f"{ms[-1]}-{seq[-1]}" == last and others == {}
        found += zip(ms, payload, key, event_id, headers, strict=True)
    assert found == [(n, b"payload%d" % n, b"key%d" % (n % 3), bytes(16), None) for n in range(1, 1201)]
    index = data[sealed.tail :]
    assert index.startswith(b"rstream index 1\n")
    hashes, blocks, references = msgpack.unpackb(zlib.decompress(index[16:]))
    places = zip(
        struct.unpack(f">{len(hashes) // 8}Q", hashes), struct.unpack(f">{len(blocks) // 4}I", blocks), strict=True
    )
    assert set(places) == {(xxhash.xxh64_intdigest(b"key%d" % k), n) for k in range(3) for n in range(3)}
    assert references == b""


def test_a_manifest_stays_small_and_keeps_its_counts() -> None:
    manifest, pages = empty("s", SHARD), dict[str, bytes]()
    for n in range(1, 351):
        if manifest.full:
            data = manifest.as_page()
            pages[str(n)] = data
            manifest = manifest.rolled(str(n), hashlib.sha256(data).hexdigest())
        entries = [(b"%d-0" % (2 * n), [b"e", b"x" * n, b"i", b""]), (b"%d-0" % (2 * n + 1), [b"e", b"", b"i", b""])]
        sealed = build("s", SHARD, entries, manifest.sha256)
        manifest = manifest.with_row(Row.of(f"segment{n}", sealed))
        assert unpack_manifest(pack(manifest)) == manifest
    assert len(pack(manifest)) < 100 * 600
    assert (manifest.segments, manifest.entries, manifest.first, manifest.last) == (350, 700, "2-0", "701-0")
    assert manifest.payload == sum(range(351)) and len(pages) == 3
    page, seen = manifest.page, 0
    while page is not None:
        stored = unpack_page(pages[page.key])
        seen += len(stored.rows)
        page = stored.previous
    assert seen == 3 * manifests.PAGE_ROWS


@pytest.mark.parametrize("data", [b"", b"{}\n", b"x" * 200, pack(empty("s", SHARD))[:-2]])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        unpack_manifest(data)


def test_a_later_format_is_refused() -> None:
    told = pack(empty("s", SHARD)).partition(b"\n")[0].replace(b'"format":1', b'"format":2')
    with pytest.raises(ValueError, match="newer rstream"):
        unpack_manifest(told + b"\n" + hashlib.sha256(told).hexdigest().encode() + b"\n")
