"""`rstream worker`: the consumers of an app, in one process or in many."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from rstream.cli.logs import log_options
from rstream.cli.signals import Stopped, raising
from rstream.cli.target import declared_app, target_options

if TYPE_CHECKING:
    from rstream.worker.worker import Worker


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--group", "-g", "groups", multiple=True, metavar="G",
              help="Only this group; STREAM/G where streams share its name. Repeatable.  [default: all]")  # fmt: skip
@click.option("--concurrency", "-c", type=click.IntRange(min=1), metavar="N",
              help="Deliveries handled at once per consumer and process.  [default: as declared]")  # fmt: skip
@click.option("--processes", "-p", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Worker processes; one that crashes is started again.")  # fmt: skip
@click.option("--burst", is_flag=True, help="End when everything there is has been handled.")
@click.option("--grace", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
              help="Time that running handlers get to finish after SIGTERM, Ctrl-C or a limit below.")  # fmt: skip
@click.option("--max-handled", type=click.IntRange(min=1), metavar="N",
              help="For code that leaks: replace a process by a fresh one after about N deliveries.")  # fmt: skip
@click.option("--max-rss", type=click.FloatRange(min=0, min_open=True), metavar="MB",
              help="The same once it holds about so many MB of memory, as `top` shows it under RES.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="PORT", envvar="RSTREAM_METRICS_PORT",
              help="Serve /metrics, /healthz, /readyz there.  [default: RSTREAM_METRICS_PORT, else not]")  # fmt: skip
@click.option("--metrics-host", default="127.0.0.1", metavar="HOST", envvar="RSTREAM_METRICS_HOST",
              help="On that address; 0.0.0.0 = on all.  [default: RSTREAM_METRICS_HOST, else 127.0.0.1]")  # fmt: skip
@log_options()
@target_options
def worker(
    app: str,
    groups: tuple[str, ...],
    concurrency: int | None,
    processes: int,
    burst: bool,
    grace: float,
    max_handled: int | None,
    max_rss: float | None,
    metrics_port: int | None,
    metrics_host: str,
    log_level: str,
    log_format: str,
) -> int:
    """Run the consumers of an app, until SIGTERM or Ctrl-C.

    Then it finishes what runs, hands over what has not begun, and exits 0. A second signal ends it at once; another
    worker takes over after the lease.

    --max-handled and --max-rss end a process in the same way, and another is started in its place. Each process draws
    its own limit, up to 10 % lower, so that they do not all go at once, and waits for what runs, however long.

    \b
    Examples:
      rstream worker shop.events:app
      rstream worker shop.events:app --group billing --processes 4
      rstream worker shop.events:app --burst --log-level warning
      rstream worker shop.events:app --processes 4 --max-rss 2000
      rstream worker shop.events:app --log-format json
      rstream worker shop.events:app --metrics-port 9400 --metrics-host 0.0.0.0
    """
    from rstream.logs import to_stderr
    from rstream.worker import supervisor

    recycling = max_handled is not None or max_rss is not None
    supervised = supervisor.follow_parent()
    alone = supervised or (processes == 1 and not recycling)
    to_stderr(log_level, log_format)
    place = None if metrics_port is None or supervised else (metrics_host, metrics_port)
    try:
        with raising(signal.SIGTERM) as raised:  # until the worker listens itself, there is nothing to finish
            if not alone:
                return _supervise(processes, place)
            return _run(app, groups, concurrency, burst, grace, max_handled, max_rss, supervised, place, raised)
    except Stopped:
        logging.getLogger("rstream").info("stopped before it began")
    return 0


def _supervise(processes: int, place: tuple[str, int] | None) -> int:
    """place: host and port of the metrics."""
    from rstream.worker.supervisor import supervise

    if place is None:
        return supervise(sys.argv[1:], processes)
    from rstream.metrics.merge import Processes
    from rstream.metrics.server import MetricsServer

    desk = Processes(processes)
    with MetricsServer(place[1], desk.collect, host=place[0], healthy=desk.healthy, ready=desk.ready):
        return supervise(sys.argv[1:], processes, desk)


def _run(
    spec: str,
    groups: tuple[str, ...],
    concurrency: int | None,
    burst: bool,
    grace: float,
    max_handled: int | None,
    max_rss: float | None,
    supervised: bool,
    place: tuple[str, int] | None,
    raised: list[Stopped],
) -> int:
    app = declared_app(spec)
    from rstream.worker.supervisor import CHECK_ONLY, ECHO, NUMBER, RECYCLED
    from rstream.worker.worker import Worker

    worker = Worker(
        app, groups or None, concurrency=concurrency, burst=burst, grace=grace,
        max_handled=max_handled, max_rss_mb=max_rss,
    )  # fmt: skip
    if os.environ.pop(CHECK_ONLY, None):
        return 0
    worker.echo = ECHO if supervised else 0.0
    worker.alone, worker.process = True, int(os.environ.pop(NUMBER, 0))
    if raised:  # while something was imported that caught it, or could not be told
        raise raised[0]

    def code() -> int:
        return RECYCLED if worker.recycled else 0  # whoever has limits has a supervisor

    with _observed(worker, place) as last_words:

        def leave() -> None:
            last_words()
            _end(code())

        worker.run(leave=leave)
    _leave_threads_behind(code())
    return code()


@contextmanager
def _observed(worker: Worker, place: tuple[str, int] | None) -> Iterator[Callable[[], None]]:
    """Metrics are served at `place`, or told to a supervisor that serves them; what tells them for the last time."""
    from rstream.worker.supervisor import PIPE

    if place is not None:
        from rstream.metrics.collector import Readiness, collect
        from rstream.metrics.server import MetricsServer

        with MetricsServer(place[1], partial(collect, worker), host=place[0], ready=Readiness(worker)):
            yield lambda: None
    elif PIPE in os.environ:
        from rstream.metrics.report import Reporter, inherited

        pipe = inherited()
        assert pipe is not None
        reporter = Reporter(pipe, worker)
        reporter.start()
        try:
            yield reporter.close
        finally:
            reporter.close()
    else:
        yield lambda: None


def _end(code: int) -> None:
    logging.shutdown()
    os._exit(code)


def _leave_threads_behind(code: int) -> None:
    """A `def` handler that outlived the grace runs elsewhere by now: the process must not wait for it."""
    left = [thread for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())]
    for thread in left:
        thread.join(0.2)  # an idle one ends at once
    if any(thread.is_alive() for thread in left):
        logging.getLogger("rstream").warning("a handler still runs in its thread: the process ends without it")
        _end(code)
