"""`rstream dev`: the embedded server in the foreground."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from urllib.parse import quote

import click

from rstream.cli.signals import Stopped, raising


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where it keeps its data.  [default: RSTREAM_HOME, else the user's data directory]")  # fmt: skip
def dev(directory: Path | None) -> None:
    """Run a Redis-compatible server here, for development, until Ctrl-C.

    It listens on a unix socket only, and keeps its data. It stays up as long as anything uses it; a program that
    uses the same embedded:DIR needs no `rstream dev`, which is for looking at it with other clients.

    \b
    Examples:
      rstream dev
      rstream dev --dir ./data
    """
    from rstream.store.embedded import attach

    try:
        with raising(signal.SIGTERM, signal.SIGINT), attach(directory) as server:
            url = f"embedded:{server.directory}"
            click.echo(f"{url}\nunix://{quote(str(server.socket))}\nexport RSTREAM_URL={shlex.quote(url)}")
            click.echo("The second is for other clients, as long as this runs. Ctrl-C ends it.", err=True)
            while True:
                signal.pause()
    except Stopped:
        click.echo("Ended.", err=True)
