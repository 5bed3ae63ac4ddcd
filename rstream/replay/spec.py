"""What was asked for, as text: it names a replay, and tells whether a stored one is the same. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from rstream.calling import Handler
from rstream.errors import ConfigError
from rstream.position import Position


def spec_of(
    start: Position, end: Position, key: str | None, way: Mapping[str, str], where: Iterable[str] = ()
) -> dict[str, str]:
    """way: of what the entries go to, as {"handler": …} or {"group": …}. How fast it goes is no part of it."""
    spec = {"from": _text(start), "to": _text(end), "key": key or "", **way}
    conditions = " and ".join(sorted(where))
    return {**spec, "where": conditions} if conditions else spec


def _text(at: Position) -> str:
    if at is None:
        return "any"
    if isinstance(at, datetime):
        return at.isoformat()
    return f"{abs(at).total_seconds():g}s ago" if isinstance(at, timedelta) else str(at)


def name_of(handler: Handler) -> str:
    """MODULE:NAME of a handler."""
    named = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{named.__module__}:{named.__qualname__}"


def default_name(stream: str, spec: Mapping[str, str]) -> str:
    text = "\0".join((stream, *spec.values(), *(word for word in spec if word == "group")))
    return f"replay-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def refuse_other(name: str, stream: str, stored: Mapping[str, str], spec: Mapping[str, str]) -> None:
    """The progress that is stored under a name counts for one window, one way and the same conditions. Raises
    `ConfigError`.
    """
    words = dict.fromkeys((*spec, *stored)) if stored else ()
    differ = [word for word in words if stored.get(word, "") != spec.get(word, "")]
    if differ:
        was, now = (", ".join(f"{word} {told.get(word, '')!r}" for word in differ) for told in (stored, spec))
        raise ConfigError(
            f"replay {name!r} of stream {stream!r} was begun with {was} and has not ended; now it is {now}: "
            "give the same again to go on, or another name, or restart to forget how far that one had come"
        )
