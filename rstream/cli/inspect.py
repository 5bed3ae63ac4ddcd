"""`rstream streams` and `rstream groups`: what there is, and how far it has been processed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.read import time_of
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.store.stats import GroupStats, StreamStats


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects, the shards of each included.")
@target_options
def streams(as_json: bool) -> None:
    """List the streams: how many entries, from when to when, and who reads them.

    \b
    Examples:
      rstream streams
      rstream streams --json | jq '.[] | {name, entries}'
    """
    with stored_app() as app:
        found = _all_streams(app)
        where = f"namespace {app.settings.namespace!r} at {app.endpoint.label}"
    if as_json:
        click.echo(json.dumps([_stream_row(stats) for stats in found], indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"No streams in {where} yet. The first publish declares one:")
        click.echo("  rstream publish STREAM --app MODULE:APP --json '{…}'")
    else:
        rows = [_stream_cells(stats) for stats in found]
        _table(["STREAM", "ENTRIES", "SHARDS", "KEY", "FROM", "TO", "GROUPS"], rows, right={1, 2})


@click.command()
@click.argument("stream")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects, positions per shard included.")
@target_options
def groups(stream: str, as_json: bool) -> None:
    """Show how far the groups of a stream are, and which workers hold what.

    UNREAD: entries that nobody was given yet (? where Redis cannot tell) · PENDING: given to a worker or waiting for
    a retry, and not settled · BEHIND: the age of the oldest entry that is not processed.

    \b
    Examples:
      rstream groups orders
      rstream groups orders --json | jq '.[] | select(.behind_seconds > 60) | .name'
    """
    from rstream.store.stats import group_stats

    with stored_app() as app:
        found = app.sync_link.run(group_stats(app.open(stream).sync.layout()))
    if as_json:
        click.echo(json.dumps([_group_row(stats) for stats in found], indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"No groups read {stream} yet. A worker makes those of its app's consumers:")
        click.echo("  rstream worker MODULE:APP")
    else:
        _show_groups(found)


def _all_streams(app: RStream) -> list[StreamStats]:
    """Three round trips, however many streams there are."""
    from rstream.store import layout as layouts
    from rstream.store.stats import all_layouts, all_streams

    namespace = app.settings.namespace
    names = app.sync_link.run(layouts.names(namespace))
    if not names:
        return []
    stored = app.sync_link.run(all_layouts(namespace, names))
    for name, layout in zip(names, stored, strict=True):
        if layout is None:
            click.echo(f"stream {name!r} was declared, but its declaration is gone: Redis lost data", err=True)
    known = [layout for layout in stored if layout is not None]
    return app.sync_link.run(all_streams(known)) if known else []


def _stream_row(stats: StreamStats) -> dict[str, Any]:
    layout = stats.layout
    return {
        "name": layout.name,
        "key": layout.key,
        "generation": layout.generation,
        "shards": layout.shards,
        "entries": stats.entries,
        "first_id": _text(stats.first),
        "last_id": _text(stats.last),
        "groups": stats.groups,
        "per_shard": [
            {
                "generation": s.shard.generation,
                "shard": s.shard.number,
                "entries": s.entries,
                "first_id": _text(s.first),
                "last_id": _text(s.last),
            }
            for s in stats.shards
        ],
    }


def _stream_cells(stats: StreamStats) -> list[str]:
    first, last = (time_of(id) if id else None for id in (stats.first, stats.last))
    layout = stats.layout
    counts = [f"{stats.entries:,}", str(layout.shards)]
    return [layout.name, *counts, layout.key or "-", first or "-", last or "-", ", ".join(stats.groups) or "-"]


def _group_row(stats: GroupStats) -> dict[str, Any]:
    return {
        "name": stats.name,
        "pending": stats.pending,
        "lag": stats.lag,
        "behind_seconds": stats.behind,
        "retries": stats.retries,
        "dead": stats.dead,
        "waiting": stats.waiting,
        "workers": [asdict(worker) for worker in stats.workers],
        "positions": [str(position) for position in stats.positions],
        "missing_shards": [*map(str, stats.missing)],
    }


def _show_groups(found: Sequence[GroupStats]) -> None:
    rows = []
    for stats in found:
        counts = ["?" if stats.lag is None else f"{stats.lag:,}"]
        counts += [f"{number:,}" for number in (stats.pending, stats.retries, stats.dead)]
        alive = sum(worker.alive for worker in stats.workers)
        rows.append([stats.name, *counts, _ago(stats.behind), f"{alive} of {len(stats.workers)} alive"])
    _table(["GROUP", "UNREAD", "PENDING", "RETRIES", "DEAD", "BEHIND", "WORKERS"], rows, right={1, 2, 3, 4, 5})
    workers = [
        [stats.name, worker.worker, f"{worker.pending:,}", "alive" if worker.alive else "silent"]
        for stats in found
        for worker in stats.workers
    ]
    if workers:
        click.echo()
        _table(["GROUP", "WORKER", "PENDING", "LEASE"], workers, right={2})
    for stats in found:
        if stats.missing:
            lost = ", ".join(map(str, stats.missing))
            click.echo(
                f"group {stats.name} is gone from shard {lost}: a worker will read there from the start", err=True
            )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds else "-"


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: set[int]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            f"{cell:>{w}}" if n in right else f"{cell:<{w}}"
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
