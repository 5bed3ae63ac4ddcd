"""The columns of an export: what the schemas say, and the values of an event for them. Pure.

The first three are the entry's `id`, `time` and `key`; a field of the event that has such a name is `event.<name>`. A
field that has other types in other versions of the schema gets the type that holds them all, in the end JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import reduce
from typing import Any, Literal

from rstream.compat import form, options
from rstream.errors import EntryInvalid
from rstream.event import jsonable
from rstream.reference import Reference

Name = Literal["int", "float", "bool", "text", "bytes", "datetime", "date", "decimal", "list", "struct", "json"]

OWN = ("id", "time", "key")
_TYPES: Mapping[str, Name] = {"integer": "int", "number": "float", "boolean": "bool"}
_FORMS: Mapping[str, Name] = {"bytes": "bytes", "date-time": "datetime", "date": "date"}
_ENUMS: Mapping[type, Name] = {bool: "bool", int: "int", float: "float", str: "text"}
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Kind:
    """The type of a column. item: of a list · fields: of a struct. None is a value of every kind."""

    name: Name
    item: Kind | None = None
    fields: tuple[tuple[str, Kind], ...] = ()


@dataclass(frozen=True)
class Column:
    """name: in the file · field: of the event · kind"""

    name: str
    field: str
    kind: Kind


JSON = Kind("json")

Node = Mapping[str, Any]


def columns(schemas: Iterable[Node]) -> list[Column]:
    """The event's, over all these versions of its schema."""
    kinds: dict[str, Kind] = {}
    for schema in schemas:
        kinds_of = _Kinds(schema)
        for name, field in schema.get("properties", {}).items():
            kind = kinds_of.of(field, frozenset())
            kinds[name] = merged(kinds[name], kind) if name in kinds else kind
    return [Column(f"event.{name}" if name in OWN else name, name, kind) for name, kind in kinds.items()]


class _Kinds:
    """Of what one schema has. An object within one that it may contain again has no columns of its own, but JSON."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._contained: dict[int, set[int]] = {}

    def of(self, node: Node, inside: frozenset[int]) -> Kind:
        """inside: the objects that this is a part of."""
        ways = [way for way in options(node, self._root) if way.get("type") != "null"]
        decimal = any(form(way) == "decimal" for way in ways)  # it may be written as a number, too
        kinds = [Kind("decimal")] if decimal else [self._plain(way, inside) for way in ways]
        return reduce(merged, kinds) if kinds else JSON

    def _plain(self, node: Node, inside: frozenset[int]) -> Kind:
        values = [node["const"]] if "const" in node else node.get("enum")
        if values is not None:
            kinds = {_ENUMS.get(type(value)) for value in values if value is not None}
            name = kinds.pop() if len(kinds) == 1 else None
            return Kind(name) if name else JSON
        type_, fields = node.get("type"), node.get("properties")
        if type_ == "string":
            return Kind(_FORMS.get(form(node), "text"))
        if type_ == "array" and "items" in node and "prefixItems" not in node:
            return Kind("list", item=self.of(node["items"], inside))
        if type_ == "object" and fields and not node.get("additionalProperties") and not inside & self._all_in(node):
            inside |= {id(node)}
            return Kind("struct", fields=tuple((name, self.of(field, inside)) for name, field in fields.items()))
        return Kind(_TYPES.get(str(type_), "json"))

    def _all_in(self, node: Node) -> set[int]:
        """The objects that it may contain, itself included."""
        if id(node) not in self._contained:
            found: dict[int, Node] = {}
            left = [node]
            while left:
                if id(each := left.pop()) not in found:
                    found[id(each)] = each
                    parts = [*each.get("properties", {}).values(), *filter(None, [each.get("items")])]
                    left += [way for part in parts for way in options(part, self._root)]
            self._contained[id(node)] = {*found}
        return self._contained[id(node)]


def merged(one: Kind, other: Kind) -> Kind:
    """The kind that holds the values of both."""
    if one == other:
        return one
    names = {one.name, other.name}
    if names == {"int", "float"}:
        return Kind("float")
    if names == {"struct"}:
        first, second = dict(one.fields), dict(other.fields)
        both = {**second, **first, **{name: merged(first[name], second[name]) for name in first if name in second}}
        return replace(one, fields=tuple(both.items()))
    if names == {"list"} and one.item and other.item:
        return Kind("list", item=merged(one.item, other.item))
    return JSON


def value(kind: Kind, found: Any) -> Any:
    """What stands in a typed column. Raises `ValueError` for what is not of that kind."""
    name = kind.name
    if found is None or (name == "bytes" and isinstance(found, Reference)):  # those are in the blob store
        return None
    if name == "json":
        return to_json(found)
    if name in ("datetime", "date") and isinstance(found, str):
        return _moment(found) if name == "datetime" else date.fromisoformat(found[:10])
    if name in ("float", "decimal") and type(found) in (int, float):
        return float(found) if name == "float" else str(found)
    if name == "int" and isinstance(found, float) and found.is_integer():
        found = int(found)
    if name == "list" and isinstance(found, list | tuple) and kind.item:
        return [value(kind.item, each) for each in found]
    if name == "struct" and isinstance(found, dict):
        return {field: value(inner, found.get(field)) for field, inner in kind.fields}
    plain = {"int": int, "bool": bool, "text": str, "decimal": str, "bytes": bytes}.get(name)
    if type(found) is int and name == "int" and found not in _INT64:
        raise ValueError(f"{found} does not fit into 64 bits, export as jsonl")
    if plain is None or type(found) is not plain:
        raise ValueError(f"a {type(found).__name__} where the schema has {name}")
    return found


def checked(columns: Iterable[Column], fields: Mapping[str, Any]) -> list[Any]:
    """The values of an event. Raises `EntryInvalid` naming the field."""
    row = []
    for column in columns:
        try:
            row.append(value(column.kind, fields.get(column.field)))
        except (ValueError, OverflowError) as error:
            raise EntryInvalid("invalid", f"{column.field}: {error}") from None
    return row


def to_json(found: Any) -> str:
    return json.dumps(jsonable(found), ensure_ascii=False, separators=(",", ":"))


def _moment(text: str) -> datetime:
    """In UTC; without an offset it is taken for UTC."""
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
