"""Making room in full shards, and saying why there is none. Producers do this where they met one, so that a stream
without workers is trimmed, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rstream.errors import StreamFull
from rstream.logs import Voice, about
from rstream.retention import Retention, size_text, text_of
from rstream.store import layout as layouts
from rstream.store.keys import ARCHIVE, Shard, rank_of
from rstream.store.layout import Layout
from rstream.store.steps import Steps
from rstream.store.trim import Needs, over, tidy
from rstream.store.weigh import Group, Weight, limit, weigh

log = logging.getLogger("rstream")

KINDS = {"full": "writes were refused, for a shard was full,"}
_voices: dict[str, Voice] = {}

TRIES = 20
"""After which nobody who does not wait for room is kept waiting."""


def make_room(layout: Layout, needs: Needs, hopeless: Mapping[Shard, int]) -> Steps[dict[Shard, StreamFull]]:
    """Trim what full shards may lose. Of those in which that was in vain before, and nobody waits: what to tell."""
    # What the layout says may be old: by it, more might be lost than is allowed now.
    (retention,) = yield layouts.retentions(layout.namespace, [layout.name])
    if retention is not None:
        yield from tidy(layout, retention, needs=needs)
    else:  # somebody has just taken it away, and was killed
        for shard in needs:
            yield limit(shard, None, None)
    if not hopeless:
        return {}
    weights: list[Weight] = yield weigh(tuple(hopeless))
    # Where there is room by now, others were faster: then it is only a matter of trying.
    full = [each for each in weights if hopeless[each.shard] >= TRIES or _does_not_fit(each, *needs[each.shard])]
    errors = {weight.shard: StreamFull(_told(layout, retention, weight)) for weight in full}
    for error in errors.values():
        _say(layout.name, error)
    return errors


def _say(stream: str, error: StreamFull) -> None:
    """Whoever published is told, and may keep it to himself."""
    voice = _voices.setdefault(stream, Voice(log, f"stream {stream!r}", KINDS, most=1))
    voice.say("full", logging.WARNING, "%s", error, extra=about({"stream": stream}))


def _does_not_fit(weight: Weight, entries: int, counted: int) -> bool:
    return over(weight.held.entries + entries, weight.held.counted + counted, weight.limits)


def _told(layout: Layout, retention: Retention | None, weight: Weight) -> str:
    held = weight.held
    holds = f"{held.entries:,} entries, {size_text(held.memory)}"
    part = f"one of {layout.shards}; all: {retention}"
    head = f"stream {layout.name!r} is full, nothing was added: shard {weight.shard} ({part}) holds {holds}"
    pinning = min(weight.groups, key=lambda group: rank_of(group.floor), default=None)
    if pinning is None:
        return f"{head}. Raise the limits: rstream streams retention {layout.name} --bytes … --entries …"
    if pinning.name == ARCHIVE:
        return (
            f"{head}. It is not archived yet: {_lag(weight, pinning)}. Have it archived, by workers of an app that "
            f"declares archive=True or by `rstream archive run {layout.name}`; how far it is: "
            f"rstream archive show {layout.name}"
        )
    return (
        f"{head}. Group {pinning.name!r} keeps it from being trimmed: {_lag(weight, pinning)}. "
        f"Have its workers go on (rstream groups {layout.name}), or raise the limits or drop what is not processed: "
        f"rstream streams retention {layout.name} --help"
    )


def _lag(weight: Weight, group: Group) -> str:
    oldest = max(rank_of(group.floor), rank_of(weight.first or b"0-0"))
    age = max(0.0, (weight.now - oldest[0]) / 1000)
    told = f"its oldest entry that is not processed is {oldest[0]}-{oldest[1]}, {text_of(age)} old"
    if group.unread >= 0:
        told += f", about {group.unread:,} are unread there"
    if group.name == ARCHIVE:
        return told
    return f"{told}, {group.pending:,} are pending, {'its workers live' if group.lives else 'no worker of it lives'}"
