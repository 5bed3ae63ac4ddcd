"""How much of a stream is kept, and what that means for each of its shards. Pure: no clock, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from rstream.errors import ConfigError

Unprocessed = Literal["keep", "drop"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SIZES = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
_LONGEST = timedelta(days=3650)

PENDING = 192
"""What a pending delivery costs Redis in bytes: 85 to 183, by server."""

FACTOR = 1.25
"""Memory by counted bytes, where there is too little to tell."""

SLOWEST = 0.1
"""Seconds that a producer waits before its next flush to a shard that is nearly full of what is not processed."""


@dataclass(frozen=True)
class Retention:
    """What a stream keeps. Whatever limit is met first counts; without one, everything is kept.

    age: a timedelta, or text such as "7d", "12h", "30m" · entries: how many, over all shards · bytes: of Redis's
    memory, a number or "100MB" (10^6), "1GiB" · unprocessed: where an entry that some group has not processed is beyond
    a limit, "keep" keeps it, and refuses new ones where there is no room (`StreamFull`); "drop" drops it, and counts
    it · group_ttl: how long a group without a living worker keeps entries from being trimmed (7 days) · soft: the part
    of a limit from which, full of what is not processed, producers are slowed. Raises `ConfigError`.
    """

    age: timedelta | str | None = None
    entries: int | None = None
    bytes: int | str | None = None
    unprocessed: Unprocessed = "keep"
    group_ttl: timedelta | str = timedelta(days=7)
    soft: float = 0.8

    def __post_init__(self) -> None:
        if self.age is not None:
            object.__setattr__(self, "age", _duration("age", self.age))
        object.__setattr__(self, "group_ttl", _duration("group_ttl", self.group_ttl))
        if self.bytes is not None:
            object.__setattr__(self, "bytes", _size(self.bytes))
        if self.entries is not None and (not isinstance(self.entries, int) or self.entries < 1):
            raise ConfigError(f"retention: entries is {self.entries!r}, it must be a number of at least 1")
        if self.unprocessed not in ("keep", "drop"):
            raise ConfigError(f"retention: unprocessed is {self.unprocessed!r}, it must be 'keep' or 'drop'")
        if not isinstance(self.soft, int | float) or not 0 < self.soft <= 1:
            raise ConfigError(f"retention: soft is {self.soft!r}, it must be above 0 and at most 1")

    def __str__(self) -> str:
        limits = [] if self.age is None else [f"age {text_of(self.age_seconds or 0)}"]
        limits += [] if self.entries is None else [f"entries {self.entries:,}"]
        limits += [] if self.bytes is None else [f"bytes {size_text(self.cap or 0)}"]
        told = ", ".join(limits) or "no limit"
        return f"{told}; unprocessed {self.unprocessed}, group_ttl {text_of(self.ttl_seconds)}, soft {self.soft:g}"

    @property
    def age_seconds(self) -> float | None:
        return self.age.total_seconds() if isinstance(self.age, timedelta) else None

    @property
    def ttl_seconds(self) -> float:
        assert isinstance(self.group_ttl, timedelta)
        return self.group_ttl.total_seconds()

    @property
    def cap(self) -> int | None:
        """Bytes, over all shards."""
        return self.bytes if isinstance(self.bytes, int) else None

    @property
    def soft_level(self) -> int:
        """In 1/1000. Who drops what is not processed need not slow anybody."""
        return int(self.soft * 1000) if self.unprocessed == "keep" else 1000

    @property
    def counts(self) -> bool:
        """Whether what a shard holds has to be counted: age alone is in the ids."""
        return self.entries is not None or self.bytes is not None

    def to_json(self) -> str:
        return json.dumps({
            "age": self.age_seconds, "entries": self.entries, "bytes": self.bytes, "unprocessed": self.unprocessed,
            "group_ttl": self.ttl_seconds, "soft": self.soft,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Retention | None:
        """None where it says that there is none. Raises `ConfigError`."""
        try:
            stored: Any = json.loads(text)
            if stored is None:
                return None
            age, ttl = stored.get("age"), stored.get("group_ttl")
            given: dict[str, Any] = {
                name: stored[name] for name in ("entries", "bytes", "unprocessed", "soft") if name in stored
            }
            if age is not None:
                given["age"] = timedelta(seconds=age)
            if ttl is not None:
                given["group_ttl"] = timedelta(seconds=ttl)
            return cls(**given)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"retention: what is stored does not parse: {text!r} ({error})") from None


NONE = "null"
"""As JSON: somebody said that nothing is trimmed, and no declaration counts any more."""


def _duration(name: str, value: timedelta | str) -> timedelta:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
        if not match:
            raise ConfigError(
                f"retention: {name} is {value!r}, it must be a timedelta or like '7d', '12h', '30m', '90s'"
            )
        value = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    if not isinstance(value, timedelta) or not timedelta(0) < value <= _LONGEST:
        raise ConfigError(f"retention: {name} is {value}, it must be above 0 and at most 10 years")
    return value


def _size(value: int | str) -> int:
    number = value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", value.strip().upper())
        unit = "" if match is None else match[2] + ("B" if match[2] and not match[2].endswith("B") else "")
        if match is None or unit not in _SIZES:
            raise ConfigError(f"retention: bytes is {value!r}, it must be a number or like '100MB', '1.5GB', '512KiB'")
        number = int(float(match[1]) * _SIZES[unit])
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"retention: bytes is {value!r}, it must be at least 1")
    return number


def size_text(number: float) -> str:
    """As people read it: 12.5 MB."""
    for unit in ("B", "KB", "MB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB" if number < 1000 else f"{number:,.0f} GB"


def text_of(seconds: float) -> str:
    """As `Retention` reads it, where that is exact, else about: 7d, 90s."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.3g}{unit}"
    return f"{seconds:.3g}s"


