"""What every blob store has to do, and what S3 does when its network or its server does not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rstream import RStream
from rstream.blobs import S3, BlobStore, Directory, open_store
from rstream.errors import BlobMissing, BlobRefused, BlobUnavailable, ConfigError
from tests import objects as storage
from tests.objects import Objects
from tests.waiting import eventually

KINDS = ["directory", "s3", *(["other"] if storage.OTHER else [])]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "directory":
        return Directory(tmp_path / "blobs")
    endpoint = storage.moto() if request.param == "s3" else storage.OTHER or ""
    return S3(storage.bucket(endpoint), "a/prefix", endpoint_url=endpoint)


@pytest.fixture
def objects() -> Iterator[Objects]:
    objects = Objects()
    yield objects
    objects.stop()


@pytest.fixture
def s3(objects: Objects) -> S3:
    found = open_store(objects.url)
    assert isinstance(found, S3)
    return found


def test_what_is_put_is_there_until_it_is_deleted(store: BlobStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    store.put("a/b/one", b"first")
    store.put("a/b/one", b"second")
    assert store.get("a/b/one") == b"second"
    assert store.get("a/b/one", 3) == b"sec"
    found = store.find("a/b/one")
    assert found is not None and (found.key, found.size) == ("a/b/one", 6)
    assert before <= found.modified <= datetime.now(UTC) + timedelta(seconds=2)
    store.delete(["a/b/one", "a/b/never"])
    assert not store.exists("a/b/one") and store.find("a/b/one") is None
    for read in (store.get, store.get_tagged, store.open):
        with pytest.raises(BlobMissing, match="a/b/one"):
            read("a/b/one")


def test_a_part_of_a_blob(store: BlobStore) -> None:
    store.put("some", bytes(range(100)))
    assert store.part("some", 0, 10) == bytes(range(10))
    assert store.part("some", 95, 10) == bytes(range(95, 100))
    assert store.part("some", 100, 10) == store.part("some", 500, 1) == b""
    with pytest.raises(BlobMissing):
        store.part("none", 0, 10)


def test_an_empty_blob(store: BlobStore) -> None:
    store.put("none", b"")
    reader = store.open("none")
    assert store.get("none") == b"" == reader.read(10)
    reader.close()


def test_list_is_by_prefix_and_in_order(store: BlobStore) -> None:
    keys = ["a/10/x", "a/10/y", "a/2/z", "a-b/q", "b/c"]
    for key in reversed(keys):
        store.put(key, key.encode())
    assert [found.key for found in store.list("")] == sorted(keys)
    assert [found.key for found in store.list("a/")] == ["a/10/x", "a/10/y", "a/2/z"]
    assert [(found.key, found.size) for found in store.list("a/1")] == [("a/10/x", 6), ("a/10/y", 6)]
    assert [found.key for found in store.list("a/", after="a/10/x")] == ["a/10/y", "a/2/z"]
    assert not [*store.list("nothing/")]


def test_a_conditional_put_is_done_by_one_alone(store: BlobStore) -> None:
    first = store.put_if("m/manifest", b"one", None)
    assert first is not None
    assert store.put_if("m/manifest", b"two", None) is None
    second = store.put_if("m/manifest", b"two", first)
    assert second is not None and store.get_tagged("m/manifest") == (b"two", second)
    assert store.put_if("m/manifest", b"three", first) is None
    assert store.put_if("m/none", b"x", first) is None
    assert [found.key for found in store.list("m/")] == ["m/manifest"]


def test_of_many_conditional_puts_one_wins(store: BlobStore) -> None:
    won: list[bytes] = []
    start = threading.Barrier(6)

    def put(data: bytes) -> None:
        start.wait()
        if store.put_if("m/race", data, None) is not None:
            won.append(data)

    threads = [threading.Thread(target=put, args=(b"%d" % n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.get("m/race")]


def test_a_large_file_goes_in_parts_and_comes_back(store: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(20 * 1024 * 1024)
    (tmp_path / "large").write_bytes(data)
    store.put("of/file", tmp_path / "large")
    store.put("of/bytes", data)
    if isinstance(store, S3):  # an ETag of parts says how many
        assert "-" in store.get_tagged("of/file")[1] and "-" in store.get_tagged("of/bytes")[1]
    assert store.get("of/bytes") == data
    reader, read = store.open("of/file"), b""
    while piece := reader.read(1_000_000):
        assert len(piece) <= 1_000_000
        read += piece
    reader.close()
    assert read == data


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Directory(tmp_path)
    store.put("a/b", b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BlobUnavailable, match="No space left"):
        store.put("a/b", b"after")
    assert store.get("a/b") == b"before"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"]


def test_a_killed_write_is_never_listed_and_cleared_away_a_day_later(tmp_path: Path) -> None:
    store = Directory(tmp_path)
    young, old = tmp_path / "a.11112222.part", tmp_path / "b.11112222.part"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert not [*store.list("")]
    assert young.exists() and not old.exists()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", "..", "a//b", "./a"])
def test_a_key_cannot_leave_the_directory(tmp_path: Path, key: str) -> None:
    with pytest.raises(BlobRefused, match="no key"):
        Directory(tmp_path).put(key, b"x")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/x", "s3://bucket/prefix"),
        ("/just/a/path", "s3://bucket/prefix"),
        ("s3:///prefix", "s3://bucket/prefix"),
        ("file://host/x", "file:///its/path"),
        ("file:///", "file:///its/path"),
        ("s3://bucket?endpoint=localhost:9000", "http:// or https://"),
        ("s3://bucket?colour=red", "'colour'"),
        ("s3://bucket?patience=long", "patience"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        RStream("redis://nowhere.invalid", blobs=url)
    assert why in str(caught.value)


# -- S3, through a proxy that breaks it


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_what_passes_is_tried_again(objects: Objects, s3: S3, kind: str) -> None:
    s3.put("k", b"x" * 5000)
    objects.fail("GET", kind, times=2)
    assert s3.get("k") == b"x" * 5000
    assert objects.requests["GET"] == 3


def test_an_upload_is_tried_again(objects: Objects, s3: S3) -> None:
    objects.fail("PUT", "503", times=1)
    objects.fail("PUT", "lost", times=1)
    s3.put("k", b"x" * 5000)
    assert s3.get("k") == b"x" * 5000 and objects.requests["PUT"] == 3


def test_a_stream_goes_on_where_it_was_cut(objects: Objects, s3: S3) -> None:
    data = os.urandom(300_000)
    s3.put("k", data)
    objects.fail("GET", "cut", times=2)
    reader, read = s3.open("k"), b""
    while piece := reader.read(10_000):
        read += piece
    assert read == data and objects.requests["GET"] == 3


@pytest.mark.parametrize("kind", ["503", "hang"])
def test_what_does_not_pass_ends_in_bounded_time(objects: Objects, s3: S3, kind: str) -> None:
    s3.put("k", b"x")
    objects.fail("GET", kind)
    began = time.monotonic()
    with pytest.raises(BlobUnavailable, match="could not get blob k"):
        s3.get("k")
    assert time.monotonic() - began < 5  # patience is a second, and the machine may be busy
    objects.heal()
    assert eventually(lambda: s3.get("k") == b"x")


def test_a_server_that_is_not_there(objects: Objects, s3: S3) -> None:
    objects.stop()
    with pytest.raises(BlobUnavailable):
        s3.get("k")


def test_a_404_that_s3_does_not_explain_is_no_missing_blob(objects: Objects, s3: S3) -> None:
    """A balancer without a backend, or an endpoint that is another server."""
    s3.put("k", b"x")
    objects.fail("GET", "stray")
    for read in (s3.get, s3.get_tagged, s3.open):
        with pytest.raises(BlobUnavailable, match="404"):
            read("k")
    objects.heal()
    objects.fail("GET", "cut", times=2)
    with pytest.raises(BlobMissing):
        s3.get("other")
    assert s3.find("other") is None


def test_what_was_refused_is_not_tried_again(objects: Objects, s3: S3) -> None:
    objects.fail("GET", "403")
    with pytest.raises(BlobRefused, match="AccessDenied"):
        s3.get("k")
    assert objects.requests["GET"] == 1
    with pytest.raises(BlobRefused, match="NoSuchBucket"):
        open_store(f"s3://never-made?endpoint={objects.endpoint}").put("k", b"x")


def test_a_conditional_put_whose_answer_was_lost_was_done(objects: Objects, s3: S3) -> None:
    objects.fail("PUT", "lost", times=1)
    tag = s3.put_if("k", b"mine", None)
    assert tag is not None and tag == s3.get_tagged("k")[1]
    objects.fail("PUT", "lost", times=1)
    again = s3.put_if("k", b"next", tag)
    assert again is not None and s3.get("k") == b"next"
