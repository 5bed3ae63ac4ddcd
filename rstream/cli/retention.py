"""`rstream streams retention`: what of a stream is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.retention import Retention
    from rstream.store.layout import Layout


@click.command()
@click.argument("stream")
@click.option("--age", metavar="TIME", help="Trim what is older: 7d, 12h, 30m.  ['none': no such limit]")
@click.option("--entries", metavar="N", help="Trim the oldest above so many, over all shards.  ['none': no such limit]")
@click.option(
    "--bytes", "size", metavar="SIZE", help="As much of Redis's memory: 100MB, 2GiB.  ['none': no such limit]"
)
@click.option("--unprocessed", type=click.Choice(["keep", "drop"]), help="What a group has not processed, at a limit.")
@click.option("--group-ttl", metavar="TIME", help="How long a group without a worker keeps entries.")
@click.option("--soft", type=float, metavar="PART", help="From which part of a limit on producers are slowed.")
@click.option("--none", "nothing", is_flag=True, help="Keep everything.")
@target_options
def retention(
    stream: str,
    age: str | None,
    entries: str | None,
    size: str | None,
    unprocessed: str | None,
    group_ttl: str | None,
    soft: float | None,
    nothing: bool,
) -> None:
    """Show what of a stream is kept, or change it: what is stored here wins over what apps declare.

    A change is in force at once; what it asks to be trimmed is trimmed by workers within seconds, or by `rstream trim`.

    \b
    Examples:
      rstream streams retention orders
      rstream streams retention orders --age 7d --bytes 2GiB
      rstream streams retention orders --unprocessed drop
      rstream streams retention orders --none
    """
    from rstream.errors import ConfigError

    given: dict[str, object] = {"age": age, "entries": entries, "bytes": size, "unprocessed": unprocessed}
    given |= {"group_ttl": group_ttl, "soft": soft}
    changes = {name: value for name, value in given.items() if value is not None}
    if nothing and changes:
        raise ConfigError("--none keeps everything: leave out the other options")
    with stored_app() as app:
        layout = app.open(stream).sync.layout()
        kept = layout.retention
        if nothing or changes:
            kept = None if nothing else _changed(kept, changes)
            _store(app, layout, kept)
    click.echo(f"{stream}: {kept or 'everything is kept'}")


def _changed(before: Retention | None, changes: dict[str, Any]) -> Retention:
    from rstream.errors import ConfigError
    from rstream.retention import Retention

    values: dict[str, Any] = {name: None if value == "none" else value for name, value in changes.items()}
    if (entries := values.get("entries")) is not None:
        if not entries.isdigit():
            raise ConfigError(f"--entries is {entries!r}, it must be a number, or none")
        values["entries"] = int(entries)
    return replace(before or Retention(), **values)


def _store(app: RStream, layout: Layout, kept: Retention | None) -> None:
    from rstream.store.steps import drive_sync
    from rstream.store.trim import retain

    drive_sync(app.sync_link, retain(layout, kept), app.settings.publish_timeout)
