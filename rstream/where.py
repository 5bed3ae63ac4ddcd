"""Filters on the fields of events, as a command line gives them: `field=value`. Pure.

They look at the payload as it is stored, so no model is needed: text, numbers, true, false and null are compared as
what they are; datetimes, decimals, UUIDs and enums as the text that they are stored as, bytes as base64. `a.b=c` looks
into a field that is an object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rstream.errors import ConfigError
from rstream.schema import unbase64

_MISSING = object()


class Condition(NamedTuple):
    """path: of the field · value: what it has to be, as text."""

    path: tuple[str, ...]
    value: str

    def holds(self, fields: Mapping[str, Any]) -> bool:
        found: Any = fields
        for name in self.path:
            found = found.get(name, _MISSING) if isinstance(found, Mapping) else _MISSING
        return _same(found, self.value)


def where(conditions: Iterable[str], known: Iterable[str] | None = None) -> Callable[[Mapping[str, Any]], bool]:
    """A test for the fields of an event: all conditions must hold. known: the names that fields have, where that is
    known. Raises `ConfigError`.
    """
    parsed = [parse(text) for text in conditions]
    names = None if known is None else list(known)
    for condition in parsed:
        if names is not None and condition.path[0] not in names:
            raise ConfigError(f"--where: events have no field {condition.path[0]!r}: they have {', '.join(names)}")
    return lambda fields: all(condition.holds(fields) for condition in parsed)


def parse(text: str) -> Condition:
    """Raises `ConfigError`."""
    path, equals, value = text.partition("=")
    names = tuple(path.strip().split("."))
    if not (equals and all(names)):
        raise ConfigError(f"--where {text!r} is no condition: write field=value, or field.inner=value")
    return Condition(names, value)


def _same(found: Any, value: str) -> bool:
    if isinstance(found, str):
        return found == value
    if isinstance(found, bool) or found is None:
        return json.dumps(found) == value
    if isinstance(found, int | float):
        return _number(value) == found
    if isinstance(found, bytes):
        return _bytes(value) == found
    return found is not _MISSING and _json(value) == found


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _bytes(text: str) -> bytes | None:
    try:
        return unbase64(text)
    except ValueError:
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return _MISSING
