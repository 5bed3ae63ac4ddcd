"""`Blob`: a field of an event whose bytes stay in the blob store until somebody asks for them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio.to_thread
from pydantic_core import core_schema

from rstream.blobs.base import CHUNK
from rstream.errors import BlobRefused
from rstream.reference import SOURCE, Reference, Source

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

    from rstream.blobs.shelf import Shelf


class Blob:
    """Bytes, of any size, as a field of an event: `audio: Blob`.

    Made of bytes, or by `Blob.file(path)`. Above the app's `blob_threshold` they are kept in its blob store, and a
    handler fetches them when it wants them: `await event.audio.read()`, `async with event.audio.open() as file` (a file
    of its own, fetched piece by piece: memory does not grow with it) or `async with event.audio.path() as path`.
    `.sync` has the same for threads and processes. What was fetched was checked by its SHA-256. They raise
    `BlobMissing` and `BlobAltered`: let these out of the handler, and the entry becomes a dead letter with that reason;
    and `BlobError`s, after which the entry is tried again later and no attempt is burnt.
    """

    __slots__ = ("_data", "_digest", "_path", "_reference", "_source")

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = bytes(data)
        self._path: Path | None = None
        self._reference: Reference | None = None
        self._source: Source | None = None
        self._digest = ""

    @classmethod
    def file(cls, path: Path | str) -> Blob:
        """The bytes of a file, which is read when the event is published, and must not change before."""
        blob = cls(b"")
        blob._data, blob._path = None, Path(path)
        return blob

    @classmethod
    def _stored(cls, reference: Reference, source: Source | None) -> Blob:
        blob = cls(b"")
        blob._data, blob._reference, blob._source = None, reference, source
        blob._digest = reference.digest
        return blob

    @property
    def size(self) -> int:
        """In bytes."""
        if self._reference is not None:
            return self._reference.size
        return len(self._data) if self._data is not None else self._file.stat().st_size

    @property
    def digest(self) -> str:
        """SHA-256, in hex."""
        if not self._digest:
            digest = hashlib.sha256()
            with self._local() as file:
                while piece := file.read(CHUNK):
                    digest.update(piece)
            self._digest = digest.hexdigest()
        return self._digest

    @property
    def rstream_unread(self) -> bool:
        """For rstream: whether `digest` would read a file, which takes its time."""
        return self._path is not None and not self._digest

    @property
    def rstream_stored(self) -> bool:
        """For rstream: whether its bytes are in a blob store."""
        return self._reference is not None

    @property
    def sync(self) -> SyncBlob:
        """The same, blocking."""
        return SyncBlob(self)

    async def read(self) -> bytes:
        """All of it."""
        return self._data if self._data is not None else await anyio.to_thread.run_sync(self.sync.read)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[IO[bytes]]:
        """A binary file with its bytes, fetched before it is yielded, and gone at the end."""
        file = await anyio.to_thread.run_sync(self._opened)
        with file:
            yield file

    @asynccontextmanager
    async def path(self) -> AsyncIterator[Path]:
        """As `open`, for what wants the name of a file."""
        held = contextlib.ExitStack()
        with held:
            yield await anyio.to_thread.run_sync(held.enter_context, self.sync.path())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and (self.size, self.digest) == (other.size, other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Blob({self.size:,} bytes)"

    @property
    def _file(self) -> Path:
        assert self._path is not None
        return self._path

    def _local(self) -> IO[bytes]:
        return io.BytesIO(self._data) if self._data is not None else self._file.open("rb")

    def _held(self) -> tuple[Shelf, Source, Reference]:
        """Where its bytes are."""
        from rstream.blobs.shelf import shelf

        assert self._reference is not None
        if self._source is None:
            raise BlobRefused(
                f"{self!r} is in a blob store, and this app has none: give RStream(blobs=…) or RSTREAM_BLOBS the store "
                "that its publisher has"
            )
        return shelf(self._source.url), self._source, self._reference

    def _opened(self) -> IO[bytes]:
        if self._reference is None:
            return self._local()
        held, source, reference = self._held()
        return held.temporary(source, reference)

    def rstream_inline(self) -> bytes:
        """For rstream: its bytes, to be stored in an entry."""
        return self.sync.read()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.plain_serializer_function_ser_schema(_told, when_used="json")
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "format": "base64", "contentEncoding": "base64"}

    @classmethod
    def _validated(cls, value: object) -> Blob:
        if isinstance(value, Blob):
            return value
        if isinstance(value, Reference):
            return cls._stored(value, SOURCE.get())
        if isinstance(value, bytes | bytearray | memoryview):
            return cls(bytes(value))
        if isinstance(value, str):
            return cls(base64.b64decode(value, validate=True))
        raise ValueError("a blob is made of bytes, or of base64 text")


class SyncBlob:
    """A blob for code without an event loop, from any thread or process."""

    __slots__ = ("_blob",)

    def __init__(self, blob: Blob) -> None:
        self._blob = blob

    def read(self) -> bytes:
        """As `Blob.read`."""
        if self._blob._reference is None:
            with self._blob._local() as file:
                return file.read()
        held, source, reference = self._blob._held()
        return held.fetch(source, reference)

    def open(self) -> IO[bytes]:
        """As `Blob.open`: `with blob.sync.open() as file`."""
        return self._blob._opened()

    @contextmanager
    def path(self) -> Iterator[Path]:
        """As `Blob.path`."""
        if self._blob._path is not None:
            yield self._blob._path
            return
        with tempfile.NamedTemporaryFile(prefix="rstream-") as file:
            if self._blob._data is not None:
                file.write(self._blob._data)
                file.flush()
            else:
                held, source, reference = self._blob._held()
                held.download(source, reference, file)
            yield Path(file.name)


def _told(blob: Blob) -> Any:
    """As JSON has it: its bytes where they are here, else what is known of them."""
    if blob._reference is not None:
        return {"digest": blob.digest, "size": blob.size}
    return base64.b64encode(blob.sync.read()).decode()
