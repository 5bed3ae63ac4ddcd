"""Blobs as files of a directory, which all processes must see: a disk, or a network file system with atomic renames.

A file is written beside its place, flushed to the disk and then renamed, so that a crash leaves the whole of it or
nothing; what is left of the writing (`.part`) is older than a day when `list` clears it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rstream.blobs.base import Found, Reader
from rstream.errors import BlobMissing, BlobRefused, BlobUnavailable

_PART, _LOCK = ".part", ".lock"
_STALE = 86_400.0
_LASTING = (PermissionError, NotADirectoryError, IsADirectoryError)


class Directory:
    """See `BlobStore`."""

    def __init__(self, path: Path | str) -> None:
        self.root = Path(path)
        self.label = f"directory {self.root}"

    def put(self, key: str, data: bytes | Path) -> None:
        with self._failing("write", key):
            target = self._place(key)
            part = self._written(target, data)
            part.replace(target)
            _flush_folder(target.parent)

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        with self._failing("write", key):
            target = self._place(key)
            with self._locked(target):
                if (_tag(target.read_bytes()) if target.exists() else None) != tag:
                    return None
                self._written(target, data).replace(target)
                _flush_folder(target.parent)
        return _tag(data)

    def get(self, key: str, most: int | None = None) -> bytes:
        with self._failing("read", key), self._path(key).open("rb") as file:
            return file.read(-1 if most is None else most)

    def part(self, key: str, start: int, size: int) -> bytes:
        with self._failing("read", key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, _tag(data)

    def open(self, key: str) -> Reader:
        with self._failing("read", key):
            return self._path(key).open("rb")

    def find(self, key: str) -> Found | None:
        try:
            with self._failing("look at", key):
                return self._found(self._path(key))
        except BlobMissing:
            return None

    def exists(self, key: str) -> bool:
        return self.find(key) is not None

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with contextlib.suppress(BlobMissing), self._failing("delete", key):
                self._path(key).unlink()

    def list(self, prefix: str, after: str = "") -> Iterator[Found]:
        start = self.root / prefix.rpartition("/")[0]
        with self._failing("list", prefix):
            yield from self._walk(start, prefix, after)

    def _walk(self, folder: Path, prefix: str, after: str) -> Iterator[Found]:
        try:
            children = sorted(folder.iterdir(), key=lambda child: child.name + "/" * child.is_dir())
        except FileNotFoundError:
            return
        for child in children:
            key = child.relative_to(self.root).as_posix()
            if child.is_dir():
                if key.startswith(prefix) or prefix.startswith(key + "/"):
                    yield from self._walk(child, prefix, after)
            elif child.suffix == _PART:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - child.stat().st_mtime > _STALE:
                        child.unlink()
            elif key.startswith(prefix) and key > after and child.suffix != _LOCK:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield self._found(child)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") for part in parts):
            raise BlobRefused(f"{key!r} is no key of a blob: it is a path without '.', '..' and empty parts")
        return self.root.joinpath(*parts)

    def _place(self, key: str) -> Path:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _written(self, target: Path, data: bytes | Path) -> Path:
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}{_PART}")
        try:
            with part.open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    def _found(self, path: Path) -> Found:
        stat = path.stat()
        key = path.relative_to(self.root).as_posix()
        return Found(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    @contextlib.contextmanager
    def _locked(self, target: Path) -> Iterator[None]:
        with target.with_name(target.name + _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _failing(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise BlobMissing(f"there is no blob {key} in {self.label}") from None
        except OSError as error:
            kind = BlobRefused if isinstance(error, _LASTING) else BlobUnavailable
            raise kind(f"{self.label} could not {what} blob {key}: {error.strerror or error}") from None


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flush_folder(folder: Path) -> None:
    """A rename survives a crash of the machine when its directory was flushed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
