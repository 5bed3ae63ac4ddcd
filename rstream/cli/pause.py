"""`rstream pause` and `rstream resume`: have a group's workers begin nothing new, and go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.loop import with_app
from rstream.cli.tables import said
from rstream.cli.target import target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.store.pause import Pause
    from rstream.stream import Stream

_STREAM = click.option(
    "--stream", "-s", help="The stream that it reads. Needed where several have a group of that name."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="A JSON object.")


@click.command()
@click.argument("group")
@_STREAM
@click.option("--why", default="", help="For whoever asks later: workers log it, `groups` and `doctor` show it.")
@_JSON
@target_options
def pause(group: str, stream: str | None, why: str, as_json: bool) -> None:
    """Have the workers of a group begin nothing new, until it is resumed.

    They hear of it at once. What runs ends and is settled. Leases and shards stay where they are, retries that are due
    wait, and workers that start meanwhile begin nothing. Events are published as before; what the group has not
    processed is not trimmed, so watch what the stream may hold: at its limit producers are refused.

    \b
    Examples:
      rstream pause billing --why "the bank is down, ticket 4711"
      rstream pause billing --stream orders
    """
    from rstream.operate import pause as stop

    async def work(app: RStream) -> tuple[str, bool, Pause]:
        opened = await _find(app, group, stream)
        return opened.name, *(await stop(opened, group, why=why))

    name, new, told = with_app(work)
    if as_json:
        click.echo(json.dumps({"stream": name, "group": group, "paused": new, **_row(told)}))
    elif new:
        click.echo(f"Group {group} of stream {name} is paused. What runs ends; nothing new is begun until")
        click.echo(f"  rstream resume {group} --stream {name}")
    else:
        click.echo(f"Group {group} of stream {name} was paused already, {said(told)}.")


@click.command()
@click.argument("group")
@_STREAM
@_JSON
@target_options
def resume(group: str, stream: str | None, as_json: bool) -> None:
    """Have the workers of a paused group go on. They hear of it at once.

    \b
    Examples:
      rstream resume billing
      rstream resume billing --stream orders
    """
    from rstream.operate import resume as go_on

    async def work(app: RStream) -> tuple[str, Pause | None]:
        opened = await _find(app, group, stream)
        return opened.name, await go_on(opened, group)

    name, was = with_app(work)
    if as_json:
        click.echo(
            json.dumps({"stream": name, "group": group, "resumed": was is not None, **(_row(was) if was else {})})
        )
    elif was is not None:
        click.echo(f"Group {group} of stream {name} goes on. It was paused {said(was)}.")
    else:
        click.echo(f"Group {group} of stream {name} is not paused.")


async def _find(app: RStream, group: str, stream: str | None) -> Stream[Any]:
    """The stream that is meant. Raises `ConfigError` where it is not clear which."""
    from rstream.errors import ConfigError
    from rstream.operate import streams_of

    if stream is None:
        found = await streams_of(app, group)
        if not found:
            raise ConfigError(
                f"no stream has a group {group!r}: `rstream streams` lists them, `rstream groups STREAM` its groups"
            )
        if len(found) > 1:
            raise ConfigError(f"streams {', '.join(found)} have a group {group!r}: say which one, by --stream")
        (stream,) = found
    return app.open(stream)


def _row(pause: Pause) -> dict[str, Any]:
    return {"by": pause.by, "at": pause.at, "why": pause.why or None}
