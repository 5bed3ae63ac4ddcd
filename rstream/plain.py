"""Models whose fields all hold plain values: there pydantic has nothing to do when an event is encoded. Pure.

pydantic's serializer copies the fields and checks that they still have their types (an instance may have been changed,
or made without validation). Where nothing else can come of it, the same check is made here by a comparison of types,
and the fields are encoded from where they lie: to the same bytes, in less than half of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import repeat
from operator import itemgetter
from types import NoneType
from typing import Any

_TYPES: Mapping[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "bytes": bytes, "none": NoneType}
_WRAPPED = {"default", "function-before", "function-after", "function-wrap"}
"""Kinds of pydantic-core schemas that say nothing about how a value is written, unless they have a serializer."""

SHAPES = 256
"""Of so many combinations of types it is remembered that they fit; each optional field doubles them."""


class Plain:
    """What values the fields of a model may have. fields: name -> types, of one of which its value has to be."""

    def __init__(self, fields: Mapping[str, frozenset[type]]) -> None:
        self._names, self._allowed = (*fields,), (*fields.values(),)
        self._values = itemgetter(*fields) if len(fields) > 1 else partial(_values, self._names)
        self._known: set[tuple[type, ...]] = set()

    @classmethod
    def of(cls, model: type[Any]) -> Plain | None:
        """None for a model whose events pydantic has to write."""
        schema = _unwrapped(getattr(model, "__pydantic_core_schema__", None))
        if schema is None or schema.get("type") != "model" or schema.get("root_model"):
            return None
        inner = _unwrapped(schema.get("schema"))
        if inner is None or inner.get("type") != "model-fields" or model.model_config.get("extra") == "allow":
            return None
        fields = {name: _types(field) for name, field in inner["fields"].items()}
        return cls({name: types for name, types in fields.items() if types}) if all(fields.values()) else None

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether they are those of an instance that validation could have made, as far as its serializer looks."""
        if len(values) != len(self._names):  # some are not there, or something was cached beside them
            return False
        try:
            types = tuple(map(type, self._values(values)))
        except KeyError:
            return False
        return types in self._known or self._learned(types)

    def all_fit(self, several: Sequence[dict[str, Any]]) -> bool:
        """The same of many."""
        if set(map(len, several)) - {len(self._names)}:
            return False
        try:
            types = set(map(tuple, map(map, repeat(type), map(self._values, several))))
        except KeyError:
            return False
        return all(each in self._known or self._learned(each) for each in types)

    def _learned(self, types: tuple[type, ...]) -> bool:
        if len(types) != len(self._allowed) or not all(map(frozenset.__contains__, self._allowed, types)):
            return False
        if len(self._known) < SHAPES:
            self._known.add(types)
        return True


def _values(names: Sequence[str], of: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an `itemgetter` of several names gives, for any number of them."""
    return tuple([of[name] for name in names])


def _unwrapped(schema: Any) -> Mapping[str, Any] | None:
    """None where it has a serializer, or is not there (yet)."""
    while isinstance(schema, Mapping) and "serialization" not in schema:
        if schema.get("type") not in _WRAPPED:
            return schema
        schema = schema.get("schema")
    return None


def _types(field: Mapping[str, Any]) -> frozenset[type]:
    """Of a field's values; empty where not all of them are plain."""
    if field.get("serialization_exclude") or "serialization_exclude_if" in field:
        return frozenset()
    return _plain(field.get("schema"))


def _plain(schema: Any) -> frozenset[type]:
    found = _unwrapped(schema)
    if found is None:
        return frozenset()
    if found["type"] == "nullable":
        inner = _plain(found["schema"])
        return inner | {NoneType} if inner else inner
    return frozenset({_TYPES[found["type"]]} if found["type"] in _TYPES else ())
