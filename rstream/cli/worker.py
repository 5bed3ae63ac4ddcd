"""`rstream worker`: the consumers of an app, in one process or in many."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import click

from rstream.cli.signals import Stopped, raising
from rstream.cli.target import declared_app, target_options

LEVELS = ["debug", "info", "warning", "error"]


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
              help="Time that running handlers get to finish after SIGTERM or Ctrl-C.")  # fmt: skip
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@target_options
def worker(
    app: str,
    groups: tuple[str, ...],
    concurrency: int | None,
    processes: int,
    burst: bool,
    grace: float,
    log_level: str,
) -> int:
    """Run the consumers of an app, until SIGTERM or Ctrl-C.

    Then it finishes what runs, hands over what has not begun, and exits 0. A second signal ends it at once; another
    worker takes over after the lease.

    \b
    Examples:
      rstream worker shop.events:app
      rstream worker shop.events:app --group billing --processes 4
      rstream worker shop.events:app --burst --log-level warning
    """
    from rstream.worker import supervisor

    alone = supervisor.follow_parent() or processes == 1
    _log_to_stderr(log_level)
    try:
        with raising(signal.SIGTERM):  # until the worker listens itself, there is nothing to finish
            if not alone:
                return supervisor.supervise(sys.argv[1:], processes)
            _run(app, groups, concurrency, burst, grace)
    except Stopped:
        logging.getLogger("rstream").info("stopped before it began")
    return 0


def _run(spec: str, groups: tuple[str, ...], concurrency: int | None, burst: bool, grace: float) -> None:
    app = declared_app(spec)
    from rstream.worker.supervisor import CHECK_ONLY
    from rstream.worker.worker import Worker

    worker = Worker(app, groups or None, concurrency=concurrency, burst=burst, grace=grace)
    if not os.environ.pop(CHECK_ONLY, None):
        worker.run()
        _leave_threads_behind()


def _leave_threads_behind() -> None:
    """A `def` handler that outlived the grace runs elsewhere by now: the process must not wait for it."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.getLogger("rstream").warning("a handler still runs in its thread: the process ends without it")
        logging.shutdown()
        os._exit(0)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s",
    )
