"""Ends a process whose handler went past its hard limit, or whose event loop does not turn: a thread, for neither may
be able to tell. Before that it writes all stacks to stderr, for whoever has to find out why.

The deliveries of the process are then taken over as those of any dead worker: nobody keeps a lease for ever.

Nothing that may block is done here: stderr may be a pipe that nobody reads, and whoever logs may hold the lock of the
handler for ever. The stacks are written to a pipe of our own, and told by threads that nobody waits for in vain.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from functools import partial

from rstream.process import clock
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""

LOOK = 0.5
STALL_TOLD = 10.0
STALL_ENDED = 15 * 60.0
"""Seconds for which the loop may not turn before that is told, and before the process is ended."""

STDERR = 2
STACKS_PATIENCE, LOG_PATIENCE = 2.0, 3.0
"""Seconds that a process which ends waits for its stacks to be written, and then for its last words to be logged."""
STACKS_BYTES = 1024 * 1024


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
        looks += [partial(self._check_handlers, run) for run in self._runs]
        while not self._stop_asked.wait(LOOK):
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
    """What every thread is doing. faulthandler holds the GIL while it writes, and must never do that to stderr itself;
    making that non-blocking instead would do so for all processes that share it.
    """
    try:
        reader, writer = os.pipe()
    except OSError as error:
        return f"no stacks: {error}\n".encode()
    try:
        with contextlib.suppress(AttributeError, OSError):  # without it 64 KiB have to do
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, STACKS_BYTES)
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)  # a process that was forked meanwhile has the other end open, too
        faulthandler.dump_traceback(file=writer, all_threads=True)
        return _read_all(reader)
    finally:
        os.close(reader)
        os.close(writer)


def _read_all(reader: int) -> bytes:
    found = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 65536):
            found.append(part)
    return b"".join(found)


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
