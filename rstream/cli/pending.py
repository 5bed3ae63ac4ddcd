"""`rstream pending`: who holds what, since when, and what it waits for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.loop import Span, since, with_stream
from rstream.cli.tables import table
from rstream.cli.target import target_options

if TYPE_CHECKING:
    from rstream.operate import Pending

STATES = ("held", "silent", "released", "again", "retry", "parked")


@click.command()
@click.argument("stream")
@click.option("--group", "-g", required=True, help="The group that was given them.")
@click.option("--worker", metavar="ID", help="Only what this worker holds.")
@click.option("--key", help="Only entries of this key.")
@click.option("--state", type=click.Choice(STATES), help="Only those; what they mean is above.")
@click.option("--older-than", type=Span(), default=0.0, metavar="SPAN", help="Published so long ago at least: 10m, 2h.")
@click.option(
    "--held-for", type=Span(), default=0.0, metavar="SPAN", help="With whoever has them for so long at least."
)
@click.option("--after", metavar="ID", help="Go on behind this entry: what came last before.")
@click.option(
    "--limit", "-n", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@target_options
def pending(stream: str, group: str, after: str | None, limit: int, as_json: bool, **which: Any) -> None:
    """List what a group was given and has not settled, the oldest entry first: who holds it, since when, what for.

    \b
    held      a worker has it, whose lease holds: its handler runs, or it waits in that worker's memory
    silent    a worker has it that is dead, frozen or cut off; others take over within 1.5 leases
    released  a worker that ended handed it back; any takes it at once
    again     it was redriven, replayed or reset, and waits for a worker
    retry     its handler failed; DUE says when its next attempt is
    parked    its key has others before it: BEHIND says which

    HEARD: when its worker was last heard of · FOR: how long it has been there · ATTEMPT: how many were begun.

    \b
    Examples:
      rstream pending orders --group billing
      rstream pending orders --group billing --older-than 10m --state held
      rstream pending orders --group billing --key cus_42
      rstream pending orders --group billing --json | jq -r 'select(.state == "silent").id'
    """
    from rstream.event import EntryId
    from rstream.operate import pending as look

    behind = None if after is None else EntryId.parse(after)
    page = with_stream(stream, lambda opened: look(opened, group, limit=limit, after=behind, **which))
    if as_json:
        for one in page.entries:
            click.echo(json.dumps(row(one), ensure_ascii=False, allow_nan=False))
    elif page.entries:
        head = ["ENTRY", "KEY", "STATE", "WORKER", "FOR", "ATTEMPT", "HEARD", "WAITS FOR", "KEPT"]
        table(head, [cells(one) for one in page.entries], right={4, 5, 6})
    elif not page.more:
        click.echo(f"Nothing of group {group} is pending that matches.", err=True)
    if page.more:
        click.echo(f"There are more: --after {page.entries[-1].id}, or --limit", err=True)


def row(one: Pending) -> dict[str, Any]:
    """As JSON has it."""
    from rstream.event import jsonable

    behind = None if one.behind is None else str(one.behind)
    return jsonable(asdict(one)) | {"id": str(one.id), "behind": behind}  # type: ignore[no-any-return]


def cells(one: Pending) -> list[str]:
    heard = "-" if one.heartbeat is None else since(one.heartbeat)
    attempt = f"{one.attempt}" + (" trimmed" if one.trimmed else "")
    return [
        str(one.id),
        one.key or "-",
        one.state,
        one.worker or "-",
        since(one.since),
        attempt,
        heard,
        waits(one),
        kept(one),
    ]


def waits(one: Pending) -> str:
    if one.due is not None:
        return f"due in {since(one.due)}" if one.due > 0 else f"overdue for {since(-one.due)}"
    return f"behind {one.behind}" if one.behind is not None else "-"


def kept(one: Pending) -> str:
    """What its attempts have kept: a checkpoint, cut, and how many steps."""
    parts = [f"{one.steps} steps"] if one.steps else []
    if one.checkpoint_bytes:
        text = json.dumps(_plain(one.checkpoint), ensure_ascii=False) if one.checkpoint is not None else ""
        short = text if 0 < len(text) <= 40 else f"{text[:39]}…" if text else f"{one.checkpoint_bytes:,} bytes"
        parts.append("".join(c if c.isprintable() else "�" for c in short))
    return ", ".join(parts) or "-"


def _plain(value: Any) -> Any:
    from rstream.event import jsonable

    return jsonable(value)
