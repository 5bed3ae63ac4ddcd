"""`rstream streams`: what there is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.read import time_of
from rstream.cli.reshard import reshard
from rstream.cli.retention import retention
from rstream.cli.tables import table, text
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.store.stats import StreamStats


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects, the shards of each included.")
@target_options
@click.pass_context
def streams(context: click.Context, as_json: bool) -> None:
    """List the streams: how many entries, from when to when, and who reads them.

    \b
    Examples:
      rstream streams
      rstream streams --json | jq '.[] | {name, entries}'
      rstream streams reshard orders --shards 16 --dry-run
      rstream streams retention orders --age 7d --bytes 2GiB
    """
    if context.invoked_subcommand is not None:
        return
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
        table(["STREAM", "ENTRIES", "SHARDS", "KEY", "FROM", "TO", "GROUPS"], rows, right={1, 2})


streams.add_command(reshard)
streams.add_command(retention)


def _all_streams(app: RStream) -> list[StreamStats]:
    """Three round trips, however many streams there are."""
    from rstream.store import layout as layouts
    from rstream.store.link import together
    from rstream.store.stats import stream_stats

    namespace = app.settings.namespace
    names = app.sync_link.run(layouts.names(namespace))
    if not names:
        return []
    stored = app.sync_link.run(together([layouts.load(namespace, name) for name in names]))
    for name, layout in zip(names, stored, strict=True):
        if layout is None:
            click.echo(f"stream {name!r} was declared, but its declaration is gone: Redis lost data", err=True)
    known = [layout for layout in stored if layout is not None]
    return app.sync_link.run(together([stream_stats(layout) for layout in known])) if known else []


def _stream_row(stats: StreamStats) -> dict[str, Any]:
    layout = stats.layout
    return {
        "name": layout.name,
        "key": layout.key,
        "generation": layout.generation,
        "shards": layout.shards,
        "entries": stats.entries,
        "first_id": text(stats.first),
        "last_id": text(stats.last),
        "groups": stats.groups,
        "per_shard": [
            {
                "generation": s.shard.generation,
                "shard": s.shard.number,
                "entries": s.entries,
                "first_id": text(s.first),
                "last_id": text(s.last),
            }
            for s in stats.shards
        ],
    }


def _stream_cells(stats: StreamStats) -> list[str]:
    first, last = (time_of(id) if id else None for id in (stats.first, stats.last))
    layout = stats.layout
    counts = [f"{stats.entries:,}", str(layout.shards)]
    return [layout.name, *counts, layout.key or "-", first or "-", last or "-", ", ".join(stats.groups) or "-"]
