"""`rstream metrics`: what Prometheus scrapes of the fleet."""

from __future__ import annotations

import signal
import threading

import click

from rstream.cli.logs import log_options
from rstream.cli.target import stored_app, target_options

WAIT = 4.0
"""Seconds for one reply."""


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9401,
    show_default=True,
    metavar="PORT",
    envvar="RSTREAM_METRICS_PORT",
    help="Serve /metrics, /healthz and /readyz there; 0 = any.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    envvar="RSTREAM_METRICS_HOST",
    help="The address to listen at: 0.0.0.0 for all. There is no password.",
)
@log_options()
@target_options
def metrics(port: int, host: str, log_level: str, log_format: str) -> None:
    """Serve to Prometheus what Redis knows of all streams and groups, whether workers live or not.

    One of it is enough for a namespace; more of them say the same. Workers tell of themselves: `rstream worker
    --metrics-port`. It needs no worker, starts also while Redis is away, and says then that it is not up. `/healthz`
    says that it lives, `/readyz` whether Redis answers.

    \b
    Examples:
      rstream metrics
      rstream metrics --port 9401 --host 0.0.0.0
      curl -s localhost:9401/metrics | grep lag
    """
    from rstream.logs import to_stderr
    from rstream.metrics.fleet import Fleet
    from rstream.metrics.server import MetricsServer
    from rstream.store.link import SyncLink

    to_stderr(log_level, log_format)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with stored_app() as app:
        fleet = Fleet(SyncLink(app.endpoint, WAIT), app.settings.namespace)
        with MetricsServer(port, fleet.collect, host=host, ready=fleet.ready):
            stopped.wait()
