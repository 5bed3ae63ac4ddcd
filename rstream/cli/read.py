"""`rstream read`: the entries of a window, one a line."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.event import Entry, EntryId

POSITION = "an id, an ISO time, '2h ago', 'earliest' or 'latest'"


@click.command()
@click.argument("stream")
@click.option("--from", "start", metavar="X", help=f"Begin here: {POSITION}.  [default: earliest]")
@click.option("--to", "end", metavar="X", help="End here, this included.  [default: what is newest now]")
@click.option("--key", help="Only the entries of this key.")
@click.option("--limit", "-n", type=click.IntRange(min=0), metavar="N", help="At most so many entries.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, nothing cut off; bytes are base64.")
@target_options
def read(stream: str, start: str | None, end: str | None, key: str | None, limit: int | None, as_json: bool) -> None:
    """Show the entries of a stream, oldest first, merged over its shards in id order.

    \b
    Examples:
      rstream read orders --from "1h ago"
      rstream read orders --from 2026-11-20T09:00Z --to 2026-11-20T10:00Z --key c1
      rstream read orders --json | jq 'select(.event.total > 100) | .id'
    """
    with stored_app() as app:
        opened = app.open(stream)
        if start is not None and end is not None:
            check_window(app, start, end)
        entries = opened.sync.read(start, end, key=key, limit=limit)
        show = _json_line if as_json else _table_line()
        shown, broken = 0, 0
        for entry in entries:
            event, error = _decoded(entry)
            click.echo(show(entry, event, error))
            shown, broken = shown + 1, broken + (error is not None)
    if broken:
        click.echo(f"{broken:,} of {shown:,} entries could not be decoded: see their errors", err=True)
    if not shown and not as_json:
        click.echo("No entries here: `rstream streams` shows what is stored.", err=True)


def check_window(app: RStream, start: str, end: str) -> None:
    """Raises `PositionError` for a window that cannot have entries."""
    from rstream.errors import PositionError
    from rstream.position import bound
    from rstream.store import layout as layouts

    now = app.sync_link.run(layouts.clock())
    if bound(start, "start", now) > bound(end, "end", now):
        raise PositionError(f"the window from {start!r} to {end!r} ends before it begins: swap them")


def _decoded(entry: Entry[Any]) -> tuple[Any, str | None]:
    """(event, None), or (None, what is wrong with it); or both of one that is not encrypted, and should be."""
    from rstream.codec import unpack_payload
    from rstream.errors import EntryInvalid
    from rstream.event import jsonable

    try:
        return jsonable(entry.event), None
    except EntryInvalid as error:
        told = f"{error.reason}: {error}"
        if error.reason != "plaintext":
            return None, told
    try:  # whoever looks at it wants to see what it is
        return jsonable(unpack_payload(entry.payload)[1]), told
    except EntryInvalid:
        return None, told


def _json_line(entry: Entry[Any], event: Any, error: str | None) -> str:
    from rstream.event import jsonable

    row = {
        "id": str(entry.id),
        "key": entry.key,
        "time": time_of(entry.id),
        "event_id": str(uuid.UUID(bytes=entry.event_id)) if len(entry.event_id) == 16 else None,
        "headers": jsonable(entry.headers),
    }
    told = {} if error is None else {"error": error}
    shown = {} if event is None and told else {"event": event}
    return json.dumps(row | shown | told, ensure_ascii=False, allow_nan=False)


def _table_line() -> Callable[[Entry[Any], Any, str | None], str]:
    """Lines of an endless table: only the last column varies, and is cut to fit where somebody looks at it."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def line(entry: Entry[Any], event: Any, error: str | None) -> str:
        text = json.dumps(event, ensure_ascii=False) if error is None or event is not None else ""
        text = text if error is None else f"!! {error} {text}".rstrip()
        headers = f" {json.dumps(entry.headers, ensure_ascii=False)}" if entry.headers else ""
        row = f"{entry.id!s:<22} {time_of(entry.id) or '-':<24} {entry.key or '-':<12} {text}{headers}"
        row = "".join(c if c.isprintable() else "�" for c in row)
        return row if not width or len(row) <= width else f"{row[: width - 1]}…"

    return line


def time_of(id: EntryId) -> str | None:
    """When the entry was published, by Redis's clock; None for an id that is no time."""
    try:
        at = datetime.fromtimestamp(id.ms // 1000, UTC).replace(microsecond=id.ms % 1000 * 1000)
    except (ValueError, OverflowError, OSError):
        return None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
