"""What a blob store has to be able to do. All calls block; `rstream.blobs.shelf` has the threads.

Keys are plain paths, `a/b/c`. A reader sees a blob as it was put, or not at all. Every call raises `BlobUnavailable`
(it may work later), `BlobRefused` (not before somebody changes a setting) and, where it reads, `BlobMissing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

CHUNK = 1024 * 1024


class Found(NamedTuple):
    """A blob as it is listed. modified: by the store's own clock, in UTC."""

    key: str
    size: int
    modified: datetime


class Reader(Protocol):
    """A blob that is being read."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class BlobStore(Protocol):
    """Blobs by key. `label` names the store to people."""

    label: str

    def put(self, key: str, data: bytes | Path) -> None:
        """Store it, whatever was there; it then has the time of now."""

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """Store it if the blob there has this tag; None: if there is none. The new tag, or None where it was not so."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """All of it, or the first `most` bytes."""

    def part(self, key: str, start: int, size: int) -> bytes:
        """So many bytes of it from there; fewer where it ends before."""

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """Also the tag by which `put_if` knows it again."""

    def open(self, key: str) -> Reader:
        """To be read piece by piece; reading may raise what `get` does."""

    def find(self, key: str) -> Found | None:
        """What is there."""

    def exists(self, key: str) -> bool: ...

    def delete(self, keys: Iterable[str]) -> None:
        """Those that are there."""

    def list(self, prefix: str, after: str = "") -> Iterator[Found]:
        """All whose key begins like that, in the order of keys; those after one."""
