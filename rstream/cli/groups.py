"""`rstream groups`: how far the groups of a stream are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.remove import remove
from rstream.cli.reset import reset
from rstream.cli.tables import place, said, table, text
from rstream.cli.target import stored_app, target_options
from rstream.cli.trim import show_alarms, show_losses, standings_of

if TYPE_CHECKING:
    from rstream.store.lost import Loss
    from rstream.store.stats import GroupStats, ShardGroupStats
    from rstream.store.trim import Standing


class StreamOrCommand(click.Group):
    """What is no command is the stream to show."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.list_commands(ctx), *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=StreamOrCommand, subcommand_metavar="STREAM [OPTIONS] | reset STREAM ... | remove STREAM ...")
def groups() -> None:
    """Show how far the groups of a stream are, have one read again, or remove one.

    `rstream groups STREAM` is short for `rstream groups show STREAM`, whose help lists its options; a stream called
    reset, remove or show needs the long form.

    \b
    Examples:
      rstream groups orders
      rstream groups orders --shards --group billing
      rstream groups reset orders --group billing --to -2h
      rstream groups reset orders --group billing --to latest --execute
      rstream groups remove orders --group shadow --execute
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

    With --shards: OWNER and EPOCH of an ordered group (nobody where no worker owns the shard at the moment, - where
    none ever did, or the group is not ordered) · POSITION: what was delivered last · OLDEST, AGE and HELD BY: the
    oldest pending entry · ASIDE: put aside until the key's turn comes. Shards of older generations, which are not
    written to any more, are marked.

    \b
    Examples:
      rstream groups orders
      rstream groups orders --shards --group billing
      rstream groups orders --json | jq '.[] | select(.behind_seconds > 60) | .name'
    """
    from rstream.store.lost import losses
    from rstream.store.pause import paused
    from rstream.store.stats import find, group_stats

    with stored_app() as app:
        layout = app.open(stream).sync.layout()
        alarms = standings_of(app, layout)
        found, lost = app.sync_link.run(group_stats(layout)), app.sync_link.run(losses(layout))
        stopped = app.sync_link.run(paused(layout.namespace, layout.name, [stats.name for stats in found]))
    if group is not None:
        found, lost = [find(found, group, layout)], [loss for loss in lost if loss.group == group]
    if as_json:
        rows = [
            _group_row(stats, by_shard=by_shard)
            | _retained(stats.name, lost, alarms)
            | {"paused": stopped[stats.name]._asdict() if stats.name in stopped else None}
            for stats in found
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"No groups read {stream} yet. A worker makes those of its app's consumers:")
        click.echo("  rstream worker MODULE:APP")
    elif by_shard:
        _show_shards(found)
    else:
        _show_groups(found)
    if not as_json:
        for stats in found:
            if stats.name in stopped:
                told = said(stopped[stats.name])
                click.echo(
                    f"group {stats.name} is paused {told} (rstream resume {stats.name} --stream {stream})", err=True
                )
        show_alarms([each for each in alarms if group in (None, each.name)])
        show_losses(lost)


groups.add_command(reset)
groups.add_command(remove)


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
        "position": text(stats.position),
        "lag": stats.lag,
        "behind_seconds": stats.behind,
        "pending": stats.pending,
        "oldest_pending": text(stats.oldest),
        "oldest_pending_seconds": stats.oldest_age,
        "held_by": stats.holder,
        "parked": stats.parked,
        "retries": stats.retries,
        "dead": stats.dead,
    }


def _retained(group: str, lost: Sequence[Loss], alarms: Sequence[Standing]) -> dict[str, Any]:
    alarm = next((each.alarm for each in alarms if each.name == group), "")
    return {"dropped_unprocessed": sum(loss.count for loss in lost if loss.group == group), "alarm": alarm or None}


def _show_groups(found: Sequence[GroupStats]) -> None:
    from rstream.store.keys import ARCHIVE

    rows = []
    for stats in found:
        counts = ["?" if stats.lag is None else f"{stats.lag:,}"]
        counts += [f"{number:,}" for number in (stats.pending, stats.retries, stats.dead)]
        alive = sum(worker.alive for worker in stats.workers)
        who = "the archiver" if stats.name == ARCHIVE else f"{alive} of {len(stats.workers)} alive"
        rows.append([stats.name, *counts, ago(stats.behind), who])
    table(["GROUP", "UNREAD", "PENDING", "RETRIES", "DEAD", "BEHIND", "WORKERS"], rows, right={1, 2, 3, 4, 5})
    waiting = [[stats.name, f"{n:,}", _WAITING[why]] for stats in found for why, n in stats.waiting.items() if n]
    if waiting:
        click.echo()
        table(["GROUP", "WAITING", "FOR"], waiting, right={1})
    workers = [
        [stats.name, worker.worker, f"{worker.pending:,}", "alive" if worker.alive else "silent"]
        for stats in found
        for worker in stats.workers
    ]
    if workers:
        click.echo()
        table(["GROUP", "WORKER", "PENDING", "LEASE"], workers, right={2})
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
    table(head, rows, right={3, 5, 6, 7, 9, 11})
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
        ago(stats.behind),
        f"{stats.pending:,}",
        stats.oldest.redis if stats.oldest else "-",
        ago(stats.oldest_age),
        stats.holder or "-",
        f"{stats.parked:,}",
    ]


def ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds else "-"
