"""Numbers, ages and ids as people read them. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from rstream.event import MAX_PART, EntryId
from rstream.logs import key_hash

_KIND = re.compile(r"[A-Za-z_][\w.]*(?=:|$)", re.ASCII)


def age(seconds: float) -> str:
    """`0 s`, `4.2 s`, `12 min`, `3 h 5 min`, `9 d 4 h`."""
    if seconds < 0.05:
        return "0 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days:,} d"


def count(number: float) -> str:
    """`812`, `12,400`, `1.24 M`."""
    if number < 100_000:
        return f"{number:,.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if number < 999.5 * size or unit == "G":
            shown = number / size
            digits = 0 if shown >= 100 else 1 if shown >= 10 else 2
            return f"{shown:.{digits}f} {unit}"
    raise AssertionError


def size(number: float) -> str:
    """Bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def rate(per_second: float) -> str:
    """`0.2/s`, `4.1/min`."""
    if per_second >= 100:
        return f"{count(per_second)}/s"
    return f"{per_second:.1f}/s" if per_second >= 1 or not per_second else f"{per_second * 60:.1f}/min"


def moment(ms: int) -> str:
    """`2026-11-29 02:10:05` in UTC; "" for what is no time."""
    at = _datetime(ms)
    return "" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")


def iso(ms: int) -> str:
    """As it can be given for a bound, to the second."""
    at = _datetime(ms)
    return "" if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _datetime(ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def place(position: EntryId | None) -> str:
    """Where a group is in a shard, without the shard."""
    if position is None:
        return "missing"
    if position.seq < MAX_PART:
        return position.redis
    return "end" if position.ms == MAX_PART else f"before {position.ms + 1}-0"


def fingerprint(key: str) -> str:
    """What a key is called where it is not shown: how `key_hash` in log lines begins."""
    return key_hash(key)[:8]


def kind_of(error: str) -> str:
    """Of the line that tells an error the part that tells nothing of the event: the name of the exception."""
    found = _KIND.match(error)
    return found[0] if found else "…"


def several(number: int, word: str, plural: str = "") -> str:
    return f"{number:,} {word if number == 1 else plural or word + 's'}"
