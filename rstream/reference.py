"""How an entry refers to what is kept in a blob store instead of in Redis. Pure.

A reference is a msgpack extension in the payload: 3 bytes of head, then digest, size and day. So it can be found in raw
bytes, without decoding them; docs/wire-format.md has it for other languages.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgpack

from rstream.errors import EntryInvalid, EventTooLarge

LARGEST = 256 * 1024 * 1024
"""Bytes of an encoded event, which is in memory as a whole. A `Blob` in it may be of any size."""

CODE = 66
_SIZE = 32 + 8 + 4
WHOLE = b"\x93"
"""The first byte of a payload that is a reference; one that is not is an array of two, which begins otherwise."""


SEALED = b"\x94"
"""The first byte of a payload that is encrypted: an array of four. See rstream/crypto.py."""


@dataclass(frozen=True, slots=True)
class Reference:
    """digest: SHA-256, hex · size: bytes · day: on which it was stored, UTC, as the number YYYYMMDD."""

    digest: str
    size: int
    day: int

    @property
    def name(self) -> str:
        """Of the blob, below the prefix of its stream."""
        return f"{self.day:08d}/{self.digest}"

    @classmethod
    def of(cls, data: bytes, day: int) -> Reference:
        return cls(hashlib.sha256(data).hexdigest(), len(data), day)

    @property
    def packed(self) -> msgpack.ExtType:
        return msgpack.ExtType(CODE, bytes.fromhex(self.digest) + self.size.to_bytes(8, "big") + self.day.to_bytes(4))


class Source(NamedTuple):
    """Where a stream keeps its blobs. url: of the store · prefix: of their names."""

    url: str
    prefix: str

    def key(self, reference: Reference) -> str:
        return self.prefix + reference.name


SOURCE: ContextVar[Source | None] = ContextVar("rstream_blobs", default=None)
"""Of what is being decoded."""


class Media(Protocol):
    """A value of an event that may be kept in a blob store."""

    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def rstream_unread(self) -> bool:
        """Whether the digest has to be made of a file first."""

    @property
    def rstream_stored(self) -> bool:
        """Whether its bytes are in a blob store, and would have to be fetched."""

    def rstream_inline(self) -> bytes:
        """Its bytes, for an entry that holds them itself."""


@dataclass
class Uploads:
    """What has to be in the blob store before the entries of a publish are appended.

    day: today · threshold: bytes above which something is kept there · waiting: what, by reference · unread: files
    that have to be read before there is a reference to them; the events are then encoded anew · at_once: they are read
    where they are met, instead · whole: nothing is kept there but payloads as a whole: those are encrypted, and what is
    in them with them · held: the bytes of what was read for one of these, by `id`.
    """

    day: int
    threshold: int
    at_once: bool = True
    waiting: dict[Reference, bytes | Media] = field(default_factory=dict)
    unread: list[Media] = field(default_factory=list)
    whole: bool = False
    held: dict[int, bytes] = field(default_factory=dict)
    _of_event: list[Reference] = field(default_factory=list)

    def media(self, value: Media) -> bytes | msgpack.ExtType:
        """A value as the payload has it. Raises `EventTooLarge`."""
        if self.whole:
            return self._inside(value)
        if value.size <= self.threshold and not value.rstream_stored:
            return value.rstream_inline()
        if value.rstream_unread and not self.at_once:
            self.unread.append(value)
            return b""
        reference = Reference(value.digest, value.size, self.day)
        self.waiting[reference] = value
        self._of_event.append(reference)
        return reference.packed

    def _inside(self, value: Media) -> bytes:
        if value.size > LARGEST:
            raise EventTooLarge(
                f"a Blob has {value.size:,} bytes, and in an encrypted stream it is encrypted with its event, as a "
                f"whole: at most {LARGEST:,}. Encrypt larger ones yourself, and publish what refers to them"
            )
        if (held := self.held.get(id(value))) is not None:
            return held
        if not self.at_once and (value.rstream_unread or value.rstream_stored):
            self.unread.append(value)
            return b""
        return value.rstream_inline()

    def look(self, value: Media) -> None:
        """Read what is `unread`. Blocks; raises what reading a file may, and `BlobError`s."""
        if self.whole:
            self.held[id(value)] = value.rstream_inline()
        else:
            value.digest  # noqa: B018 - it is remembered

    def payload(self, payload: bytes, version: int) -> bytes:
        """An encoded event as its entry has it. What it refers to is told in the entry, too."""
        inner, self._of_event = self._of_event, []
        if len(payload) <= self.threshold:
            return payload
        reference = Reference.of(payload, self.day)
        self.waiting[reference] = payload
        packed = msgpack.packb([version, reference.packed, [each.packed for each in inner]])
        return packed  # type: ignore[no-any-return]


def unpack_ext(code: int, data: bytes) -> Any:
    """For msgpack: what an extension stands for."""
    return unpacked(data) if code == CODE and len(data) == _SIZE else msgpack.ExtType(code, data)


def unpacked(data: bytes) -> Reference:
    """From the 44 bytes of it."""
    return Reference(data[:32].hex(), int.from_bytes(data[32:40], "big"), int.from_bytes(data[40:], "big"))


def whole(payload: bytes) -> Reference | None:
    """What the payload as a whole refers to, if it does. Raises `EntryInvalid` for what only begins like that."""
    if payload[:1] != WHOLE:
        return None
    try:
        _, reference, _ = msgpack.unpackb(payload, ext_hook=unpack_ext)
    except Exception as error:
        raise EntryInvalid("undecodable", f"the payload is a broken reference: {type(error).__name__}") from None
    if not isinstance(reference, Reference):
        raise EntryInvalid("undecodable", "the payload is an array of three, but no reference to a blob")
    if reference.size > LARGEST:
        raise EntryInvalid(
            "undecodable", f"the payload is said to have {reference.size:,} bytes, at most {LARGEST:,} are"
        )
    return reference
