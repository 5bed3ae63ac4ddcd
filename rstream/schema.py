"""Events without their Python class: a stored JSON Schema checks and converts what the CLI is given. Pure.

Where the model's bytes fields are base64 text in JSON, the payload carries the bytes themselves, exactly
as `ModelCodec` writes them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from rstream.codec import pack_payload, unpack_payload
from rstream.errors import EventInvalid

_FORMATS = {"date-time": "datetime", "date": "date", "time": "time", "duration": "timedelta"}


class SchemaCodec:
    """Events that are plain dicts, described by the JSON Schema of the model that was declared."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator, validators

        lengths = {name: _length(name, Draft202012Validator) for name in ("minLength", "maxLength")}
        kind = validators.extend(Draft202012Validator, lengths)
        return kind(self.schema, format_checker=_format_checker())

    def encode(self, event: Mapping[str, Any], version: int) -> bytes:
        """Raises `EventInvalid` naming the field and the remedy."""
        self._check(event)
        return pack_payload(version, self._convert(event, self.schema))

    def key(self, event: Mapping[str, Any], field: str) -> object:
        """As the model would have it: a key decides about the shard, whoever publishes."""
        schema = self.schema.get("properties", {}).get(field, {})
        value = event.get(field, schema.get("default"))
        return _canonical(value, self._pick(value, schema))

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The fields as stored. Raises `EntryInvalid` where they cannot be unpacked."""
        return unpack_payload(payload)[1]

    def _check(self, event: object) -> None:
        if not isinstance(event, Mapping):
            raise EventInvalid(f"an event is a JSON object, not a {type(event).__name__}")
        known = self.schema.get("properties", {})
        unknown = [name for name in event if name not in known]
        if unknown and not self.schema.get("additionalProperties", False):
            raise EventInvalid(f"unknown field {unknown[0]!r}: the stream's fields are {', '.join(known)}")
        from jsonschema.exceptions import best_match

        error = best_match(self._validator.iter_errors(event))
        if error is not None:
            where = ".".join(map(str, error.absolute_path)) or "event"
            told = error.message  # it quotes the value
            raise EventInvalid(f"{where}: {told if len(told) < 400 else told[:200] + ' … ' + told[-200:]}")

    def _convert(self, value: Any, schema: Any) -> Any:
        """The JSON value as the payload carries it: base64 text becomes bytes, defaults are filled in."""
        schema = self._pick(value, schema)
        if isinstance(value, str) and schema.get("format") in ("base64", "base64url"):
            return unbase64(value)
        if isinstance(value, Mapping):
            fields = schema.get("properties", {})
            rest = schema.get("additionalProperties", {})
            defaults = {n: s["default"] for n, s in fields.items() if "default" in s and n not in value}
            return {n: self._convert(v, fields.get(n, rest)) for n, v in {**value, **defaults}.items()}
        if isinstance(value, list):
            heads = schema.get("prefixItems", [])
            rest = schema.get("items", {})
            return [self._convert(v, heads[n] if n < len(heads) else rest) for n, v in enumerate(value)]
        return value

    def _pick(self, value: Any, schema: Any) -> Any:
        """The plain subschema that holds for this value: references followed, unions decided."""
        if not isinstance(schema, Mapping):
            return {}
        while reference := schema.get("$ref"):
            schema = self.schema.get("$defs", {}).get(reference.rpartition("/")[2], {})
        for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
            if self._validator.evolve(schema={**option, "$defs": self.schema.get("$defs", {})}).is_valid(value):
                return self._pick(value, option)
        return schema


def _length(name: str, base: Any) -> Any:
    """pydantic counts the bytes of a bytes field, not the letters of their base64."""
    check = base.VALIDATORS[name]

    def checked(validator: Any, limit: int, value: Any, schema: Any) -> Any:
        if isinstance(value, str) and schema.get("format") in ("base64", "base64url"):
            with contextlib.suppress(ValueError):
                value = unbase64(value).decode("latin-1")
        return check(validator, limit, value, schema)

    return checked


def _canonical(value: Any, schema: Mapping[str, Any]) -> Any:
    """A checked JSON value as its model holds it."""
    import datetime
    import uuid

    from pydantic import TypeAdapter

    kind, form = schema.get("type"), schema.get("format")
    try:
        if kind in ("number", "integer"):
            return float(value) if kind == "number" else int(value)
        if form in ("base64", "base64url"):
            return unbase64(value)
        if form in _FORMATS:
            return TypeAdapter(getattr(datetime, _FORMATS[form])).validate_python(value)
        return uuid.UUID(value) if form == "uuid" else value
    except (ValueError, TypeError, AttributeError):
        return value  # `encode` tells what is wrong with it


def unbase64(text: str) -> bytes:
    """Standard or URL-safe alphabet, padded or not. Raises `ValueError`."""
    plain = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _format_checker() -> Any:
    """The formats that pydantic writes, checked as pydantic reads them."""
    import datetime
    import uuid

    from jsonschema import FormatChecker
    from pydantic import TypeAdapter

    checker = FormatChecker(formats=())
    for name, kind in _FORMATS.items():
        adapter: TypeAdapter[Any] = TypeAdapter(getattr(datetime, kind))
        checker.checks(name, raises=ValueError)(
            lambda v, a=adapter: not isinstance(v, str) or bool(a.validate_python(v) or 1)
        )
    checker.checks("uuid", raises=ValueError)(lambda v: not isinstance(v, str) or bool(uuid.UUID(v)))
    for name in ("base64", "base64url"):
        checker.checks(name, raises=ValueError)(lambda v: not isinstance(v, str) or unbase64(v) is not None)
    return checker
