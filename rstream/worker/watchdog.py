"""Ends a process whose handler went past its hard limit, or whose event loop does not turn: a thread, for neither may
be able to tell. Before that it writes all stacks to stderr, for whoever has to find out why.

The deliveries of the process are then taken over as those of any dead worker: nobody keeps a lease for ever.

Nothing that may block is done here: stderr may be a pipe that nobody reads, and whoever logs may hold the lock of the
handler for ever. What there is to tell is told by threads that nobody waits for in vain.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from rstream.process import clock
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""

LOOK, SELDOM = 0.5, 2.0
"""Seconds between two looks where handlers have a hard limit, and where only the loop is watched."""
STALL_TOLD = 10.0
STALL_ENDED = 15 * 60.0
"""Seconds for which the loop may not turn before that is told, and before the process is ended."""

STDERR = 2
STACKS_PATIENCE, LOG_PATIENCE = 2.0, 3.0
"""Seconds that a process which ends waits for its stacks to be written, and then for its last words to be logged."""
STACK_DEPTH = 100


class Watchdog(threading.Thread):
    """Watches the handlers of all consumers and the loop itself."""

    def __init__(self, runs: list[ConsumerRun], end: Callable[[str], None] | None = None) -> None:
        super().__init__(name="rstream-watchdog", daemon=True)
        self._runs, self._end = runs, end or end_process
        self._loop = asyncio.get_running_loop()
        self._turned = clock()
        self._told = self._failed = False
        self._telling: threading.Thread | None = None
        self._stop_asked = threading.Event()

    def run(self) -> None:
        looks: list[Callable[[], None]] = [self._check_loop]
        limited = [run for run in self._runs if run.consumer.hard_timeout is not None]
        looks += [partial(self._check_handlers, run) for run in limited]
        while not self._stop_asked.wait(LOOK if limited else min(SELDOM, STALL_TOLD / 5)):
            for look in looks:
                self._guarded(look)

    def _guarded(self, look: Callable[[], None]) -> None:
        """A look that fails must not be the last one of this process."""
        try:
            look()
        except Exception as error:
            if not self._failed:
                self._failed = True
                with contextlib.suppress(RuntimeError):  # no thread to be had
                    _in_background(partial(log.error, "the watchdog could not look, and goes on", exc_info=error))

    def _check_loop(self) -> None:
        stalled = clock() - self._turned
        if stalled > STALL_ENDED:
            self._end(f"the event loop has not turned for {stalled:,.0f} s")
        elif stalled > STALL_TOLD and not self._told:
            self._told = True
            self._tell_of_stall(stalled)
        elif stalled < STALL_TOLD:
            self._told = False
        self._loop.call_soon_threadsafe(self._turn)

    def _tell_of_stall(self, stalled: float) -> None:
        if self._telling is not None and self._telling.is_alive():
            return  # nobody reads it: further reports would only pile up threads
        stacks = _stacks()

        def tell() -> None:
            log.warning("the event loop has not turned for %.0f s: a handler blocks it; stacks are on stderr", stalled)
            _write(stacks)

        self._telling = _in_background(tell)

    def _turn(self) -> None:
        self._turned = clock()

    def _check_handlers(self, run: ConsumerRun) -> None:
        limit = run.consumer.hard_timeout
        if limit is None or run.pool is not None:  # a process of its own is ended by itself, not with the worker
            return
        now = clock()
        for (shard, id), started in list(run.running.items()):
            if now - started > limit:
                where = shard.entry_id(id)
                self._end(f"{run.name}: the handler of entry {where} has run for over {limit:g} s, its hard limit")

    def stop(self) -> None:
        self._stop_asked.set()


def end_process(why: str) -> None:
    """Write down what every thread is doing, and end: at once, or after some seconds where that cannot be written."""
    try:
        _end_without_python(STACKS_PATIENCE + LOG_PATIENCE + 1)
        stacks = _stacks()
        _in_background(partial(_write, stacks)).join(STACKS_PATIENCE)
        _in_background(partial(_last_words, why)).join(LOG_PATIENCE)
    finally:
        os._exit(EXIT_CODE)


def _end_without_python(seconds: float) -> None:
    """End the process, with exit code 1, even where a write of somebody's holds the GIL and this thread never runs
    again. A C thread does that.
    """
    with contextlib.suppress(Exception):
        faulthandler.dump_traceback_later(seconds, exit=True, file=os.open(os.devnull, os.O_WRONLY))


def _last_words(why: str) -> None:
    log.critical("%s: the process ends now, others take over after the lease; stacks are on stderr", why)
    logging.shutdown()


def _stacks() -> bytes:
    """What every thread is doing, the main thread first: it runs the loop. As faulthandler tells it, which stops after
    100 threads. No source lines and no names of threads: reading a file may block, and a lock may be held for ever.
    """
    main = threading.main_thread().ident
    found = sorted(sys._current_frames().items(), key=lambda thread: thread[0] != main)
    return "\n".join(text for ident, frame in found for text in _stack(ident, frame)).encode(errors="replace")


def _stack(ident: int, frame: FrameType | None) -> Iterator[str]:
    yield f"Thread 0x{ident:016x} (most recent call first):"
    depth = 0
    while frame is not None and depth < STACK_DEPTH:
        yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}'
        frame, depth = frame.f_back, depth + 1
    yield "  ...\n" if frame is not None else ""


def _write(stacks: bytes) -> None:
    """May block for ever, without the GIL."""
    with contextlib.suppress(OSError):
        while stacks:
            stacks = stacks[os.write(STDERR, stacks) :]


def _in_background(tell: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(BaseException):
            tell()

    thread = threading.Thread(target=run, name="rstream-watchdog-tells", daemon=True)
    thread.start()
    return thread
