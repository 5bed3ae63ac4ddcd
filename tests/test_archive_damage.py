"""One flipped bit, anywhere in the archive: `verify` and readings name the object, and nothing wrong is read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rstream import RStream
from rstream.archive import manifest as manifests
from rstream.archive import segment as segments
from rstream.archive.verify import verify
from rstream.errors import ArchiveDamaged
from tests.archives import Bits, Log
from tests.objects import Objects
from tests.servers import Server


@pytest.fixture
def log(tmp_path: Path, one_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Pages, segments of several blocks, and rows in manifests; nothing is left in Redis."""
    monkeypatch.setattr(manifests, "PAGE_ROWS", 3)
    monkeypatch.setattr(segments, "BLOCK_ENTRIES", 10)
    app = RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path / 'blobs'}")
    log = Log(app, shards=2, segment_bytes=100_000)
    for _ in range(5):
        log.publish(60)
        log.archive()
    log.trim()
    return log


@pytest.fixture
def bits(tmp_path: Path, log: Log) -> Bits:
    return Bits(tmp_path / "blobs")


def problems(log: Log) -> list[str]:
    return [problem.object for problem in verify(log.past.vault, {}).problems]


@pytest.mark.parametrize("kind", [".segment", ".page", "manifests/"])
def test_a_flipped_bit_is_named(log: Log, bits: Bits, kind: str) -> None:
    rng = random.Random(kind)
    keys = bits.keys(kind)
    assert len(keys) >= 2 and problems(log) == []
    for _ in range(12):
        key = rng.choice(keys)
        with bits.flipped(key, rng.randrange(len(bits.get(key))), rng.randrange(8)):
            assert key in problems(log)
            _damaged_or_right(log, key)
    assert problems(log) == [] and log.read() == log.ids


def _damaged_or_right(log: Log, key: str) -> None:
    """A reading that needs the altered part names it; one that does not, the index of a key say, is right."""
    seen = []
    try:
        for entry in log.stream.sync.read():
            seen.append(entry.id)
    except ArchiveDamaged as error:
        assert error.object == key and key in str(error)
    assert seen == log.ids[: len(seen)]
    assert len(seen) < len(log.ids) or ".segment" in key


@pytest.mark.parametrize("part", ["magic", "header", "first block", "last block", "index"])
def test_every_part_of_a_segment_is_checked_by_who_reads_it(log: Log, bits: Bits, part: str) -> None:
    vault = log.past.vault
    shard = log.layout.shard("device1")
    row, previous = [*vault.rows(vault.load(shard)[0])][2]
    blocks = vault.header(row, vault.whole(row), previous).blocks
    at = {
        "magic": 3,
        "header": row.head - 5,
        "first block": blocks[0].at + 4,
        "last block": blocks[-1].at + blocks[-1].size - 1,
        "index": row.tail + 20,
    }[part]
    readers: dict[str, list[str | None]] = {"index": ["device1"], "last block": [None], "first block": [None]}
    with bits.flipped(row.key, at):
        for key in readers.get(part, [None, "device1"]):
            with pytest.raises(ArchiveDamaged) as raised:
                log.read(key=key)
            assert raised.value.object == row.key
        assert problems(log) == [row.key]


def test_what_is_missing_or_exchanged_is_named(log: Log, bits: Bits) -> None:
    for kind in (".segment", ".page"):
        one, other = bits.keys(kind)[:2]
        data = bits.get(one), bits.get(other)
        bits.put(one, data[1])
        bits.put(other, data[0])
        assert {one, other} <= set(problems(log))
        with pytest.raises(ArchiveDamaged):
            log.read()
        bits.put(one, data[0])
        bits.delete(other)
        assert other in problems(log)
        with pytest.raises(ArchiveDamaged):
            log.read()
        bits.put(other, data[1])
    assert problems(log) == []


def test_who_rewrites_a_manifest_breaks_the_chain(log: Log) -> None:
    """With a right checksum: two segments in another order, one left out."""
    from dataclasses import replace

    vault = log.past.vault
    shard = log.layout.current[0]
    manifest, tag = vault.load(shard)
    assert len(manifest.rows) == 2
    for rows in (manifest.rows[::-1], manifest.rows[1:]):
        tag = vault.replace(shard, replace(manifest, rows=rows), tag)
        assert problems(log)
        with pytest.raises(ArchiveDamaged, match=r"does not follow|Redis was told"):
            log.read()
    vault.replace(shard, manifest, tag)
    assert problems(log) == []


def test_altered_on_the_way_from_s3(one_server: Server, namespace: str) -> None:
    objects = Objects()
    try:
        with RStream(one_server.url, namespace=namespace, blobs=objects.url) as app:
            log = Log(app, shards=1)
            log.publish(50)
            log.archive()
            log.trim()
            next(iter(log.stream.sync.read()))
            objects.fail("GET", "altered", times=100)
            with pytest.raises(ArchiveDamaged):
                log.past.vault.load(log.layout.current[0])
            objects.heal()
            assert log.read() == log.ids
    finally:
        objects.stop()
