"""`rstream top`: a live screen of all groups."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from rstream.cli.loop import Span, with_app
from rstream.cli.target import target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.top.model import Model


@click.command()
@click.option("--stream", "-s", help="Only this stream.")
@click.option("--interval", "-i", type=Span(), default=2.0, metavar="SPAN", help="Between two looks.  [default: 2s]")
@click.option("--once", is_flag=True, help="Print one frame and end, after two looks: rates need them.")
@click.option("--json", "as_json", is_flag=True, help="With --once: one JSON object for each group and line.")
@target_options
def top(stream: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch all groups: which is behind, which entry holds it and who has that, what died, what was lost.

    Keys sort (s), filter (/), go into a group, its pending entries and one of these (enter), back (escape), pause and
    resume a group (p), cancel an entry (c), and quit (q); ? explains them and the columns. Where Redis goes away that
    is said, and what is shown stays until it is back. Without a terminal, as in a pipe, one frame is printed as with
    --once.

    \b
    Examples:
      rstream top
      rstream top --stream orders --interval 500ms
      rstream top --once --json | jq 'select(.behind_seconds > 60)'
    """
    interval = max(0.1, interval)
    if as_json or once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        with_app(lambda app: _once(app, stream, interval, as_json))
    else:
        with_app(lambda app: _live(app, stream, interval))


async def _once(app: RStream, stream: str | None, interval: float, as_json: bool) -> None:
    import asyncio

    from rstream.top.draw import table
    from rstream.top.fetch import look
    from rstream.top.rows import as_json as told

    model = _model(app, stream)
    model.came(await look(app, stream))
    await asyncio.sleep(interval)
    model.came(await look(app, stream))
    lines = [json.dumps(told(row), ensure_ascii=False) for row in model.rows] if as_json else table(model)
    for line in lines:
        click.echo(line)


async def _live(app: RStream, stream: str | None, interval: float) -> None:
    import logging

    from rstream.top.run import Top

    logging.getLogger("rstream").addHandler(logging.NullHandler())  # what is logged would be written over the screen
    await Top(app, _model(app, stream), interval, color="NO_COLOR" not in os.environ).run()


def _model(app: RStream, stream: str | None) -> Model:
    from rstream.top.model import Model

    if stream is not None:
        app.open(stream)  # or say that there is none
    return Model(only=stream, stream=stream)
