"""`rstream blobs`: what is in the blob store."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from rstream.cli.target import stored_app, target_options

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class Span(click.ParamType[timedelta]):
    """`90m`, `24h` or `7d`."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> timedelta:
        match = re.fullmatch(r"(\d{1,6})([mhd])", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no span: give minutes, hours or days, as 90m, 24h or 7d", param, context)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.group()
def blobs() -> None:
    """Look after the blob store in which large payloads are kept."""


@blobs.command()
@click.argument("stream", required=False)
@click.option("--grace", type=Span(), default="24h", show_default=True, help="Spare what is younger than this.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--forget", metavar="ID", help="Another Redis that has blobs of STREAM there is no more.")
@target_options
def gc(stream: str | None, grace: timedelta, dry_run: bool, forget: str | None) -> None:
    """Delete blobs to which no entry and no dead letter refers any more, of one stream or of all.

    Such are left by trimmed entries, discarded dead letters, and publishes that failed after their upload. Producers
    and workers go on meanwhile. A blob is deleted when the day (UTC) on which it was stored has been over for longer
    than the grace. Nothing is deleted where another Redis has blobs of the same stream, namespace and prefix there.

    \b
    Examples:
      rstream blobs gc --dry-run
      rstream blobs gc orders --grace 7d
    """
    from rstream.blobs.gc import collect
    from rstream.store import layout as layouts

    if forget and not stream:
        raise click.UsageError("--forget is about one stream: name it")
    with stored_app() as app:
        names = [stream] if stream else app.sync_link.run(layouts.names(app.settings.namespace))
        for name in names:
            done = collect(app.open(name), grace, dry_run=dry_run, forget=forget)
            verb = "would delete" if dry_run else "deleted"
            click.echo(
                f"{name}: {verb} {done.deleted:,} of {done.looked:,} blobs, {done.bytes:,} bytes; "
                f"{done.kept:,} are referred to, {done.young:,} are within the grace"
            )
    if not names:
        click.echo("No streams here: `rstream streams` shows what is stored.", err=True)
