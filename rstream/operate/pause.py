"""Pausing a group: its workers start nothing new, until it is resumed."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rstream.errors import ConfigError
from rstream.store import layout as layouts
from rstream.store import pause as pauses
from rstream.store.bell import ring
from rstream.store.keys import ARCHIVE
from rstream.store.layout import Layout
from rstream.store.pause import Pause
from rstream.store.stats import no_such_group
from rstream.store.steps import Steps, drive

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.stream import Stream


async def pause(stream: Stream[Any], group: str, *, why: str = "", by: str | None = None) -> tuple[bool, Pause]:
    """Have the workers of a group start nothing new; whether this call did it, and who has paused it.

    What runs ends and is settled; shards and leases stay where they are; retries wait, and nothing unprocessed is
    trimmed. Workers that start later find it paused. by: who does it (default: user@host). Raises `ConfigError` where
    there is no such group, `StoreError`s.
    """
    steps = pausing(await stream.layout(fresh=True), group, why, by or somebody())
    return await drive(stream.app.link, steps, stream.app.settings.publish_timeout)


async def resume(stream: Stream[Any], group: str) -> Pause | None:
    """Have them go on; how it was paused, or None where it was not."""
    steps = resuming(await stream.layout(fresh=True), group)
    return await drive(stream.app.link, steps, stream.app.settings.publish_timeout)


async def paused(stream: Stream[Any]) -> dict[str, Pause]:
    """The groups of a stream that are paused, by name."""
    steps = _paused(await stream.layout(fresh=True))
    return await drive(stream.app.link, steps, stream.app.settings.publish_timeout)


async def streams_of(app: RStream, group: str) -> list[str]:
    """The streams that a group of this name reads, sorted."""
    return await drive(app.link, _streams_of(app.settings.namespace, group), app.settings.publish_timeout)


def pausing(layout: Layout, group: str, why: str, by: str) -> Steps[tuple[bool, Pause]]:
    """As `pause`, in steps."""
    yield from _check(layout, group)
    done: tuple[bool, Pause] = yield pauses.pause(layout.namespace, layout.name, group, by, why)
    yield ring(layout.namespace, layout.name)  # also where it was paused: a worker may not have heard it
    return done


def resuming(layout: Layout, group: str) -> Steps[Pause | None]:
    """As `resume`, in steps. Also for a group that is gone: what was paused of it would stay."""
    was: Pause | None = yield pauses.resume(layout.namespace, layout.name, group)
    if was is None:
        yield from _check(layout, group)
    yield ring(layout.namespace, layout.name)
    return was


def _check(layout: Layout, group: str) -> Steps[None]:
    if group == ARCHIVE:
        raise ConfigError(f"{group!r} is the archive of stream {layout.name!r}: `rstream archive stop {layout.name}`")
    if group not in (known := (yield layouts.groups(layout.every))):
        raise no_such_group(group, layout, [name for name in known if name != ARCHIVE])


def _paused(layout: Layout) -> Steps[dict[str, Pause]]:
    groups: Sequence[str] = yield layouts.groups(layout.every)
    found: dict[str, Pause] = yield pauses.paused(layout.namespace, layout.name, groups)
    return found


def _streams_of(namespace: str, group: str) -> Steps[list[str]]:
    found = []
    for name in (yield layouts.names(namespace)):
        layout: Layout | None = yield layouts.load(namespace, name)
        if layout is not None and group in (yield layouts.groups(layout.every)):
            found.append(name)
    return found


def somebody() -> str:
    """Who this is, for those who ask who did it."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a user without a name, as in many containers
        return socket.gethostname()
