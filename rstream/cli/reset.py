"""`rstream groups reset`: have a group read again, or skip: the plan first, and with `--execute` the deed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.read import POSITION, time_of
from rstream.cli.tables import place, table
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.reset import Plan, Reset


@click.command()
@click.argument("stream")
@click.option("--group", "-g", required=True, help="The group that shall read again, or skip.")
@click.option("--to", required=True, metavar="X", help=f"The first entry to be read: {POSITION}, or '-2h'.")
@click.option("--key", help="Only the entries of this key: they are handled again, in place.")
@click.option("--execute", is_flag=True, help="Do it. Without, the plan is shown and nothing is changed.")
@click.option("--force", is_flag=True, help="Also while workers of the group are alive.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON on stdout.")
@target_options
def reset(stream: str, group: str, to: str, key: str | None, execute: bool, force: bool, as_json: bool) -> None:
    """Have a group read again from a position on, or skip up to one. Other groups do not notice.

    All entries before the position count as done, all from it on are read (again). Deliveries that are pending end
    without being run, and what was kept for them is removed: retries that wait, what is put aside, checkpoints. Dead
    letters stay. Without --execute only the plan is shown.

    With --key, no position is moved: the entries of this key that the group has settled are handled again; what is
    pending is left alone, and what is unread comes anyway.

    Stop the group's workers first. With --force, handlers that run go on, and may overlap with the next run of their
    entry; their outcome is refused (LeaseLost), unless the same worker has read the entry again by then.

    \b
    Examples:
      rstream groups reset orders --group billing --to -2h
      rstream groups reset orders --group billing --to 2026-11-20T09:30Z --execute
      rstream groups reset orders --group billing --to latest --execute
      rstream groups reset orders --group billing --to earliest --key c1 --execute

    \b
    Exit codes: 0 done, or the plan shown · 1 an error, or the group is live · 2 wrong usage
    """
    from rstream import reset as resets
    from rstream.errors import GroupLive
    from rstream.store.steps import drive_sync

    with stored_app() as app:
        layout, wait = app.open(stream).sync.layout(), app.settings.publish_timeout
        plan = drive_sync(app.sync_link, resets.plan(layout, group, to, key), wait)
        if not as_json:
            _show(plan)
        done: Reset | None = None
        try:
            if execute:
                done = drive_sync(app.sync_link, resets.execute(plan, forced=force), wait)
        except GroupLive:
            if as_json:
                click.echo(_json(plan, None))
            raise
    if as_json:
        click.echo(_json(plan, done))
    else:
        click.echo(_hint(plan) if done is None else _told(plan, done))


def _show(plan: Plan) -> None:
    of = f", for key {plan.key}" if plan.key is not None else ""
    click.echo(f"Group {plan.group} of stream {plan.layout.name}: from {_start(plan)} on{of}\n")
    _show_moves(plan)
    click.echo()
    if plan.key is None:
        pending = f"{plan.returning + plan.dropped:,} end without being run"
        click.echo(f"read again: {_entries(plan.again)} · skipped unread: {_entries(plan.skipped)}")
        click.echo(f"pending: {pending}: {plan.returning:,} of them are read again, {plan.dropped:,} are dropped")
    else:
        click.echo(f"handled again: {_entries(plan.again)} · pending, and left alone: {_entries(plan.left)}")
    if plan.dead:
        click.echo(f"dead letters stay: {plan.dead:,}")
    click.echo(f"live workers: {', '.join(plan.live) or 'none'}")


def _start(plan: Plan) -> str:
    if plan.at is None:
        return "what is published now"
    if not plan.at.ms:
        return "the start"
    return f"{plan.at.redis} ({time_of(plan.at) or 'no time'})"


def _show_moves(plan: Plan) -> None:
    rows = []
    for move in plan.moves:
        name = f"{move.shard} older" if move.older else str(move.shard)
        if plan.key is None:
            counts = move.again, move.skipped, move.returning, move.dropped
            rows.append([name, place(move.old), place(move.new), *(f"{count:,}" for count in counts)])
        else:
            rows.append([name, place(move.new), place(move.old), f"{move.again:,}", f"{move.left:,}"])
    if plan.key is None:
        head = ["SHARD", "READ UP TO", "WILL BE", "AGAIN", "SKIPPED", "PENDING, AGAIN", "DROPPED"]
        table(head, rows, right={3, 4, 5, 6})
    else:
        table(["SHARD", "AFTER", "READ UP TO", "AGAIN", "PENDING"], rows, right={3, 4})


def _entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def _hint(plan: Plan) -> str:
    if plan.live:
        return "Nothing was changed. Stop the live workers and add --execute to do it, or --execute --force."
    return "Nothing was changed. Add --execute to do it."


def _told(plan: Plan, done: Reset) -> str:
    if plan.key is not None:
        return f"Done: {_entries(done.given)} will be handled again, {done.left:,} were left alone."
    return f"Done: the group reads from there, {done.settled:,} pending deliveries ended without being run."


def _json(plan: Plan, done: Reset | None) -> str:
    moves = [
        {
            "generation": move.shard.generation,
            "shard": move.shard.number,
            "older": move.older,
            "old": None if move.old is None else str(move.old),
            "new": str(move.new if plan.key is None else move.old),
            "again": move.again,
            "skipped": move.skipped,
            "pending_again": move.returning,
            "dropped": move.dropped,
            "left": move.left,
        }
        for move in plan.moves
    ]
    told: dict[str, Any] = {
        "stream": plan.layout.name,
        "group": plan.group,
        "key": plan.key,
        "to": str(plan.to),
        "from_id": None if plan.at is None else plan.at.redis,
        "again": plan.again,
        "skipped": plan.skipped,
        "pending_again": plan.returning,
        "dropped": plan.dropped,
        "left": plan.left,
        "dead": plan.dead,
        "live": list(plan.live),
        "shards": moves,
        "executed": done is not None,
    }
    if done is not None:
        told |= {"settled": done.settled} if plan.key is None else {"given": done.given, "left": done.left}
    return json.dumps(told, indent=2, ensure_ascii=False)
