"""The hooks that turn payloads of older schema versions into what the model reads, in a chain. Pure.

A hook is known by the version it takes, or by the digest of that version's schema, which is the same on every Redis.
A payload of version v goes through the hooks of v and of all later versions before the model's own, in their order.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from rstream.compat import differences, digest
from rstream.errors import ConfigError, EntryInvalid, one_line

Hook = Callable[[dict[str, Any]], dict[str, Any]]
Schemas = Mapping[int, Mapping[str, Any]]
"""By their versions."""


class Upgrades:
    """The hooks of one stream's model. stream: its name · schema: the model's."""

    def __init__(self, stream: str = "", schema: Mapping[str, Any] | None = None) -> None:
        self.stream, self._digest = stream, digest(schema or {})
        self._declared: dict[int | str, Hook] = {}
        self._hooks: dict[int, Hook] = {}
        self._meant: dict[int | str, str] = {}
        self._own: int | None = None

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def add(self, old: int | str, hook: Hook) -> None:
        """Raises `ConfigError`."""
        where = f"stream {self.stream!r}: upgrade({old!r})"
        number = isinstance(old, int) and not isinstance(old, bool) and old > 0
        if not (number or (isinstance(old, str) and re.fullmatch("[0-9a-f]{16}", old))):
            raise ConfigError(
                f"{where} names no version: give its number or its digest, as `rstream schema show` tells them"
            )
        if self._own is not None:
            raise ConfigError(f"{where} comes too late, the stream is in use: declare it beside the stream")
        if old in self._declared:
            raise ConfigError(f"{where} is declared already: one hook a version")
        if inspect.iscoroutinefunction(hook):
            raise ConfigError(f"{where} is async: an upgrade is a plain function from a dict to a dict")
        self._declared[old] = hook

    def settle(self, stream: str, stored: Schemas) -> None:
        """Learn the numbers of the versions that are stored of this stream. (Those of another mean nothing here.) Where
        they are others than before, for Redis lost the old ones, the hooks stay with the versions they were meant for.
        """
        numbers = {digest(schema): version for version, schema in stored.items()} if stream == self.stream else {}
        self._own = numbers.get(self._digest, max(stored, default=0) + 1)
        self._hooks = {}
        for old, hook in self._declared.items() if numbers else ():
            if isinstance(old, int) and old in stored:
                self._meant.setdefault(old, digest(stored[old]))
            meant = self._meant.get(old, old)
            number = meant if isinstance(meant, int) else numbers.get(meant)
            if number is not None:
                self._hooks[number] = hook

    def unsettle(self) -> None:
        """Hooks may be added again: the stream was not declared."""
        self._own = None

    def apply(self, version: int, fields: dict[str, Any]) -> dict[str, Any]:
        """What the model reads. Raises `EntryInvalid`."""
        for number in self._chain(version):
            try:
                fields = self._hooks[number](fields)
            except Exception as error:
                raise EntryInvalid("outdated", f"the upgrade of version {number} failed: {one_line(error)}") from error
            if not isinstance(fields, dict):
                kind = type(fields).__name__
                raise EntryInvalid("outdated", f"the upgrade of version {number} returned a {kind}, not a dict")
        return fields

    def covers(self, version: int, stored: Schemas) -> bool:
        """Whether a hook takes payloads of this version, or of a later one as which they can be read."""
        first = next(iter(self._chain(version)), None)
        return first is not None and (
            first == version or (first in stored and not differences(stored[version], stored[first]))
        )

    def _chain(self, version: int) -> list[int]:
        own = self._own
        if own is None or version == own or version < 1:
            return []
        return sorted(n for n in self._hooks if n >= version and (n < own or version > own))

    def note(self, version: int) -> str:
        """For the error about an entry that the model refuses."""
        if self._own in (None, version):
            return ""
        return f" (it was written as version {version} of the schema; this model is version {self._own})"
