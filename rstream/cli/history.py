"""`rstream history`: what happened, and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.groups import ago
from rstream.cli.tables import table
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.buckets import Bucket
    from rstream.store.history import History

SHOWN = ("acked", "retried", "dead", "expired", "fenced", "redelivered", "lost")
RARE = ("skipped", "cancelled")
"""Only where there were any."""

OLD = 60
"""Seconds without a sample from which on that is said."""


class Step(click.ParamType[timedelta]):
    name = "step"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        text = str(value).strip()
        unit = {"m": 60, "h": 3600, "d": 86400}.get(text[-1:])
        if unit is None or not text[:-1].isdecimal():
            self.fail(f"{value!r} is no step: 1m, 15m, 1h, 6h, 1d, say", param, ctx)
        return timedelta(seconds=int(text[:-1]) * unit) if int(text[:-1]) < 10_000 else timedelta.max


@click.command()
@click.argument("stream")
@click.option("--since", metavar="X", default="6h", show_default=True, help="7d, '2h ago', 2026-11-20T09:30.")
@click.option("--until", metavar="X", help="As --since.  [default: now]")
@click.option("--group", "-g", help="Only this group.")
@click.option("--step", metavar="X", type=Step(), help="1m, 15m, 1h, 1d.  [default: by --since]")
@click.option("--json", "as_json", is_flag=True, help="A JSON object, times in which nothing happened included.")
@target_options
def history(
    stream: str, since: str, until: str | None, group: str | None, step: timedelta | None, as_json: bool
) -> None:
    """Show what happened to a stream and to each of its groups, and when.

    It is kept in Redis by the minute for 6 hours and by the hour for 30 days; workers add to it every few seconds. What
    happens while none runs is added by the next, to the minute of its start.

    RETRIED: attempts that failed and are tried again · DEAD: dead letters · EXPIRED: too old to be started · FENCED:
    outcomes that were refused, for the delivery was somebody else's by then · REDELIVERED: taken over from dead
    workers · LOST: dropped, or gone, before they were processed · RESETS: times that Redis was found to have lost data
    · LAG: the highest age that the oldest unprocessed entry was seen to have. Times are UTC; those in which nothing
    happened are left out.

    \b
    Examples:
      rstream history orders
      rstream history orders --since 7d --group billing
      rstream history orders --since 2026-11-17 --until 2026-11-18 --step 1h
      rstream history orders --since 30d --json | jq '[.buckets[].groups.billing.dead] | add'
    """
    from rstream.history import history_of, window

    with stored_app() as app:
        opened = app.open(stream)
        opened.sync.layout()
        found = app.sync_link.run(history_of(opened))
    rows = window(found, since, until, step)
    names = sorted({name for bucket in rows for name in bucket.groups if group in (None, name)})
    if as_json:
        click.echo(json.dumps(_object(stream, found, rows, names), indent=2, ensure_ascii=False))
        return
    _show(stream, rows, names if names or group is None else [group])
    _tell_age(found)


def _object(stream: str, found: History, rows: Sequence[Bucket], names: Sequence[str]) -> dict[str, Any]:
    return {
        "stream": stream,
        "step_seconds": rows[0].seconds if rows else None,
        "now": _time(found.now),
        "sampled": None if found.at is None else _time(found.at),
        "buckets": [
            {
                "start": _time(int(bucket.start.timestamp() * 1000)),
                "published": bucket.published,
                "resets": bucket.resets,
                "groups": {name: _counts(bucket, name) for name in names},
            }
            for bucket in rows
        ],
    }


def _counts(bucket: Bucket, group: str) -> dict[str, Any]:
    from rstream.buckets import GroupCounts

    counts = asdict(bucket.groups.get(group, GroupCounts()))
    return {name: counts.pop(name) for name in (*SHOWN, *RARE)} | {"behind_seconds": counts.pop("behind")}


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _show(stream: str, rows: Sequence[Bucket], names: Sequence[str]) -> None:
    if not any(rows):
        click.echo(f"Nothing is known to have happened to {stream} in that time.")
        return
    long = rows[0].seconds % 86400 == 0
    for number, name in enumerate(names or [""]):
        if number:
            click.echo()
        _table(stream, name, [row for row in rows if row], "%Y-%m-%d" if long else "%Y-%m-%d %H:%M")


def _table(stream: str, group: str, rows: Sequence[Bucket], form: str) -> None:
    from rstream.buckets import GroupCounts

    total = GroupCounts()
    counts = [row.groups.get(group, GroupCounts()) for row in rows]
    for each in counts:
        total.add(each)
    kinds = [kind for kind in (*SHOWN, *RARE) if kind in SHOWN or getattr(total, kind)] if group else []
    lines = [
        [row.start.strftime(form), *_cells(row.published, row.resets, each, kinds)]
        for row, each in zip(rows, counts, strict=True)
        if row.published or row.resets or each != GroupCounts()
    ]
    sums = sum(row.published for row in rows), sum(row.resets for row in rows)
    lines.append(["total", *_cells(*sums, total, kinds)])
    head = [f"{stream}/{group}" if group else stream, "PUBLISHED", *(kind.upper() for kind in kinds), "RESETS"]
    head += ["LAG"] if kinds else []
    table(head, lines, right=set(range(1, len(head))))


def _cells(published: int, resets: int, counts: Any, kinds: Sequence[str]) -> list[str]:
    cells = [f"{published:,}", *(f"{getattr(counts, kind):,}" for kind in kinds), f"{resets:,}"]
    return [*cells, ago(counts.behind)] if kinds else cells


def _tell_age(found: History) -> None:
    if found.at is None:
        click.echo("There is no history of it yet: workers whose app declares the stream add to it.", err=True)
    elif (age := (found.now - found.at) / 1000) > OLD:
        click.echo(
            f"Nobody has added to it for {ago(age)}: no worker whose app declares the stream runs. The next one adds "
            "what happened since, to the minute of its start.",
            err=True,
        )
