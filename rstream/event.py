"""What users publish (`Event`) and what they read back (`Entry`, `EntryId`). Pure: no clock but for new ids."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from rstream.errors import EntryInvalid, PositionError


class Event(BaseModel):
    """The base of everything a stream carries: a pydantic model.

    Bytes fields travel as they are; only in JSON (the CLI) are they base64.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


E = TypeVar("E")

Key = bytes | str | None
Decode = Callable[[bytes, Key], E]
"""What makes an event of a payload, and of its entry's key, to which it is bound where it is encrypted."""

MAX_PART = 2**64 - 1
_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?(?:@(\d{1,9})\.(\d{1,9}))?", re.ASCII)


class EntryId(NamedTuple):
    """Where an entry lies: `str()` is `ms-seq@generation.shard`, e.g. `1763630000000-0@1.3`.

    `ms-seq` is the Redis stream id (ms: Redis's clock at publish). It is unique within a shard; the part
    after `@` makes it unique in the stream. Ids compare in the order in which `read` merges shards.
    """

    ms: int
    seq: int
    generation: int
    shard: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}@{self.generation}.{self.shard}"

    @property
    def redis(self) -> str:
        """The id as Redis writes it, without the shard."""
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> EntryId:
        """Read `ms-seq@generation.shard`. Raises `PositionError`."""
        match = _ID.fullmatch(text)
        if match is None or None in match.groups():
            raise PositionError(f"{text!r} is not an entry id: expected ms-seq@generation.shard")
        parts = [*map(int, match.groups())]
        if max(parts) > MAX_PART:
            raise PositionError(f"{text!r} is not an entry id: its parts are at most {MAX_PART}")
        return cls(*parts)


def entry_ids(ms: int, seq: int, count: int, generation: int, shard: int) -> list[EntryId]:
    """Of `count` entries that follow each other in a shard. (A call for each would take three times as long.)"""
    return [*map(_made, zip(repeat(ms), range(seq, seq + count), repeat(generation), repeat(shard)))]


_made = partial(tuple.__new__, EntryId)


class Entry(Generic[E]):
    """One stored event, as `read` yields it. `event` is decoded when first touched.

    id: EntryId · key: str, or None where the stream has no keys · event_id: 16 bytes (UUIDv7; of an emitted one v8) ·
    headers: str -> str · payload: the encoded event, encrypted where the stream is, see docs/wire-format.md.
    """

    # Slots, and no cached_property: readings make hundreds of thousands of these.
    __slots__ = ("_decode", "_event", "event_id", "headers", "id", "key", "payload")

    def __init__(
        self,
        id: EntryId,
        payload: bytes,
        key: str | None,
        event_id: bytes,
        headers: Mapping[str, str],
        decode: Decode[E],
    ) -> None:
        self.id = id
        self.payload = payload
        self.key = key
        self.event_id = event_id
        self.headers = headers
        self._decode: Decode[E] | None = decode

    @property
    def event(self) -> E:
        """The event. Raises `EntryInvalid` where the payload is undecodable or does not fit the model."""
        if self._decode is not None:
            self._event, self._decode = self._decode(self.payload, self.key), None
        return self._event

    def spoil(self, error: EntryInvalid) -> None:
        """For rstream: have `event` raise this."""

        def decode(payload: bytes, key: Key) -> Any:
            raise error

        self._decode = decode

    def __repr__(self) -> str:
        return f"Entry(id={self.id!s}, key={self.key!r}, {len(self.payload)} bytes)"


def new_event_ids(count: int) -> list[bytes]:
    """`count` time-ordered, globally unique 16-byte ids: UUIDv7, RFC 9562 section 5.7.

    The randomness is the kernel's, so that forked processes never share ids.
    """
    stamp = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    return [stamp + end for end in _endings(count)]


def new_event_id() -> bytes:
    """One of these."""
    while True:
        try:
            ending = _spare.pop()  # atomic: no two threads get the same
        except IndexError:
            _spare.extend(_endings(SPARE))
        else:
            return (time.time_ns() // 1_000_000).to_bytes(6, "big") + ending


def _endings(count: int) -> list[bytes]:
    """All of an id but its time."""
    noise = bytearray(os.urandom(10 * count))
    noise[0::10] = noise[0::10].translate(_VERSION)
    noise[2::10] = noise[2::10].translate(_VARIANT)
    ends = bytes(noise)
    return [ends[at : at + 10] for at in range(0, 10 * count, 10)]


_VERSION = bytes(byte & 0x0F | 0x70 for byte in range(256))
_VARIANT = bytes(byte & 0x3F | 0x80 for byte in range(256))

SPARE = 512
_spare: list[bytes] = []
"""Made in advance: asking the kernel takes longer than all the rest of a lone id."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spare.clear)


def derived_event_id(source: bytes, name: str, number: int) -> bytes:
    """The id of the event that comes of another as its `number`-th, by what `name` says: always the same 16 bytes, with
    the time of the source. UUIDv8, RFC 9562 section 5.8.
    """
    digest = bytearray(hashlib.blake2b(f"{name}/{number}".encode(), digest_size=16).digest())
    if len(source) == 16:
        digest[:6] = source[:6]
    digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
    return bytes(digest)


def jsonable(value: Any) -> Any:
    """Any decoded payload as JSON can carry it, for people and scripts to read: bytes as base64, and as text the
    numbers that JSON does not have ("NaN", "Infinity").
    """
    from pydantic_core import to_json

    return json.loads(to_json(value, bytes_mode="base64", inf_nan_mode="strings", serialize_unknown=True))
