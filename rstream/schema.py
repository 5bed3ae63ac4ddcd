"""The schema that is stored of a stream, and events without their Python class: the CLI's are checked and converted
by it. Pure.

What is stored is the model's JSON Schema, and marks: `x-rstream-key` says that the key, `x-rstream-default` that a
field's default is computed in Python, so that only the model can make it; `x-rstream-unstored` that the model never
writes a field (`exclude=True`); `x-rstream-keys` is the schema of a dict's keys, unless they are any text. Validators
written in Python are not in it: they run in the consumer. Where the model's bytes fields are base64 text in JSON, the
payload carries the bytes themselves, exactly as `ModelCodec` writes them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import MISSING, SchemaError, SchemaValidator, core_schema, from_json

from rstream.codec import pack_payload, unpack_payload
from rstream.errors import ConfigError, EventInvalid
from rstream.reference import Uploads

KEY_MARK, DEFAULT_MARK = "x-rstream-key", "x-rstream-default"
UNSTORED_MARK, KEYS_MARK = "x-rstream-unstored", "x-rstream-keys"

_PLAIN_KEYS = ("str", "int", "float", "bool", "bytes", "uuid", "date", "datetime", "time", "timedelta")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_BASE64 = ("base64", "base64url")
_ENCODING = "contentEncoding"


# -- what is stored of a model


def describe(model: type[BaseModel], key: str | None) -> dict[str, Any]:
    """The schema to store of a stream of this model. Raises `ConfigError`."""
    schema = model.model_json_schema(by_alias=False, schema_generator=_Describe)
    if "$ref" in schema:  # a model that contains its own kind
        schema |= schema["$defs"][schema.pop("$ref").rpartition("/")[2]]
    _refuse_unreadable(model)
    if key is not None and key in schema.get("properties", {}) and not _is_plain(model, key):
        schema[KEY_MARK] = "python"
    return schema


class _Describe(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as pydantic has it

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        if (factory := schema.get("default_factory")) in (list, dict, set, frozenset, tuple):
            schema = {"type": "default", "schema": schema["schema"], "default": factory()}
        found = super().default_schema(schema)
        if "default" not in found and schema.get("default") is not MISSING:
            found[DEFAULT_MARK] = "python"
        return found

    def model_field_schema(self, schema: core_schema.ModelField) -> dict[str, Any]:
        found = super().model_field_schema(schema)
        return {**found, UNSTORED_MARK: True} if schema.get("serialization_exclude") else found

    def bytes_schema(self, schema: core_schema.BytesSchema) -> dict[str, Any]:
        """Tells bytes that are base64 in JSON alone from a `Base64Bytes`, which is base64 in Python too."""
        found = super().bytes_schema(schema)
        return found | ({_ENCODING: "base64"} if found["format"] in _BASE64 else {})

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        found = super().dict_schema(schema)
        keys = self.generate_inner(schema.get("keys_schema", core_schema.any_schema()))
        any_text = keys.get("type") == "string" and not {"format", "enum", "const"} & {*keys}
        return found | ({} if any_text else {KEYS_MARK: keys})

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        found = super().decimal_schema(schema)
        number, text = found["anyOf"]
        text |= {"format": "decimal"} | {name: number[name] for name in _BOUNDS if name in number}
        return found


def _is_plain(model: type[BaseModel], key: str) -> bool:
    """Whether the key is what stands in the JSON, so that the stored schema routes as the model does."""
    node: Any = model.__pydantic_core_schema__
    known = {each["ref"]: each for each in node.get("definitions", ())}

    def unwrapped(node: Any, *kinds: str) -> Any:
        while node["type"] in (*kinds, "definition-ref"):
            if any(node.get(name) for name in ("custom_init", "post_init", "default_factory")):
                break
            node = node.get("schema") or known[node["schema_ref"]]
        return node

    node = unwrapped(node, "definitions", "model")
    if node["type"] != "model-fields":  # a validator of the whole model
        return False
    node = unwrapped(node["fields"][key]["schema"], "default", "nullable")
    if node["type"] == "str":
        changes = ("to_lower", "to_upper", "strip_whitespace")
        return not any(node.get(name) or model.model_config.get(f"str_{name}") for name in changes)
    if node["type"] == "bytes":  # JSON Schema tells how they are written, not how they are read
        written, read = (model.model_config.get(f"{way}_json_bytes", "utf8") for way in ("ser", "val"))
        return written == read != "hex"
    if node["type"] in ("enum", "literal"):
        kinds = {type(getattr(each, "value", each)) for each in node.get("members") or node["expected"]}
        return kinds in ({str}, {int})
    return node["type"] in _PLAIN_KEYS


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All of a core schema, at any depth."""
    if isinstance(node, dict):
        yield node
        for name, inner in node.items():
            if not (name == "default" and node.get("type") == "default"):  # a value, not a schema
                yield from _nodes(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _nodes(inner)


def _refuse_unreadable(model: type[BaseModel]) -> None:
    """Raises `ConfigError` for what would be stored, and could never be read again."""
    nodes = [*_nodes(model.__pydantic_core_schema__)]
    for name, field in (pair for node in nodes for pair in node.items()):
        if isinstance(field, dict) and field.get("serialization_exclude") and field["schema"]["type"] != "default":
            raise ConfigError(
                f"{model.__name__}: the field {name!r} is required and has exclude=True: no event could be read again. "
                "Give it a default, or leave out exclude"
            )
    for value in (value for node in nodes if node.get("type") == "literal" for value in node["expected"]):
        if isinstance(value, Enum) and value != value.value:
            raise ConfigError(
                f"{model.__name__}: Literal[{value}] is stored as {value.value!r}, and pydantic does not read that as "
                f"{value} again: write class {type(value).__name__}({type(value.value).__name__}, Enum)"
            )


# -- events without their class


class SchemaCodec:
    """Events that are plain dicts, described by the JSON Schema of the model that was declared."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema

    @cached_property
    def _validator(self) -> Any:
        kind, formats = _checks()
        return kind(self.schema, format_checker=formats)

    @property
    def key_is_computed(self) -> bool:
        """Whether only the model can tell the key of an event."""
        return KEY_MARK in self.schema

    def encode(self, event: Mapping[str, Any], version: int, uploads: Uploads | None = None) -> bytes:
        """Raises `EventInvalid` naming the field and the remedy."""
        self._check(event)
        return pack_payload(version, self._convert(event, self.schema), uploads)

    def key(self, event: Mapping[str, Any], field: str) -> object:
        """As the model would have it: a key decides about the shard, whoever publishes. Raises `EventInvalid`."""
        if self.key_is_computed:
            raise EventInvalid(
                f"the key {field!r} is computed in Python: publish with the app that declares the stream"
            )
        schema = self.schema.get("properties", {}).get(field, {})
        value = event.get(field, schema.get("default"))
        return _canonical(value, self._pick(value, schema))

    def decode(self, payload: bytes, key: object = None) -> dict[str, Any]:
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
            place, told = [*error.absolute_path], error.message  # it quotes the value
            if error.validator == "required":
                missing = next(name for name in error.validator_value if name not in error.instance)
                place, told = [*place, missing], "is missing"
            where = ".".join(map(str, place)) or "event"
            raise EventInvalid(f"{where}: {told if len(told) < 400 else told[:200] + ' … ' + told[-200:]}")

    def _convert(self, value: Any, schema: Any) -> Any:
        """The JSON value as the payload carries it: base64 text becomes bytes, defaults are filled in."""
        schema = self._pick(value, schema)
        if isinstance(value, str) and schema.get(_ENCODING):
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


def _canonical(value: Any, schema: Mapping[str, Any]) -> Any:
    """A checked JSON value as its model holds it."""
    kind, form = schema.get("type"), schema.get("format", "")
    try:
        if kind in ("number", "integer"):
            return float(value) if kind == "number" else int(value)
        if schema.get(_ENCODING):
            return unbase64(value)
        reader = _reader(form)
        return value if reader is None else reader.validate_python(value)
    except (ValueError, TypeError, AttributeError):
        return value  # `encode` tells what is wrong with it


def unbase64(text: str) -> bytes:
    """Standard or URL-safe alphabet, padded or not. Raises `ValueError`."""
    plain = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


# -- what the keywords of JSON Schema mean to pydantic


@cache
def _checks() -> tuple[Any, Any]:
    """(validator class, format checker)."""
    from jsonschema import Draft202012Validator, FormatChecker, validators

    base = Draft202012Validator.VALIDATORS
    own = {name: _counted(base[name]) for name in ("minLength", "maxLength")}
    own |= {name: _bounded(base[name]) for name in _BOUNDS}
    own |= {"pattern": _pattern, "patternProperties": _pattern_properties, "contentMediaType": _content}
    own |= {"properties": _properties(base["properties"])}
    formats = FormatChecker(formats=())
    for name in _formats():
        formats.checks(name, raises=ValueError)(lambda value, name=name: _is_readable(value, name))
    for name in _BASE64:
        formats.checks(name, raises=ValueError)(lambda v: not isinstance(v, str) or unbase64(v) is not None)
    return validators.extend(Draft202012Validator, own), formats


@cache
def _formats() -> dict[str, Any]:
    """The formats that pydantic writes, and what it reads them as. A path may be any text."""
    import datetime
    import fractions
    import ipaddress
    import re
    import uuid
    import zoneinfo

    import pydantic
    from pydantic_core import MultiHostUrl

    found: dict[str, Any] = {
        **{
            "date-time": datetime.datetime,
            "date": datetime.date,
            "time": datetime.time,
            "duration": datetime.timedelta,
        },
        **{f"uuid{n}": getattr(pydantic, f"UUID{n}") for n in (1, 3, 4, 5, 6, 7, 8)},
        **{"uuid": uuid.UUID, "decimal": Decimal, "fraction": fractions.Fraction, "zoneinfo": zoneinfo.ZoneInfo},
        **{"uri": pydantic.AnyUrl, "multi-host-uri": MultiHostUrl, "regex": re.Pattern, "json-string": pydantic.Json},
        **{"email": pydantic.EmailStr, "name-email": pydantic.NameEmail},
    }
    for what in ("Address", "Network", "Interface"):
        found[f"ipvany{what.lower()}"] = getattr(pydantic, f"IPvAny{what}")
        for number in (4, 6):
            name = f"ipv{number}" + ("" if what == "Address" else what.lower())
            found[name] = getattr(ipaddress, f"IPv{number}{what}")
    return found


@cache
def _reader(form: str) -> Any | None:
    """What reads this format; None for one that is not checked."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(_formats()[form])
    except (KeyError, ImportError):  # mail addresses need a package that is not always there
        return None


def _is_readable(value: Any, form: str) -> bool:
    """Raises `ValueError` unless it is."""
    if isinstance(value, str) and (reader := _reader(form)):
        reader.validate_python(value)
    return True


def _counted(check: Any) -> Any:
    """pydantic counts the bytes of a bytes field, not the letters of their base64."""

    def checked(validator: Any, limit: int, value: Any, schema: Any) -> Any:
        if isinstance(value, str) and schema.get(_ENCODING):
            with contextlib.suppress(ValueError):
                value = unbase64(value).decode("latin-1")
        return check(validator, limit, value, schema)

    return checked


def _bounded(check: Any) -> Any:
    """The bounds of a decimal hold also where it is text."""

    def checked(validator: Any, limit: float, value: Any, schema: Any) -> Any:
        if isinstance(value, str) and schema.get("format") == "decimal":
            with contextlib.suppress(ArithmeticError):
                number = Decimal(value)
                value = number if number.is_finite() else value  # the format refuses others
        return check(validator, limit, value, schema)

    return checked


@cache
def _matcher(pattern: str) -> Any:
    """str -> bool, by the rules of pydantic's regular expressions; Python's where the model must use those."""
    import re

    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern)).isinstance_python
    except SchemaError:
        return re.compile(pattern).search


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(value, str) and not _matcher(pattern)(value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:
    """The names of a dict whose keys have a pattern: pydantic refuses others."""
    from jsonschema import ValidationError

    for name, inner in value.items() if isinstance(value, Mapping) else ():
        fitting = [pattern for pattern in patterns if _matcher(pattern)(name)]
        if not fitting:
            yield ValidationError(f"the name {name!r} does not match {' or '.join(map(repr, patterns))}")
        for pattern in fitting:
            yield from validator.descend(inner, patterns[pattern], path=name, schema_path=pattern)


def _content(validator: Any, kind: str, value: Any, schema: Any) -> Iterator[Any]:
    """Text that is JSON, and what it must hold."""
    from jsonschema import ValidationError

    if isinstance(value, str) and kind == "application/json":
        try:
            inner = from_json(value)
        except ValueError as error:
            yield ValidationError(f"is not JSON text: {error}")
        else:
            yield from validator.descend(inner, schema.get("contentSchema", {}))


def _properties(check: Any) -> Any:
    """A value that only the model can make would be another on each attempt, made when it is read."""
    from jsonschema import ValidationError

    def checked(validator: Any, fields: Any, value: Any, schema: Any) -> Iterator[Any]:
        yield from check(validator, fields, value, schema)
        for name, field in fields.items() if isinstance(value, Mapping) else ():
            if name not in value and DEFAULT_MARK in field:
                yield ValidationError("its default is made in Python: give it, or --app MODULE:APP", path=[name])

    return checked
