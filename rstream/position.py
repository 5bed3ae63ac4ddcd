"""Points in a stream: ids, datetimes and "2h ago", turned into bounds that `read` can compare. Pure.

A bound is an `EntryId`: as a start it carries the smallest shard part, as an end the largest, so that
plain tuple comparison decides. Both ends are inclusive.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from rstream.errors import PositionError
from rstream.event import _ID, MAX_PART, EntryId

Position = EntryId | datetime | timedelta | str | None

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", re.ASCII)
_HELP = (
    "give an id (1763630000000-0, or with its shard 1763630000000-0@1.3), an ISO time "
    "(2026-11-20T09:30, local unless it has an offset), a span back from now ('2h ago', '-90s'), "
    "'now', 'earliest' or 'latest'"
)


def bound(at: Position, side: Literal["start", "end"], now_ms: int) -> EntryId:
    """The inclusive bound that `at` names; `now_ms` is Redis's clock. Raises `PositionError`."""
    low = side == "start"
    if at is None:
        return EntryId(0, 0, 0, 0) if low else EntryId(MAX_PART, MAX_PART, MAX_PART, MAX_PART)
    if isinstance(at, EntryId):
        return at
    if isinstance(at, datetime):
        try:
            return _at_ms(_ms(at), low)
        except (ValueError, OverflowError, OSError):  # year 1 or 9999, local time
            raise PositionError(f"{at} is no time that this machine can count: {_HELP}") from None
    if isinstance(at, timedelta):
        return _at_ms(now_ms - abs(at) // timedelta(milliseconds=1), low)
    if not isinstance(at, str):
        raise PositionError(f"{at!r} is neither an id nor a time: {_HELP}")
    return _parse(at.strip(), low, now_ms)


def _ms(at: datetime) -> int:
    # In whole numbers: for some times after 2038 `int(at.timestamp() * 1000)` is a millisecond short.
    return (at.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)


def _at_ms(ms: int, low: bool) -> EntryId:
    ms = min(max(ms, 0), MAX_PART)
    return EntryId(ms, 0, 0, 0) if low else EntryId(ms, MAX_PART, MAX_PART, MAX_PART)


def _parse(text: str, low: bool, now_ms: int) -> EntryId:
    if text in ("-", "earliest", "beginning"):
        return _at_ms(0, low)
    if text in ("+", "latest"):
        return _at_ms(MAX_PART, low)
    if text == "now":
        return _at_ms(now_ms, low)
    if match := _ID.fullmatch(text):
        return _from_id(match, low)
    if (span := _span_ms(text)) is not None:
        return _at_ms(now_ms - span, low)
    try:
        return _at_ms(_ms(datetime.fromisoformat(text)), low)
    except (ValueError, OverflowError, OSError):
        raise PositionError(f"{text!r} is neither an id nor a time: {_HELP}") from None


def _from_id(match: re.Match[str], low: bool) -> EntryId:
    ms, seq, generation, shard = match.groups()
    fill = 0 if low else MAX_PART
    parts = (int(ms), *(fill if part is None else int(part) for part in (seq, generation, shard)))
    if max(parts) > MAX_PART:
        raise PositionError(f"{match.string!r} is not an id: its parts are at most {MAX_PART}")
    return EntryId(*parts)


def _span_ms(text: str) -> int | None:
    """`2h ago`, `1d 2h ago` or `-90s` in milliseconds; None for anything else."""
    if text.endswith("ago"):
        body = text[:-3].strip()
    elif text.startswith("-"):
        body = text[1:].strip()
    else:
        return None
    if not body or _SPAN.sub("", body):
        return None
    span = sum(float(count) * _UNITS[unit] for count, unit in _SPAN.findall(body))
    return round(min(span, MAX_PART))
