"""`rstream streams` and `rstream groups`: what there is, and how far it has been processed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.read import time_of
from rstream.cli.reshard import reshard
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.event import EntryId
    from rstream.store.stats import GroupStats, ShardGroupStats, StreamStats


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
        _table(["STREAM", "ENTRIES", "SHARDS", "KEY", "FROM", "TO", "GROUPS"], rows, right={1, 2})


streams.add_command(reshard)


class StreamOrCommand(click.Group):
    """`reset` is a command, anything else the stream to show. A command's module is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["show", "reset"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "reset":
            return super().get_command(ctx, cmd_name)
        found = import_module("rstream.cli.reset").reset
        assert isinstance(found, click.Command)
        return found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.list_commands(ctx), *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=StreamOrCommand, subcommand_metavar="STREAM [OPTIONS] | reset STREAM ...")
def groups() -> None:
    """Show how far the groups of a stream are, or have one read again.

    `rstream groups STREAM` is short for `rstream groups show STREAM`, whose help lists its options; a stream called
    reset needs the long form.

    \b
    Examples:
      rstream groups orders
      rstream groups orders --shards --group billing
      rstream groups reset orders --group billing --to -2h
      rstream groups reset orders --group billing --to latest --execute
    """


@groups.command()
@click.argument("stream")
@click.option("--shards", "by_shard", is_flag=True, help="Every shard on its own, with its owner.")
@click.option("--group", "-g", help="Only this group.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects, positions per shard included.")
@target_options
def show(stream: str, by_shard: bool, group: str | None, as_json: bool) -> None:
    """Show how far the groups of a stream are, and which workers hold what.

    UNREAD: entries that nobody was given yet (? or unknown where Redis cannot tell) · PENDING: given to a worker or
    waiting, and not settled · BEHIND: the age of the oldest entry that is not processed.

    With --shards: OWNER and EPOCH of an ordered group (- where it is not ordered, nobody where no worker owns the shard
    at the moment) · POSITION: what was delivered last · OLDEST, AGE and HELD BY: the oldest pending entry · ASIDE: put
    aside until the key's turn comes. Shards of older generations, which are not written to any more, are marked.

    \b
    Examples:
      rstream groups orders
      rstream groups orders --shards --group billing
      rstream groups orders --json | jq '.[] | select(.behind_seconds > 60) | .name'
    """
    from rstream.store.stats import find, group_stats

    with stored_app() as app:
        layout = app.open(stream).sync.layout()
        found = app.sync_link.run(group_stats(layout))
    if group is not None:
        found = [find(found, group, layout)]
    if as_json:
        rows = [_group_row(stats, by_shard=by_shard) for stats in found]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"No groups read {stream} yet. A worker makes those of its app's consumers:")
        click.echo("  rstream worker MODULE:APP")
    elif by_shard:
        _show_shards(found)
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


def _group_row(stats: GroupStats, *, by_shard: bool) -> dict[str, Any]:
    row = {
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
    return row | {"shards": [*map(_shard_row, stats.shards)]} if by_shard else row


def _shard_row(stats: ShardGroupStats) -> dict[str, Any]:
    return {
        "generation": stats.shard.generation,
        "shard": stats.shard.number,
        "older": stats.older,
        "owner": stats.owner,
        "epoch": stats.epoch,
        "position": _text(stats.position),
        "lag": stats.lag,
        "behind_seconds": stats.behind,
        "pending": stats.pending,
        "oldest_pending": _text(stats.oldest),
        "oldest_pending_seconds": stats.oldest_age,
        "held_by": stats.holder,
        "parked": stats.parked,
        "retries": stats.retries,
        "dead": stats.dead,
    }


def _show_groups(found: Sequence[GroupStats]) -> None:
    rows = []
    for stats in found:
        counts = ["?" if stats.lag is None else f"{stats.lag:,}"]
        counts += [f"{number:,}" for number in (stats.pending, stats.retries, stats.dead)]
        alive = sum(worker.alive for worker in stats.workers)
        rows.append([stats.name, *counts, _ago(stats.behind), f"{alive} of {len(stats.workers)} alive"])
    _table(["GROUP", "UNREAD", "PENDING", "RETRIES", "DEAD", "BEHIND", "WORKERS"], rows, right={1, 2, 3, 4, 5})
    waiting = [[stats.name, f"{n:,}", _WAITING[why]] for stats in found for why, n in stats.waiting.items() if n]
    if waiting:
        click.echo()
        _table(["GROUP", "WAITING", "FOR"], waiting, right={1})
    workers = [
        [stats.name, worker.worker, f"{worker.pending:,}", "alive" if worker.alive else "silent"]
        for stats in found
        for worker in stats.workers
    ]
    if workers:
        click.echo()
        _table(["GROUP", "WORKER", "PENDING", "LEASE"], workers, right={2})
    _tell_missing(found)


_WAITING = {
    "released": "any worker, which takes it at once",
    "again": "any worker: redriven or reset",
    "retry": "its next attempt",
    "parked": "its key's turn: put aside",
}


def _tell_missing(found: Sequence[GroupStats]) -> None:
    for stats in found:
        if stats.missing:
            lost = ", ".join(map(str, stats.missing))
            click.echo(
                f"group {stats.name} is gone from shard {lost}: a worker will read there from the start", err=True
            )


def _show_shards(found: Sequence[GroupStats]) -> None:
    head = ["GROUP", "SHARD", "OWNER", "EPOCH", "POSITION", "UNREAD", "BEHIND", "PENDING"]
    head += ["OLDEST", "AGE", "HELD BY", "ASIDE"]
    rows = [[stats.name, *_shard_cells(shard)] for stats in found for shard in stats.shards]
    _table(head, rows, right={3, 5, 6, 7, 9, 11})
    _tell_missing(found)


def _shard_cells(stats: ShardGroupStats) -> list[str]:
    owner = "-" if stats.owner is None else stats.owner or "nobody"
    unread = "unknown" if stats.lag is None else f"{stats.lag:,}"
    return [
        f"{stats.shard} older" if stats.older else str(stats.shard),
        owner,
        str(stats.epoch or "-"),
        place(stats.position),
        unread,
        _ago(stats.behind),
        f"{stats.pending:,}",
        stats.oldest.redis if stats.oldest else "-",
        _ago(stats.oldest_age),
        stats.holder or "-",
        f"{stats.parked:,}",
    ]


def place(position: EntryId | None) -> str:
    """Where a group is in a shard, without the shard."""
    from rstream.event import MAX_PART

    if position is None:
        return "missing"
    if position.seq < MAX_PART:
        return position.redis
    return "end" if position.ms == MAX_PART else f"before {position.ms + 1}-0"


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
