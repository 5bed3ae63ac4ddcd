"""Ends a process whose handler went past its hard limit, or whose event loop does not turn: a thread, for neither may
be able to tell. Before that it writes all stacks to stderr, for whoever has to find out why.

The deliveries of the process are then taken over as those of any dead worker: nobody keeps a lease for ever.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import threading
from collections.abc import Callable

from rstream.process import clock
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""

LOOK = 0.5
STALL_TOLD = 10.0
STALL_ENDED = 15 * 60.0
"""Seconds for which the loop may not turn before that is told, and before the process is ended."""


class Watchdog(threading.Thread):
    """Watches the handlers of all consumers and the loop itself."""

    def __init__(self, runs: list[ConsumerRun], end: Callable[[str], None] | None = None) -> None:
        super().__init__(name="rstream-watchdog", daemon=True)
        self._runs, self._end = runs, end or end_process
        self._loop = asyncio.get_running_loop()
        self._turned = clock()
        self._told = False
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(LOOK):
            self._check_loop()
            for run in self._runs:
                self._check_handlers(run)

    def _check_loop(self) -> None:
        stalled = clock() - self._turned
        if stalled > STALL_ENDED:
            self._end(f"the event loop has not turned for {stalled:,.0f} s")
        elif stalled > STALL_TOLD and not self._told:
            self._told = True
            log.warning("the event loop has not turned for %.0f s: a handler blocks it; stacks are on stderr", stalled)
            faulthandler.dump_traceback(all_threads=True)
        elif stalled < STALL_TOLD:
            self._told = False
        self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        self._turned = clock()

    def _check_handlers(self, run: ConsumerRun) -> None:
        limit = run.consumer.hard_timeout
        if limit is None:
            return
        now = clock()
        for (shard, id), started in list(run.running.items()):
            if now - started > limit:
                where = run.entry_id(shard, id)
                self._end(f"{run.name}: the handler of entry {where} has run for over {limit:g} s, its hard limit")

    def stop(self) -> None:
        self._stop_asked.set()


def end_process(why: str) -> None:
    """Write down what every thread is doing, and end at once."""
    log.critical("%s: the process ends now, others take over after the lease; stacks are on stderr", why)
    faulthandler.dump_traceback(all_threads=True)
    logging.shutdown()
    os._exit(EXIT_CODE)
