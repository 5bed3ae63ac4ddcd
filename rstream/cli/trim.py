"""`rstream trim`: trim a stream as its retention says, and tell what keeps it from being trimmed further."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.tables import table, text
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.retention import Retention
    from rstream.store.layout import Layout
    from rstream.store.lost import Loss
    from rstream.store.pins import Pin
    from rstream.store.trim import Standing, Tidied
    from rstream.store.weigh import Trim, Weight


@dataclass(slots=True)
class Report:
    """counts: entries that were, or would be, trimmed, by shard."""

    retention: Retention | None
    done: Tidied
    pins: list[Pin]
    losses: list[Loss]
    counts: dict[object, int]


@click.command()
@click.argument("stream")
@click.option("--dry-run", is_flag=True, help="Say what would be trimmed, and trim nothing.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@target_options
def trim(stream: str, dry_run: bool, as_json: bool) -> None:
    """Trim a stream as its retention says, now, and tell what keeps it from being trimmed further.

    Workers and producers do this by themselves. PINNED BY is the group that is behind all others in a shard: nothing
    from the entry on that it has not processed is trimmed, unless the retention says unprocessed=drop.

    \b
    Examples:
      rstream trim orders --dry-run
      rstream trim orders --json | jq '.shards[].pinned_by'
      rstream streams retention orders --bytes 100MB
    """
    with stored_app() as app:
        layout = app.open(stream).sync.layout(fresh=True)
        report = _look(app, layout, dry_run)
    if as_json:
        click.echo(json.dumps(_object(report, layout, dry_run), indent=2, ensure_ascii=False))
    else:
        _show(report, layout, dry_run)


def _look(app: RStream, layout: Layout, dry: bool) -> Report:
    from rstream.retention import Retention
    from rstream.store import layout as layouts
    from rstream.store.lost import losses
    from rstream.store.pins import count_before, pins
    from rstream.store.steps import drive_sync
    from rstream.store.trim import tidy

    link, wait = app.sync_link, app.settings.publish_timeout
    stored = link.run(layouts.load(layout.namespace, layout.name)) or layout
    done = drive_sync(link, tidy(stored, stored.retention or Retention(), dry=dry or stored.retention is None), wait)
    counts: dict[object, int] = {}
    for each in done.trims:
        counts[each.shard] = each.removed
        if dry and each.before is not None:
            counts[each.shard] = drive_sync(link, count_before(each.shard, each.before), wait)
    found = drive_sync(link, pins(stored), wait)
    return Report(stored.retention, done, found, link.run(losses(stored)), counts)


def _object(report: Report, layout: Layout, dry: bool) -> dict[str, Any]:
    pinned = {pin.shard: pin for pin in report.pins}
    trims = {each.shard: each for each in report.done.trims}
    return {
        "stream": layout.name,
        "retention": None if report.retention is None else json.loads(report.retention.to_json()),
        "dry_run": dry,
        "shards": [
            _shard_object(weight, trims.get(weight.shard), pinned.get(weight.shard), report)
            for weight in report.done.weights
        ],
        "groups": [{"name": g.name, "idle_seconds": g.idle, "alarm": g.alarm or None} for g in report.done.groups],
        "dropped_unprocessed": loss_objects(report.losses),
    }


def _shard_object(weight: Weight, trimmed: Trim | None, pin: Pin | None, report: Report) -> dict[str, Any]:
    return {
        "generation": weight.shard.generation,
        "shard": weight.shard.number,
        "entries": weight.held.entries,
        "memory_bytes": None if weight.held.counted < 0 else int(weight.held.memory),
        "trimmed": report.counts.get(weight.shard, 0),
        "trimmed_before": None if trimmed is None or trimmed.before is None else trimmed.before.decode(),
        "stopped_by": None if trimmed is None else trimmed.stopped,
        "pinned_by": None if pin is None else _pin_object(pin),
    }


def _pin_object(pin: Pin) -> dict[str, Any]:
    return {
        "group": pin.group,
        "entry": text(pin.entry),
        "age_seconds": pin.age,
        "holder": pin.holder,
        "holder_alive": pin.alive if pin.holder else None,
        "attempt": pin.attempt or None,
        "unread": pin.unread,
    }


def loss_objects(losses: Sequence[Loss]) -> list[dict[str, Any]]:
    return [
        {
            "group": loss.group,
            "generation": loss.shard.generation,
            "shard": loss.shard.number,
            "count": loss.count,
            "ranges": [{"from": str(r.first), "to": str(r.last), "count": r.number} for r in loss.ranges],
        }
        for loss in losses
    ]


def _show(report: Report, layout: Layout, dry: bool) -> None:
    if report.retention is None:
        click.echo(
            f"{layout.name} keeps everything. To have it trimmed: rstream streams retention {layout.name} --help"
        )
    else:
        click.echo(f"{layout.name}: {report.retention}")
    pinned = {pin.shard: pin for pin in report.pins}
    rows = [_cells(weight, pinned.get(weight.shard), report) for weight in report.done.weights]
    head = ["SHARD", "ENTRIES", "MEMORY", "WOULD TRIM" if dry else "TRIMMED", "PINNED BY", "ENTRY", "AGE", "WHOSE"]
    table(head, rows, right={1, 2, 3, 6})
    show_alarms(report.done.groups)
    show_losses(report.losses)
    if dry:
        click.echo("Nothing was done: this was a dry run")


def standings_of(app: RStream, layout: Layout) -> list[Standing]:
    """The groups of a stream that has a retention, as that sees them."""
    from rstream.store.steps import drive_sync
    from rstream.store.trim import tidy

    if layout.retention is None:
        return []
    return drive_sync(app.sync_link, tidy(layout, layout.retention, dry=True), app.settings.publish_timeout).groups


def show_alarms(groups: Sequence[Standing]) -> None:
    for group in groups:
        if group.alarm:
            click.echo(f"group {group.name}: no worker for {_time(group.idle)}, {_ALARMS[group.alarm]}", err=True)


_ALARMS = {
    "soon": "more than half of group_ttl: after that it loses what retention trims",
    "ignored": "longer than group_ttl: it keeps nothing from being trimmed",
}


def show_losses(losses: Sequence[Loss]) -> None:
    if not losses:
        return
    click.echo()
    rows = []
    for loss in losses:
        for n, each in enumerate(loss.ranges):
            total = f"{loss.count:,}" if n == 0 else ""
            rows.append([loss.group, str(loss.shard), total, each.first.redis, each.last.redis, f"{each.number:,}"])
    table(["GROUP", "SHARD", "DROPPED UNPROCESSED", "FROM", "TO", "ENTRIES"], rows, right={2, 5})


def _cells(weight: Weight, pin: Pin | None, report: Report) -> list[str]:
    from rstream.retention import size_text

    memory = "-" if weight.held.counted < 0 else size_text(weight.held.memory)
    cells = [str(weight.shard), f"{weight.held.entries:,}", memory, f"{report.counts.get(weight.shard, 0):,}"]
    if pin is None:
        return [*cells, "-", "-", "-", "-"]
    return [*cells, pin.group, pin.entry.redis if pin.entry else "unread", _time(pin.age), _whose(pin)]


def _whose(pin: Pin) -> str:
    if pin.holder is None:
        return "unread" if pin.unread is None else f"unread, {pin.unread:,} behind"
    if pin.holder.startswith("~"):
        return f"{pin.holder.lstrip('~')}, attempt {pin.attempt}"
    return f"{pin.holder} ({'alive' if pin.alive else 'silent'}), attempt {pin.attempt}"


def _time(seconds: float) -> str:
    from rstream.retention import text_of

    return text_of(seconds)
