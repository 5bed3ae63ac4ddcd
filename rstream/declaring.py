"""The first declaration of a stream by a process: its model is compared with the versions that are stored.

A new version is stored only by who has compared it with all the others, in one step inside Redis: of two processes that
declare two versions at once, the second is told of the first. Cost: one round trip; for a new version of a stream that
has some, one more (or as many as others declare meanwhile); for the first of a stream that is archived, a GET and two
more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rstream.codec import ModelCodec
from rstream.compat import differences, digest
from rstream.errors import ConfigError, SchemaIncompatible, StreamMismatch
from rstream.store import layout as layouts
from rstream.store.layout import Layout
from rstream.store.steps import Steps
from rstream.upgrades import Schemas, Upgrades

if TYPE_CHECKING:
    from rstream.stream import Stream

log = logging.getLogger("rstream")


def declare(stream: Stream[Any]) -> Steps[Layout]:
    """Store the declaration, or learn what is stored. Raises `StreamMismatch`, `SchemaIncompatible`; of a stream that
    is archived, and that Redis does not know, `BlobError` and `ArchiveDamaged`.
    """
    layout = yield from _declare(stream)
    if stream.claims.seal is not None:
        yield layouts.mark_encrypted(layout.namespace, layout.name)
    return layout


def _declare(stream: Stream[Any]) -> Steps[Layout]:
    if stream._layout is not None:  # it was accepted once, and what others have stored since does not end it
        yield layouts.restore(stream._layout)  # Redis may have lost the numbers
        layout: Layout = yield stream.declaration()
        return layout
    past = stream.past if stream.archive is not None else None
    new, compared, stored = False, 0 if past is None else -1, dict[int, Mapping[str, Any]]()
    while True:
        layout = yield stream.declaration(compared)
        check_key(stream, layout)
        stored |= layout.schemas
        new = new or layout.new
        if layout.version:
            stored[layout.version] = stream._schema
            _take_up(stream, stored)
            return replace(layout, schemas=stored, new=new)
        if stored:
            _refuse_incompatible(stream, stored)
        elif past is not None:  # what is archived may be older than this Redis, and has numbers in its payloads
            yield layouts.restore(replace(layout, schemas=(yield past.schemas())))
        compared = max(stored, default=0)


def declare_again(stream: Stream[Any]) -> Steps[Layout]:
    """As `declare`, where Redis may have lost what was stored. Payloads tell their version by its number, so those that
    are known here get theirs again. Where others have been given since, these hold from now on, also for the hooks.
    """
    assert stream._layout is not None
    kept: bool = yield layouts.restore(stream._layout)
    layout: Layout = yield stream.declaration()
    if stream.claims.seal is not None:
        yield layouts.mark_encrypted(layout.namespace, layout.name)
    if kept:
        return layout
    stored: Layout | None = yield layouts.load(layout.namespace, layout.name)
    layout = replace(layout, schemas={} if stored is None else stored.schemas)
    _take_up(stream, layout.schemas)
    stream.adopt(layout)
    return layout


def check_key(stream: Stream[Any], layout: Layout) -> None:
    """Raises `StreamMismatch`."""
    if layout.key != stream.key:
        raise StreamMismatch(
            f"stream {stream.name!r} is stored with key {layout.key!r}, but declared with key {stream.key!r}: "
            "declare the stored one, or use another stream name"
        )


def _take_up(stream: Stream[Any], stored: Schemas) -> None:
    """Learn which hooks are for which version, and say what cannot be read here. That is no reason to refuse a version
    that was accepted once: it may be an older one that is being replaced, or only publish.
    """
    if not isinstance(stream.codec, ModelCodec):
        return
    stream.codec.upgrades.settle(stream.name, stored)
    for found in unreadable(stream._schema, stored, stream.codec.upgrades):
        log.warning("stream %r: such entries become dead letters of consumers here: %s", stream.name, found)


def _refuse_incompatible(stream: Stream[Any], stored: Schemas) -> None:
    upgrades = stream.codec.upgrades if isinstance(stream.codec, ModelCodec) else Upgrades()
    upgrades.settle(stream.name, stored)
    found = incompatible(stream._schema, stored, upgrades)
    upgrades.unsettle()
    if not found:
        return
    name, first = _name(stream._schema), min(found)
    raise SchemaIncompatible(
        f"stream {stream.name!r}: {name} does not go with what is stored of its schema, and nothing was published: "
        f"change it back, use another stream, or turn old payloads into new ones with @stream.upgrade({first}) "
        f"(on every Redis: @stream.upgrade({digest(stored[first])!r}))",
        [line for lines in found.values() for line in lines],
    )


def incompatible(schema: Mapping[str, Any], stored: Schemas, upgrades: Upgrades) -> dict[int, list[str]]:
    """What stands against a new version beside each of the stored ones, in either direction, unless it is covered."""
    name, found = _name(schema), {}
    for version, old in sorted(stored.items()):
        if upgrades.covers(version, stored):
            continue
        lines = [f"{name} cannot read version {version}: {each}" for each in differences(old, schema)]
        lines += [f"version {version} cannot read {name}: {each}" for each in differences(schema, old)]
        if lines:
            found[version] = lines
    return found


def unreadable(schema: Mapping[str, Any], stored: Schemas, upgrades: Upgrades) -> list[str]:
    """What the model cannot read of the stored versions."""
    return [
        f"{_name(schema)} cannot read version {version}: {each}"
        for version, old in sorted(stored.items())
        if not upgrades.covers(version, stored)
        for each in differences(old, schema)
    ]


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("title", "the model"))


EVERY = 60.0


def archive_of(stream: Stream[Any], wanted: bool | float) -> float | None:
    """After how many seconds also little is archived, None for not at all. Raises `ConfigError`."""
    if wanted is False:
        return None
    if stream.past is None:
        raise ConfigError(
            f"stream {stream.name!r}: archive needs a blob store to write to: set RStream(blobs=…) or RSTREAM_BLOBS"
        )
    every = EVERY if wanted is True else float(wanted)
    if not 0 < every <= 86_400:
        raise ConfigError(
            f"stream {stream.name!r}: archive is {wanted}, it must be True, or seconds between 0 and a day"
        )
    return every
