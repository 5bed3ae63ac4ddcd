"""Removing a group for good: an experiment that is over must not keep entries from being trimmed."""

from __future__ import annotations

from typing import Any

from rstream.errors import ConfigError, GroupLive
from rstream.store import keys
from rstream.store.history import forget
from rstream.store.keys import ARCHIVE
from rstream.store.layout import Layout
from rstream.store.link import Op
from rstream.store.pause import resume
from rstream.store.scripts import REMOVE, UNCOUNT, Call
from rstream.store.stats import GroupStats, find, group_stats
from rstream.store.steps import Steps


def remove(layout: Layout, group: str, *, dry: bool = False) -> Steps[GroupStats]:
    """Remove it from all shards; how it stood. It may be stopped anywhere and done again.

    Raises `GroupLive` while a worker of it lives, and `ConfigError` where there is none or it has dead letters.
    """
    if group == ARCHIVE:
        raise ConfigError(f"{group!r} is the archive of stream {layout.name!r}: `rstream archive stop {layout.name}`")
    stats = find((yield group_stats(layout)), group, layout)
    found = yield _pass(layout, group, dry=True)
    _refuse(layout, group, *found)
    if not dry:
        found = yield _pass(layout, group, dry=False)
        _refuse(layout, group, *found)  # a worker has just begun: what it needs it makes anew
        where = layout.namespace, layout.name
        calls: list[Call] = [("UNLINK", keys.members(*where, group)), ("HDEL", keys.seen(*where), group)]
        yield Op([*calls, UNCOUNT([keys.stream(*where)], group)], lambda replies: None)
        yield forget(layout, group)
        yield resume(*where, group)  # one of this name that is made later is not paused
    return stats


def _pass(layout: Layout, group: str, *, dry: bool) -> Op[tuple[int, list[str]]]:
    """Dead letters, and workers that live."""
    calls = [
        REMOVE(
            [s.stream, s.dead(group), s.parked(group), s.done, s.retry(group), s.owner(group), s.epoch(group)],
            group,
            int(dry),
        )
        for s in layout.every
    ]

    def parse(replies: list[Any]) -> tuple[int, list[str]]:
        names = {name.decode(errors="replace") for reply in replies for name in reply[1:]}
        return sum(reply[0] for reply in replies), sorted(names)

    return Op(calls, parse)


def _refuse(layout: Layout, group: str, letters: int, names: list[str]) -> None:
    if names:
        raise GroupLive(
            f"group {group!r} of stream {layout.name!r} has live workers ({', '.join(names)}): stop them first (one "
            "that was killed counts as alive for a lease)"
        )
    if letters:
        raise ConfigError(
            f"group {group!r} of stream {layout.name!r} has {letters:,} dead letters, which nobody would look at any "
            f"more: rstream dead redrive, or discard, {layout.name} --group {group}"
        )
