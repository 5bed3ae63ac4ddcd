"""`rstream groups remove`: a group that nobody needs any more."""

from __future__ import annotations

import click

from rstream.cli.target import stored_app, target_options


@click.command()
@click.argument("stream")
@click.option("--group", "-g", required=True, help="The group to be removed.")
@click.option("--execute", is_flag=True, help="Do it. Without, it is only said what would be done.")
@target_options
def remove(stream: str, group: str, execute: bool) -> None:
    """Remove a group, so that it keeps nothing from being trimmed any more. No entry is removed, and no other group
    notices.

    Its position goes, its pending deliveries and waiting retries. Refused while workers of it are alive, and while
    it has dead letters: redrive or discard them first. A worker of the group that is started later makes it anew, from
    where its consumer says (`start=`).

    \b
    Examples:
      rstream groups remove orders --group shadow
      rstream groups remove orders --group shadow --execute

    \b
    Exit codes: 0 done, or only told · 1 an error, or the group is live or has dead letters · 2 wrong usage
    """
    from rstream.store.remove import remove as steps
    from rstream.store.steps import drive_sync

    with stored_app() as app:
        layout = app.open(stream).sync.layout()
        stats = drive_sync(app.sync_link, steps(layout, group, dry=not execute), app.settings.publish_timeout)
    unread = "?" if stats.lag is None else f"{stats.lag:,}"
    what = f"group {group} of stream {stream}: {unread} unread, {stats.pending:,} pending"
    click.echo(f"Removed {what}." if execute else f"Would remove {what}. Nothing was changed; add --execute to do it.")
