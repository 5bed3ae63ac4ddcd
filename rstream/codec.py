"""Bytes <-> event. Pure.

The payload is a msgpack array `[schema version, {field name: value}]`; what msgpack lacks (datetimes,
decimals, UUIDs, sets, enums) travels as its JSON form, and pydantic turns it back. See docs/wire-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache, partial
from typing import Any, Generic, Protocol, TypeVar, cast

import msgpack
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from rstream.errors import EntryInvalid, EventError, EventInvalid, EventTooLarge, KeyMissing, Undecryptable
from rstream.event import Key
from rstream.plain import Plain
from rstream.reference import SEALED, Reference, Uploads, unpack_ext
from rstream.upgrades import Upgrades

E = TypeVar("E")
M = TypeVar("M", bound=BaseModel)

BUFFER = 4096
"""Bytes that are set aside to encode an event; it grows."""

_packer = msgpack.Packer
_VALUE = re.compile(r"input_value=.*?, (?=input_type=)")  # values may be private


class Codec(Protocol[E]):
    """What a stream needs to know about its events."""

    def encode(self, event: E | Mapping[str, Any], version: int, uploads: Uploads | None = None) -> bytes:
        """The payload. `uploads` takes what goes to the blob store. Raises `EventInvalid`."""

    def decode(self, payload: bytes, key: Key = None) -> E:
        """The event. Raises `EntryInvalid`. key: of no use here; see `Decode`."""

    def key(self, event: E | Mapping[str, Any], field: str) -> object:
        """The value of the key field, or None."""


class ModelCodec(Generic[M]):
    """Events that are instances of one pydantic model. upgrades: how payloads of older versions become readable."""

    def __init__(self, model: type[M], upgrades: Upgrades | None = None) -> None:
        self.model, self.upgrades = model, Upgrades() if upgrades is None else upgrades
        self._dump = model.__pydantic_serializer__.to_python
        self._load = model.__pydantic_validator__.validate_python
        self._plain = Plain.of(model)
        # One for all of them: it never calls back, so no other thread comes in between.
        self._pack = _packer(buf_size=BUFFER).pack

    def encode(self, event: M | Mapping[str, Any], version: int, uploads: Uploads | None = None) -> bytes:
        """Raises `EventInvalid`."""
        if type(event) is self.model and self._plain is not None and self._plain.fits(event.__dict__):
            try:
                return _head(version) + self._pack(event.__dict__)  # type: ignore[no-any-return]
            except Exception:  # text that is none, a number of more than 64 bits
                return self._encode_any(event, version, uploads)
        return self._encode_any(event, version, uploads)

    def encode_all(self, events: Sequence[object], version: int) -> list[bytes] | None:
        """The payload of each, where all are of the model, and plain. None: encode them one by one."""
        if self._plain is None or set(map(type, events)) != {self.model}:
            return None
        fields = [event.__dict__ for event in events]
        if not self._plain.all_fit(fields):
            return None
        try:
            return [*map(_head(version).__add__, map(_packer(buf_size=BUFFER).pack, fields))]
        except Exception:
            return None

    def _encode_any(self, event: M | Mapping[str, Any], version: int, uploads: Uploads | None) -> bytes:
        if not isinstance(event, self.model):
            event = self._validate(event)
        try:
            # round_trip: what validation will accept again (no computed fields, Json stays text)
            # warnings: an instance that was changed or constructed without validation could not be read again
            fields = self._dump(event, round_trip=True, by_alias=False, warnings="error")
            return pack_payload(version, fields, uploads)
        except EventError:
            raise
        except PydanticSerializationError as error:
            told = _VALUE.sub("", " ".join(str(error).split()))
            raise EventInvalid(f"{self.model.__name__} cannot be encoded: {told}") from None
        except Exception as error:
            raise EventInvalid(f"{self.model.__name__} cannot be encoded: {error}") from error

    def _validate(self, event: object) -> M:
        if not isinstance(event, Mapping):
            raise EventInvalid(f"expected a {self.model.__name__}, got a {type(event).__name__}")
        try:
            return self.model.model_validate(dict(event), by_alias=True, by_name=True)
        except ValidationError as error:
            raise EventInvalid(f"{self.model.__name__}: {explain(error)}") from None
        except Exception as error:  # a validator of the user's that raised something else
            raise EventInvalid(f"{self.model.__name__}: {type(error).__name__}: {error}") from error

    def key(self, event: M | Mapping[str, Any], field: str) -> object:
        # A dict is validated first: it must get the key, and so the shard, that its model would get.
        if type(event) is not self.model and not isinstance(event, self.model):
            event = self._validate(event)
        return getattr(event, field, None)

    def decode(self, payload: bytes, key: Key = None) -> M:
        """Raises `EntryInvalid`."""
        version, fields = unpack_payload(payload)
        if self.upgrades:
            fields = self.upgrades.apply(version, fields)
        try:
            return self._load(fields, strict=False, by_name=True, by_alias=False)  # type: ignore[no-any-return]
        except ValidationError as error:
            told = explain(error) + self.upgrades.note(version)
            raise EntryInvalid("invalid", f"{self.model.__name__}: {told}") from None
        except Exception as error:  # a validator of the user's that raised something else
            raise EntryInvalid("invalid", f"{self.model.__name__}: {type(error).__name__}: {error}") from error


@cache
def _head(version: int) -> bytes:
    """How a payload begins: an array of two, of which this is the first. (Packing an array takes longer.)"""
    return b"\x92" + msgpack.packb(version)  # type: ignore[no-any-return]


def pack_payload(version: int, fields: Mapping[str, Any], uploads: Uploads | None = None) -> bytes:
    """Raises `EventInvalid` for what neither msgpack nor JSON can carry."""
    if not isinstance(fields, Mapping):
        raise EventInvalid(f"an event is encoded from named fields, not from a {type(fields).__name__}")
    other = _inlined if uploads is None else partial(_jsonable, uploads=uploads)
    try:
        # buf_size: a packer of msgpack's begins with 256 KiB, which the system maps, clears and takes back each time
        return _packer(default=other, buf_size=BUFFER).pack([version, fields])  # type: ignore[no-any-return]
    except EventTooLarge:
        raise
    except Exception as error:
        raise EventInvalid(f"the event cannot be encoded: {error}") from error


def _inlined(value: object) -> object:
    return _jsonable(value, None)


def _jsonable(value: object, uploads: Uploads | None) -> object:
    if hasattr(value, "rstream_inline"):
        media: Any = value
        return media.rstream_inline() if uploads is None else uploads.media(media)
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "get_secret_value"):
        raise TypeError("a secret would be stored as asterisks: reveal it with a field_serializer, or leave it out")
    return to_jsonable_python(value)


def unpack_payload(payload: bytes) -> tuple[int, dict[str, Any]]:
    """(schema version, fields). Raises `EntryInvalid`."""
    try:
        try:
            version, fields, *rest = msgpack.unpackb(payload, strict_map_key=False, ext_hook=unpack_ext)
        except TypeError:  # a key that is a tuple
            version, fields, *rest = msgpack.unpackb(payload, strict_map_key=False, use_list=False, ext_hook=unpack_ext)
    except Exception as error:
        raise EntryInvalid(
            "undecodable", f"the payload is not msgpack [version, fields]: {type(error).__name__}: {error}"
        ) from None
    if isinstance(fields, Reference):
        raise EntryInvalid(
            "undecodable",
            "the payload is kept in a blob store, and this app has none: give RStream(blobs=…) or RSTREAM_BLOBS the "
            "store that its publisher has",
        )
    if payload[:1] == SEALED and isinstance(fields, str):
        raise Undecryptable(
            f"the payload is encrypted with key {fields[:32]!r}, and there are no keys here: give the stream, or its "
            "app, encrypt=Keyring(…), and the command line RSTREAM_KEYS"
        )
    if rest or not isinstance(version, int) or not isinstance(fields, dict):
        raise EntryInvalid("undecodable", "the payload is not msgpack [version, fields]")
    return version, fields


def pack_headers(headers: Mapping[str, str] | None) -> bytes:
    """b"" for none. Raises `EventInvalid` unless every name and value is a string."""
    if not headers:
        return b""
    if not all(isinstance(name, str) and isinstance(value, str) for name, value in headers.items()):
        raise EventInvalid("headers must map strings to strings")
    try:
        return msgpack.packb(dict(headers))  # type: ignore[no-any-return]
    except UnicodeEncodeError as error:
        raise EventInvalid(f"the headers are not valid text: {error.reason}") from None


def unpack_headers(packed: bytes | None) -> dict[str, str]:
    """Raises `EntryInvalid`."""
    if not packed:
        return {}
    try:
        headers = msgpack.unpackb(packed)
    except Exception as error:
        raise EntryInvalid("undecodable", f"the headers are not msgpack: {error}") from None
    if not isinstance(headers, dict) or not all(isinstance(part, str) for pair in headers.items() for part in pair):
        raise EntryInvalid("undecodable", "the headers do not map strings to strings")
    return headers


def key_text(value: object, field: str) -> str:
    """The key as it is hashed and stored. Raises `KeyMissing` for None and what is empty or no text."""
    try:
        # str.__str__: a str enum counts by its value, not its name
        plain = str.__str__(value) if isinstance(value, str) else to_jsonable_python(value)
        text = "" if plain is None else str(plain)
        text.encode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise KeyMissing(f"the key {field!r} is not valid text: {error.reason}") from None
    except Exception as error:
        raise KeyMissing(f"the key {field!r} cannot be written as text: {error}") from None
    if not text:
        raise KeyMissing(f"the event has no {field!r}, which is the key of this stream: set it")
    return text


def key_bytes(value: object, field: str) -> bytes:
    """The same, encoded."""
    if type(value) is str and value.isascii() and value:  # then nothing can be wrong with it
        return value.encode()
    return key_text(value, field).encode()


def key_bytes_of_all(values: Sequence[object]) -> list[bytes] | None:
    """The same of many; None where not all are text: look at them one by one."""
    if set(map(type, values)) != {str}:
        return None
    try:
        found = [*map(str.encode, cast("Sequence[str]", values))]
    except UnicodeEncodeError:
        return None
    return found if all(found) else None


def explain(error: ValidationError) -> str:
    """pydantic's complaint in one line, without the values (they may be private)."""
    found = error.errors(include_url=False, include_input=False)
    shown = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'event'}: {item['msg']}" for item in found[:3])
    shown = " ".join(shown.split())  # names and messages may have line breaks in them
    return shown + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")
