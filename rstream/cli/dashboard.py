"""`rstream dashboard`: streams, groups, pending entries and dead letters in a browser."""

from __future__ import annotations

import click

from rstream.cli.logs import log_options
from rstream.cli.target import stored_app, target_options


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Listen here. Anything but loopback demands a token.")  # fmt: skip
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=8400, show_default=True, help="0: any free one.")
@click.option("--token", envvar="RSTREAM_DASHBOARD_TOKEN", metavar="TOKEN",
              help="Whoever has it may look and act.  [env: RSTREAM_DASHBOARD_TOKEN]")  # fmt: skip
@click.option("--viewer-token", envvar="RSTREAM_DASHBOARD_VIEWER_TOKEN", metavar="TOKEN",
              help="Whoever has it may only look.  [env: RSTREAM_DASHBOARD_VIEWER_TOKEN]")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Without tokens: everybody here may only look.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME",
              help="On loopback, answer to this host name, too (behind a proxy). May be repeated.")  # fmt: skip
@log_options()
@target_options
def dashboard(
    host: str,
    port: int,
    token: str | None,
    viewer_token: str | None,
    read_only: bool,
    hosts: tuple[str, ...],
    log_level: str,
    log_format: str,
) -> None:
    """See in a browser which group lags, what holds it, who owns it and what was lost, and act from there.

    It listens on loopback, where whoever has an account on this machine may look and act. Elsewhere it demands a token:
    that of operators, who act and see what events hold, or that of viewers, who see neither. Every action is logged to
    stderr. Needs the extra `dashboard`.

    \b
    Examples:
      rstream dashboard
      rstream dashboard --read-only --port 9000
      RSTREAM_DASHBOARD_TOKEN=$(openssl rand -hex 20) rstream dashboard --host 0.0.0.0
      ssh -L 8400:localhost:8400 server    # and then http://localhost:8400
    """
    if read_only and token:
        raise click.UsageError(
            "--read-only, and a token for those who act: leave out one, or give --viewer-token alone"
        )
    from rstream.errors import ConfigError
    from rstream.logs import to_stderr

    try:
        from rstream.dashboard.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "jinja2"):
            raise
        why = f"the dashboard needs {error.name}, which is not installed"
        raise ConfigError(f"{why}: pip install starlette uvicorn jinja2 (the extra `dashboard`)") from None
    to_stderr(log_level, log_format)
    serve(
        stored_app(publish_timeout=3.0), host=host, port=port, operator=token or None, viewer=viewer_token or None,
        open="viewer" if read_only else "operator", hosts=hosts, say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
