"""Which groups are paused: a field `paused:<group>` of `ns:stream:<name>` each. docs/pause.md explains it to users."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from rstream.errors import UnknownStream
from rstream.store import keys
from rstream.store.link import Op
from rstream.store.scripts import PAUSE, Call

_FIELD = "paused:"


class Pause(NamedTuple):
    """A group that is paused. by: who did it · at: Redis's clock then, in ms · why: "" where nobody said."""

    group: str
    by: str
    at: int
    why: str


def pause(namespace: str, stream: str, group: str, by: str, why: str) -> Op[tuple[bool, Pause]]:
    """Pause it; whether this call did, and how it is paused now."""

    def parse(replies: list[Any]) -> tuple[bool, Pause]:
        if replies[0] is None:
            raise UnknownStream(
                f"no stream {stream!r} in namespace {namespace!r}: `rstream streams` lists those there are"
            )
        new, told = replies[0]
        return bool(new), _pause(group, told)

    return Op([PAUSE([keys.stream(namespace, stream)], group, by, why)], parse)


def resume(namespace: str, stream: str, group: str) -> Op[Pause | None]:
    """End it; how it was paused, or None where it was not."""
    key, field = keys.stream(namespace, stream), _FIELD + group
    return Op([("HGET", key, field), ("HDEL", key, field)], lambda replies: replies[0] and _pause(group, replies[0]))


def paused(namespace: str, stream: str, groups: Sequence[str]) -> Op[dict[str, Pause]]:
    """Those of these groups that are paused."""
    return are_paused(namespace, [(stream, group) for group in groups]).then(
        lambda found: {group: pause for (_, group), pause in found.items()}
    )


def are_paused(namespace: str, groups: Sequence[tuple[str, str]]) -> Op[dict[tuple[str, str], Pause]]:
    """Those that are paused of groups of many streams, each (stream, group)."""
    calls: list[Call] = [("HGET", keys.stream(namespace, stream), _FIELD + group) for stream, group in groups]

    def parse(replies: list[Any]) -> dict[tuple[str, str], Pause]:
        return {each: _pause(each[1], told) for each, told in zip(groups, replies, strict=True) if told}

    return Op(calls, parse)


def names_in(flat: Sequence[bytes]) -> frozenset[str]:
    """Of all groups that are paused, in what HGETALL answers of a stream."""
    names = (field.decode(errors="replace") for field in flat[::2])
    return frozenset(name.removeprefix(_FIELD) for name in names if name.startswith(_FIELD))


def _pause(group: str, told: bytes) -> Pause:
    try:
        fields = json.loads(told)
        return Pause(group, str(fields["by"]), int(fields["at"]), str(fields["why"]))
    except (ValueError, TypeError, KeyError, RecursionError):  # somebody set the field by hand: paused all the same
        return Pause(group, "?", 0, told.decode(errors="replace")[:200])
