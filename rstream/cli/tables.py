"""Tables, and what stands in them, as `streams`, `groups` and `groups reset` show them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rstream.event import EntryId
    from rstream.store.pause import Pause


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: set[int]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            f"{cell:>{w}}" if n in right else f"{cell:<{w}}"
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def place(position: EntryId | None) -> str:
    """Where a group is in a shard, without the shard."""
    from rstream.event import MAX_PART

    if position is None:
        return "missing"
    if position.seq < MAX_PART:
        return position.redis
    return "end" if position.ms == MAX_PART else f"before {position.ms + 1}-0"


def text(value: object | None) -> str | None:
    return None if value is None else str(value)


def said(pause: Pause) -> str:
    """Since when, by whom, and why."""
    from rstream.cli.read import time_of
    from rstream.event import EntryId

    since = time_of(EntryId(pause.at, 0, 0, 0)) if pause.at else "?"
    return f"since {since} by {pause.by}" + (f": {pause.why}" if pause.why else "")


def as_text(raw: bytes) -> str:
    """As text where it is some, else base64."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(raw).decode()}"


def printable(line: str) -> str:
    """What others wrote must not move the cursor of a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
