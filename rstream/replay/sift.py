"""Which entries of a page a replay is about: those of which all conditions hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rstream.blobs.claims import Claims
from rstream.errors import EntryInvalid
from rstream.event import Entry, EntryId
from rstream.store.layout import Layout
from rstream.store.replays import Outcome
from rstream.where import where


class Sifted(NamedTuple):
    """matching: those to go on with · others: what has become of the rest · invalid: why some cannot be judged."""

    matching: Sequence[Entry[Any]]
    others: Mapping[EntryId, Outcome]
    invalid: Sequence[tuple[EntryId, EntryInvalid]] = ()


class Sift:
    """Conditions on the fields as they are stored. Raises `ConfigError` for what is none."""

    def __init__(self, claims: Claims, conditions: Sequence[str]) -> None:
        self._claims, self._conditions = claims, conditions
        self._holds: Callable[[Mapping[str, Any]], bool] = where(conditions)

    def check(self, layout: Layout) -> None:
        """Raises `ConfigError` for a field that no version of the events has."""
        schemas = [*layout.schemas.values(), *([layout.schema] if layout.schema else [])]
        if self._conditions and schemas and not any(schema.get("additionalProperties") for schema in schemas):
            names = dict.fromkeys(name for schema in schemas for name in schema.get("properties", {}))
            self._holds = where(self._conditions, names)

    async def sift(self, entries: Sequence[Entry[Any]], stop: asyncio.Event) -> Sifted:
        """Of large payloads that are in the blob store, those that are looked at are fetched. Told to stop while that
        is away, it leaves the rest out of both.
        """
        if not self._conditions:
            return Sifted(entries, {})
        matching: list[Entry[Any]] = []
        others: dict[EntryId, Outcome] = {}
        invalid: list[tuple[EntryId, EntryInvalid]] = []
        if not await self._claims.open_all(entries, stop):
            return Sifted([], {})
        for entry in entries:
            try:
                if self._holds(self._claims.fields(entry)):
                    matching.append(entry)
                else:
                    others[entry.id] = "skipped"
            except EntryInvalid as error:
                others[entry.id] = "invalid"
                invalid.append((entry.id, error))
        return Sifted(matching, others, invalid)