# -- memory ---------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """What a shard holds. counted: bytes of payload, key, event id and headers, -1 = not counted · packs: listpacks, in
    which Redis keeps entries · nodes: of the tree that finds them.
    """

    entries: int
    counted: int
    packs: int
    nodes: int
    pending: int

    @property
    def memory(self) -> float:
        """Bytes that this costs Redis, about."""
        return self.counted * self.factor + self.pending * PENDING

    @property
    def factor(self) -> float:
        """Memory by counted bytes. jemalloc has sizes of 4 steps between powers of 2: a listpack of three entries of
        1 KB costs 3584 bytes. (glibc, which the embedded server uses, has none: there it costs less than this.)
        """
        if self.counted < 16_384 or not self.packs:
            return FACTOR
        pack = self.counted / self.packs + 48
        if self.entries > 1.5 * self.packs:
            pack = min(pack, 4096)  # where Redis begins another one
        bytes = self.packs * (allocated(pack) + 32) + max(0, self.nodes - self.packs) * 32
        return min(4.0, max(1.0, bytes / self.counted))


def allocated(size: float) -> int:
    """What jemalloc gives for so many bytes."""
    power = 1 << max(4, int(size).bit_length() - 1)
    if size <= power:
        return power
    step = power // 4
    return power + -int(-(size - power) // step) * step


class Limits(NamedTuple):
    """Of one shard; None = no limit. bytes: as they are counted."""

    entries: int | None
    bytes: int | None


YIELD = 1 / 8
"""The part of the limits that older generations leave to the newest at least, where they can."""


def older_limits(retention: Retention, current: Sequence[Held], older: Sequence[Sequence[Held]]) -> list[list[Limits]]:
    """What the shards of older generations (the oldest first) may hold: the newest entries stay."""
    memory = _left(retention.cap, sum(held.memory for held in current))
    entries = _left(retention.entries, sum(held.entries for held in current))
    limits: list[list[Limits]] = []
    for generation in reversed(older):
        parts = _parts([held.memory for held in generation], memory)
        counts = _parts([held.entries for held in generation], entries)
        limits.append([
            Limits(None if count is None else int(count), None if part is None else _counted(part, held))
            for held, part, count in zip(generation, parts, counts, strict=True)
        ])  # fmt: skip
        memory = None if memory is None else max(0.0, memory - sum(held.memory for held in generation))
        entries = None if entries is None else max(0.0, entries - sum(held.entries for held in generation))
    return limits[::-1]


def _left(limit: int | None, used: float) -> float | None:
    return None if limit is None else max(0.0, limit * (1 - YIELD) - used)


def _parts(held: Sequence[float], limit: float | None) -> list[float | None]:
    """What each keeps of a limit for all: the same part of it."""
    if limit is None or sum(held) <= limit:
        return [None] * len(held)
    return [each * limit / sum(held) for each in held]


def current_limits(retention: Retention, current: Sequence[Held], older: Sequence[Held], shards: int) -> list[Limits]:
    """What some of so many shards that are written to may hold: an equal part each of what the older ones leave."""
    entries, memory = retention.entries, retention.cap
    if entries is not None:
        entries = max(1, (entries - sum(held.entries for held in older)) // shards)
    if memory is None:
        return [Limits(entries, None)] * len(current)
    part = max(0.0, memory - sum(held.memory for held in older)) / shards
    return [Limits(entries, _counted(part, held)) for held in current]


def _counted(memory: float, held: Held) -> int:
    return max(0, int((memory - held.pending * PENDING) / held.factor))


def grain(limits: Limits) -> int:
    """Counted bytes from one mark to the next: how finely a shard is trimmed."""
    return 65_536 if limits.bytes is None else min(65_536, max(1024, limits.bytes // 64))


def roomy(limit: int | None, need: int, *, loses: bool) -> int | None:
    """To what a full shard is trimmed, for so much more. Where that loses something, a little below, so that it is not
    done all the time.
    """
    return None if limit is None else max(0, limit - (max(need, limit // 16) if loses else need))


# -- slowing down ---------------------------------------------------------------------------------------------------


def slowdown(level: int, soft: float) -> float:
    """Seconds to wait before the next flush to a shard; level: what is not processed, in 1/1000 of its limit."""
    above = (level / 1000 - soft) / max(0.001, 1 - soft)
    return SLOWEST * min(1.0, max(0.0, above)) ** 2
